"""What a comparison of segmentation trains on: flags, split of the pictures, jobs, and the data of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from common.command import require_at_least
from common.errors import InputError
from dataset.manifest import FILE_NAME, Manifest
from evaluations.arms import BASELINE, Job, kept
from evaluations.folds import seen_recordings
from evaluations.segmentation_data import (
    Picture,
    check_masks,
    digest,
    draw,
    find_pictures,
    level_of,
    with_masks_of,
)
from evaluations.segmentation_split import RealFeatures, is_seen, names_of, split_pictures, without_class
from evaluations.segmenter import SegmenterConfig
from evaluations.uncertainty import generators_note

FULL = {"labels": (25, 100, 400), "seeds": 5, "size": 128, "steps": 1000}
QUICK = {"labels": (25, 100), "seeds": 2, "size": 96, "steps": 100}
WITHOUT_NETWORK = ("constant", "copy")
ALONE = (*WITHOUT_NETWORK, BASELINE, "strong")  # arms without added pictures
ADDED = {  # arms and the folder whose pictures they add
    "reconstructions": "reconstruction_path", "synthetic": "synthetic_path",
    "synthetic_unlabelled": "synthetic_path", "real_unlabelled": "unlabelled_path"}
ARMS = (*ALONE, *ADDED)
OF_GENERATORS = [arm for arm, name in ADDED.items() if name == "synthetic_path"]


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(SegmenterConfig):
    """Compare segmentation with and without synthetic pictures."""

    data_path: Path
    """Real labelled pictures: images/ and masks/ with the same names, stills or folders of frames; or a data
    set of annotated clips."""
    output: Path
    """Folder of the results; a rerun continues there."""
    test_path: Path | None = None
    """Real labelled pictures for the test alone; default: --test-fraction of --data-path."""
    unlabelled_path: Path | None = None
    """Real pictures without labels: a folder, or a prepared data set; default: what N leaves of the data."""
    synthetic_path: tuple[Path, ...] = ()
    """Generated pictures: the sampler's folder, a prepared data set, or images/, and masks/ if they have
    masks. Of several generators: a folder each, which the seeds take in turn."""
    reconstruction_path: Path | None = None
    """The pictures of --data-path after the tokenizer, by tokenizer.reconstruct_pictures, or
    tokenizer.reconstruct where they are clips."""
    generator_data: tuple[Path, ...] = ()
    """What the generator and its tokenizer were trained on, folders with dataset.json or codes.json; nothing
    of it is tested on."""
    labels: tuple[int, ...] | None = None
    """Numbers N of real labels (default 25 100 400; with --quick 25 100)."""
    added_per_label: int = 4
    """Added pictures for each of the N: M = 4 N."""
    seeds: int | None = None
    """Trainings of every arm and N, each with other pictures and weights (default 5; with --quick 2)."""
    arms: tuple[str, ...] | None = None
    """Some arms only; default all whose data are given."""
    test_fraction: float = 0.2
    """Part of --data-path for the test, by whole groups."""
    val_fraction: float = 0.1
    """Part of --data-path for validation, which chooses the weights of every training."""
    groups: str | None = None
    """Recording or patient of a picture: a regular expression for its name, whose first group names it, or a
    JSON file {name: group}; default: its folder."""
    twin_cosine: float = 0.7
    """Pictures with a higher cosine of their centred Lite0 features are near-duplicates."""
    quick: bool = False
    """A first look, within half an hour on two cores."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, added_per_label=1)
        for name in ("test_fraction", "val_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be between 0 and 0.5")
        if self.seeds is not None:
            require_at_least(self, seeds=1)
        if self.labels is not None and (not self.labels or min(self.labels) < 1):
            raise InputError("--labels: must be positive")
        for arm in self.arms or ():
            if arm not in ARMS:
                raise InputError(f"--arms {arm}: must be some of {', '.join(ARMS)}")

    def filled(self) -> "SegmentationConfig":
        """With the defaults, which depend on `quick`."""
        defaults = QUICK if self.quick else FULL
        filled = replace(self, **{name: value for name, value in defaults.items()
                                  if getattr(self, name) is None})
        if len({path.resolve() for path in self.synthetic_path}) < len(self.synthetic_path):
            raise InputError("--synthetic-path: names a folder twice; each is a generator")
        if len(self.synthetic_path) > filled.seeds:
            raise InputError(f"--synthetic-path: {len(self.synthetic_path)} folders for --seeds "
                             f"{filled.seeds}; each needs a seed of its own")
        return filled


