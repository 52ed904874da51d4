"""STAGE: real and generated clips -> all metrics, one table and one page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.command import run_command
from common.distributed import Runtime
from evaluations import fid, fvd, pairs, temporal
from evaluations.comparison import Comparison
from evaluations.failures import attempt
from evaluations.results import save_sections, write_results

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
    """Find all weights first, then measure, write and print. What fails does not keep others from working."""
    comparison, device = Comparison.open(config), runtime.device(config.device)
    video = fvd.load_extractor(config, runtime) if {"fvd", "lpips"} & set(config.metrics) else None
    frame = fid.load_extractor(config, runtime) if "fid" in config.metrics else None
    lpips = (pairs.LPIPS(config.lpips_weights, config.unverified_weights, device)
             if "lpips" in config.metrics else None)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "fvd": lambda: fvd.measure(comparison, video, runtime),
        "fid": lambda: fid.measure(comparison, frame, runtime),
        "temporal": lambda: temporal.measure(comparison, runtime),
        "lpips": lambda: pairs.measure_lpips(
            comparison, lpips, comparison.features(video, runtime)[:2], runtime),
        "reconstruction": lambda: pairs.measure_reconstruction(comparison, runtime),
    }
    sections: dict[str, Any] = {}
    for name in (name for name in measures if name in config.metrics):
        section = fvd.SECTIONS[video.name] if name == "fvd" else name
        sections |= attempt(section, measures[name], runtime)
        if runtime.is_main:
            save_sections(comparison, sections)  # a later metric may be killed
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(EvaluateConfig, run)
