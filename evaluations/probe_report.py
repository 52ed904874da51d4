"""STAGE: real, reconstructed and generated clips -> a trained probe's accuracy, feature distances and motion.

The scores of held-out real clips, and of these after the tokenizer, are the reference values of the generated
ones. Shapes: n clips, D features, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checkpoints import checkpoint_file
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash, write_json
from common.spread import evenly
from evaluations.class_consistency import class_summary, print_summaries
from evaluations.clips import ClipSet
from evaluations.failures import NoValue
from evaluations.frechet import frechet_distance
from evaluations.probe import VideoProbe, load_probe, measure, probe_input
from evaluations.scores import nearest_neighbours
from evaluations.temporal import motion


@dataclass(frozen=True, kw_only=True)
class ProbeReportConfig:
    """Compare generated clips with real ones by the features of a trained probe."""

    probe: Path
    """Checkpoint or run folder of evaluations.probe."""
    data_path: Path
    """Real clips: folder written by dataset.prepare."""
    reconstruction_path: Path
    """The held-out real clips after the tokenizer: folder written by tokenizer.reconstruct."""
    sample_path: Path
    """Generated clips: folder written by autoregressive.sample.sample_c2i."""
    output: Path | None = None
    """File of the result; default probe_report.json in --sample-path."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""


def compare(features: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Distances to the training clips, and the distance of a clip to its reconstruction.

    `features`: set of clips -> clip name -> (D,). Fréchet distances use equally many clips of each.
    """
    train_nD, *others = (np.stack([*own.values()]) for own in features.values())
    sets = dict(zip(list(features)[1:], others, strict=True))
    count = min(map(len, others))
    try:
        frechet = {name: frechet_distance(own_nD[evenly(len(own_nD), count)], train_nD)
                   for name, own_nD in sets.items()}
    except NoValue as error:
        frechet = {"reason": str(error)}
    nearest = {name: nearest_neighbours(own_nD, train_nD)[0] for name, own_nD in sets.items()}
    copy = float(np.median([np.linalg.norm(own_D - features["real val"][name])
                            for name, own_D in features["reconstructed val"].items()]))
    return {"frechet": {"clips": count, **frechet},
            "nearest_training_clip": {name: float(np.median(own_n)) for name, own_n in nearest.items()},
            "distance_of_a_copy": copy,
            "nearer_than_a_copy": {name: float((own_n < copy).mean()) for name, own_n in nearest.items()}}


def measure_clips(
    clips: ClipSet, probe: VideoProbe, device: torch.device
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(summary of accuracy and motion, clip name -> features (D,)); one clip in memory at a time."""
    motions = []

    def inputs() -> Iterator[Tensor]:
        for entry in clips.entries:
            frames_T3HW = clips.frames(entry)
            motions.append(motion(frames_T3HW))
            yield probe_input(torch.from_numpy(frames_T3HW))

    logits_nK, features_nD = measure(probe, inputs(), device)
    names = (entry.name for entry in clips.entries)
    return (class_summary(clips, logits_nK.argmax(1), np.array(motions)),
            dict(zip(names, features_nD, strict=True)))


def run(config: ProbeReportConfig, runtime: Runtime) -> dict[str, Any]:
    """Measure, print, write JSON. Takes seconds, so that only the main process works."""
    if not runtime.is_main:
        return {}
    file, device = checkpoint_file(config.probe), runtime.device(config.device)
    probe, dataset = load_probe(file)
    probe.to(device)
    flags = {"--data-path": config.data_path, "--reconstruction-path": config.reconstruction_path,
             "--sample-path": config.sample_path / "grids"}
    real, reconstructed, generated = (ClipSet.read_grids(path, flag) for flag, path in flags.items())
    for flag, clips in zip(flags, (real, reconstructed, generated), strict=True):
        if list(clips.class_names) != dataset["class_names"]:
            raise InputError(f"{flag} {clips.folder}: its classes are not those of the probe")
    sets = {"real train": real.select(split="train"), "real val": real.select(split="val"),
            "reconstructed val": reconstructed, "generated": generated}
    for split in ("train", "val"):
        if not sets[f"real {split}"].entries:
            raise InputError(f"--data-path {config.data_path}: has no {split} clips")
    reconstructed.require_counterparts(sets["real val"], "--reconstruction-path", "the val split of")
    measured = {name: measure_clips(clips, probe, device) for name, clips in sets.items()}
    summaries = {name: summary for name, (summary, _) in measured.items()}
    print_summaries(summaries)
    distances = compare({name: features for name, (_, features) in measured.items()})
    print(*(f"{name}: {value}" for name, value in distances.items()), sep="\n")
    result = {"probe": file_hash(file)[:16], **summaries, **distances}
    write_json(config.output or config.sample_path / "probe_report.json", result)
    return result


if __name__ == "__main__":
    run_command(ProbeReportConfig, run)
