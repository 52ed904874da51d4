"""Generated clips seen by the probe: do they show their class, move like real ones, and copy none?

Every answer stands beside the same question asked of held-out real clips, and of those after the tokenizer:
nothing generated can be expected to be better. Shapes: n clips, D features, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoints import checkpoint_file
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash, write_json
from dataset.grid import grid_to_frames
from dataset.grid_images import load_grid
from dataset.manifest import Manifest
from evaluations.failures import NoValue
from evaluations.frechet import frechet_distance
from evaluations.probe import VideoProbe, load_probe, measure, probe_input
from evaluations.scores import nearest_neighbours
from evaluations.temporal import motion


@dataclass(frozen=True, kw_only=True)
class ProbeReportConfig:
    """Compare generated clips with real ones in the eyes of a trained probe."""

    probe: Path
    """Checkpoint or run folder of evaluations.probe."""
    data_path: Path
    """Real clips: folder written by dataset.prepare."""
    reconstruction_path: Path
    """The held-out real clips after the tokenizer: folder written by tokenizer.reconstruct."""
    sample_path: Path
    """Generated clips: folder written by autoregressive.sample.sample_c2i."""
    output: Path | None = None
    """Where the result goes; default probe_report.json in --sample-path."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass(frozen=True)
class Seen:
    """What the probe and the eye for motion make of a set of clips."""

    names: list[str]
    labels_n: np.ndarray
    logits_nK: np.ndarray
    features_nD: np.ndarray
    motion_n: np.ndarray

    @classmethod
    def read(cls, folder: Path, splits: tuple[str, ...], probe: VideoProbe, device: torch.device) -> "Seen":
        """The clips of some splits of a data set, one picture in memory at a time."""
        manifest, motions = Manifest.read(folder), []
        clips = [clip for clip in manifest.clips if clip.split in splits]
        if not clips:
            raise InputError(f"{folder}: has no {' or '.join(splits)} clips")

        def inputs():
            for clip in clips:
                picture_3HW = load_grid(folder, clip, manifest)
                motions.append(motion(grid_to_frames(picture_3HW.numpy(), manifest.rows, manifest.cols)))
                yield probe_input(picture_3HW, manifest.rows, manifest.cols)

        logits_nK, features_nD = measure(probe, inputs(), device)
        labels_n = np.array([clip.label for clip in clips])
        return cls([clip.name for clip in clips], labels_n, logits_nK, features_nD, np.array(motions))

    def summary(self, class_names: list[str]) -> dict[str, Any]:
        """Accuracy and motion, over all clips and by class, and what the clips are taken for."""
        seen_n = self.logits_nK.argmax(1)
        right_n, by_class = seen_n == self.labels_n, {}
        for label, name in enumerate(class_names):
            own = self.labels_n == label
            if own.any():
                taken = np.bincount(seen_n[own], minlength=len(class_names)).tolist()
                by_class[name] = {"clips": int(own.sum()), "accuracy": float(right_n[own].mean()),
                                  "motion": float(self.motion_n[own].mean()), "taken_for": taken}
        return {"clips": len(right_n), "accuracy": float(right_n.mean()),
                "motion": float(self.motion_n.mean()), "by_class": by_class}


def evenly(features_nD: np.ndarray, count: int) -> np.ndarray:
    """`count` rows spread over the set."""
    return features_nD[np.linspace(0, len(features_nD) - 1, count).round().astype(int)]


def compare(train: Seen, val: Seen, again: Seen, generated: Seen) -> dict[str, Any]:
    """Distances to the training clips, of equally many clips of each set, and how near copies would be."""
    sets = {"real val": val, "reconstructed val": again, "generated": generated}
    count = min(len(one.names) for one in sets.values())
    try:
        frechet = {name: frechet_distance(evenly(one.features_nD, count), train.features_nD)
                   for name, one in sets.items()}
    except NoValue as error:
        frechet = {"reason": str(error)}
    places = {name: i for i, name in enumerate(val.names)}
    own_nD = val.features_nD[[places[name] for name in again.names]]
    copy_n = np.sqrt(((again.features_nD - own_nD) ** 2).sum(1))
    near = {name: nearest_neighbours(one.features_nD, train.features_nD)[0] for name, one in sets.items()}
    return {"frechet": {"clips": count, **frechet},
            "nearest_training_clip": {name: float(np.median(one_n)) for name, one_n in near.items()},
            "distance_of_a_copy": float(np.median(copy_n)),
            "nearer_than_a_copy": {name: float((one_n < np.median(copy_n)).mean())
                                   for name, one_n in near.items()}}


def run(config: ProbeReportConfig, runtime: Runtime) -> dict[str, Any]:
    """Measure, print, write JSON. Quick enough for one process: others have nothing to do."""
    if not runtime.is_main:
        return {}
    device = runtime.device(config.device)
    file = checkpoint_file(config.probe)
    probe, dataset = load_probe(file)
    class_names, grids = dataset["class_names"], config.sample_path / "grids"
    folders = {"--data-path": config.data_path, "--reconstruction-path": config.reconstruction_path,
               "--sample-path": grids}
    for flag, folder in folders.items():
        if list(Manifest.read(folder).class_names) != class_names:
            raise InputError(f"{flag} {folder}: its classes are not those of the probe")
    probe.to(device)
    train, val = (Seen.read(config.data_path, (split,), probe, device) for split in ("train", "val"))
    again, generated = (Seen.read(folder, ("train", "val"), probe, device)
                        for folder in (config.reconstruction_path, grids))
    if missing := [name for name in again.names if name not in set(val.names)]:
        raise InputError(f"--reconstruction-path: {missing[0]} is no held-out clip of --data-path")
    sets = {"real train": train, "real val": val, "reconstructed val": again, "generated": generated}
    result = {name: one.summary(class_names) for name, one in sets.items()}
    for name, row in result.items():
        print(f"{name:18} {row['clips']:6} clips  {row['accuracy']:6.1%} in their class  "
              f"motion {row['motion']:.2f}")
    for name, row in result["generated"]["by_class"].items():
        print(f"    {name:24} {row['accuracy']:6.1%}  motion {row['motion']:.2f}  as {row['taken_for']}")
    distances = compare(train, val, again, generated)
    print(*(f"{name}: {value}" for name, value in distances.items()), sep="\n")
    result = {"probe": file_hash(file)[:16], **result, **distances}
    write_json(config.output or config.sample_path / "probe_report.json", result)
    return result


if __name__ == "__main__":
    run_command(ProbeReportConfig, run)
