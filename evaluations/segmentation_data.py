"""Pictures and their masks for segmentation: stills and frames of clips, real or generated.

A folder holds pictures in `images/` (or `frames/`, as the sampler writes them) at any depth and, where they
are labelled, `masks/` with the same relative names, whatever the suffixes; or it is a data set of annotated
clips, as `dataset.prepare --masks` writes it. Shapes: n pictures, S x S pixels.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.files import file_hash, read_json
from dataset.folders import pictures_by_name
from dataset.grid import grid_to_frames
from dataset.manifest import FILE_NAME, Manifest
from dataset.mask_files import LabelRule
from dataset.masks import Masks
from dataset.pictures import read_picture, read_values
from dataset.samples import FILE_NAME as SAMPLES
from dataset.samples import finished_samples
from dataset.video import WrongMasks

WHITE = 128  # least value of the foreground of a mask in grey


@dataclass(frozen=True)
class Cell:
    """A frame in a grid picture, and its mask."""

    rows: int
    cols: int
    frame: int
    """Place of the frame in the grid."""
    recording: str
    """Of its clip, <class>/<name>."""
    mask: int = 0
    """Place of its mask, if the clip has masks."""
    masks: Masks | None = None


@dataclass(frozen=True)
class Picture:
    """One still or frame."""

    name: str
    """Path below its folder, without suffix."""
    path: Path
    mask: Path | None = None
    group: str = ""
    """Recording or patient: pictures that share it are not independent."""
    cell: Cell | None = None
    """Where it is in a grid picture."""


def find_pictures(folder: Path, flag: str, labelled: bool, groups: str | None = None) -> list[Picture]:
    """All pictures of `folder`, sorted by name.

    Without `labelled` masks may be missing altogether, the pictures may lie in `folder` itself, and those of
    a prepared data set (dataset.json) are those of its training clips. `groups` is as in `group_rule`; the
    default in a prepared data set is the recording.

    Raises: `InputError` naming `flag` if there are none, or a picture that has no mask.
    """
    group_of = group_rule(groups, flag)
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: no such folder")
    if (folder / FILE_NAME).exists():
        return _prepared(folder, flag, group_of if groups else str, labelled)
    if (folder / "checkpoints").is_dir():
        raise InputError(f"{flag} {folder}: is a run of a training; give a folder of pictures")
    if (folder / SAMPLES).exists():
        finished_samples(folder, flag)
    places = [folder / name for name in ("images", "frames") if (folder / name).is_dir()]
    has_masks = (folder / "masks").is_dir()
    if labelled and not (places and has_masks):
        raise InputError(f"{flag} {folder}: must hold images/ (or frames/) and masks/")
    try:
        files = pictures_by_name((places or [folder])[0])
        masks = pictures_by_name(folder / "masks") if has_masks else {}
    except InputError as error:
        raise InputError(f"{flag} {error}") from None
    if not files:
        raise InputError(f"{flag} {folder}: holds no pictures")
    if masks and (missing := [path for name, path in files.items() if name not in masks]):
        raise InputError(f"{flag} {missing[0]}: has no mask in {folder / 'masks'}")
    return [Picture(name, path, masks.get(name), group_of(name)) for name, path in sorted(files.items())]


def _prepared(folder: Path, flag: str, group_of: Callable[[str], str], labelled: bool) -> list[Picture]:
    """Frames of a prepared data set, with groups by the names of recordings: of all clips if `labelled`."""
    manifest = Manifest.read(folder)
    rows, cols, masks = manifest.rows, manifest.cols, manifest.masks
    if labelled and not masks:
        raise InputError(f"{flag} {folder}: its clips have no masks (dataset.prepare --masks)")
    frames, places = masks.cells(rows, cols) if masks else (range(rows * cols),) * 2
    return [Picture(f"{clip.name}/{frame}", folder / clip.name, folder / clip.name if masks else None,
                    group_of(clip.recording), Cell(rows, cols, frame, clip.recording, place, masks))
            for clip in (manifest.clips if labelled else manifest.select("train"))
            for frame, place in zip(frames, places, strict=True)]


def group_rule(groups: str | None, flag: str) -> Callable[[str], str]:
    """The function from a picture's name to its group.

    `groups` is a JSON file of names and groups, or a regular expression whose first group names it. By
    default the pictures of a folder are a group, and so is every picture of `flag` that is in none.
    """
    if groups is None:
        return lambda name: name.rpartition("/")[0] or f"{flag} {name}"
    if groups.endswith(".json"):
        return partial(_listed, groups, read_json(Path(groups)))
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise InputError(f"--groups {groups}: {error}") from None
    if pattern.groups < 1:
        raise InputError(f"--groups {groups}: needs one (group)")
    return partial(_matched, pattern)


def _listed(path: str, groups: dict[str, str], name: str) -> str:
    if name not in groups:
        raise InputError(f"--groups {path}: does not name {name}")
    return str(groups[name])


def _matched(pattern: re.Pattern, name: str) -> str:
    match = pattern.search(name)
    if not (match and match[1]):
        raise InputError(f"--groups {pattern.pattern}: does not match {name}")
    return match[1]


def level_of(pictures: Sequence[Picture], groups: str | None) -> str:
    """What splits and intervals go by, in words."""
    count = len({picture.group for picture in pictures})
    if groups:
        return f"by {count} groups of --groups"
    if count < len(pictures):
        return f"by {count} recordings or folders: patient-level if no patient has two of them (--groups)"
    return "not patient-level: no recordings or patients are known (--groups), each picture counts as its own"


def draw(pictures: Sequence[Picture], seed: int) -> list[Picture]:
    """All pictures in random order, such that any beginning covers as many groups as it can."""
    drawn: Counter[str] = Counter()
    order: dict[str, int] = {}
    keys = []
    for place in np.random.RandomState(seed).permutation(len(pictures)):
        group = pictures[place].group
        keys.append((drawn[group], order.setdefault(group, len(order)), int(place)))
        drawn[group] += 1
    return [pictures[place] for *_, place in sorted(keys)]


def digest(pictures: Sequence[Picture]) -> str:
    """Short hash of names, groups, sizes of the pictures' files, and masks."""
    hashes = {path: path and file_hash(path) for path in {own.mask for own in pictures}}
    facts = [(own.name, own.group, own.path.stat().st_size, hashes[own.mask]) for own in pictures]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def read_pixels(picture: Picture) -> np.ndarray:
    """uint8 RGB (H, W, 3)."""
    cell = picture.cell
    return _in_grid(picture.path, cell, cell.frame) if cell else read_picture(picture.path)


