"""Motion of generated against real clips: statistics of frame differences, without a network.

FVD is insensitive to frozen or flickering clips, so motion is measured separately. Shapes: B clips, T frames,
H x W pixels.
"""

from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from common.distributed import Runtime
from evaluations.comparison import Comparison
from evaluations.failures import NoValue
from evaluations.features import Features
from evaluations.measures import Measure, section
from evaluations.two_sample import c2st

STATISTICS = ("motion", "jump", "jerk", "flicker", "reversal")
FROZEN = 0.1  # of the real median: a clip that moves less is frozen


def changes(pixels_BTCHW: Tensor) -> Tensor:
    """(B, T - 1): mean absolute change of a pixel from each frame to the next."""
    return pixels_BTCHW.diff(dim=1).abs().mean((2, 3, 4))


def motion(frames_TCHW: np.ndarray) -> float:
    """Mean absolute change of a pixel from frame to frame, 0 to 255; 0 for a still clip or one frame."""
    if len(frames_TCHW) < 2:
        return 0.0
    return float(changes(torch.from_numpy(frames_TCHW)[None].float()).mean())


class FrameDifferences:
    """An extractor of five numbers per clip, in grey levels of 0 to 255, each 0 for a still clip.

    motion: mean absolute change of a pixel from frame to frame; jump: its maximum over frames; jerk: mean
    absolute second difference; flicker: mean absolute change of a frame's mean; reversal: how far a pixel
    goes back on its last change, mean over pixels, which is the flicker of what should stand still.
    """

    name, min_frames = "frame-differences", 3
    preprocessing = f"as they are; {', '.join(STATISTICS)}"

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, 5)."""
        pixels_BT3HW = frames_BT3HW.float()
        change_BT = changes(pixels_BT3HW)
        step_BT3HW = pixels_BT3HW.diff(dim=1)
        before, after = step_BT3HW[:, :-1], step_BT3HW[:, 1:]
        reversal_B = (torch.minimum(before.abs(), after.abs()) * (before * after < 0)).mean((1, 2, 3, 4))
        jerk_B = pixels_BT3HW.diff(n=2, dim=1).abs().mean((1, 2, 3, 4))
        flicker_B = pixels_BT3HW.mean((2, 3, 4)).diff(dim=1).abs().mean(1)
        return torch.stack([change_BT.mean(1), change_BT.amax(1), jerk_B, flicker_B, reversal_B], 1)[:, None]


def _distances(real: Features, generated: Features) -> list[float]:
    """Wasserstein-1 distance of each statistic, in grey levels."""
    return [float(wasserstein_distance(a, b))
            for a, b in zip(real.vectors().T, generated.vectors().T, strict=True)]


def _ratio(statistic: str) -> Measure:
    """Mean of a statistic over that of real clips; `NoValue` if no real clip has any."""
    column = STATISTICS.index(statistic)

    def ratio(real: Features, generated: Features) -> list[float]:
        real_mean, mean = (side.vectors()[:, column].mean() for side in (real, generated))
        if real_mean == 0:
            raise NoValue(f"the real clips have no {statistic}")
        return [float(mean / real_mean)]

    return Measure((f"{statistic}_ratio",), "near 1", ratio)


def _frozen(real: Features, generated: Features) -> list[float]:
    """Fraction of clips that hardly move. Raises: `NoValue` if most real clips do not move."""
    real_median = np.median(real.vectors()[:, 0])
    if real_median == 0:
        raise NoValue("most real clips do not move")
    return [float((generated.vectors()[:, 0] < FROZEN * real_median).mean())]


MEASURES = [Measure(tuple(f"{name}_distance" for name in STATISTICS), "lower", _distances),
            _ratio("motion"), _ratio("reversal"), c2st(lambda x_n1D: x_n1D[:, 0]),
            Measure(("frozen",), "lower", _frozen)]


def measure(comparison: Comparison, runtime: Runtime) -> dict[str, Any]:
    """The section "temporal" of the results; empty on all processes but the main one."""
    features = comparison.features(FrameDifferences(), runtime)
    return {"temporal": section(comparison, features, MEASURES)} if runtime.is_main else {}
