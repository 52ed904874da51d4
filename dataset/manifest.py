"""The manifest of a data set: dataset.json beside the grid pictures.

Class folders of grid PNGs without dataset.json, the released layout, are read too.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import is_junk, read_json, state_hash, write_json
from common.names import check_classes, check_paths
from common.presets import PRESETS, Preset
from common.spread import choose
from dataset.masks import Masks
from dataset.pictures import picture_size
from dataset.split import Piece, split_class

FILE_NAME = "dataset.json"
WORK_FOLDER = ".prepare"  # plans of the recordings, beside dataset.json
RESULTS_FOLDER = "evaluation"  # default of evaluations.evaluate, inside the folder of the clips
VERSION = 1  # of the JSON layout
RELEASED_FRAME_SIZE = 128
DEFAULT_FPS = 25.0  # of grids of unknown frame rate
DEFAULT_VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Clip:
    """One grid picture."""

    name: str  # path below the data set's folder: <class>/<recording>_<start frame>.png
    label: int  # position in the manifest's `class_names`
    recording: str  # <class>/<recording>: never in both splits, unless its class is split by time
    split: str  # "train" or "val"
    start: float  # seconds from the first frame of the file that it was cut from; 0 where that is not known


@dataclass(frozen=True)
class Manifest:
    """The facts of a data set, which later stages copy into their outputs, and its clips."""

    class_names: tuple[str, ...]
    rows: int
    cols: int
    frame_size: int  # pixels of a frame's side
    fps: float  # frames per second of the clips; the median over recordings that were sampled by stride
    frame_stride: int | None  # every n-th frame was taken; None if resampled to `fps`, or not known
    split_by: dict[str, str]  # class name -> "recording", or "time" where the class has a single recording
    clips: tuple[Clip, ...]
    masks: Masks | None = None  # half of the cells are masks

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of every grid picture in pixels."""
        return self.rows * self.frame_size, self.cols * self.frame_size

    def select(self, split: str) -> list[Clip]:
        """The clips of "train" or "val"."""
        return [clip for clip in self.clips if clip.split == split]

    def facts(self) -> dict[str, Any]:
        """All but the clips, JSON-able: part of codes, checkpoints and samples."""
        return {"class_names": list(self.class_names), "rows": self.rows, "cols": self.cols,
                "frame_size": self.frame_size, "fps": self.fps, "frame_stride": self.frame_stride,
                "split_by": dict(self.split_by), **({"masks": self.masks.facts()} if self.masks else {})}

    def choose(self, split: str, most: int | None) -> list[Clip]:
        """The clips of a split, or "all", or at most `most` of each class: `common.spread.choose`."""
        places = choose([clip.split for clip in self.clips], [clip.label for clip in self.clips], split, most,
                        "--data-path")
        return [self.clips[i] for i in places]

    def pictures_hash(self, folder: Path) -> str:
        """A hash of names, sizes and times of the pictures in `folder`, which changes when one does."""
        return state_hash({clip.name: folder / clip.name for clip in self.clips})

    def write(self, folder: Path) -> None:
        """Write dataset.json into `folder`, atomically."""
        clips = [asdict(clip) for clip in self.clips]
        write_json(Path(folder) / FILE_NAME, {"version": VERSION, **self.facts(), "clips": clips})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The data set in `folder`: from its dataset.json, or from class folders of released grid pictures.

        Raises: `InputError` naming the file that is missing or wrong.
        """
        folder = Path(folder)
        path = folder / FILE_NAME
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if not path.exists():
            if (folder / WORK_FOLDER).exists():
                raise InputError(f"{path}: missing, dataset.prepare was interrupted; run it again")
            return read_released(folder)
        record = read_json(path)
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise InputError(f"{path}: not a data set of version {VERSION}")
        try:
            facts = {field.name: record[field.name] for field in fields(cls) if field.name != "masks"}
            facts["clips"] = tuple(Clip(**clip) for clip in facts["clips"])
            check_classes(facts["class_names"], path)
            facts["class_names"] = tuple(facts["class_names"])
            check_paths((clip.name for clip in facts["clips"]), path)
            check_positive(facts, path)
            for clip in facts["clips"]:
                if clip.split not in ("train", "val") or not 0 <= clip.label < len(facts["class_names"]):
                    raise InputError(f"{path}: clip {clip.name}: split {clip.split}, label {clip.label}")
            return cls(**facts, masks=Masks.of(record, path))
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: {type(error).__name__} {error}") from None


def split_clips(
    pieces: Mapping[str, Sequence[Piece]], val_fraction: float, only_train: Collection[str] = ()
) -> dict[str, Any]:
    """`clips` and `split_by` of a manifest, from the pieces of every class (see `split_class`)."""
    clips, split_by = [], {}
    for label, (class_name, own) in enumerate(pieces.items()):
        splits, split_by[class_name] = split_class(own, val_fraction, only_train)
        clips += [Clip(piece.name, label, piece.recording, split, piece.time)
                  for piece, split in zip(own, splits, strict=True) if split]
    return {"clips": tuple(clips), "split_by": split_by}


def read_facts(preset: str) -> dict[str, Any]:
    """The facts of a data set: by the name of an experiment, from its folder, or from a JSON file.

    The file needs class_names (in the order of their labels), rows, cols and frame_size (pixels). Without fps
    it is 25. dataset.json, codes.json, samples.json and the JSON of autoregressive.train.export are read.

    Raises: `InputError` naming what is missing or wrong.
    """
    path = Path(preset)
    if preset in PRESETS:
        return PRESETS[preset].facts()
    if path.is_dir():
        return Manifest.read(path).facts()
    if not path.is_file():
        raise InputError(f"--preset {preset}: neither one of {', '.join(PRESETS)} nor a file or folder")
    record = read_json(path)
    try:
        record = record.get("dataset", record)
        facts = Preset(tuple(record["class_names"]), record["rows"], record["cols"], record["frame_size"],
                       record.get("fps", DEFAULT_FPS), record.get("frame_stride")).facts()
        check_classes(facts["class_names"], path)
        check_positive(facts, path)
        facts |= {"masks": masks.facts()} if (masks := Masks.of(record, path)) else {}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no facts of a data set ({type(error).__name__} {error})") from None
    return facts


def check_positive(facts: dict[str, Any], path: Path) -> None:
    """`InputError` unless grid and frame size are positive integers, and the frame rate is positive."""
    sizes = [facts[name] for name in ("rows", "cols", "frame_size")]
    if min(*sizes, facts["fps"]) <= 0 or not all(isinstance(size, int) for size in sizes):
        raise InputError(f"{path}: rows, cols and frame_size must be positive integers, fps positive")


def grid_pictures(folder: Path) -> dict[str, list[str]]:
    """Class name -> sorted PNG names, if `folder` has the released layout; else an empty mapping.

    In that layout every folder, apart from one of evaluation results, holds PNG files and nothing else.
    """
    found = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or is_junk(entry.name):
            continue
        files = sorted(file for file in entry.iterdir() if not is_junk(file.name))
        if files and not any(file.is_dir() or file.suffix.lower() != ".png" for file in files):
            found[entry.name] = [file.name for file in files]
        elif entry.name != RESULTS_FOLDER:
            return {}
    return found


def read_released(
    folder: Path, rows: int | None = None, cols: int | None = None, frame_size: int | None = None,
    fps: float = DEFAULT_FPS, val_fraction: float = DEFAULT_VAL_FRACTION,
) -> Manifest:
    """Manifest of class folders of grid PNGs, all of one size; classes in the order of their names.

    Rows, columns and frame size follow from the size of the pictures as far as they are not given; without
    any, frames have 128 pixels. Files <recording>_<number>.png are one recording, other files one each.
    """
    names = grid_pictures(folder)
    if not names:
        raise InputError(f"{folder}: holds neither {FILE_NAME} nor class folders of grid PNGs")
    check_paths((f"{class_name}/{file}" for class_name, files in names.items() for file in files), folder)
    height, width = _common_size(folder, names)
    size = frame_size or (height // rows if rows else width // cols if cols else RELEASED_FRAME_SIZE)
    rows, cols = rows or height // max(size, 1), cols or width // max(size, 1)
    if (rows * size, cols * size) != (height, width):
        raise InputError(f"{folder}: pictures of {width} x {height} pixels are not {rows} x {cols} frames of "
                         f"{size} pixels; give dataset.prepare --rows, --cols and --frame-size")
    pieces = {class_name: [_released_piece(class_name, file) for file in files]
              for class_name, files in names.items()}
    return Manifest(tuple(names), rows, cols, size, fps, None, **split_clips(pieces, val_fraction))


def _common_size(folder: Path, names: dict[str, list[str]]) -> tuple[int, int]:
    """(height, width) of all the pictures; `InputError` names the first that is broken or differs."""
    size = None
    for path in (folder / class_name / file for class_name, files in names.items() for file in files):
        own = picture_size(path)
        size = size or own
        if own != size:
            raise InputError(f"{path}: {own[1]} x {own[0]} pixels, those before it {size[1]} x {size[0]}")
    return size


def _released_piece(class_name: str, file: str) -> Piece:
    """Recording and place of a released grid picture; pictures are taken to share no frames."""
    stem = Path(file).stem
    numbered = re.fullmatch(r"(.+)_(\d+)", stem, re.DOTALL)
    recording, number = (numbered[1], int(numbered[2])) if numbered else (stem, 0)
    return Piece(f"{class_name}/{file}", f"{class_name}/{recording}", "", number, number + 1)
