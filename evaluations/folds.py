"""Real clips into training and test parts that share no recording, and what a generator may not have seen."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from common.files import read_json
from dataset.codes import clips_of
from dataset.copies import same_content
from dataset.manifest import FILE_NAME, Manifest, grid_pictures
from evaluations.clips import ClipSet
from evaluations.uncertainty import deal_groups


@dataclass(frozen=True)
class Fold:
    """Places of clips."""

    train: list[int]
    test: list[int]


def make_folds(clips: ClipSet, count: int) -> list[Fold]:
    """Each recording of a class is in the test part of one fold; a single fold is the data set's own split.

    Recordings that two classes have are for training only, as in `dataset.prepare`. Every class needs two
    others, and as many as there are folds (`left_out`).
    """
    shared = in_two_classes(clips) if count > 1 else set()
    tests: list[list[int]] = [[] for _ in range(count)]
    for name in clips.class_names:
        own = [i for i, entry in enumerate(clips.entries)
               if entry.class_name == name and entry.recording not in shared]
        entries = [clips.entries[place] for place in own]
        groups = ([[i for i, entry in enumerate(entries) if entry.split == "val"]] if count == 1 else
                  deal_groups([entry.recording for entry in entries], count))
        for test, group in zip(tests, groups, strict=True):
            test += [own[i] for i in group]
    return [Fold(sorted(set(range(len(clips.entries))) - set(test)), sorted(test)) for test in tests]


def in_two_classes(clips: ClipSet) -> set[str]:
    """Recordings with a clip whose picture another class has too, byte for byte."""
    owners = {clips.folder / entry.name: entry for entry in clips.entries}
    groups = [[owners[path] for path in paths] for paths in same_content(list(owners))]
    return {entry.recording for group in groups if len({entry.class_name for entry in group}) > 1
            for entry in group}


def left_out(clips: ClipSet, count: int) -> dict[str, str]:
    """The classes that cannot be in all parts of all folds, with the reason."""
    reasons, shared = {}, in_two_classes(clips) if count > 1 else set()
    for name in clips.class_names:
        entries = [entry for entry in clips.select([name]).entries if entry.recording not in shared]
        recordings = len({entry.recording for entry in entries})
        held_out = {entry.split == "val" for entry in entries}
        if recordings < (least := max(count, 2)):
            reasons[name] = f"{recordings} recordings, at least {least} are needed"
        elif count == 1 and len(held_out) < 2:
            reasons[name] = f"all its clips are in the {'val' if True in held_out else 'train'} split"
    return reasons


def draw(clips: ClipSet, places: Sequence[int], per_class: int | None, seed: int) -> list[int]:
    """Of `places` those of `per_class` recordings of each class (default all), by a hash of name and seed.

    The recordings of a smaller number are among those of a larger one.
    """
    if per_class is None:
        return list(places)
    owners: dict[str, set[str]] = {}
    for place in places:
        owners.setdefault(clips.entries[place].class_name, set()).add(clips.entries[place].recording)

    def rank(recording: str) -> bytes:
        return hashlib.sha256(f"{seed} {recording}".encode()).digest()

    kept = {recording for own in owners.values() for recording in sorted(own, key=rank)[:per_class]}
    return [place for place in places if clips.entries[place].recording in kept]


def recordings_of(clips: ClipSet, places: Sequence[int]) -> set[str]:
    """The recordings of some of the clips."""
    return {clips.entries[place].recording for place in places}


def seen_recordings(folder: Path) -> set[str]:
    """The recordings, <class>/<name>, that a generator trained on a data set or on its codes has seen.

    Raises: `InputError` if `folder`, or that of the file, names none.
    """
    folder = folder.parent if folder.is_file() else folder
    if (folder / FILE_NAME).exists() or (folder.is_dir() and grid_pictures(folder)):
        return {clip.recording for clip in Manifest.read(folder).select("train")}
    if (folder / "codes.json").exists():
        clips = clips_of(read_json(folder / "codes.json"))
        return {recording for _, _, split, recording in clips if split == "train"}
    raise InputError(f"--generator-data {folder}: names no training recordings; give the folder of "
                     "dataset.json or codes.json that the generator was trained on")


def refuse_leaks(clips: ClipSet, folds: Sequence[Fold], seen: Sequence[set[str]]) -> None:
    """`InputError` if the generator of a fold has seen, or shows, a recording that the fold tests on."""
    for number, (fold, of_generator) in enumerate(zip(folds, seen, strict=True)):
        if leaks := sorted(recordings_of(clips, fold.test) & of_generator):
            raise InputError(
                f"--sample-path: fold {number} tests on {len(leaks)} recordings that the generator was "
                f"trained on or its samples show, such as {leaks[0]}; " + (
                    "take --folds 1, which tests on the val split, or one generator per fold (see "
                    "--generator-data), and samples without these recordings" if len(folds) > 1 else
                    "take real clips that it has not seen, and samples without them"))


def write_folds(clips: ClipSet, folds: Sequence[Fold], folder: Path) -> None:
    """Each fold as a prepared data set, a dataset.json beside links to the class folders."""
    manifest = Manifest.read(clips.folder)
    for number, fold in enumerate(folds):
        test = {clips.entries[place].name for place in fold.test}
        parts = tuple(replace(clip, split="val" if clip.name in test else "train") for clip in manifest.clips)
        own = folder / str(number)
        own.mkdir(parents=True, exist_ok=True)
        for name in manifest.class_names:
            (own / name).unlink(missing_ok=True)
            (own / name).symlink_to((clips.folder / name).resolve())
        replace(manifest, clips=parts).write(own)
