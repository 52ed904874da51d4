"""The head and stalk of a pedunculated polyp: a solid that the wall's height map cannot hold.

All points are in the coordinates of the straightened tube.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.camera import Oscillation, rotate, unit
from dataset.phantom.geometry import ATLAS_ROWS, COLS, LESION_Z, WALL_ROWS

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

    def window(self, origin: np.ndarray, rays: np.ndarray) -> tuple[tuple[slice, slice], float]:
        """Rows and columns of a picture, rays (3, H, W), that alone can show the polyp; a depth before it."""
        balls = BASE + np.linspace(0, 1, 4, dtype=np.float32)[:, None] * self.axis - origin  # along the stalk
        sizes = np.full(4, self.polyp.stalk_radius + 0.14)
        sizes[-1] = self.polyp.head_radius * (1 + 3 * self.polyp.lumps) + 0.08
        distances = np.linalg.norm(balls, axis=1)
        cosines = np.sqrt(np.maximum(0, 1 - (sizes / distances) ** 2))
        near = (rotate(rays, balls / distances[:, None]) > cosines[:, None, None]).any(axis=0)
        rows, cols = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
        start = max(0.02, float((distances - sizes).min()))
        if not rows.size:
            return (slice(0, 1), slice(0, 1)), start
        return (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)), start

    def gap(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance from points outside the polyp to its surface."""
        x, y, z = x - BASE[0], y - BASE[1], z - BASE[2]
        ax, ay, az = self.axis
        head = self._head_gap(x - ax, y - ay, z - az)
        share = x * ax
        share += y * ay
        share += z * az
        share *= 1 / (ax * ax + ay * ay + az * az)
        np.minimum(np.maximum(share, 0, out=share), 1, out=share)
        stalk = length(x - share * ax, y - share * ay, z - share * az) - self.polyp.stalk_radius
        mix = np.minimum(np.maximum(0.5 + (stalk - head) * (0.5 / BLEND), 0), 1)  # polynomial smooth minimum
        return stalk + mix * (head - stalk - BLEND * (1 - mix))

    def _head_gap(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        radius, (a, b, c) = self.polyp.head_radius, self.polyp.lump_phase
        waves = self.polyp.lump_waves / radius
        lumps = np.sin(waves * x + a)
        lumps += np.sin(waves * y + b)
        lumps += np.sin(waves * z + c)
        return length(x, y, z) - radius * (1 + self.polyp.lumps * lumps)

    def normal(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outward unit normal at points on the surface."""
        step, here = 0.012, self.gap(x, y, z)
        steps = ((x + step, y, z), (x, y + step, z), (x, y, z + step))
        normal = [self.gap(*moved) - here for moved in steps]
        scale = 1 / (length(*normal) + 1e-6)
        return tuple(part * scale for part in normal)

    def skin(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and row of the maps' atlas for points on the polyp: on a disc, by angle from the pole."""
        centre, pole = BASE + self.axis, unit(self.axis)
        side = unit(np.cross(pole, np.array([0, 0, 1], np.float32)))
        x, y, z = x - centre[0], y - centre[1], z - centre[2]
        east, north, up = (x * a[0] + y * a[1] + z * a[2] for a in (side, np.cross(pole, side), pole))
        across = cv2.magnitude(east, north)
        scale = cv2.phase(up, across) * ((ATLAS_ROWS / 2 - 2) / np.pi) / (across + 1e-6)
        return COLS / 2 + scale * east, WALL_ROWS + ATLAS_ROWS / 2 + scale * north


def length(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Euclidean length, plane by plane."""
    total = x * x
    total += y * y
    total += z * z
    return np.sqrt(total, out=total)
