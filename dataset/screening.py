"""Rejection of clips that are black, flashed or frozen.

Measured on frames as they appear in the grid, in levels of luminance (BT.601, 0 to 255).
Shapes: T frames of a clip, H x W pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from common.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for rejecting clips; the first rule that applies is the reason."""

    black_luminance: float = 8.0
    """black: mean luminance of any frame below this, 0 to 255 (0: off)."""
    flash_overexposed: float = 0.5
    """flash: fraction of a frame with luminance 250 or more above this, 0 to 1 (1: off)."""
    flash_jump: float = 50.0
    """flash: change of mean luminance between consecutive frames above this, 0 to 255 (255: off)."""
    frozen_difference: float = 0.2
    """frozen: mean difference of consecutive frames below this, 0 to 255 (0: off)."""
    frozen_pairs: float = 0.5
    """frozen: fraction of consecutive frame pairs, 0 to 1, from which on the clip is rejected."""

    def __post_init__(self) -> None:
        limits = {"black_luminance": 255, "flash_overexposed": 1, "flash_jump": 255, "frozen_difference": 255,
                  "frozen_pairs": 1}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be 0 to {limit}")


def luminance(pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> uint8 (H, W)."""
    return cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY)


def frame_stats(luma_HW: np.ndarray, previous_HW: np.ndarray | None) -> tuple[float, float, float]:
    """Mean luminance, overexposed fraction, mean absolute difference to the previous frame (else 0)."""
    difference = 0.0 if previous_HW is None else float(cv2.absdiff(luma_HW, previous_HW).mean())
    return float(luma_HW.mean()), float((luma_HW >= 250).mean()), difference


def reason_to_reject(stats_T3: np.ndarray, thresholds: Thresholds) -> str | None:
    """"black", "flash" or "frozen", or None for a good clip, from the `frame_stats` of its frames."""
    brightness, overexposed = stats_T3[:, 0], stats_T3[:, 1]
    if (brightness < thresholds.black_luminance).any():
        return "black"
    jumps = np.abs(np.diff(brightness))
    if (overexposed > thresholds.flash_overexposed).any() or (jumps > thresholds.flash_jump).any():
        return "flash"
    still = stats_T3[1:, 2] < thresholds.frozen_difference
    if still.any() and still.mean() >= thresholds.frozen_pairs:
        return "frozen"
    return None