@dataclass(frozen=True)
class Plan:
    """What the main process has found and checked: pictures by use, and notes for the report."""

    train: list[Picture]
    val: list[Picture]
    test: list[Picture]
    clusters: list[str]
    """Of the test pictures: those of one are not independent."""
    added: dict[str, list[list[Picture]]]
    """Pictures to add, by flag and by folder; "unlabelled_path" is missing by default."""
    notes: list[str]


def make_plan(config: SegmentationConfig, device: torch.device) -> Plan:
    """Find, check and split all pictures; `InputError` names what is wrong or leaks."""
    real = find_pictures(config.data_path, "--data-path", True, config.groups)
    apart = find_pictures(config.test_path, "--test-path", True, config.groups) if config.test_path else []
    added = find_added(config)
    masked = [own for own in chain(real, apart, *added.get("synthetic_path", [])) if own.mask]
    seen = without_class(chain.from_iterable(map(seen_recordings, config.generator_data)))
    notes = [level_of(apart or real, config.groups), *check_masks(masked, config.classes)]
    measured = RealFeatures([*real, *apart], device)
    settings = {flag(name): getattr(config, name)
                for name in ("twin_cosine", "test_fraction", "val_fraction")}
    settings |= {"files of --data-path": digest(real), "files of --test-path": digest(apart),
                 "recordings of --generator-data": sorted(seen)}
    parts = kept(config.output / "split.json", settings, lambda: split_pictures(
        real, apart, measured.clusters(config.twin_cosine), seen, config.test_fraction, config.val_fraction))
    train, val = (named(real, parts[part]) for part in ("train", "val"))
    test = apart or named(real, parts["test"])
    notes.append(f"{len(train)} pictures to train on, {len(val)} for validation, {len(test)} for the test; "
                 "the labels of validation are not among the N")
    wanted = (config.test_fraction + config.val_fraction) * len(real)
    if seen and not apart and len(test) + len(val) < 0.9 * wanted:
        notes.append("test and validation are smaller than --test-fraction and --val-fraction: the generator "
                     "has seen the other pictures")
    if parts["dropped"]:
        notes.append(f"{len(parts['dropped'])} pictures of --data-path are left out: near-duplicates, or of "
                     "a group, of the test")
    if unlabelled := added.get("unlabelled_path"):
        [pictures] = unlabelled
        held_out = without_class(chain.from_iterable(map(names_of, (*test, *val))))
        unlabelled[0] = left = [own for own in pictures
                                if held_out.isdisjoint(without_class(names_of(own)))]
        notes.append(f"{len(pictures) - len(left)} of {len(pictures)} pictures of --unlabelled-path are left "
                     "out: of a recording of the test or the validation")
    if rebuilt := added.get("reconstruction_path"):
        rebuilt[0] = with_masks_of(rebuilt[0], train)
    for name in ("synthetic_path", "unlabelled_path"):
        for place, pictures in enumerate(added.get(name, [])):
            if not pictures:
                continue
            facts = {**settings, f"files of {flag(name)}": digest(pictures)}
            removed = kept(config.output / f"near_{name}{place or ''}.json", facts,
                           partial(measured.near_test, pictures, train, test, flag(name)))
            added[name][place] = named(pictures, {own.name for own in pictures}.difference(removed))
            notes.append(f"{len(removed)} of {len(pictures)} pictures of {flag(name)} are left out: nearer "
                         "to a test picture than 95 % of the real training pictures are")
    notes += generator_notes(config, [*real, *apart], train, seen)
    return Plan(train, val, test, parts["clusters"], added, notes)


def find_added(config: SegmentationConfig) -> dict[str, list[list[Picture]]]:
    """The pictures to add, as in `Plan`; reconstructions of clips are those of all clips."""
    added = {"synthetic_path": [find_pictures(path, "--synthetic-path", False)
                                for path in config.synthetic_path]}
    if path := config.unlabelled_path:
        added["unlabelled_path"] = [find_pictures(path, "--unlabelled-path", False, config.groups)]
    if path := config.reconstruction_path:
        of_clips = (path / FILE_NAME).exists()
        if of_clips and Manifest.read(path).facts() != Manifest.read(config.data_path).facts():
            raise InputError(f"--reconstruction-path {path}: is not of --data-path, by {FILE_NAME}")
        added["reconstruction_path"] = [find_pictures(path, "--reconstruction-path", of_clips)]
    return {name: folders for name, folders in added.items() if folders}