def _in_grid(path: Path, cell: Cell, place: int) -> np.ndarray:
    return _cells(path, cell.rows, cell.cols)[place].transpose(1, 2, 0)


@lru_cache(maxsize=2)  # the frames of a clip are read one after the other; masks may be in another picture
def _cells(path: Path, rows: int, cols: int) -> np.ndarray:
    return grid_to_frames(read_picture(path).transpose(2, 0, 1), rows, cols)


def labels_of(picture: Picture, classes: int) -> tuple[np.ndarray, bool]:
    """`read_labels` of the mask of a picture."""
    if not picture.cell:
        return read_labels(picture.mask, classes)
    cell, masks = picture.cell, picture.cell.masks
    pixels_HW3 = _in_grid(picture.mask, cell, cell.mask)
    if len(masks.colours) > classes + 1:
        raise InputError(f"{picture.path}: its data set has labels up to {len(masks.colours) - 1} "
                         f"(--classes {classes})")
    return masks.labels(pixels_HW3.transpose(2, 0, 1)[None])[0], False


def read_labels(path: Path, classes: int) -> tuple[np.ndarray, bool]:
    """(labels 0 to `classes`, uint8 (H, W); whether greys were thresholded) of a mask.

    A mask of one class is 0 and 1, or black and white, where greys of resizing or compression become white
    from 128. A mask of several classes holds the labels themselves.

    Raises: `InputError` naming a mask of other values.
    """
    values_HW = read_values(path)
    highest = values_HW.max()
    white = WHITE if classes == 1 and WHITE <= highest <= 255 else None
    try:
        labels_HW = LabelRule(classes + 1, white)(values_HW, path)
    except WrongMasks as error:  # it hints at a flag of dataset.prepare
        raise InputError(f"{str(error).rpartition('; ')[0]} (--classes {classes})") from None
    return labels_HW, bool(white and ((values_HW > 0) & (values_HW < highest)).any())


def check_masks(pictures: Sequence[Picture], classes: int) -> list[str]:
    """A note of masks with greys, if there are any. Raises: `InputError` naming a mask that is wrong."""
    grey = sum(labels_of(picture, classes)[1] for picture in pictures)
    return [f"{grey} of {len(pictures)} masks hold greys, which count as white from {WHITE}"] if grey else []


def load(pictures: Sequence[Picture], size: int, classes: int) -> tuple[Tensor, Tensor]:
    """(pixels uint8 (n, 3, S, S), labels uint8 (n, S, S)), stretched to squares; without masks labels are 0.

    Raises: `InputError` naming a picture and mask of different sizes.
    """
    pixels = torch.empty(len(pictures), 3, size, size, dtype=torch.uint8)
    labels = torch.zeros(len(pictures), size, size, dtype=torch.uint8)
    for place, picture in enumerate(pictures):
        pixels_HW3 = read_pixels(picture)
        small_SS3 = cv2.resize(pixels_HW3, (size, size), interpolation=cv2.INTER_AREA)
        pixels[place] = torch.from_numpy(small_SS3).permute(2, 0, 1)
        if picture.mask:
            labels_HW = labels_of(picture, classes)[0]
            if labels_HW.shape != pixels_HW3.shape[:2]:
                raise InputError(f"{picture.mask}: not of the size of {picture.path}")
            small_SS = cv2.resize(labels_HW, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
            labels[place] = torch.from_numpy(small_SS)
    return pixels, labels


def with_masks_of(pictures: Sequence[Picture], labelled: Sequence[Picture]) -> list[Picture]:
    """The `pictures` that have the name of a labelled one, with its mask."""
    masks = {picture.name: picture.mask for picture in labelled}
    return [replace(picture, mask=masks[picture.name]) for picture in pictures if picture.name in masks]
