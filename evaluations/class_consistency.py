"""Do generated clips show their class? Nearest class mean on colour, texture and motion statistics.

A simple check that needs no network weights: real training clips give one mean per class, and a clip
belongs to the nearest one. The same question asked of held-out real clips says how far the answer can be
trusted. Shapes: n clips, T frames, H x W pixels, D statistics, K classes. Frames are uint8 RGB.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import write_json
from dataset.grid import grid_to_frames
from dataset.grid_images import load_grid
from dataset.manifest import Clip, Manifest
from dataset.samples import read_samples
from evaluations.temporal import motion


@dataclass(frozen=True, kw_only=True)
class ClassConsistencyConfig:
    """Compare generated clips with real ones, class by class."""

    data_path: Path
    """Real clips: folder written by dataset.prepare."""
    sample_path: Path
    """Generated clips: folder written by autoregressive.sample.sample_c2i."""
    output: Path | None = None
    """Where the result goes; default class_consistency.json in --sample-path."""


def clip_statistics(frames_TCHW: np.ndarray) -> np.ndarray:
    """Statistics (D,) of one clip: Lab colours, detail at two scales, dark and bright parts.

    The finest scale is left out: a tokenizer smooths it away, and real clips would leave their class by it.
    """
    values = []
    for frame_CHW in frames_TCHW:
        frame_HWC = np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))
        lab_HWC = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2LAB).astype(np.float32)
        light_HW = lab_HWC[..., 0]
        blurs = [cv2.GaussianBlur(light_HW, (0, 0), sigma) for sigma in (1, 2, 4)]
        detail = [np.log1p(np.abs(a - b).mean()) for a, b in pairwise(blurs)]
        values.append([*lab_HWC.mean((0, 1)), *lab_HWC.std((0, 1)), *detail,
                       (light_HW < 40).mean(), (light_HW > 220).mean()])
    return np.mean(values, axis=0)


@dataclass(frozen=True)
class NearestClassMean:
    """The class whose mean is nearest, each statistic in units of its spread within classes."""

    means_KD: np.ndarray
    spread_D: np.ndarray

    @classmethod
    def fit(cls, statistics_nD: np.ndarray, labels_n: np.ndarray, classes: int) -> "NearestClassMean":
        """Every class needs at least one clip."""
        means_KD = np.stack([statistics_nD[labels_n == label].mean(0) for label in range(classes)])
        spread_D = np.sqrt(((statistics_nD - means_KD[labels_n]) ** 2).mean(0)) + 1e-6
        return cls(means_KD, spread_D)

    def predict(self, statistics_nD: np.ndarray) -> np.ndarray:
        """Labels (n,)."""
        difference_nKD = (statistics_nD[:, None] - self.means_KD) / self.spread_D
        return (difference_nKD**2).sum(-1).argmin(1)


@dataclass(frozen=True)
class Clips:
    """What is measured of a set of clips."""

    statistics_nD: np.ndarray
    labels_n: np.ndarray
    motion_n: np.ndarray

    @classmethod
    def measure(cls, grids: Any, labels: list[int], rows: int, cols: int) -> "Clips":
        """From grid pictures (3, H, W), one at a time."""
        frames = (grid_to_frames(np.asarray(grid), rows, cols) for grid in grids)
        measured = [(clip_statistics(clip), motion(clip)) for clip in frames]
        statistics, motions = zip(*measured, strict=True) if measured else ((), ())
        return cls(np.array(statistics), np.array(labels, int), np.array(motions))


def read_generated(folder: Path, samples: dict[str, Any], manifest: Manifest) -> Clips:
    """The clips of samples.json, whose classes and grid must be those of the real data."""
    for name in ("class_names", "rows", "cols", "frame_size"):
        if samples["dataset"][name] != manifest.facts()[name]:
            raise InputError(f"--sample-path {folder}: its {name} is not that of the real clips")
    if not samples["clips"]:
        raise InputError(f"--sample-path {folder}: holds no clips yet")
    grids = (load_grid(folder, Clip(clip["grid"], 0, "", "", 0.0), manifest) for clip in samples["clips"])
    return Clips.measure(grids, [clip["label"] for clip in samples["clips"]], manifest.rows, manifest.cols)


def read_real(folder: Path, manifest: Manifest, split: str) -> Clips:
    """The real clips of one split."""
    clips = manifest.select(split)
    grids = (load_grid(folder, clip, manifest) for clip in clips)
    return Clips.measure(grids, [clip.label for clip in clips], manifest.rows, manifest.cols)


def summary(clips: Clips, classifier: NearestClassMean, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy and motion, over all clips and by class."""
    right_n = classifier.predict(clips.statistics_nD) == clips.labels_n
    by_class = {name: {"clips": int(chosen.sum()), "accuracy": float(right_n[chosen].mean()),
                       "motion": float(clips.motion_n[chosen].mean())}
                for label, name in enumerate(class_names) if (chosen := clips.labels_n == label).any()}
    return {"clips": len(right_n), "accuracy": float(right_n.mean()), "motion": float(clips.motion_n.mean()),
            "by_class": by_class}


def run(config: ClassConsistencyConfig, runtime: Runtime) -> dict[str, Any]:
    """Measure, print a table, write JSON. Quick enough for one process: others have nothing to do."""
    if not runtime.is_main:
        return {}
    manifest = Manifest.read(config.data_path)
    real = read_real(config.data_path, manifest, "train")
    missing = set(range(len(manifest.class_names))) - set(real.labels_n.tolist())
    if missing:
        name = manifest.class_names[min(missing)]
        raise InputError(f"--data-path {config.data_path}: no training clip of {name}")
    classifier = NearestClassMean.fit(real.statistics_nD, real.labels_n, len(manifest.class_names))
    held_out = read_real(config.data_path, manifest, "val")
    samples = read_samples(config.sample_path)
    sets = {"real train": real, "generated": read_generated(config.sample_path, samples, manifest)}
    if len(held_out.labels_n):
        sets["real val"] = held_out
    result = {name: summary(clips, classifier, manifest.class_names) for name, clips in sets.items()}
    for name, part in result.items():
        print(f"{name:10}  {part['clips']:5} clips  {part['accuracy']:6.1%} in their class  "
              f"motion {part['motion']:.2f}")
        for class_name, row in part["by_class"].items():
            print(f"    {class_name:30} {row['clips']:5}  {row['accuracy']:6.1%}  {row['motion']:.2f}")
    inputs = {"data": str(config.data_path), "samples": str(config.sample_path),
              **{name: samples.get(name) for name in ("checkpoint", "tokenizer", "sampling")}}
    write_json(config.output or config.sample_path / "class_consistency.json", {"inputs": inputs, **result})
    return result


if __name__ == "__main__":
    run_command(ClassConsistencyConfig, run)
