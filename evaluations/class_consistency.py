"""STAGE: real and generated clips -> accuracy of their classes, motion, distances to real ones.

The judge is a trained probe (`evaluations.probe`), or without one the nearest class mean of colour and
texture, which takes seconds and needs no training. The scores of held-out real clips, and of these after the
tokenizer, are the reference values of the generated ones. Shapes: n clips, T frames, H x W pixels, D
features, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.distance import cdist

from common.checkpoints import checkpoint_file
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash, write_json
from common.hub import readable
from common.spread import evenly
from dataset.hub_data import data_folder
from evaluations.class_scores import class_summary
from evaluations.clips import ClipSet
from evaluations.failures import NoValue
from evaluations.frechet import frechet_distance
from evaluations.probe import load_probe, probe_input
from evaluations.scores import nearest_neighbours
from evaluations.temporal import motion

Describe = Callable[[np.ndarray], np.ndarray]
"""uint8 frames (T, 3, H, W) -> features (D,)."""
Predict = Callable[[np.ndarray], np.ndarray]
"""Features (n, D) -> labels (n,)."""


@dataclass(frozen=True, kw_only=True)
class ClassConsistencyConfig:
    """Compare generated clips with real ones, class by class."""

    data_path: Path
    """Real clips: folder written by dataset.prepare."""
    sample_path: Path
    """Generated clips: folder written by autoregressive.sample.sample_c2i."""
    probe: Path | None = None
    """Judge: checkpoint or run folder of evaluations.probe; default the nearest mean of colour, texture."""
    reconstruction_path: Path | None = None
    """Held-out real clips after the tokenizer: folder written by tokenizer.reconstruct."""
    output: Path | None = None
    """File of the result; default class_consistency.json in --sample-path."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps; for the probe."""


def clip_statistics(frames_T3HW: np.ndarray) -> np.ndarray:
    """Statistics (D,) of a uint8 clip: Lab colours, detail at two scales, share of dark and bright pixels.

    The finest scale is left out, as a tokenizer blurs it.
    """
    values = []
    for frame_3HW in frames_T3HW:
        frame_HW3 = np.ascontiguousarray(frame_3HW.transpose(1, 2, 0))
        lab_HW3 = cv2.cvtColor(frame_HW3, cv2.COLOR_RGB2LAB).astype(np.float32)
        lightness_HW = lab_HW3[..., 0]
        blurred = [cv2.GaussianBlur(lightness_HW, (0, 0), sigma) for sigma in (1, 2, 4)]
        detail = [np.log1p(np.abs(a - b).mean()) for a, b in pairwise(blurred)]
        values.append([*lab_HW3.mean((0, 1)), *lab_HW3.std((0, 1)), *detail,
                       (lightness_HW < 40).mean(), (lightness_HW > 220).mean()])
    return np.mean(values, axis=0)


def nearest_class(train_nD: np.ndarray, labels_n: np.ndarray, statistics_mD: np.ndarray) -> np.ndarray:
    """Labels (m,) of the nearest class mean, each statistic in units of its spread within classes.

    Every class from 0 to the largest label needs at least one training clip.
    """
    means_KD = np.stack([train_nD[labels_n == label].mean(0) for label in range(labels_n.max() + 1)])
    spread_D = np.sqrt(((train_nD - means_KD[labels_n]) ** 2).mean(0)) + 1e-6
    return cdist(statistics_mD / spread_D, means_KD / spread_D).argmin(1)


def open_probe(file: Path, class_names: tuple[str, ...], device: torch.device) -> tuple[Describe, Predict]:
    """The features and the predictions of a trained probe; `InputError` if it knows other classes."""
    probe, dataset = load_probe(file)
    if dataset["class_names"] != list(class_names):
        raise InputError(f"--probe {file}: its classes are not those of the clips")
    probe.to(device)

    def describe(frames_T3HW: np.ndarray) -> np.ndarray:
        clip_1T3HW = probe_input(torch.from_numpy(frames_T3HW))[None].to(device)
        return probe.features(clip_1T3HW.float() / 127.5 - 1)[0].cpu().numpy()

    def predict(features_nD: np.ndarray) -> np.ndarray:
        return probe.classify(torch.from_numpy(features_nD).to(device)).argmax(1).cpu().numpy()

    return describe, predict


def measure_clips(clips: ClipSet, describe: Describe) -> tuple[np.ndarray, np.ndarray]:
    """(features (n, D), motion (n,)); one clip in memory at a time."""
    measured = [(describe(frames), motion(frames)) for frames in map(clips.frames, clips.entries)]
    features, motions = zip(*measured, strict=True)
    return np.array(features), np.array(motions)


