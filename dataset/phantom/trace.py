"""Which point each ray meets: sphere tracing of the bent, breathing tube, from coarse to fine pictures."""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from dataset.phantom.geometry import COLS_PER_RADIAN, ROWS_PER_UNIT
from dataset.phantom.paths import Paths
from dataset.phantom.polyp import PosedPolyp

SHAPE_STEP = 2  # the shape is traced on every second texel of the wall maps
FARTHEST = 9.0  # radii; beyond it there is no light
COARSEST = 32  # pixels across the first picture
STRIDE = 0.6  # of a gap at a time: it is measured radially; where the wall is steep, it is nearer
STEPS = (12, 2)  # to the wall: in the coarsest picture, in each finer one
LATE_STEPS = 8  # more in the last picture for rays that graze a fold
ARRIVED = 0.02  # a ray is late if its last gap was a larger share of its way
BEYOND = 1.05  # a finer picture's rays start at no more than this times the nearest neighbour's way
POLYP_STEPS = (7, 2, 9)  # to the polyp: in a picture of every second ray, in the last, for late rays there
TOUCHED = 0.006  # a ray that ended so near the polyp met it, radii


@dataclass(frozen=True)
class Tube:
    """The wall at one instant."""

    height: np.ndarray  # every SHAPE_STEP-th texel, and the first column again behind the last
    polyp: PosedPolyp | None

    def wall_gap(self, paths: Paths, depth: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Radial distance of points to the wall, positive inside the tube; `points` is room for them."""
        x, y, row = paths.at(depth, out=points)
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
    """Sizes of the pictures to trace, coarse to fine, each at most twice the one before."""
    sizes = [size]
    while sizes[0] > 2 * COARSEST:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return [COARSEST, *sizes]


def trace_first(tube: Tube, pictures: list[Paths]) -> np.ndarray:
    """(T, H, W) distance to the wall along the paths of T coarsest pictures, all of them at once."""
    paths = Paths.together(pictures)
    depth = np.full(paths.way.shape[1:], 0.02, np.float32)
    march(tube, paths, depth, STEPS[0])
    return depth.reshape(-1, COARSEST, COARSEST)


def trace(tube: Tube, depth: np.ndarray, pyramid: list[Paths]) -> np.ndarray:
    """(H, W) distance to the wall along the last of finer and finer pictures; `depth` is the first one's."""
    for paths in pyramid:
        depth = cv2.resize(held_back(depth, BEYOND), paths.way.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
        gap = march(tube, paths, depth, STEPS[1])
    late = np.flatnonzero((gap > ARRIVED * depth) & (depth < FARTHEST))
    for part in np.array_split(late, late.size // 16384 + 1):  # cv2.remap takes no more than 32767 in a row
        if part.size:
            reached = pick(depth, part)
            march(tube, paths.part(partial(pick, places=part)), reached, LATE_STEPS)
            depth.reshape(-1)[part] = reached[0]
    return depth


def pick(planes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(..., H, W) and N places in a picture -> (..., 1, N)."""
    return np.take(planes.reshape(*planes.shape[:-2], 1, -1), places, axis=-1)


def held_back(depth: np.ndarray, share: float) -> np.ndarray:
    """Where a finer picture's rays start: at `share` of the nearest neighbour's way at most."""
    nearest = cv2.erode(depth, np.ones((3, 3), np.uint8))
    nearest *= share
    return cv2.min(depth, nearest, nearest)


def march(tube: Tube, paths: Paths, depth: np.ndarray, steps: int) -> np.ndarray:
    """Move `depth`, in place, along the paths towards the wall; returns the last gap to it."""
    points = np.empty_like(paths.way)
    for _ in range(steps):
        gap = tube.wall_gap(paths, depth, points)
        cv2.scaleAdd(gap, STRIDE, depth, depth)
        cv2.min(depth, FARTHEST, depth)
    return gap


def meet_polyp(polyp: PosedPolyp, paths: Paths, depth: np.ndarray) -> np.ndarray:
    """(H, W) bool, where a path meets the polyp before the wall; there, `depth` is changed to the polyp's."""
    window, start = polyp.window(paths)
    paths = paths.part(lambda planes: planes[(slice(None), *window)])
    coarse = paths.part(lambda planes: planes[:, ::2, ::2].copy())
    reached = np.full(coarse.way.shape[1:], start, np.float32)
    approach(polyp, coarse, reached, POLYP_STEPS[0])
    reached = cv2.resize(held_back(reached, 0.97), paths.way.shape[:0:-1], interpolation=cv2.INTER_NEAREST)
    gap = approach(polyp, paths, reached, POLYP_STEPS[1])
    late = np.flatnonzero((gap >= TOUCHED) & (reached < depth[window]))
    rest = pick(reached, late)
    gap.reshape(-1)[late] = approach(polyp, paths.part(partial(pick, places=late)), rest, POLYP_STEPS[2])[0]
    reached.reshape(-1)[late] = rest[0]
    met = (gap < TOUCHED) & (reached < depth[window])
    depth[window] = np.where(met, reached, depth[window])
    everywhere = np.zeros(depth.shape, bool)
    everywhere[window] = met
    return everywhere


def approach(polyp: PosedPolyp, paths: Paths, depth: np.ndarray, steps: int) -> np.ndarray:
    """Move `depth`, in place, along the paths towards the polyp; returns the last gap to it."""
    for _ in range(steps):
        gap = polyp.gap(paths.at(depth))
        depth += gap
        cv2.min(depth, FARTHEST, depth)
    return gap
