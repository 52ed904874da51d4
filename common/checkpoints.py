"""Checkpoints of a run: written whole, the newest readable one found again, only the last few kept."""

from pathlib import Path
from typing import Any

import torch

from common.files import atomic_path
from common.weights import load_checkpoint


def save_checkpoint(folder: Path, step: int, checkpoint: dict[str, Any], keep: int) -> Path:
    """Write `folder/<step>.pt` and delete all but the newest `keep` checkpoints; returns the path."""
    path = Path(folder) / f"{step:07d}.pt"
    for half in Path(folder).glob(".*.tmp.pt"):  # of a run that was killed while it saved
        half.unlink()
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    found = (path for path in Path(folder).glob("*.pt") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or if it is a run folder its newest checkpoint."""
    found = checkpoints(Path(path) / "checkpoints") if Path(path).is_dir() else [Path(path)]
    if not found:
        raise ValueError(f"{path}: a folder without checkpoints")
    return found[-1]


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint, or None, and a line for each newer one that could not be read."""
    warnings = []
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path), warnings
        except ValueError as error:
            warnings.append(f"warning: skipped {error}")
    return None, warnings
