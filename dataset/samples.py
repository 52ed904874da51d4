"""samples.json: the sampler's record of the clips in a folder."""

from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json
from common.names import check_names, check_paths

FILE_NAME = "samples.json"
FOLDERS = ("grids", "frames", "masks", "videos", "gifs")  # that the sampler writes
PATHS = ("grid", "frames", "masks", "video", "gif")  # of a clip's files, below the folder


def read_samples(folder: Path) -> dict[str, Any]:
    """The record in `folder`; `InputError` if it is malformed or names files outside of `folder`."""
    path = Path(folder) / FILE_NAME
    record = read_json(path)
    try:
        for clip in record["clips"]:
            check_names([clip["class"]], path)
            check_paths([*(clip[kind] for kind in PATHS if kind in clip), *clip.get("grids", [])], path)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a record of samples ({type(error).__name__} {error})") from None
    return record


def finished_samples(folder: Path, flag: str) -> dict[str, Any]:
    """The record in `folder`; `InputError` naming `flag` if it lists no clips."""
    record = read_samples(folder)
    if not record["clips"]:
        why = ("; filter_copies has not ended, or left none" if "filtered" in record else
               " yet; run the sampler to its end")
        raise InputError(f"{flag} {folder}: holds no clips{why}")
    return record
