"""STAGE: real and generated clips -> FID and other scores of single frames, which ignore motion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command import run_command
from common.distributed import Runtime
from evaluations.comparison import CompareConfig, Comparison
from evaluations.extractor import POOLED, Extractor, Inception
from evaluations.measures import frame_measures, section
from evaluations.results import write_results


@dataclass(frozen=True, kw_only=True)
class FIDConfig(CompareConfig):
    """FID, KID, inception score, precision, recall, density and coverage of frames."""

    inception_weights: Path | None = None
    """Weight file of torch-fidelity's Inception; default the published file in pretrained_models/."""

    def frame_extractor(self, runtime: Runtime) -> Extractor:
        """Inception with the weights that the flags name."""
        return Inception(self.inception_weights, self.unverified_weights, runtime.device(self.device))


def measure(comparison: Comparison, extractor: Extractor, runtime: Runtime) -> dict[str, Any]:
    """The section "fid" of the results; empty on all processes but the main one."""
    features = comparison.features(extractor, runtime)
    measures = frame_measures(comparison.protocol.ddof, POOLED)
    return {"fid": section(comparison, features, measures)} if runtime.is_main else {}


def run(config: FIDConfig, runtime: Runtime) -> dict[str, Any]:
    """Compare, write and print."""
    comparison, extractor = config.open(runtime), config.frame_extractor(runtime)
    sections = measure(comparison, extractor, runtime)
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(FIDConfig, run)
