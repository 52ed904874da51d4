"""Checkpoints of a run: written whole, the newest readable one found again, only the last few kept.

A checkpoint is a file `<step>.pt`, or of a run whose tensors are sharded (FSDP) a folder `<step>.shards`
(`common.sharded`). `common.weights.load_checkpoint` reads both into the same dictionary.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from struct import error as StructError
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, remove
from common.weights import SHARDS, load_checkpoint, part_files

ASIDE = ".damaged"  # is added to the name of a checkpoint that cannot be read
PIECE = 1 << 20  # bytes read at once
BROKEN_ZIP = (BadZipFile, StructError, EOFError, LookupError, RuntimeError, ValueError)


def save_checkpoint(folder: Path, step: int, checkpoint: dict[str, Any], keep: int) -> Path:
    """Write `folder/<step>.pt` and delete all but the newest `keep` checkpoints; returns the path.

    Raises: `OSError` naming the path if it cannot be written, and then the older ones are as they were.
    """
    path = Path(folder) / f"{step:07d}.pt"
    remove_unfinished(folder)
    with atomic_path(path) as temporary:
        write_tensors(temporary, checkpoint)
    keep_newest(folder, keep)
    return path


def write_tensors(path: Path, value: Any) -> None:
    """`torch.save`, onto the disk; whatever goes wrong there is an `OSError` that names the path."""
    try:
        with open(path, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())  # a rename must not reach the disk before the content
    except (OSError, RuntimeError) as error:  # torch's zip writer hides what the disk said
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise OSError(f"{path.parent}: no checkpoint written ({cause}), the older are intact") from None


def remove_unfinished(folder: Path) -> None:
    """Delete what a run that was killed while it saved has left."""
    for pattern in (".*.tmp.pt", f".*.tmp{SHARDS}"):
        for unfinished in Path(folder).glob(pattern):
            remove(unfinished)


def keep_newest(folder: Path, keep: int) -> None:
    """Delete what is older than the newest `keep` whole checkpoints."""
    found = checkpoints(folder)
    newest = [path for path in found if not damage(path)][-keep:]
    for old in found[: found.index(newest[0])] if newest else []:
        remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    found = (path for suffix in (".pt", SHARDS) for path in Path(folder).glob(f"*{suffix}"))
    return sorted((path for path in found if path.stem.isdecimal()), key=lambda path: int(path.stem))


def damage(path: Path, thorough: bool = False) -> str:
    """What is wrong with the files of a checkpoint; empty if they are whole.

    What is read is the table of contents, which is written last, and the structure: a matter of
    milliseconds. To be `thorough` is to compare the checksums of all tensors too, which takes 0.4 s per GB
    and which torch does not do. Safetensors files, of sharded checkpoints, have none.
    """
    from common.sharded import FACTS, is_sharded, open_sharded

    try:
        files = part_files(path) if path.suffix == SHARDS and not is_sharded(path) else [path]
        if is_sharded(path):
            open_sharded(path)
            files = [path / FACTS]
        for part in files:
            with open(part, "rb") as file:
                if problem := zip_damage(file, thorough):
                    return problem
    except InputError as error:  # parts are missing
        return str(error).removeprefix(f"{path}: ")
    return ""


def zip_damage(file: BinaryIO, thorough: bool) -> str:
    """`damage` of one file, which `torch.save` has written."""
    try:
        with ZipFile(file) as archive:
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


def checkpoint_file(path: Path, runtime: Runtime = Runtime()) -> Path:
    """`path` itself, or if it is a run folder its newest whole checkpoint, the same on all processes.

    A newer one that is damaged is said on stderr.
    """
    with runtime.together():
        found = newest_whole(Path(path), runtime.is_main)
    return runtime.gather(found)[0]  # a run may have written another one meanwhile


def newest_whole(path: Path, warn: bool) -> Path:
    """`checkpoint_file` of one process."""
    if not path.is_dir() or path.suffix == SHARDS:
        return path
    found = checkpoints(path / "checkpoints")
    if not found:
        raise InputError(f"{path}: a folder without checkpoints")
    for file in reversed(found):
        if not (problem := damage(file)):
            return file
        if warn:
            print(f"warning: skipped {file}: {problem}", file=sys.stderr, flush=True)
    raise InputError(f"{path}: none of its checkpoints can be read")


def newest_checkpoint(
    folder: Path, runtime: Runtime = Runtime(), load: Callable[[Path], dict[str, Any]] = load_checkpoint
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest whole checkpoint, or None, and a line for each newer one, which is set aside.

    The main process looks and renames, all `load` what it has found.

    Raises: `InputError` if none is whole, or if a process does not see what the main one does.
    """
    path, warnings = runtime.agree(lambda: set_damaged_aside(Path(folder)))
    if path is None:
        return None, warnings
    if not path.exists():
        raise InputError(f"{folder}: not every process sees the same checkpoints; several machines need a "
                         "folder that they share")
    return load(path), warnings


def set_damaged_aside(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint; newer ones are renamed so that they count no longer, with a line each."""
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        if not (problem := damage(path, thorough=True)):
            break
        damaged[path] = problem
    else:
        if damaged:
            raise InputError(f"{folder}: none of the checkpoints can be read")
        return None, []
    for bad in damaged:
        remove(bad.with_name(bad.name + ASIDE))  # of an earlier run
        bad.rename(bad.with_name(bad.name + ASIDE))
    return path, [f"warning: skipped {bad}: {problem}; it is now called {bad.name}{ASIDE}"
                  for bad, problem in damaged.items()]
