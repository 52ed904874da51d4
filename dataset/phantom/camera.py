"""A wide-angle camera that drifts through the tube: smooth, endless, a function of time alone."""

from dataclasses import dataclass

import numpy as np

from dataset.phantom.geometry import LESION_Z


@dataclass(frozen=True)
class Oscillation:
    """Slow irregular motion: two sine waves. Zero mean, at most `size`."""

    size: float
    periods: np.ndarray  # seconds
    phases: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, size: float, shortest: float, longest: float) -> "Oscillation":
        return cls(size, rng.uniform(shortest, longest, 2) * (1, 0.37), rng.uniform(0, 2 * np.pi, 2))

    def __call__(self, time: float | np.ndarray) -> float | np.ndarray:
        waves = zip(self.periods, self.phases, strict=True)
        slow, fast = (np.sin(2 * np.pi * time / period + phase) for period, phase in waves)
        return self.size * (0.78 * slow + 0.22 * fast)


@dataclass(frozen=True)
class Camera:
    """Where the camera is and looks; angles in radians, lengths in radii, times in seconds."""

    half_angle: float  # from the optical axis to the nearest picture edge
    distance: float  # mean distance along the tube to the lesion site
    gaze: float  # 0 looks down the tube, 1 at the lesion
    roll: float
    advance: Oscillation
    sway: tuple[Oscillation, Oscillation]
    turn: tuple[Oscillation, Oscillation, Oscillation]  # yaw, pitch, roll
    centre: np.ndarray  # (2,) mean offset from the tube's axis

    @classmethod
    def draw(cls, rng: np.random.Generator, gaze: tuple[float, float]) -> "Camera":
        """A random camera whose `gaze` lies in the given range."""
        return cls(
            half_angle=float(np.radians(rng.uniform(46, 60))),
            distance=float(rng.uniform(0.72, 1.15)),
            gaze=float(rng.uniform(*gaze)),
            roll=float(rng.uniform(0, 2 * np.pi)),
            advance=Oscillation.draw(rng, rng.uniform(0.16, 0.3), 6, 12),
            sway=(Oscillation.draw(rng, 0.09, 4, 8), Oscillation.draw(rng, 0.09, 4, 8)),
            turn=tuple(Oscillation.draw(rng, size, 3.5, 8) for size in (0.12, 0.12, 0.22)),
            centre=rng.uniform(-0.2, 0.2, 2),
        )

    def pose(
        self, time: float | np.ndarray, target: np.ndarray, bend: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3): its columns are the camera's right, down and forward.

        `target` (3,) is the lesion site; `bend` (2,) is the curvature of the tube, which the gaze follows.
        For T times at once: `bend` (2, T), position (3, T) and rotation (3, T, 3).
        """
        z = LESION_Z - self.distance + self.advance(time)
        position = np.array([self.centre[0] + self.sway[0](time), self.centre[1] + self.sway[1](time), z])
        down_tube = unit(np.array([*(bend * 3.0 - position[:2]), 2.5 + 0 * z]))
        at_lesion = unit((target - position.T).T)
        forward = unit((1 - self.gaze) * down_tube + self.gaze * at_lesion)
        roll = self.roll + self.turn[2](time)
        right = unit(cross((np.sin(roll), np.cos(roll), 0.05), forward))
        down = cross(forward, right)
        forward = unit(forward + self.turn[0](time) * right + self.turn[1](time) * down)
        right = unit(cross(down, forward))
        rotation = np.stack([right, cross(forward, right), forward], axis=-1)
        return position.astype(np.float32), rotation.astype(np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector, or each of (3, T), scaled to length 1."""
    x, y, z = vector
    return vector / np.sqrt(x * x + y * y + z * z)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Vector product of two vectors, (3,) or (3, T); `numpy.cross` takes ten times as long over one pair."""
    (ax, ay, az), (bx, by, bz) = a, b
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def ray_directions(size: int, half_angle: float) -> np.ndarray:
    """(3, size, size) float32 unit rays, right, down and forward, of an equidistant fisheye lens."""
    edge = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(edge, edge)
    radius = np.sqrt(x * x + y * y) + 1e-6
    angle = radius * half_angle
    scale = np.sin(angle) / radius
    return np.stack([x * scale, y * scale, np.cos(angle)]).astype(np.float32)


def rotate(rays: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(3, H, W) rays, multiplied by (N, 3) from the left."""
    return (rotation @ rays.reshape(3, -1)).reshape(-1, *rays.shape[1:])


def project(points: np.ndarray, half_angle: float) -> np.ndarray:
    """(N, 3) camera coordinates -> (N, 2) places in the picture, -1 to 1: inverts `ray_directions`."""
    across = np.linalg.norm(points[:, :2], axis=1)
    angle = np.arctan2(across, points[:, 2])
    return points[:, :2] * (angle / half_angle / np.maximum(across, 1e-6))[:, None]