def compare(features: dict[str, np.ndarray], rebuilt: list[int]) -> dict[str, Any]:
    """Distances of sets of clips to the first one, "real train".

    Fréchet distances use equally many clips of each. `rebuilt` are the places among "real val" of the clips
    of "reconstructed val": the distance of a clip to its reconstruction tells how near a copy would be.
    """
    train_nD, *others = (own_nD.astype(np.float64) for own_nD in features.values())
    sets = dict(zip(list(features)[1:], others, strict=True))
    count = min(map(len, others))
    try:
        frechet = {name: frechet_distance(own_nD[evenly(len(own_nD), count)], train_nD)
                   for name, own_nD in sets.items()}
    except NoValue as error:
        frechet = {"reason": str(error)}
    nearest = {name: nearest_neighbours(own_nD, train_nD)[0] for name, own_nD in sets.items()}
    result = {"frechet": {"clips": count, **frechet},
              "nearest_training_clip": {name: float(np.median(own_n)) for name, own_n in nearest.items()}}
    if rebuilt:
        apart_nD = sets["real val"][rebuilt] - sets["reconstructed val"]
        copy = float(np.median(np.linalg.norm(apart_nD, axis=1)))
        nearer = {name: float((own_n < copy).mean()) for name, own_n in nearest.items()}
        result |= {"distance_of_a_copy": copy, "nearer_than_a_copy": nearer}
    return result


def open_sets(config: ClassConsistencyConfig) -> dict[str, ClipSet]:
    """The clips of each kind that has any. Raises: `InputError` naming the flag that does not fit."""
    flags = {"--data-path": data_folder(config.data_path), "--sample-path": config.sample_path,
             "--reconstruction-path": config.reconstruction_path}
    read = {flag: ClipSet.read_grids(path, flag) for flag, path in flags.items() if path}
    real = read.pop("--data-path")
    for flag, clips in read.items():
        for name in ("class_names", "rows", "cols", "masks", "frame_size"):
            if getattr(clips.grid, name) != getattr(real.grid, name):
                raise InputError(f"{flag} {flags[flag]}: its {name} is not that of the real clips")
    train, val = (real.select(split=split) for split in ("train", "val"))
    if missing := set(range(len(real.class_names))) - set(train.labels.tolist()):
        raise InputError(f"--data-path {real.folder}: no training clip of {real.class_names[min(missing)]}")
    sets = {"real train": train, "real val": val}
    if rebuilt := read.get("--reconstruction-path"):
        rebuilt.require_counterparts(val, "--reconstruction-path", "the val split of")
        sets["reconstructed val"] = rebuilt
    sets["generated"] = read["--sample-path"]
    return {name: clips for name, clips in sets.items() if clips.entries}


def print_summaries(summaries: dict[str, dict[str, Any]]) -> None:
    """A line for each set of clips, and one for each of its classes."""
    for name, summary in summaries.items():
        lines = {name: summary, **{f"    {own}": row for own, row in summary["by_class"].items()}}
        for title, row in lines.items():
            predicted = f"  predicted {row['taken_for']}" if "taken_for" in row else ""
            print(f"{title:34} {row['clips']:5} clips  accuracy {row['accuracy']:6.1%}  "
                  f"motion {row['motion']:.2f}{predicted}")


def run(config: ClassConsistencyConfig, runtime: Runtime) -> dict[str, Any]:
    """Measure, print a table, write JSON. Takes seconds, so that only the main process works."""
    if not runtime.is_main:
        return {}
    sets = open_sets(config)
    train, describe = sets["real train"], clip_statistics
    if config.probe:
        file = checkpoint_file(config.probe)
        describe, predict = open_probe(file, train.class_names, runtime.device(config.device))
    measured = {name: measure_clips(clips, describe) for name, clips in sets.items()}
    features = {name: own_nD for name, (own_nD, _) in measured.items()}
    if not config.probe:
        predict = partial(nearest_class, features["real train"], train.labels)
    result: dict[str, Any] = {}
    for name, clips in sets.items():
        motion_n = measured[name][1]
        result[name] = class_summary(clips.class_names, clips.labels, predict(features[name]))
        result[name]["motion"] = float(motion_n.mean())
        for own, row in result[name]["by_class"].items():
            row["motion"] = float(motion_n[clips.labels == clips.class_names.index(own)].mean())
    print_summaries(result)
    if config.probe:
        names = [entry.name for entry in sets["real val"].entries] if "real val" in sets else []
        rebuilt = sets["reconstructed val"].entries if "reconstructed val" in sets else ()
        distances = compare(features, [names.index(entry.name) for entry in rebuilt])
        print(*(f"{name}: {value}" for name, value in distances.items()), sep="\n")
        result |= {"probe": file_hash(file)[:16], **distances}
    inputs = {**sets["generated"].origin, "data": readable(config.data_path),
              "samples": str(config.sample_path)}
    del inputs["path"]
    output = config.output or config.sample_path / "class_consistency.json"
    write_json(output, {"inputs": inputs, **result})
    print(f"open {output}")
    return result


if __name__ == "__main__":
    run_command(ClassConsistencyConfig, run)
