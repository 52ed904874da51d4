"""Rays as they run in the straightened tube."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dataset.phantom.camera import rotate
from dataset.phantom.geometry import LESION_Z


@dataclass(frozen=True)
class Paths:
    """Rays in the straightened tube, where they are parabolas: start + way * depth + curve * depth**2."""

    start: np.ndarray  # (3, 1, 1), or of T pictures (3, T, 1)
    way: np.ndarray  # (3, H, W), or (3, T, H * W)
    curve: np.ndarray  # the same

    @classmethod
    def of(cls, rays: np.ndarray, position: np.ndarray, rotation: np.ndarray, bend: np.ndarray) -> "Paths":
        """Of a camera's rays (3, H, W); its position and rotation are in the straightened tube, see `Camera`.

        The tube's axis is bend * (z - LESION_Z)**2, (2,), away from a straight line.
        """
        bend = np.array([*bend, 0], np.float32)
        way = rotate(rays, rotation - 2 * (position[2] - LESION_Z) * np.outer(bend, rotation[2]))
        return cls(position.reshape(3, 1, 1), way, -bend.reshape(3, 1, 1) * (way[2] * way[2]))

    @classmethod
    def together(cls, pictures: list["Paths"]) -> "Paths":
        """Those of T pictures of one size as one's."""
        return cls(*(
            np.stack([getattr(paths, name).reshape(3, -1) for paths in pictures], axis=1)
            for name in ("start", "way", "curve")
        ))

    def at(self, depth: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """x, y, z of the points at `depth`."""
        points = np.multiply(self.curve, depth, out=out)
        points += self.way
        points *= depth
        points += self.start
        return points

    def heading(self, depth: np.ndarray) -> np.ndarray:
        """Their direction there."""
        return self.way + self.curve * (2 * depth)

    def part(self, select: Callable[[np.ndarray], np.ndarray]) -> "Paths":
        """Some of them."""
        return Paths(self.start, select(self.way), select(self.curve))
