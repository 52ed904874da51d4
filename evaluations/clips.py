"""Which clips there are to compare, and their frames, one clip at a time.

A folder of clips is one of: what the sampler wrote (samples.json), a prepared data set (dataset.json), class
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
from dataset.grid import grid_to_frames
from dataset.grid_images import load_grid
from dataset.manifest import Clip, Manifest, grid_pictures
from dataset.samples import FILE_NAME, read_samples
from dataset.video import VIDEO_SUFFIXES, is_frame_folder, may_be_video, read_frames

ANY_SPLIT = "all"
NPZ_ERRORS = OSError, ValueError, EOFError, BadZipFile, zlib.error, RuntimeError  # of a damaged npz file


@dataclass(frozen=True)
class Entry:
    """One clip."""

    name: str
    """Path below the folder, with forward slashes."""
    class_name: str
    recording: str
    """Clips of one recording, or of one seed, are not independent of each other."""
    split: str | None
    """"train" or "val"; None where the folder does not say."""
    start: float = 0.0
    """Seconds into the recording, where that is known."""


@dataclass(frozen=True)
class ClipSet:
    """Clips of one folder, sorted by name."""

    folder: Path
    class_names: tuple[str, ...]
    entries: tuple[Entry, ...]
    grid: Manifest | None = None
    """The facts of grid pictures; None for clips of other kinds."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Of generated clips: checkpoint, tokenizer and sampling settings."""

    @classmethod
    def read(cls, folder: Path, flag: str) -> "ClipSet":
        """All clips in `folder`. Raises: `InputError` naming `flag` if there are none."""
        folder, origin = Path(folder), {}
        if not folder.is_dir():
            raise InputError(f"{flag} {folder}: no such folder")
        if (folder / FILE_NAME).exists():
            record = read_samples(folder)
            origin = {name: record.get(name) for name in ("checkpoint", "tokenizer", "sampling")}
            folder = folder / "grids"
        if (folder / "dataset.json").exists() or grid_pictures(folder):
            clips = _from_manifest(folder, Manifest.read(folder))
        else:
            clips = _from_class_folders(folder)
        if not clips.entries:
            raise InputError(f"{flag} {folder}: holds no clips")
        return replace(clips, origin=origin)

    def select(self, class_names: Sequence[str], split: str = ANY_SPLIT) -> "ClipSet":
        """The clips of some classes, and of "train", "val" or "all"."""
        entries = (entry for entry in self.entries if entry.class_name in class_names)
        chosen = tuple(entry for entry in entries if split in (ANY_SPLIT, entry.split))
        return replace(self, class_names=tuple(class_names), entries=chosen)

    def frames(self, entry: Entry) -> np.ndarray:
        """The frames of a clip, uint8 (T, 3, H, W). Raises: `InputError` naming the file that is wrong."""
        path = self.folder / entry.name
        if self.grid:
            clip = Clip(entry.name, 0, entry.recording, "", 0.0)
            picture_3HW = load_grid(self.folder, clip, self.grid).numpy()
            return grid_to_frames(picture_3HW, self.grid.rows, self.grid.cols)
        if path.suffix == ".npz":
            frames_THWC = _read_npz(path)
        else:
            frames_THWC = np.stack([frame.pixels for frame in read_frames(path)])
        return frames_THWC.transpose(0, 3, 1, 2)

    def state(self, entry: Entry) -> list[tuple[str, int, int]]:
        """Name, bytes and time of change of every file of a clip; nothing of one that is gone."""
        path = self.folder / entry.name
        files = sorted(path.glob("[!.]*")) if path.is_dir() else [path] if path.exists() else []
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    @property
    def lossy(self) -> bool:
        """True if some clips went through a video codec, which metrics see."""
        return any(Path(entry.name).suffix.lower() in VIDEO_SUFFIXES for entry in self.entries)

    @property
    def fps(self) -> float | None:
        """Frames per second, where the folder says so."""
        return self.grid.fps if self.grid else None


def _from_manifest(folder: Path, manifest: Manifest) -> ClipSet:
    entries = [Entry(clip.name, manifest.class_names[clip.label], clip.recording, clip.split, clip.start)
               for clip in manifest.clips]
    facts = replace(manifest, clips=())
    return ClipSet(folder, manifest.class_names, tuple(sorted(entries, key=lambda entry: entry.name)), facts)


def _from_class_folders(folder: Path) -> ClipSet:
    """<class>/<clip>, each clip a folder of frames, an npz file or a video, named <recording>_<number>."""
    entries = []
    for class_folder in sorted(entry for entry in folder.glob("[!.]*") if entry.is_dir()):
        for path in sorted(class_folder.iterdir()):
            if not path.name.startswith(".") and _is_clip(path):
                stem = path.name if path.is_dir() else path.stem
                recording = re.sub(r"_\d+$", "", stem)
                name = f"{class_folder.name}/{path.name}"
                entries.append(Entry(name, class_folder.name, f"{class_folder.name}/{recording}", None))
    return ClipSet(folder, tuple(sorted({entry.class_name for entry in entries})), tuple(entries))


def _is_clip(path: Path) -> bool:
    return is_frame_folder(path) if path.is_dir() else path.suffix.lower() == ".npz" or may_be_video(path)


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
