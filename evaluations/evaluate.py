"""STAGE: real and generated clips -> all metrics, one table and one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.command import run_command
from common.distributed import Runtime
from evaluations import fid, fvd, pairs, temporal
from evaluations.comparison import Comparison
from evaluations.results import write_results

Metric = Literal["fvd", "fid", "lpips", "temporal", "reconstruction"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(fvd.FVDConfig, fid.FIDConfig):
    """All metrics, or those of --metrics."""

    metrics: tuple[Metric, ...] = ("fvd", "fid", "lpips", "temporal", "reconstruction")
    """What to compute: fvd (with memorisation), fid, lpips (finds nearest clips as fvd does), temporal,
    reconstruction (if there are reconstructed clips)."""
    lpips_weights: Path | None = None
    """Weight file of torchvision's AlexNet; default the published name in pretrained_models/."""


def run(config: EvaluateConfig, runtime: Runtime) -> dict[str, Any]:
    """Find all weights first, then measure, write and print."""
    comparison, device = Comparison.open(config), runtime.device(config.device)
    video = fvd.load_extractor(config, runtime) if {"fvd", "lpips"} & set(config.metrics) else None
    frame = fid.load_extractor(config, runtime) if "fid" in config.metrics else None
    lpips = (pairs.LPIPS(config.lpips_weights, config.unverified_weights, device)
             if "lpips" in config.metrics else None)
    sections: dict[str, Any] = {}
    if "fvd" in config.metrics:
        sections |= fvd.measure(comparison, video, runtime)
    if frame:
        sections |= fid.measure(comparison, frame, runtime)
    if "temporal" in config.metrics:
        sections |= temporal.measure(comparison, runtime)
    if lpips:
        nearest_by = comparison.features(video, runtime)[:2]
        sections |= pairs.measure_lpips(comparison, lpips, nearest_by, runtime)
    if "reconstruction" in config.metrics:
        sections |= pairs.measure_reconstruction(comparison, runtime)
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(EvaluateConfig, run)
