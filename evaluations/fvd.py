"""STAGE: real and generated clips -> FVD and its relatives, and whether training clips were memorised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.command import run_command
from common.distributed import Runtime
from evaluations.comparison import CompareConfig, Comparison
from evaluations.extractor import Extractor, StyleGANVI3D, VideoGPTI3D
from evaluations.failures import attempt
from evaluations.measures import make_views, score_views, video_measures
from evaluations.memorisation import memorisation
from evaluations.results import extraction_facts, write_results
from evaluations.videomae import VideoMAE

# Section of the results by network: they can stand side by side.
SECTIONS = {"i3d-styleganv": "fvd", "i3d-videogpt": "fvd-videogpt", "videomae": "cd-fvd"}


@dataclass(frozen=True, kw_only=True)
class FVDConfig(CompareConfig):
    """FVD, FVD_inf, KVD, precision, recall, density and coverage of clips; memorisation."""

    features: Literal["i3d-styleganv", "i3d-videogpt", "videomae"] = "i3d-styleganv"
    """Network: the I3D of StyleGAN-V or of VideoGPT, or VideoMAE v2, whose FVD is called CD-FVD."""
    i3d_weights: Path | None = None
    """Weight file of the I3D; default the published name in pretrained_models/."""
    videomae_weights: Path | None = None
    """Weight file of VideoMAE v2; default the published name in pretrained_models/."""


def load_extractor(config: FVDConfig, runtime: Runtime) -> Extractor:
    """The video network that the flags ask for."""
    device, unverified = runtime.device(config.device), config.unverified_weights
    if config.features == "videomae":
        return VideoMAE(config.videomae_weights, unverified, device)
    network = StyleGANVI3D if config.features == "i3d-styleganv" else VideoGPTI3D
    return network(config.i3d_weights, unverified, device)


def measure(
    comparison: Comparison, extractor: Extractor, runtime: Runtime
) -> dict[str, Any]:
    """The sections of FVD and of memorisation; empty on all processes but the main one."""
    features = comparison.features(extractor, runtime)
    if not runtime.is_main:
        return {}
    views = make_views(comparison.protocol, comparison.class_names, *features)
    scores = score_views(video_measures(comparison.protocol.ddof), views, comparison.config.groups)
    copies = attempt("memorisation", lambda: {"memorisation": memorisation(comparison, *features[:2])})
    return {SECTIONS[extractor.name]: {**extraction_facts(features), "scores": scores}, **copies}


def run(config: FVDConfig, runtime: Runtime) -> dict[str, Any]:
    """Compare, write and print."""
    comparison, extractor = Comparison.open(config), load_extractor(config, runtime)
    sections = measure(comparison, extractor, runtime)
    return write_results(comparison, sections) if runtime.is_main else {}


if __name__ == "__main__":
    run_command(FVDConfig, run)
