"""STAGE: real and generated clips -> FID and its relatives, frame by frame: blind to motion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command import run_command
from common.distributed import Runtime
from evaluations.comparison import CompareConfig, Comparison
from evaluations.extractor import POOLED, Extractor, Inception
from evaluations.measures import frame_measures, make_views, score_views
from evaluations.results import extraction_facts, write_results


@dataclass(frozen=True, kw_only=True)
class FIDConfig(CompareConfig):
    """FID, KID, inception score, precision, recall, density and coverage of frames."""

    inception_weights: Path | None = None
    """Weight file of torch-fidelity's Inception; default the published name in pretrained_models/."""


def load_extractor(config: FIDConfig, runtime: Runtime) -> Extractor:
    """Inception with the weights that the flags name."""
    return Inception(config.inception_weights, config.unverified_weights, runtime.device(config.device))


def measure(
    comparison: Comparison, extractor: Extractor, runtime: Runtime
) -> dict[str, Any]:
    """The section "fid" of the results; empty on all processes but the main one."""
    features = comparison.features(extractor, runtime)
    if not runtime.is_main:
        return {}
    views = make_views(comparison.protocol, comparison.class_names, *features)
    scores = score_views(frame_measures(comparison.protocol.ddof, POOLED), views, comparison.config.groups)
    return {"fid": {**extraction_facts(features), "scores": scores}}


def run(config: FIDConfig, runtime: Runtime) -> dict[str, Any]:
    """Compare, write and print."""
    comparison, extractor = Comparison.open(config), load_extractor(config, runtime)
    sections = measure(comparison, extractor, runtime)
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(FIDConfig, run)
