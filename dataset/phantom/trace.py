"""Which point each ray meets: sphere tracing of the bent, breathing tube, from coarse to fine pictures."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.geometry import COLS_PER_RADIAN, LESION_Z, ROWS_PER_UNIT, WALL_ROWS, clamp
from dataset.phantom.polyp import PosedPolyp

SHAPE_STEP = 2  # the shape is traced on every second texel of the wall maps
FARTHEST = 9.0  # radii; beyond it there is no light
COARSEST = 40  # pixels across the first picture
STRIDE = 0.6  # of a gap at a time: it is measured radially; where the wall is steep, it is nearer
STEPS = (6, 2)  # to the wall: in the coarsest picture, in each finer one
LATE_STEPS = 10  # more in the last picture for rays that graze a fold
ARRIVED = 0.02  # a ray is late if its last gap was a larger share of its way
UNBROKEN = 0.15  # neighbours whose ways differ by a larger share of the nearer way belong to two folds
POLYP_STEPS = (7, 2, 9)  # to the polyp: in a picture of every second ray, in the last, for late rays there
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
        row = self.z * ROWS_PER_UNIT
        clamp(row, 0, WALL_ROWS - 1)
        return self.theta * COLS_PER_RADIAN, row


@dataclass(frozen=True)
class Tube:
    """The wall at one instant; its axis is bend * (z - LESION_Z)**2 away from a straight line."""

    height: np.ndarray  # every SHAPE_STEP-th texel, and the first column again behind the last
    bend: np.ndarray  # (2,), per radius
    polyp: PosedPolyp | None

    def straighten(
        self, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """(3, H, W) x, y, z, in the straightened tube, of the points at `depth` on the rays from `origin`."""
        points = np.multiply(depth, rays, out=out)
        points += origin[:, None, None]
        ahead = points[2] - LESION_Z
        ahead *= ahead
        for plane, bend in zip(points[:2], self.bend, strict=True):
            cv2.scaleAdd(ahead, -bend, plane, plane)
        return points

    def surface(self, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray) -> Surface:
        """The same with their polar coordinates."""
        x, y, z = self.straighten(origin, rays, depth)
        return Surface(x, y, z, *cv2.cartToPolar(x, y))

    def wall_gap(
        self, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, points: np.ndarray
    ) -> np.ndarray:
        """Radial distance of the same to the wall, positive inside the tube; `points` is room for them."""
        x, y, row = self.straighten(origin, rays, depth, out=points)
        axis_distance, col = cv2.cartToPolar(x, y)
        col *= COLS_PER_RADIAN / SHAPE_STEP
        row *= ROWS_PER_UNIT / SHAPE_STEP
        gap = cv2.remap(self.height, col, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        gap -= axis_distance
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
    """(H, W) distance to the wall along the last rays of `pyramid`, (3, h, w) directions, coarse to fine."""
    depth = np.full(pyramid[0].shape[1:], 0.02, np.float32)
    gap = march(tube, origin, pyramid[0], depth, STEPS[0])
    for rays in pyramid[1:]:
        depth = cv2.resize(before_edges(depth), rays.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
        gap = march(tube, origin, rays, depth, STEPS[1])
    late = np.flatnonzero((gap > ARRIVED * depth) & (depth < FARTHEST))
    for part in np.array_split(late, late.size // 16384 + 1):  # cv2.remap takes no more than 32767 in a row
        if part.size:
            reached = pick(depth, part)
            march(tube, origin, pick(pyramid[-1], part), reached, LATE_STEPS)
            depth.reshape(-1)[part] = reached[0]
    return depth


def pick(planes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(..., H, W) and N places in a picture -> (..., 1, N)."""
    return np.take(planes.reshape(*planes.shape[:-2], 1, -1), places, axis=-1)


def before_edges(depth: np.ndarray) -> np.ndarray:
    """Where a finer picture's rays start: at the edge of a fold, a little before the nearest neighbour."""
    neighbours = np.ones((3, 3), np.uint8)
    nearest = cv2.erode(depth, neighbours)
    edge = cv2.dilate(depth, neighbours) > (1 + UNBROKEN) * nearest
    nearest *= 0.97
    return cv2.copyTo(nearest, edge.view(np.uint8), depth.copy())


def march(tube: Tube, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, steps: int) -> np.ndarray:
    """Move `depth`, in place, along the rays towards the wall; returns the last gap to it."""
    points = np.empty_like(rays)
    for _ in range(steps):
        gap = tube.wall_gap(origin, rays, depth, points)
        cv2.scaleAdd(gap, STRIDE, depth, depth)
        cv2.min(depth, FARTHEST, depth)
    return gap


def meet_polyp(tube: Tube, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(H, W) bool, where a ray meets the polyp before the wall; there, `depth` is changed to the polyp's."""
    window, start = tube.polyp.window(origin, rays)
    rays = rays[(slice(None), *window)]
    coarse = rays[:, ::2, ::2]
    reached = np.full(coarse.shape[1:], start, np.float32)
    approach(tube, origin, coarse, reached, POLYP_STEPS[0])
    reached = cv2.resize(before_edges(reached), rays.shape[:0:-1], interpolation=cv2.INTER_NEAREST)
    gap = approach(tube, origin, rays, reached, POLYP_STEPS[1])
    late = np.flatnonzero((gap >= TOUCHED) & (reached < depth[window]))
    rest = pick(reached, late)
    gap.reshape(-1)[late] = approach(tube, origin, pick(rays, late), rest, POLYP_STEPS[2])[0]
    reached.reshape(-1)[late] = rest[0]
    met = (gap < TOUCHED) & (reached < depth[window])
    depth[window] = np.where(met, reached, depth[window])
    everywhere = np.zeros(depth.shape, bool)
    everywhere[window] = met
    return everywhere


def approach(tube: Tube, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, steps: int) -> np.ndarray:
    """Move `depth`, in place, along the rays towards the polyp; returns the last gap to it."""
    for _ in range(steps):
        gap = tube.polyp.gap(*tube.straighten(origin, rays, depth))
        depth += gap
        cv2.min(depth, FARTHEST, depth)
    return gap
