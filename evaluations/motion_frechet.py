"""Motion of generated against real clips by the paths of points: FVMD, but with Lucas-Kanade tracks.

FVMD (Liu et al. 2024, arXiv 2407.16124) tracks points with PIPs++, a network. Here they follow the pyramidal
method of Lucas and Kanade (Bouguet 2001), which has no weights; so the values are NOT comparable with
published FVMD. Of a point at p_t, in 1/256 of the frame's sides, the velocity is v_t = p_(t+1) - p_t and the
acceleration a_t = v_(t+1) - v_t. For both, every cell of 5 x 5 points and 4 steps has a histogram of 8
directions, in which a vector u counts log2(1 + min(|u|, 255)) / 8, as in FVMD but not rounded up. The score
is the Fréchet distance of these histograms. Shapes: B clips, T frames, S steps, P x P points, D bins.
"""

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from common.distributed import Runtime
from evaluations.comparison import Comparison
from evaluations.measures import Frechet, Measure, section

POINTS, CELL, STEPS, DIRECTIONS = 20, 5, 4, 8
SIDE, FASTEST = 256, 255
LUCAS_KANADE = {"winSize": (15, 15), "maxLevel": 3}


def tracks(frames_THW3: np.ndarray) -> np.ndarray:
    """RGB frames, uint8 -> positions (x, y) of the points in pixels, (T, P, P, 2).

    They begin on a regular grid. A point that is lost, or leaves the frame, stays where it was seen last.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THW3]
    size_2 = np.array(grey[0].shape[::-1], np.float32)
    middle_P = (np.arange(POINTS, dtype=np.float32) + 0.5) / POINTS
    paths = [np.stack(np.meshgrid(middle_P, middle_P), -1).reshape(-1, 2) * size_2 - 0.5]
    seen_N = np.ones(POINTS**2, bool)
    for before, after in pairwise(grey):
        next_N2, found_N1, _ = cv2.calcOpticalFlowPyrLK(before, after, paths[-1], None, **LUCAS_KANADE)
        seen_N &= (found_N1[:, 0] == 1) & (next_N2 >= 0).all(1) & (next_N2 <= size_2 - 1).all(1)
        paths.append(np.where(seen_N[:, None], next_N2, paths[-1]))
    return np.stack(paths).reshape(-1, POINTS, POINTS, 2)


def histogram(vectors_SPP2: np.ndarray) -> np.ndarray:
    """(D,): strength of motion by window of steps, row and column of cells, and direction.

    Direction k is k * 45 degrees from right to down, plus and minus 22.5 degrees.
    """
    x, y = vectors_SPP2[..., 0], vectors_SPP2[..., 1]
    direction = np.round(np.arctan2(y, x) * DIRECTIONS / (2 * np.pi)).astype(int) % DIRECTIONS
    step, row, column = np.indices(x.shape) // np.array([STEPS, CELL, CELL])[:, None, None, None]
    cells = POINTS // CELL
    place = ((step * cells + row) * cells + column) * DIRECTIONS + direction
    strength = np.log2(1 + np.hypot(x, y).clip(max=FASTEST)) / np.log2(1 + FASTEST)
    return np.bincount(place.ravel(), strength.ravel(), -(-len(x) // STEPS) * cells**2 * DIRECTIONS)


class PointPaths:
    """An extractor of the histograms of velocity and then of acceleration of a clip."""

    name, min_frames = "point-paths", 3
    preprocessing = f"{POINTS} x {POINTS} points, Lucas-Kanade {LUCAS_KANADE}; OpenCV {cv2.__version__}"

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, 2 D); on the CPU, whatever the device."""
        scale_2 = SIDE / np.array(frames_BT3HW.shape[:2:-1])
        rows = []
        for frames_THW3 in frames_BT3HW.permute(0, 1, 3, 4, 2).contiguous().cpu().numpy():
            velocity_SPP2 = np.diff(tracks(frames_THW3), axis=0) * scale_2
            rows.append(np.concatenate([histogram(velocity_SPP2), histogram(np.diff(velocity_SPP2, axis=0))]))
        return torch.from_numpy(np.stack(rows)).float()[:, None]


def measure(comparison: Comparison, runtime: Runtime) -> dict[str, Any]:
    """The section "motion_frechet" of the results; empty on all processes but the main one."""
    features = comparison.features(PointPaths(), runtime)
    if not runtime.is_main:
        return {}
    steps = features[0].facts["frames"] - 1
    half = -(-steps // STEPS) * (POINTS // CELL) ** 2 * DIRECTIONS
    columns = {"motion_frechet": slice(None), "velocity_frechet": slice(half),
               "acceleration_frechet": slice(half, None)}
    measures = [Measure((name,), "lower", Frechet(comparison.protocol.ddof, part))
                for name, part in columns.items()]
    return {"motion_frechet": section(comparison, features, measures)}
