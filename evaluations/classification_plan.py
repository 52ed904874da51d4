"""What a comparison of classifiers trains on: its flags, arms, folds and runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from common.command import require_at_least
from common.errors import InputError
from common.files import file_hash
from common.training.config import MAY_CHANGE, TrainingConfig, precision_that_suits
from dataset.samples import FILE_NAME, read_samples
from evaluations.clips import ClipSet
from evaluations.comparison import clip_facts
from evaluations.folds import draw, left_out, make_folds, recordings_of, refuse_leaks, seen_recordings
from evaluations.probe import FRAMES
from evaluations.uncertainty import generators_note

Item = TypeVar("Item")
REAL, BOTH, SYNTHETIC = "real", "real + synthetic", "synthetic"
OWN = "folds", "network", "unit", "frames", "size", "strong_augmentation"  # settings of every run
SMALLEST = 8  # pixels of a frame that can be blurred


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Train classifiers with and without synthetic clips, and compare them on real ones."""

    results_dir: Path
    """Folder of the runs and the report. The same command continues it."""
    data_path: Path
    """Real clips: folder written by dataset.prepare."""
    sample_path: tuple[Path, ...] = ()
    """Synthetic clips: the sampler's folder, or one for each fold; of one fold, folders of several generators
    that the seeds take in turn. Without any, only real clips train."""
    generator_data: tuple[Path, ...] = ()
    """What the generators were trained on: a data set, or one for each fold; of one fold, all data sets
    (default --data-path)."""
    folds: int = 1
    """Parts that the recordings are tested in, one after the other; 1: the val split alone is tested."""
    seeds: int = 5
    """Runs of every arm, with other initial weights, order, and choice of clips."""
    global_seed: int = 0
    """The first of these seeds."""
    recordings_per_class: tuple[int, ...] = ()
    """Real recordings of each class to train on, a point of the curve each (default all)."""
    synthetic_per_class: int | None = None
    """Seeds of each class whose synthetic clips to train on, those of a chain together (default all)."""
    network: str = "tf_efficientnet_lite0"
    """Network of the package timm, which sees single frames, or "probe", which sees motion too."""
    weights: str = "package"
    """Weights to start from: package (of tf_efficientnet_lite0), a file in timm's layout, or none."""
    unit: Literal["clips", "frames"] = "clips"
    """What a training sample is; a test clip's logits are the mean over its frames in both cases."""
    frames: int = FRAMES
    """Frames of a clip, evenly spread."""
    size: int | None = None
    """Side of a frame in pixels (default: the network's own)."""
    strong_augmentation: bool = False
    """Not only mirror training clips, but blur and recolour them as the probe's training does."""
    max_steps: int = 500
    """Optimizer steps of every run."""
    global_batch_size: int = 16
    """Clips, or frames, per step."""
    lr: float = 3e-4
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after warm-up. cosine: decays to a tenth of the peak at the last step."""
    warmup_steps: int = 20
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay of parameters with two or more dimensions."""
    mixed_precision: Literal["auto", "bf16", "none"] = "auto"
    """bf16: autocast. none: float32. auto: bf16 on a GPU."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    def __post_init__(self) -> None:
        require_at_least(self, folds=1, seeds=1, frames=1)
        for name in ("synthetic_per_class", "size"):
            if getattr(self, name) is not None:
                require_at_least(self, **{name: SMALLEST if name == "size" else 1})
        if min(self.recordings_per_class, default=1) < 1:
            raise InputError(f"--recordings-per-class {min(self.recordings_per_class)}: must be at least 1")
        if self.folds == 1 and len(self.sample_path) > self.seeds:
            raise InputError(f"--sample-path: {len(self.sample_path)} folders for --seeds {self.seeds}; each "
                             "needs a seed of its own")
        if self.folds == 1 and len({path.resolve() for path in self.sample_path}) < len(self.sample_path):
            raise InputError("--sample-path: names a folder twice; each is a generator")
        for name in ("sample_path", "generator_data"):
            if self.folds > 1 and len(getattr(self, name)) not in (0, 1, self.folds):
                raise InputError(f"--{name.replace('_', '-')}: {len(getattr(self, name))} folders for "
                                 f"{self.folds} folds; give one, or one for each fold")
        if self.network == "probe" and (self.weights != "none" or self.unit == "frames" or self.frames < 2):
            raise InputError("--network probe: needs --weights none, --unit clips and two --frames or more")
        self.training(self.results_dir, 0)

    def settled(self, kind: str) -> "ClassificationConfig":
        """With a precision instead of "auto", on a kind of device, so that results are of one precision."""
        auto = self.mixed_precision == "auto"
        return replace(self, mixed_precision=precision_that_suits(kind, gpt=False)) if auto else self

    def training(self, folder: Path, seed: int) -> TrainingConfig:
        """The settings of one run."""
        shared = {own.name for own in fields(TrainingConfig)} & {own.name for own in fields(self)}
        flags = {name: getattr(self, name) for name in shared}
        return TrainingConfig(**{**flags, "results_dir": folder, "global_seed": seed}, eval_every=0,
                              sample_every=0, compile=False)


@dataclass(frozen=True)
class Run:
    """One training."""

    fold: int
    arm: str
    recordings: int | None
    """Real recordings of each class; None for all."""
    seed: int

    @property
    def name(self) -> str:
        arm = self.arm.replace(" ", "")
        return f"{arm}-{self.recordings or 'all'}-fold{self.fold}-seed{self.seed}"


class Experiment:
    """The clips, folds and runs of a comparison."""

    def __init__(self, config: ClassificationConfig):
        """Raises: `InputError` naming the flag that does not fit the clips, or a leak."""
        real = ClipSet.read_grids(config.data_path, "--data-path")
        self.config, self.left_out = config, left_out(real, config.folds)
        self.class_names = tuple(name for name in real.class_names if name not in self.left_out)
        if len(self.class_names) < 2:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            raise InputError(f"--folds {config.folds}: fewer than two classes are left ({reasons})")
        self.real = real.select(self.class_names)
        self.folds = make_folds(self.real, config.folds)
        self.synthetic = [ClipSet.read_grids(path, "--sample-path").select(self.class_names)
                          for path in config.sample_path]
        for clips in self.synthetic:
            if missing := set(range(len(self.class_names))) - set(clips.labels.tolist()):
                name = self.class_names[min(missing)]
                raise InputError(f"--sample-path {clips.folder}: no clip of {name}; every class needs some")
            if clips.grid.frame_size != real.grid.frame_size:
                raise InputError(f"--sample-path {clips.folder}: frames of {clips.grid.frame_size} px, real "
                                 f"ones have {real.grid.frame_size} px")
        self.real_facts, *self.synthetic_facts = map(clip_facts, (self.real, *self.synthetic))
        weights = Path(config.weights)
        self.weights = file_hash(weights) if weights.is_file() else config.weights
        if self.synthetic:
            data = config.generator_data or (config.data_path,)
            seen = list(map(seen_recordings, data))
            self.most_seen, self.seen = max(map(len, seen)), by_fold(seen, config.folds)
            shown = [set() if (path / FILE_NAME).exists() else {entry.recording for entry in clips.entries}
                     for path, clips in zip(config.sample_path, self.synthetic, strict=True)]
            known = zip(self.seen, by_fold(shown, config.folds), strict=True)
            refuse_leaks(self.real, self.folds, [set.union(*own) for own in known])

    @property
    def generators(self) -> int:
        """How many generators the seeds take in turn."""
        return max(1, len(self.synthetic)) if self.config.folds == 1 else 1

    def of(self, run: Run, items: Sequence[Item]) -> Item:
        """Of items by --sample-path, the one of a run."""
        return items[(run.fold if self.config.folds > 1 else run.seed) % len(items)]

    def runs(self) -> list[Run]:
        """All runs, fold by fold."""
        config, counts = self.config, sorted(set(self.config.recordings_per_class)) or [None]
        arms = [(arm, count) for count in counts for arm in ((REAL, BOTH) if self.synthetic else (REAL,))]
        arms += [(SYNTHETIC, None)] if self.synthetic else []
        seeds = range(config.global_seed, config.global_seed + config.seeds)
        return [Run(fold, *arm, seed) for fold, arm, seed in product(range(config.folds), arms, seeds)]

    def places(self, run: Run) -> tuple[list[int], list[int]]:
        """Places of the real and of the synthetic clips that a run trains on."""
        real, synthetic = [], []
        if run.arm != SYNTHETIC:
            real = draw(self.real, self.folds[run.fold].train, run.recordings, run.seed)
        if run.arm != REAL:
            clips = self.of(run, self.synthetic)
            synthetic = draw(clips, range(len(clips.entries)), self.config.synthetic_per_class, run.seed)
        return real, synthetic

    def settings(self, run: Run) -> dict[str, Any]:
        """What decides on the result of a run, by flag; a run of other settings is not used again."""
        config = self.config
        free = (MAY_CHANGE | {"results_dir"}) - {"max_steps"}
        of_training = config.training(config.results_dir, run.seed).settings()
        facts = {name: value for name, value in of_training.items() if name not in free}
        facts |= {name: getattr(config, name) for name in OWN}
        fold = self.folds[run.fold]
        split = [[self.real.entries[place].name for place in part] for part in (fold.train, fold.test)]
        facts |= {"weights": self.weights, "data_path": self.real_facts,
                  "split": hashlib.sha256(json.dumps(split).encode()).hexdigest()[:16]}
        if run.arm != REAL:
            facts |= {"synthetic_per_class": config.synthetic_per_class,
                      "sample_path": self.of(run, self.synthetic_facts)}
        return facts

    def warnings(self) -> list[str]:
        """What a reader of the results must know."""
        config, counts = self.config, sorted(set(self.config.recordings_per_class))
        lines = [f"{name} is left out: {reason}" for name, reason in self.left_out.items()]
        if config.seeds == 1:
            lines.append("one seed: the intervals lack the spread between seeds")
        tested = {recording for fold in self.folds for recording in recordings_of(self.real, fold.test)}
        of_classes = [{entry.recording for entry in self.real.select([name]).entries}
                      for name in self.class_names]
        if single := [name for name, own in zip(self.class_names, of_classes, strict=True)
                      if len(own & tested) < 2]:
            lines.append(f"only one recording of {', '.join(single)} is tested: there are no intervals")
        to_train = [recordings_of(self.real, fold.train) for fold in self.folds]
        fewest = min(len(own & parts) for own in of_classes for parts in to_train)
        lines += [f"{count} recordings per class: of some class there are {fewest}"
                  for count in counts if count > fewest]
        if not self.synthetic:
            return lines
        lines.append("each fold has a generator of its own: intervals do not tell their spread from that of "
                     "recordings" if config.folds > 1 and len(self.synthetic) > 1 else
                     generators_note(self.generators))
        most, classes = self.most_seen, len(self.class_names)
        lines += [f"the generator has learnt from {most} recordings, the real arm from {count * classes}: "
                  "a gain is in part that of more labels" for count in counts if count * classes < most]
        records = [read_samples(path) for path in config.sample_path if (path / FILE_NAME).exists()]
        if len(records) < len(config.sample_path) or not all("filtered" in record for record in records):
            lines.append("near-copies of training clips were not taken out (scripts/filter_copies.sh)")
        return lines


def by_fold(seen: Sequence[set[str]], folds: int) -> list[set[str]]:
    """The recordings of every fold: its own set or the only one, of one fold those of all sets."""
    return [set.union(*seen)] if folds == 1 else [seen[fold % len(seen)] for fold in range(folds)]
