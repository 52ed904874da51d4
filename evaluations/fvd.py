"""STAGE: real and generated clips -> FVD and other scores of clips, and copies of training clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.command import run_command
from common.distributed import Runtime
from evaluations.comparison import CompareConfig, Comparison
from evaluations.extractor import Extractor, StyleGANVI3D, VideoGPTI3D, VideoMAE
from evaluations.failures import attempt
from evaluations.measures import section, video_measures
from evaluations.memorisation import memorisation
from evaluations.results import write_results

EXTRACTORS = {extractor.name: extractor for extractor in (StyleGANVI3D, VideoGPTI3D, VideoMAE)}
SECTIONS = {"i3d-styleganv": "fvd", "i3d-videogpt": "fvd-videogpt", "videomae": "cd-fvd"}  # of the results


@dataclass(frozen=True, kw_only=True)
class FVDConfig(CompareConfig):
    """FVD, FVD_inf, KVD, precision, recall, density and coverage of clips; memorisation."""

    features: Literal["i3d-styleganv", "i3d-videogpt", "videomae"] = "i3d-styleganv"
    """Network: the I3D of StyleGAN-V or of VideoGPT, or VideoMAE v2, whose FVD is called CD-FVD."""
    i3d_weights: Path | None = None
    """Weight file of the I3D; default the published file in pretrained_models/."""
    videomae_weights: Path | None = None
    """Weight file of VideoMAE v2; default the published file in pretrained_models/."""

    def video_extractor(self, runtime: Runtime) -> Extractor:
        """The network and the weights that the flags name."""
        path = self.videomae_weights if self.features == "videomae" else self.i3d_weights
        return EXTRACTORS[self.features](path, self.unverified_weights, runtime.device(self.device))


def measure(comparison: Comparison, extractor: Extractor, runtime: Runtime) -> dict[str, Any]:
    """The sections of FVD and of memorisation; empty on all processes but the main one."""
    features = comparison.features(extractor, runtime)
    if not runtime.is_main:
        return {}
    scores = section(comparison, features, video_measures(comparison.protocol.ddof))
    copies = attempt("memorisation", lambda: {"memorisation": memorisation(comparison, *features[:2])})
    return {SECTIONS[extractor.name]: scores, **copies}


def run(config: FVDConfig, runtime: Runtime) -> dict[str, Any]:
    """Compare, write and print."""
    comparison, extractor = config.open(runtime), config.video_extractor(runtime)
    sections = measure(comparison, extractor, runtime)
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(FVDConfig, run)
