"""Masks as files: found by the names of their recordings, and read as labels."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import InputError
from dataset.pictures import IMAGE_SUFFIXES, one_channel, read_values
from dataset.recordings import Found, recordings_of, without_suffix
from dataset.video import Pixels, WrongMasks, numbered_pictures, read_frames


class LabelRule(NamedTuple):
    """How the numbers in a mask become labels."""

    labels: int  # 2: background and one more, which is 1 or 255 in the files
    threshold: int | None = None  # numbers from here on are label 1, others 0

    def __call__(self, values_HW: np.ndarray, origin: object) -> np.ndarray:
        """Labels (H, W) uint8. Raises: `WrongMasks` naming `origin` if a number is no label."""
        if self.threshold is not None:
            return (values_HW >= self.threshold).astype(np.uint8)
        found = np.unique(values_HW)
        if self.labels == 2 and set(found.tolist()) <= {0, 255}:
            return (values_HW > 0).astype(np.uint8)
        if found[0] < 0 or found[-1] >= self.labels:
            known = "0 and 1, or 0 and 255" if self.labels == 2 else f"0 to {self.labels - 1}"
            hint = "give --mask-labels if there are more"
            if self.labels == 2 and found[-1] > 128:
                hint = "smooth edges or lossy compression: give --mask-threshold 128, or save it without"
            raise WrongMasks(f"{origin}: a mask with {len(found)} values from {found[0]} to {found[-1]}, "
                             f"but labels are {known}; {hint}")
        return values_HW.astype(np.uint8)


@dataclass(frozen=True)
class MaskFiles:
    """The masks of one recording: a picture, a folder of numbered pictures or a video."""

    folder: Path  # of class folders
    name: str  # below it
    rule: LabelRule

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def read(self, frames: Path) -> Iterator[Pixels]:
        """For every frame of the recording `frames` a function that reads its labels (H, W) uint8.

        Raises: `WrongMasks` naming a mask that is wrong, or whose number is not that of its frame.
        """
        if not self.path.is_dir() and self.path.suffix.lower() not in IMAGE_SUFFIXES:
            try:
                for index, frame in enumerate(read_frames(self.path)):
                    yield partial(self._labels, frame.pixels, f"{self.path} (frame {index})")
            except InputError as error:
                raise WrongMasks(str(error)) from None
            return
        masks = numbered_pictures(self.path) if self.path.is_dir() else [self.path]
        if self.path.is_dir() and frames.is_dir():
            for frame, mask in zip(numbered_pictures(frames), masks, strict=False):
                if _numbers(frame) != _numbers(mask):
                    raise WrongMasks(f"{mask}: in the place of the mask of {frame.name}; number them alike")
        yield from (partial(self._labels, None, mask) for mask in masks)

    def _labels(self, pixels_HWC: np.ndarray | None, origin: Path | str) -> np.ndarray:
        try:
            values = read_values(origin) if pixels_HWC is None else one_channel(pixels_HWC, origin)
        except InputError as error:
            raise WrongMasks(str(error)) from None
        return self.rule(values, origin)


def _numbers(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.stem)]


def find_masks(folder: Path, found: Found, rule: LabelRule, stills: bool) -> dict[str, MaskFiles]:
    """The masks of every recording by its path: of the same path below `folder`, with any suffix.

    Recordings without masks go from the sources of `found` to the unusable ones. Masks of none are noted.

    Raises: `InputError` if the folder is missing, a recording has two masks, or two have the same.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {folder}: no such folder")
    others, masks = Found(), {}
    classes = sorted({source.class_name for source in found.sources})
    for class_name in (name for name in classes if (folder / name).is_dir()):
        for path in recordings_of(folder, class_name, stills, others):
            if masks.setdefault(name := without_suffix(path), path) != path:
                raise InputError(f"--masks {folder}: both {masks[name]} and {path} for one recording")
    names = {source.path: without_suffix(source.path) for source in found.sources}
    owners = {name: path for path, name in names.items()}
    for path, name in names.items():
        if owners[name] != path:
            raise InputError(f"--masks {folder}: {path} and {owners[name]} would have the same; rename one")
    spare = sorted(masks.keys() - names.values())
    for path in (path for path, name in names.items() if name not in masks):
        similar = next((f"; is {masks[name]} its mask? Then give it the recording's name" for name in spare
                        if names[path] in name), "")
        found.unusable.append((path, f"no masks: --masks holds nothing called {names[path]}{similar}"))
    found.notes += [(masks[name], "in --masks, but there is no such recording") for name in spare]
    found.notes += [(path, f"in --masks: {reason}") for path, reason in others.unusable]
    found.sources = [source for source in found.sources if names[source.path] in masks]
    return {source.path: MaskFiles(folder, masks[names[source.path]], rule) for source in found.sources}
