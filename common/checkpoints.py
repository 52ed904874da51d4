"""Checkpoints of a run: written atomically, the newest readable one found again, only the last few kept.

A checkpoint is a file `<step>.pt`, or of a run whose tensors are sharded (FSDP) a folder `<step>.shards`
(`common.sharded`). `common.weights.load_checkpoint` reads both into the same dictionary.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from struct import error as StructError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, remove, remove_unfinished
from common.hub import is_hub, local_file
from common.weights import FACTS, SHARDS, load_checkpoint, part_files

ASIDE = ".damaged"  # is added to the name of a checkpoint that cannot be read
PIECE = 1 << 20  # bytes read at once
BROKEN_ZIP = (BadZipFile, StructError, EOFError, LookupError, RuntimeError, ValueError)


def save_checkpoint(folder: Path, step: int, checkpoint: dict[str, Any], keep: int) -> Path:
    """Write `folder/<step>.pt` and delete all but the newest `keep` checkpoints; returns the path.

    Raises: `OSError` naming the path if it cannot be written; older checkpoints are unchanged.
    """
    path = Path(folder) / f"{step:07d}.pt"
    remove_unfinished(folder)
    with atomic_path(path) as temporary:
        write_tensors(temporary, checkpoint)
    keep_newest(folder, keep)
    return path


def write_tensors(path: Path, value: Any) -> None:
    """`torch.save` followed by fsync; any failure is an `OSError` that names the path."""
    try:
        with open(path, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())  # a rename must not reach the disk before the content
    except (OSError, RuntimeError) as error:  # torch's zip writer hides what the disk said
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise OSError(f"{path.parent}: no checkpoint written ({cause}), the older are intact") from None


def keep_newest(folder: Path, keep: int) -> None:
    """Delete what is older than the newest `keep` checkpoints that can be read."""
    found = checkpoints(folder)
    newest = [path for path in found if not damage(path)][-keep:]
    for old in found[: found.index(newest[0])] if newest else []:
        remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    found = (path for suffix in (".pt", SHARDS) for path in Path(folder).glob(f"*{suffix}"))
    return sorted((path for path in found if path.stem.isdecimal()), key=lambda path: int(path.stem))


def damage(path: Path, thorough: bool = False) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is.

    Reads the table of contents, which is written last, and the pickled structure (milliseconds). `thorough`
    also compares the checksums of all tensors (0.4 s per GB), which torch does not do. The safetensors files
    of sharded checkpoints have none.
    """
    from common.sharded import is_sharded, open_sharded

    try:
        if is_sharded(path):
            open_sharded(path)
            files = [path / FACTS]
        else:
            files = part_files(path) if path.suffix == SHARDS else [path]
    except InputError as error:  # parts are missing
        return str(error).removeprefix(f"{path}: ")
    return next(filter(None, (zip_damage(file, thorough) for file in files)), "")


def zip_damage(path: Path, thorough: bool) -> str:
    """`damage` of one file that `torch.save` has written."""
    try:
        with open(path, "rb") as file, ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.compress_type != ZIP_STORED or entry.external_attr:
                    raise BadZipFile("not as torch writes it")  # and reads it as anything
                if thorough or entry.filename.endswith("/data.pkl"):
                    with archive.open(entry) as content:
                        while content.read(PIECE):  # raises where the checksum differs
                            pass
    except (*BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what a place outside the file gives
            raise
        return f"not a readable checkpoint ({str(error) or type(error).__name__})"
    return ""


def newest_whole(folder: Path, thorough: bool = False) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint without `damage` (None: there is none at all), and what is wrong with newer ones.

    Raises: `InputError` if there are checkpoints and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        if not (problem := damage(path, thorough)):
            return path, damaged
        damaged[path] = problem
    for path, problem in damaged.items():
        raise InputError(f"{folder}: none of the checkpoints can be read; {path.name}: {problem}")
    return None, {}


def checkpoint_file(path: Path, runtime: Runtime = Runtime()) -> Path:
    """`path` itself, or if it is a run folder its newest readable checkpoint, the same on all processes.

    Newer ones that are damaged are named on stderr. A name hf://... is fetched, see `common.hub`.
    """
    if is_hub(path):
        return local_file(path, runtime)
    return runtime.agree(lambda: _checkpoint_file(Path(path)))  # the run may write another one meanwhile


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir() or path.suffix == SHARDS:
        return path
    newest, damaged = newest_whole(path / "checkpoints")
    if not newest:
        raise InputError(f"{path}: a folder without checkpoints")
    for file, problem in damaged.items():
        print(f"warning: skipped {file}: {problem}", file=sys.stderr, flush=True)
    return newest


def newest_checkpoint(
    folder: Path, runtime: Runtime = Runtime(), load: Callable[[Path], dict[str, Any]] = load_checkpoint
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint, or None, and a warning for each newer one, which is renamed.

    The main process looks and renames; all processes `load` what it has found.

    Raises: `InputError` if all are damaged, or if a process does not see what the main one does.
    """
    path, warnings = runtime.agree(lambda: set_damaged_aside(Path(folder)))
    if path is None:
        return None, warnings
    if not path.exists():
        raise InputError(f"{folder}: not every process sees the same checkpoints; several machines need a "
                         "folder that they share")
    return load(path), warnings


def set_damaged_aside(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest readable checkpoint; newer ones get the suffix `ASIDE`, with a warning each."""
    path, damaged = newest_whole(folder, thorough=True)
    for bad in damaged:
        aside = bad.with_name(bad.name + ASIDE)
        remove(aside)  # of an earlier run
        bad.rename(aside)
    return path, [f"warning: skipped {bad}: {problem}; it is now called {bad.name}{ASIDE}"
                  for bad, problem in damaged.items()]
