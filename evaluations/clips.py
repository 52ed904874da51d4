"""Clips of one side of a comparison, and their frames, read one clip at a time.

A folder of clips is one of: the sampler's output (samples.json), a prepared data set (dataset.json), class
folders of grid pictures in the released layout, or class folders in which each clip is a folder of frames, an
npz file or a video. Shapes: T frames, H x W pixels. Frames are uint8 RGB (T, 3, H, W).
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from common.errors import InputError
from dataset.grid_images import load_grid
from dataset.manifest import Clip, Manifest, grid_pictures
from dataset.masks import frames_of, shown_frames
from dataset.opening import VIDEO_SUFFIXES, may_be_video
from dataset.samples import FILE_NAME, finished_samples
from dataset.video import is_frame_folder, read_frames

ANY_SPLIT = "all"
NPZ_ERRORS = OSError, ValueError, EOFError, BadZipFile, zlib.error, RuntimeError  # of a damaged npz file


@dataclass(frozen=True)
class Entry:
    """One clip."""

    name: str
    """Path below the folder, with forward slashes."""
    class_name: str
    recording: str
    """Source recording, or seed: clips that share it are not independent."""
    split: str | None
    """"train" or "val"; None if the folder does not say."""


@dataclass(frozen=True)
class ClipSet:
    """Clips of one folder, sorted by name."""

    folder: Path
    class_names: tuple[str, ...]
    entries: tuple[Entry, ...]
    grid: Manifest | None = None
    """Facts of the grid pictures; None for other kinds of clips."""
    origin: dict[str, Any] = field(default_factory=dict)
    """The folder that was read; of generated clips also checkpoint, tokenizer and sampling settings."""

    @classmethod
    def read(cls, folder: Path, flag: str) -> "ClipSet":
        """All clips in `folder`. Raises: `InputError` naming `flag` if there are none."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{flag} {folder}: no such folder")
        origin: dict[str, Any] = {"path": str(folder)}
        if (folder / FILE_NAME).exists():
            record = finished_samples(folder, flag)
            origin |= {name: record.get(name) for name in ("checkpoint", "tokenizer", "sampling")}
            folder = folder / "grids"
        if (folder / "dataset.json").exists() or grid_pictures(folder):
            manifest = Manifest.read(folder)
            entries = [Entry(clip.name, manifest.class_names[clip.label], clip.recording, clip.split)
                       for clip in manifest.clips]
            class_names, grid = manifest.class_names, replace(manifest, clips=())
        else:
            entries, grid = _class_folder_entries(folder), None
            class_names = tuple(sorted({entry.class_name for entry in entries}))
        if not entries:
            raise InputError(f"{flag} {folder}: holds no clips")
        entries.sort(key=lambda entry: entry.name)
        return cls(folder, class_names, tuple(entries), grid, origin)

    @classmethod
    def read_grids(cls, folder: Path, flag: str) -> "ClipSet":
        """All clips in `folder`. Raises: `InputError` naming `flag` if they are not grid pictures."""
        clips = cls.read(folder, flag)
        if clips.grid is None:
            raise InputError(f"{flag} {folder}: must hold grid pictures (dataset.prepare, sampler)")
        return clips

    def select(self, class_names: Sequence[str] | None = None, split: str = ANY_SPLIT) -> "ClipSet":
        """The clips of some classes (default all), and of "train", "val" or "all"."""
        class_names = tuple(self.class_names if class_names is None else class_names)
        entries = tuple(entry for entry in self.entries
                        if entry.class_name in class_names and split in (ANY_SPLIT, entry.split))
        return replace(self, class_names=class_names, entries=entries)

    def require_counterparts(self, others: "ClipSet", flag: str, other_flag: str) -> None:
        """`InputError` unless there are clips, and each has a clip of the same name in `others`."""
        if not self.entries:
            raise InputError(f"{flag} {self.folder}: no clips of {', '.join(self.class_names)}")
        known = {entry.name for entry in others.entries}
        if unknown := [entry.name for entry in self.entries if entry.name not in known]:
            raise InputError(f"{flag} {self.folder}: {unknown[0]} is no clip of {other_flag} {others.folder}")

    def frames(self, entry: Entry) -> np.ndarray:
        """The frames of a clip, uint8 (T, 3, H, W). Raises: `InputError` naming the file that is wrong."""
        path = self.folder / entry.name
        if self.grid:
            return frames_of(self._picture(entry), self.grid.facts())
        if path.suffix == ".npz":
            frames_THWC = _read_npz(path)
        else:
            frames_THWC = np.stack([frame.pixels for frame in read_frames(path)])
        return frames_THWC.transpose(0, 3, 1, 2)

    def shown(self, entry: Entry) -> np.ndarray:
        """The frames of a clip for the eye, uint8 (T, H, W, 3), with the outlines of their masks."""
        return (shown_frames(self._picture(entry), self.grid.facts()) if self.grid
                else self.frames(entry).transpose(0, 2, 3, 1))

    def _picture(self, entry: Entry) -> np.ndarray:
        return load_grid(self.folder, Clip(entry.name, 0, entry.recording, "", 0.0), self.grid).numpy()

    def files(self, entry: Entry) -> list[tuple[str, int, int]]:
        """Name, bytes and modification time of every file of a clip; empty if the clip was deleted."""
        path = self.folder / entry.name
        files = sorted(path.glob("[!.]*")) if path.is_dir() else [path] if path.exists() else []
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    @property
    def labels(self) -> np.ndarray:
        """Position of each clip's class in `class_names`, (n,)."""
        return np.array([self.class_names.index(entry.class_name) for entry in self.entries], int)

    @property
    def lossy(self) -> bool:
        """True if some clips are compressed video, whose artefacts change the scores."""
        return any(Path(entry.name).suffix.lower() in VIDEO_SUFFIXES for entry in self.entries)


def _class_folder_entries(folder: Path) -> list[Entry]:
    """<class>/<clip>, each clip a folder of frames, an npz file or a video, named <recording>_<number>."""
    entries = []
    for path in folder.glob("[!.]*/[!.]*"):
        if is_frame_folder(path) if path.is_dir() else path.suffix.lower() == ".npz" or may_be_video(path):
            class_name, stem = path.parent.name, path.name if path.is_dir() else path.stem
            recording = re.sub(r"_\d+$", "", stem)
            entries.append(Entry(f"{class_name}/{path.name}", class_name, f"{class_name}/{recording}", None))
    return entries


def _read_npz(path: Path) -> np.ndarray:
    """The one array of an npz file, uint8 (T, H, W, 3)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in file.files]
    except NPZ_ERRORS as error:
        raise InputError(f"{path}: not a readable npz file ({error})") from None
    shape = arrays[0].shape if arrays else ()
    if len(arrays) != 1 or arrays[0].dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise InputError(f"{path}: must hold one array, uint8 (T, H, W, 3)")
    return arrays[0]
