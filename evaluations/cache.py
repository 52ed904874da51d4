"""Files in which features are kept: blocks while they are computed, one array with its facts afterwards.

A block is an npz file, whose checksums tell damage: "values", float32 (clips, R, D), and "facts", JSON with
the names of its good clips, (name, reason) of the bad ones, and the geometry of what was looked at.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import atomic_path, file_hash, read_json, remove, write_json
from evaluations.clips import NPZ_ERRORS


def block_path(folder: Path, start: int) -> Path:
    """Where the block of clips from place `start` on goes."""
    return folder / "blocks" / f"{start:07d}.npz"


def is_whole(path: Path) -> bool:
    """True if a block is there and readable; a damaged one is said and removed."""
    if not path.exists():
        return False
    try:
        with np.load(path, allow_pickle=False) as block:
            return block["values"].ndim == 3 and bool(json.loads(str(block["facts"])))
    except (*NPZ_ERRORS, KeyError):
        print(f"{path}: damaged, computed again", flush=True)
        path.unlink()
        return False


def is_unchanged(folder: Path) -> bool:
    """True if the features in `folder` are those that were written."""
    try:
        return read_json(folder / "features.json")["sha256"] == file_hash(folder / "features.npy")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def join_blocks(paths: Sequence[Path], folder: Path) -> None:
    """All blocks -> features.npy and features.json in `folder`, one block in memory at a time."""
    good, bad, geometry, shape = [], [], None, None
    for path in paths:
        with np.load(path, allow_pickle=False) as block:
            facts = json.loads(str(block["facts"]))
            good, bad, geometry = good + facts["good"], bad + facts["bad"], facts["geometry"]
            shape = block["values"].shape[1:] if facts["good"] else shape
    with atomic_path(folder / "features.npy") as temporary:
        values_nRD = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(good), *shape))
        end = 0
        for path in paths:
            with np.load(path, allow_pickle=False) as block:
                part = block["values"]
                if len(part):
                    values_nRD[end : end + len(part)] = part
                    end += len(part)
        values_nRD.flush()
    record = {"good": good, "bad": bad, "geometry": geometry, "sha256": file_hash(folder / "features.npy")}
    write_json(folder / "features.json", record)
    remove(folder / "blocks")
