"""Checkpoints of a run: written whole, the newest readable one found again, only the last few kept.

A checkpoint is a file `<step>.pt`, or of a run whose tensors are sharded (FSDP) a folder `<step>.shards`
(`common.sharded`). `common.weights.load_checkpoint` reads both into the same dictionary.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import atomic_path, remove
from common.weights import SHARDS, load_checkpoint


def save_checkpoint(folder: Path, step: int, checkpoint: dict[str, Any], keep: int) -> Path:
    """Write `folder/<step>.pt` and delete all but the newest `keep` checkpoints; returns the path.

    Raises: `OSError` naming the path if it cannot be written, and then the older ones are as they were.
    """
    path = Path(folder) / f"{step:07d}.pt"
    remove_halves(folder)
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


def remove_halves(folder: Path) -> None:
    """Delete what a run that was killed while it saved has left."""
    for pattern in (".*.tmp.pt", f".*.tmp{SHARDS}"):
        for half in Path(folder).glob(pattern):
            remove(half)


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in checkpoints(folder)[:-keep]:
        remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    found = (path for suffix in (".pt", SHARDS) for path in Path(folder).glob(f"*{suffix}"))
    return sorted((path for path in found if path.stem.isdecimal()), key=lambda path: int(path.stem))


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or if it is a run folder its newest checkpoint."""
    run = Path(path).is_dir() and Path(path).suffix != SHARDS
    found = checkpoints(Path(path) / "checkpoints") if run else [Path(path)]
    if not found:
        raise InputError(f"{path}: a folder without checkpoints")
    return found[-1]


def newest_checkpoint(folder: Path, load: Callable[[Path], dict[str, Any]] = load_checkpoint
                      ) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint, or None, and a line for each newer one that could not be read."""
    warnings = []
    for path in reversed(checkpoints(folder)):
        try:
            return load(path), warnings
        except InputError as error:
            warnings.append(f"warning: skipped {error}")
    return None, warnings
