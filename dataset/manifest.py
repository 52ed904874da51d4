"""What a prepared data set is: dataset.json beside the grid pictures, read and checked.

A folder of the released layout (class folders of grid PNGs, no dataset.json) is read as well.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import is_junk, read_json, write_json
from common.names import check_classes, check_paths
from common.presets import PRESETS, Preset
from dataset.pictures import picture_size
from dataset.split import Piece, split_class

FILE_NAME = "dataset.json"
WORK_FOLDER = ".prepare"  # beside it: what prepare found out about every recording
RESULTS_FOLDER = "evaluation"  # of evaluations.evaluate, by default in the folder of the clips
VERSION = 1  # of the JSON layout
RELEASED_FRAME_SIZE = 128
DEFAULT_FPS = 25.0  # of grids that come without a clock
DEFAULT_VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Clip:
    """One grid picture."""

    name: str
    """Path below the data set's folder, with forward slashes: <class>/<recording>_<start frame>.png."""
    label: int
    """Position in the manifest's `class_names`."""
    recording: str
    """<class>/<recording>: never in both splits, unless its class is split by time."""
    split: str
    """"train" or "val"."""
    start: float
    """Seconds from the first frame of the file that it was cut from; 0 where that is not known."""


@dataclass(frozen=True)
class Manifest:
    """The facts of a data set that later stages carry along, and its clips."""

    class_names: tuple[str, ...]
    rows: int
    cols: int
    frame_size: int
    """Pixels of a frame's side."""
    fps: float
    """Frames per second of the clips; the median over recordings where they were sampled by stride."""
    frame_stride: int | None
    """Every n-th frame was taken; None where clips were resampled to `fps` or it is not known."""
    split_by: dict[str, str]
    """Class name -> "recording", or "time" where the class has a single recording."""
    clips: tuple[Clip, ...]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of every grid picture in pixels."""
        return self.rows * self.frame_size, self.cols * self.frame_size

    def select(self, split: str) -> list[Clip]:
        """The clips of "train" or "val"."""
        return [clip for clip in self.clips if clip.split == split]

    def facts(self) -> dict[str, Any]:
        """All but the clips, JSON-able: what codes, checkpoints and samples carry along."""
        return {"class_names": list(self.class_names), "rows": self.rows, "cols": self.cols,
                "frame_size": self.frame_size, "fps": self.fps, "frame_stride": self.frame_stride,
                "split_by": dict(self.split_by)}

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
            facts = {field.name: record[field.name] for field in fields(cls)}
            facts["clips"] = tuple(Clip(**clip) for clip in facts["clips"])
            check_classes(facts["class_names"], path)
            facts["class_names"] = tuple(facts["class_names"])
            manifest = cls(**facts)
            manifest._check(path)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: {type(error).__name__} {error}") from None
        return manifest

    def _check(self, path: Path) -> None:
        check_paths((clip.name for clip in self.clips), path)
        check_positive(self.facts(), path)
        for clip in self.clips:
            if clip.split not in ("train", "val") or not 0 <= clip.label < len(self.class_names):
                raise InputError(f"{path}: clip {clip.name}: split {clip.split}, label {clip.label}")


def read_facts(preset: str) -> dict[str, Any]:
    """The facts of a data set by the name of an experiment, its folder, or a JSON file that holds them.

    The file needs class_names (in the order of their labels), rows, cols and frame_size (pixels), and should
    tell fps (frames per second, else 25). dataset.json, codes.json and samples.json are such files, and so is
    what autoregressive.train.export writes beside its weights.

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
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no facts of a data set ({type(error).__name__} {error})") from None
    return facts


def check_positive(facts: dict[str, Any], path: Path) -> None:
    """Raise `InputError` unless a data set has frames, and a rate."""
    if min(facts[name] for name in ("rows", "cols", "frame_size", "fps")) <= 0:
        raise InputError(f"{path}: rows, cols, frame_size and fps must be positive")


def grid_pictures(folder: Path) -> dict[str, list[str]]:
    """Class name -> sorted PNG names, if `folder` has the released layout; else an empty mapping.

    That is: at least one class folder, and in every one PNG files, and no folders or files of another kind.
    A folder of evaluation results may stand beside them.
    """
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_junk(entry.name):
            files = sorted(file for file in entry.iterdir() if not is_junk(file.name))
            if not files or any(file.is_dir() or file.suffix.lower() != ".png" for file in files):
                if entry.name == RESULTS_FOLDER:
                    continue
                return {}
            found[entry.name] = [file.name for file in files]
    return found


def read_released(
    folder: Path, rows: int | None = None, cols: int | None = None, frame_size: int | None = None,
    fps: float = DEFAULT_FPS, val_fraction: float = DEFAULT_VAL_FRACTION,
) -> Manifest:
    """Manifest of class folders of grid PNGs, all of one size; classes in the order of their names.

    What is not given of rows, columns and frame size follows from the size of the pictures, with frames of
    128 pixels if nothing is. Files <recording>_<number>.png belong to one recording, others are one each.
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
    clips, split_by = [], {}
    for label, (class_name, files) in enumerate(names.items()):
        pieces = [_released_piece(class_name, file) for file in files]
        splits, split_by[class_name] = split_class(pieces, val_fraction)
        clips += [Clip(piece.name, label, piece.recording, split, 0.0)
                  for piece, split in zip(pieces, splits, strict=True)]
    return Manifest(tuple(names), rows, cols, size, fps, None, split_by, tuple(clips))


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
    """Recording and place of a released grid picture, taken to share no frame with the others."""
    name, stem = f"{class_name}/{file}", Path(file).stem
    recording, _, number = stem.rpartition("_")
    if recording and number.isdecimal():
        return Piece(name, f"{class_name}/{recording}", "", int(number), int(number) + 1)
    return Piece(name, f"{class_name}/{stem}", "", 0, 1)
