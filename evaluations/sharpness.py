"""Sharpness of generated against real clips: energy by octave of spatial frequency, without a network.

A blurred clip lacks energy in the finest octaves, a noisy one has too much of it. Shapes: B clips, T frames,
H x W pixels, K octaves.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.distributed import Runtime
from evaluations.comparison import Comparison
from evaluations.failures import NoValue
from evaluations.features import Features
from evaluations.measures import Measure, section
from evaluations.two_sample import c2st

FINEST, MOST = 2, 5  # pixels: shortest wavelength; octaves at most
LUMA = (0.299, 0.587, 0.114)


def octave_energy(frames_NHW: Tensor, octaves: int) -> Tensor:
    """Energy of grey frames by octave, finest first: (N, H, W) -> (N, octaves), in squared grey levels.

    Octave k holds the wavelengths from 2 * 2^k to less than 4 * 2^k pixels. The mean is subtracted, and a
    Hann window hides the jump from one border to the opposite one. Of white noise an octave holds the
    variance times its part of the plane of frequencies.
    """
    height, width = frames_NHW.shape[1:]
    window_HW = torch.outer(torch.hann_window(height), torch.hann_window(width)).to(frames_NHW)
    window_HW /= window_HW.square().mean().sqrt()
    centred_NHW = (frames_NHW - frames_NHW.mean((1, 2), keepdim=True)) * window_HW
    power_NHw = torch.fft.rfft2(centred_NHW, norm="forward").abs().square()
    power_NHw[..., 1 : (width + 1) // 2] *= 2  # the other half of the spectrum is its mirror image
    radius_Hw = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)).to(frames_NHW)
    edges = pairwise(1 / (FINEST * 2**k) for k in range(octaves + 1))
    return torch.stack([(power_NHw * ((radius_Hw > low) & (radius_Hw <= high))).sum((1, 2))
                        for high, low in edges], 1)


def octaves_of(height: int, width: int) -> int:
    """Octaves of which at least four waves fit into a frame of this size."""
    return max(1, min(MOST, int(np.log2(min(height, width) / 4)) - 1))


class OctaveEnergy:
    """An extractor of the energy of a clip's luma by octave, mean over frames."""

    name, min_frames = "octave-energy", 1
    preprocessing = "luma"

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, K)."""
        weights_3 = torch.tensor(LUMA, device=frames_BT3HW.device)
        luma_NHW = torch.einsum("nchw,c->nhw", frames_BT3HW.flatten(0, 1).float(), weights_3)
        energy_NK = octave_energy(luma_NHW, octaves_of(*luma_NHW.shape[1:]))
        return energy_NK.unflatten(0, frames_BT3HW.shape[:2]).mean(1, keepdim=True)


def _ratios(real: Features, generated: Features) -> list[float]:
    """Mean energy of each octave over that of real clips. Raises: `NoValue` if real clips have none."""
    real_K, generated_K = (side.vectors().mean(0) for side in (real, generated))
    if not real_K.all():
        raise NoValue("the real clips have no energy in an octave")
    return (generated_K / real_K).tolist()


def measures(octaves: int) -> list[Measure]:
    """The ratio of each octave, named by its wavelengths, and the two-sample test on the logarithms."""
    names = tuple(f"energy_{FINEST * 2**k}_{FINEST * 2 ** (k + 1)}px" for k in range(octaves))
    return [Measure(names, "near 1", _ratios), c2st(lambda x_n1K: np.log(x_n1K[:, 0] + 1e-6))]


def measure(comparison: Comparison, runtime: Runtime) -> dict[str, Any]:
    """The section "sharpness" of the results; empty on all processes but the main one."""
    features = comparison.features(OctaveEnergy(), runtime)
    octaves = features[0].stored_NRD.shape[-1]
    return {"sharpness": section(comparison, features, measures(octaves))} if runtime.is_main else {}
