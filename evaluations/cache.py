"""Feature files: blocks while features are computed, then one array with its facts.

A block is an npz file, whose checksums reveal damage: "values", float32 (clips, R, D), and "facts", JSON with
the names of its good clips, (name, reason) of the bad ones, and the geometry of the frames.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import atomic_path, file_hash, read_json, remove, write_json
from evaluations.clips import NPZ_ERRORS


def block_path(folder: Path, start: int) -> Path:
    """File of the block whose first clip is at place `start`."""
    return folder / "blocks" / f"{start:07d}.npz"


def is_whole(path: Path) -> bool:
    """True if a block exists and is readable; a damaged one is reported and removed."""
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
    """True if the features in `folder` have the hash that was written with them."""
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
                part = block["values"].reshape(-1, *shape)  # a block without good clips is (0, 0, 0)
            values_nRD[end : end + len(part)] = part
            end += len(part)
        values_nRD.flush()
    record = {"good": good, "bad": bad, "geometry": geometry, "sha256": file_hash(folder / "features.npy")}
    write_json(folder / "features.json", record)
    remove(folder / "blocks")
