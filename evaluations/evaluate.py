"""STAGE: real and generated clips -> all metrics, one table and one page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.command import run_command
from common.distributed import Runtime
from evaluations import fid, fvd, lite0, motion_frechet, pairs, sharpness, temporal
from evaluations.extractor import Lite0Frames
from evaluations.failures import attempt
from evaluations.results import save_sections, write_results

Metric = Literal["fvd", "fid", "lpips", "temporal", "motion_frechet", "sharpness", "lite0", "reconstruction"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(fvd.FVDConfig, fid.FIDConfig):
    """All metrics, or those of --metrics."""

    metrics: tuple[Metric, ...] = get_args(Metric)
    """What to compute. fvd, fid and lpips need downloaded weights, the others none. fvd and lite0 include
    memorisation. reconstruction is skipped without --reconstruction-path."""
    lpips_weights: Path | None = None
    """Weight file of torchvision's AlexNet; default the published file in pretrained_models/."""


def run(config: EvaluateConfig, runtime: Runtime) -> dict[str, Any]:
    """Load all weights first, then measure, write and print. A metric that fails does not stop the others."""
    comparison, metrics = config.open(runtime), config.metrics
    video = config.video_extractor(runtime) if {"fvd", "lpips"} & set(metrics) else None
    frame = config.frame_extractor(runtime) if "fid" in metrics else None
    lpips = (pairs.LPIPS(config.lpips_weights, config.unverified_weights, comparison.device)
             if "lpips" in metrics else None)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "fvd": lambda: fvd.measure(comparison, video, runtime),
        "fid": lambda: fid.measure(comparison, frame, runtime),
        "temporal": lambda: temporal.measure(comparison, runtime),
        "motion_frechet": lambda: motion_frechet.measure(comparison, runtime),
        "sharpness": lambda: sharpness.measure(comparison, runtime),
        "lite0": lambda: lite0.measure(comparison, Lite0Frames(comparison.device), runtime),
        "lpips": lambda: pairs.measure_lpips(
            comparison, lpips, *comparison.features(video, runtime)[:2], runtime),
        "reconstruction": lambda: pairs.measure_reconstruction(comparison, runtime),
    }
    sections: dict[str, Any] = {}
    for name in (name for name in measures if name in metrics):
        section = fvd.SECTIONS[video.name] if name == "fvd" else name
        sections |= attempt(section, measures[name], runtime)
        if runtime.is_main:
            save_sections(comparison, sections)  # a later metric may be killed
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(EvaluateConfig, run)
