"""Which point each ray meets: sphere tracing of the bent, breathing tube, from coarse to fine pictures."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.geometry import COLS_PER_RADIAN, LESION_Z, ROWS_PER_UNIT, WALL_ROWS, Z_MIN
from dataset.phantom.polyp import Planes, PosedPolyp

FARTHEST = 9.0  # radii; beyond it there is no light
COARSEST = 40  # pixels across the first picture
STEPS = (16, 4, 3)  # to the wall: in the coarsest picture, in those between, in the last
LATE_STEPS = 14  # more in the last picture for rays that graze a fold
ARRIVED = 0.015  # a ray is late if its last step was a larger share of its way
POLYP_STEPS = 11
TOUCHED = 0.006  # a ray that ended so near the polyp met it, radii


@dataclass(frozen=True)
class Surface:
    """Points in the straightened tube, planes of (H, W)."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    axis_distance: np.ndarray
    theta: np.ndarray

    def texels(self) -> tuple[np.ndarray, np.ndarray]:
        """Column and row of the wall maps under each point."""
        row = (self.z - Z_MIN) * ROWS_PER_UNIT
        np.minimum(np.maximum(row, 0, out=row), WALL_ROWS - 1, out=row)
        return self.theta * COLS_PER_RADIAN, row


@dataclass(frozen=True)
class Tube:
    """The wall at one instant; its axis is bend * (z - LESION_Z)**2 away from a straight line."""

    height: np.ndarray  # (WALL_ROWS, COLS + 1): the first column again behind the last
    bend: np.ndarray  # (2,), per radius
    polyp: PosedPolyp | None

    def straighten(self, origin: np.ndarray, rays: Planes, depth: np.ndarray) -> Planes:
        """x, y and z, in the straightened tube, of the points at `depth` along each ray from `origin`."""
        z = origin[2] + depth * rays[2]
        ahead = z - LESION_Z
        ahead *= ahead
        x = origin[0] + depth * rays[0]
        x -= self.bend[0] * ahead
        y = origin[1] + depth * rays[1]
        y -= self.bend[1] * ahead
        return x, y, z

    def surface(self, origin: np.ndarray, rays: Planes, depth: np.ndarray) -> Surface:
        """The same with their polar coordinates."""
        x, y, z = self.straighten(origin, rays, depth)
        return Surface(x, y, z, *cv2.cartToPolar(x, y))

    def wall_gap(self, surface: Surface) -> np.ndarray:
        """Radial distance from points inside the tube to the wall."""
        col, row = surface.theta * COLS_PER_RADIAN, surface.z * ROWS_PER_UNIT
        row -= Z_MIN * ROWS_PER_UNIT
        gap = cv2.remap(self.height, col, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        gap -= surface.axis_distance
        return gap


def sample(image: np.ndarray, col: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bilinear samples of a wall map, round the seam in theta."""
    return cv2.remap(image, col, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def picture_sizes(size: int) -> list[int]:
    """Sizes of the pictures to trace, coarse to fine, each about twice the one before."""
    sizes = [size]
    while sizes[0] > COARSEST:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return sizes


def trace(tube: Tube, origin: np.ndarray, pyramid: list[np.ndarray]) -> np.ndarray:
    """(H, W) distance to the wall along the last rays of `pyramid`, (h, w, 3) directions, coarse to fine."""
    depth = np.full(pyramid[0].shape[:2], 0.02, np.float32)
    for level, rays in enumerate(pyramid):
        if level > 0:  # start a little before the nearest of the coarser neighbours
            nearest = cv2.erode(depth, np.ones((3, 3), np.uint8))
            depth = 0.97 * cv2.resize(nearest, rays.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        planes = cv2.split(rays)
        steps = STEPS[0] if level == 0 else STEPS[1] if level < len(pyramid) - 1 else STEPS[2]
        gap = march(tube, origin, planes, depth, steps)
    late = np.flatnonzero((gap > ARRIVED * depth) & (depth < FARTHEST))
    for part in np.array_split(late, late.size // 16384 + 1):  # cv2.remap takes no more than 32767 in a row
        if part.size:
            reached = depth.reshape(1, -1)[:, part]
            rest = tuple(plane.reshape(1, -1)[:, part] for plane in planes)
            march(tube, origin, rest, reached, LATE_STEPS)
            depth.reshape(-1)[part] = reached[0]
    return depth


def march(tube: Tube, origin: np.ndarray, rays: Planes, depth: np.ndarray, steps: int) -> np.ndarray:
    """Move `depth`, in place, along the rays towards the wall; returns the last gap to it."""
    for _ in range(steps):
        gap = tube.wall_gap(tube.surface(origin, rays, depth))
        gap *= 0.6  # it is measured radially; where the wall is steep, it is nearer
        depth += gap
        np.minimum(np.maximum(depth, 0.02, out=depth), FARTHEST, out=depth)
    return gap


def meet_polyp(tube: Tube, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(H, W) bool, where a ray meets the polyp before the wall; there, `depth` is changed to the polyp's."""
    window, start = tube.polyp.window(origin, rays)
    planes = cv2.split(np.ascontiguousarray(rays[window]))
    reached = np.full(planes[0].shape, start, np.float32)
    for _ in range(POLYP_STEPS):
        gap = tube.polyp.gap(*tube.straighten(origin, planes, reached))
        reached += gap
    met = (gap < TOUCHED) & (reached < depth[window])
    depth[window] = np.where(met, reached, depth[window])
    everywhere = np.zeros(depth.shape, bool)
    everywhere[window] = met
    return everywhere