def named(pictures: Sequence[Picture], names: Iterable[str]) -> list[Picture]:
    """The `pictures` that have one of the `names`."""
    names = set(names)
    return [own for own in pictures if own.name in names]


def generator_notes(config: SegmentationConfig, real: Sequence[Picture], train: Sequence[Picture],
                    seen: set[str]) -> list[str]:
    """What there is to know of the generator."""
    used = set(config.arms or ADDED)
    if not any(getattr(config, ADDED[arm]) for arm in used & (ADDED.keys() - {"real_unlabelled"})):
        return []
    count = len(config.synthetic_path)
    notes = [generators_note(count)] * bool(count)
    if not config.generator_data:
        return [*notes, "no --generator-data: NOT checked whether generator and tokenizer saw test pictures"]
    if not any(is_seen(own, seen) for own in real):
        return [*notes, "NOT checked (--groups): no picture, group or folder of --data-path has the name of "
                        "a recording of --generator-data, so that any of them may have been trained on"]
    count = sum(is_seen(own, seen) for own in train)
    return [*notes, f"the generator was trained on {count} of {len(train)} training pictures; if it saw "
                    "their masks, the arm synthetic rests on more labels than N"]


def plan_jobs(config: SegmentationConfig, plan: Plan) -> tuple[list[Job], list[str]]:
    """(jobs, notes of what is left out). Raises: `InputError` if an arm that was asked for has no data."""
    missing = {arm: f"none of the pictures of {emptied(config, plan, name)} is left"
               if name in plan.added else f"no {flag(name)}"
               for arm, name in ADDED.items() if not all(plan.added.get(name, [[]]))}
    if "unlabelled_path" not in plan.added:
        del missing["real_unlabelled"]  # what N leaves
    if "synthetic" not in missing and not all(own[0].mask for own in plan.added["synthetic_path"]):
        unmasked = next(path for path, own in zip(config.synthetic_path, plan.added["synthetic_path"],
                                                  strict=True) if not own[0].mask)
        missing["synthetic"] = f"--synthetic-path {unmasked} has no masks/"
    if asked := [arm for arm in config.arms or () if arm in missing]:
        raise InputError(f"--arms {asked[0]}: {missing[asked[0]]}")
    notes = [] if config.arms else [f"left out: {arm}, {why}" for arm, why in missing.items()]
    jobs = []
    for labels in sorted(set(config.labels)):
        if labels > len(plan.train):
            notes.append(f"left out: {labels} labels, there are {len(plan.train)} pictures to train on")
            continue
        for seed in range(config.seeds):
            for arm in ARMS:
                if arm in missing or (config.arms and arm not in (BASELINE, *config.arms)):
                    continue
                job = Job(arm, labels, seed)
                added = len(job_pictures(job, config, plan)[1])
                wanted = labels * (1 if arm == "reconstructions" else config.added_per_label)
                if arm in ADDED and added < wanted:
                    notes.append(f"{arm} with {labels} labels: {added} pictures added, not {wanted}" if added
                                 else f"left out: {arm} with {labels} labels, seed {seed}: nothing to add")
                jobs += [job] * (arm in ALONE or added > 0)
    if not jobs:
        raise InputError(f"--labels {config.labels}: there are {len(plan.train)} pictures to train on")
    return jobs, list(dict.fromkeys(notes))


def emptied(config: SegmentationConfig, plan: Plan, name: str) -> str:
    """The flag and the first of its folders that have nothing left."""
    paths = getattr(config, name)
    paths = paths if isinstance(paths, tuple) else [paths]
    return f"{flag(name)} {next(path for path, own in zip(paths, plan.added[name], strict=True) if not own)}"


def job_pictures(job: Job, config: SegmentationConfig, plan: Plan) -> tuple[list[Picture], list[Picture]]:
    """(the N labelled pictures, at most M added ones); the teacher labels those without masks."""
    drawn = draw(plan.train, job.seed)
    labelled, rest = drawn[: job.labels], drawn[job.labels :]
    if job.arm in ALONE:
        return labelled, []
    folders = plan.added.get(ADDED[job.arm])
    source = draw(folders[job.seed % len(folders)], job.seed) if folders else rest
    if job.arm == "reconstructions":
        return labelled, named(source, [own.name for own in labelled])
    source = source[: config.added_per_label * job.labels]
    return labelled, source if job.arm == "synthetic" else [replace(own, mask=None) for own in source]
