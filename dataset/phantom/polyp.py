"""The head and stalk of a pedunculated polyp: a solid that the wall's height map cannot hold.

All points are in the coordinates of the straightened tube.
"""

from dataclasses import dataclass

import numpy as np

from dataset.phantom.camera import Oscillation, unit
from dataset.phantom.geometry import ATLAS_ROWS, COLS, LESION_Z, WALL_ROWS
from dataset.phantom.paths import Paths

BASE = np.array([-1.02, 0.0, LESION_Z], np.float32)  # on the wall at LESION_THETA
BLEND = 0.09  # how softly head and stalk run into one another, radii


@dataclass(frozen=True)
class Polyp:
    """Lengths in tube radii; `lean` is the stalk's tangent along and around the tube."""

    head_radius: float
    stalk_radius: float
    stalk_length: float
    lumps: float
    lump_waves: float  # radians per head radius
    lump_phase: tuple[float, float, float]
    lean: tuple[float, float]
    swing: tuple[Oscillation, Oscillation]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Polyp":
        head_radius = rng.uniform(0.28, 0.38)
        return cls(
            head_radius=float(head_radius),
            stalk_radius=float(head_radius * rng.uniform(0.32, 0.48)),
            stalk_length=float(head_radius + rng.uniform(0.24, 0.42)),
            lumps=float(rng.uniform(0.05, 0.12)),
            lump_waves=float(rng.uniform(2.4, 4.4)),
            lump_phase=tuple(map(float, rng.uniform(0, 2 * np.pi, 3))),
            lean=(float(rng.uniform(-0.3, 0.15)), float(rng.uniform(-0.6, 0.6))),
            swing=(Oscillation.draw(rng, 0.18, 3, 6), Oscillation.draw(rng, 0.18, 3, 6)),
        )

    def at(self, time: float) -> "PosedPolyp":
        """The polyp as it hangs at a time, seconds."""
        lean_z, lean_y = (lean + swing(time) for lean, swing in zip(self.lean, self.swing, strict=True))
        return PosedPolyp(self, self.stalk_length * unit(np.array([1.0, lean_y, lean_z], np.float32)))


@dataclass(frozen=True)
class PosedPolyp:
    """A polyp at one instant; `axis` (3,) leads from its foot to the centre of its head."""

    polyp: Polyp
    axis: np.ndarray

    def window(self, paths: Paths) -> tuple[tuple[slice, slice], float]:
        """Rows and columns of a picture that alone can show the polyp; a depth before it."""
        balls = BASE + np.linspace(0, 1, 4, dtype=np.float32)[:, None] * self.axis  # along the stalk
        sizes = np.full(4, self.polyp.stalk_radius + 0.14)
        sizes[-1] = self.polyp.head_radius * (1 + 3 * self.polyp.lumps) + 0.08
        distances = np.linalg.norm(balls - paths.start.ravel(), axis=1)
        chords = distances * np.sqrt(2 - 2 * np.sqrt(np.maximum(0, 1 - (sizes / distances) ** 2)))
        step, near = 4, False
        some = paths.part(lambda planes: planes[:, ::step, ::step])
        for ball, distance, chord in zip(balls, distances, chords, strict=True):
            near |= length(some.at(float(distance)) - ball.reshape(3, 1, 1)) < chord
        rows, cols = (step * np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
        start = max(0.02, float((distances - sizes).min()))
        if not rows.size:
            return (slice(0, 1), slice(0, 1)), start
        return tuple(slice(max(0, int(at[0]) - step + 1), int(at[-1]) + step) for at in (rows, cols)), start

    def gap(self, points: np.ndarray) -> np.ndarray:
        """Distance from points (3, ...) outside the polyp to its surface."""
        polyp, shape = self.polyp, points.shape[1:]
        points = points.reshape(3, -1) - BASE[:, None]
        square, length_2 = np.einsum("ij,ij->j", points, points), float(self.axis @ self.axis)
        along = self.axis @ points
        waves = polyp.lump_waves / polyp.head_radius
        points *= waves
        points += (polyp.lump_phase - waves * self.axis).astype(np.float32)[:, None]
        lumps = np.sin(points, out=points).sum(axis=0)
        head = np.sqrt(square - 2 * along + length_2) - polyp.head_radius * (1 + polyp.lumps * lumps)
        share = np.minimum(np.maximum(along * (1 / length_2), 0), 1)
        stalk = np.sqrt(square + share * (share * length_2 - 2 * along)) - polyp.stalk_radius
        mix = np.minimum(np.maximum(0.5 + (stalk - head) * (0.5 / BLEND), 0), 1)  # polynomial smooth minimum
        return (stalk + mix * (head - stalk - BLEND * (1 - mix))).reshape(shape)

    def normal(self, points: np.ndarray) -> np.ndarray:
        """Outward unit normal at points (3, N) on the surface."""
        here, steps = self.gap(points), 0.012 * np.eye(3, dtype=np.float32)
        normal = np.stack([self.gap(points + step[:, None]) - here for step in steps])
        return normal / (length(normal) + 1e-6)

    def skin(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and row of the atlas for points (3, N) on the polyp: on a disc, by angle from the pole."""
        centre, pole = BASE + self.axis, unit(self.axis)
        side = unit(np.cross(pole, np.array([0, 0, 1], np.float32)))
        east, north, up = np.stack([side, np.cross(pole, side), pole]) @ (points - centre[:, None])
        across = np.hypot(east, north)
        scale = np.arctan2(across, up) * ((ATLAS_ROWS / 2 - 2) / np.pi) / (across + 1e-6)
        return COLS / 2 + scale * east, WALL_ROWS + ATLAS_ROWS / 2 + scale * north


def length(points: np.ndarray) -> np.ndarray:
    """Euclidean length of points (3, ...)."""
    return np.sqrt(np.einsum("i...,i...", points, points))
