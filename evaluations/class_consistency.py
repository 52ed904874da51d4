"""STAGE: real and generated clips -> accuracy of the generated classes by colour and texture, and motion.

A simple check without a network: the mean of the real training clips of a class stands for it, and a clip is
assigned to the nearest class mean. The accuracy of held-out real clips is the reference value. Shapes: n
clips, T frames, H x W pixels, D statistics, K classes.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.distance import cdist

from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import write_json
from evaluations.clips import ClipSet
from evaluations.temporal import motion


@dataclass(frozen=True, kw_only=True)
class ClassConsistencyConfig:
    """Compare generated clips with real ones, class by class."""

    data_path: Path
    """Real clips: folder written by dataset.prepare."""
    sample_path: Path
    """Generated clips: folder written by autoregressive.sample.sample_c2i."""
    output: Path | None = None
    """File of the result; default class_consistency.json in --sample-path."""


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


def measure_clips(clips: ClipSet) -> tuple[np.ndarray, np.ndarray]:
    """(statistics (n, D), motion (n,)); one clip in memory at a time."""
    measured = [(clip_statistics(frames), motion(frames)) for frames in map(clips.frames, clips.entries)]
    statistics, motions = zip(*measured, strict=True)
    return np.array(statistics), np.array(motions)


def nearest_class(train_nD: np.ndarray, labels_n: np.ndarray, statistics_mD: np.ndarray) -> np.ndarray:
    """Labels (m,) of the nearest class mean, each statistic in units of its spread within classes.

    Every class from 0 to the largest label needs at least one training clip.
    """
    means_KD = np.stack([train_nD[labels_n == label].mean(0) for label in range(labels_n.max() + 1)])
    spread_D = np.sqrt(((train_nD - means_KD[labels_n]) ** 2).mean(0)) + 1e-6
    return cdist(statistics_mD / spread_D, means_KD / spread_D).argmin(1)


def class_summary(clips: ClipSet, predicted_n: np.ndarray, motion_n: np.ndarray) -> dict[str, Any]:
    """Accuracy and motion over all clips and by class, and how often each class was predicted."""
    labels_n = clips.labels
    right_n, by_class = predicted_n == labels_n, {}
    for label, name in enumerate(clips.class_names):
        own_n = labels_n == label
        if own_n.any():
            counts = np.bincount(predicted_n[own_n], minlength=len(clips.class_names)).tolist()
            by_class[name] = {"clips": int(own_n.sum()), "accuracy": float(right_n[own_n].mean()),
                              "motion": float(motion_n[own_n].mean()), "taken_for": counts}
    return {"clips": len(right_n), "accuracy": float(right_n.mean()), "motion": float(motion_n.mean()),
            "by_class": by_class}


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
    real = ClipSet.read_grids(config.data_path, "--data-path")
    generated = ClipSet.read_grids(config.sample_path, "--sample-path")
    for name in ("class_names", "rows", "cols", "masks", "frame_size"):
        if getattr(generated.grid, name) != getattr(real.grid, name):
            raise InputError(f"--sample-path {config.sample_path}: its {name} is not that of the real clips")
    sets = {"real train": real.select(split="train"), "generated": generated,
            "real val": real.select(split="val")}
    if missing := set(range(len(real.class_names))) - set(sets["real train"].labels.tolist()):
        name = real.class_names[min(missing)]
        raise InputError(f"--data-path {config.data_path}: no training clip of {name}")
    measured = {name: measure_clips(clips) for name, clips in sets.items() if clips.entries}
    train_nD, train_labels_n = measured["real train"][0], sets["real train"].labels
    result = {name: class_summary(sets[name], nearest_class(train_nD, train_labels_n, own_nD), motion_n)
              for name, (own_nD, motion_n) in measured.items()}
    print_summaries(result)
    inputs = {**generated.origin, "data": str(config.data_path), "samples": str(config.sample_path)}
    del inputs["path"]
    write_json(config.output or config.sample_path / "class_consistency.json", {"inputs": inputs, **result})
    return result


if __name__ == "__main__":
    run_command(ClassConsistencyConfig, run)
