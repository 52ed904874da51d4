"""Checkpoint layouts of other programs: prefixes in names, averaged weights, pickled arguments."""

import argparse
import datetime
import json
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError

# Keys of the weights: averaged ones first (also timm's and BasicSR's names), then those of DDP, DeepSpeed and
# Lightning, which may be nested.
STATE_KEYS = ("ema", "state_dict_ema", "model_ema", "params_ema", "shadow", "model", "module", "state_dict",
              "params")
# Prefixes of wrappers: of FSDP1, torch.compile and activation checkpointing anywhere in a name, of DDP,
# Lightning and averages at its start.
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
BEFORE = ("module.", "model.")
AVERAGED = "ema_model."  # ema_pytorch keeps the averaged and the other weights in one dictionary
COUNTERS = {"n_averaged", "initted", "step"}  # of torch.optim.swa_utils and ema_pytorch, beside the weights


def safe_names() -> list[Callable | tuple[Callable, str]]:
    """Types that torch's restricted unpickler may create beside tensors and plain values; none runs code."""
    names: list[Any] = [argparse.Namespace, (no_default, "collections.defaultdict"), np.dtype, np.ndarray,
                        datetime.datetime, datetime.date, datetime.timedelta, int, float, str, bool, list,
                        dict, set, tuple, complex, bytes]
    names += {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFDSUmM"}
    for module in ("pathlib", "pathlib._local"):  # also paths of other systems
        for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
            names += [(kind, f"{module}.{name}") for name in (kind.__name__, kind.__name__[4:])]
    arrays = np._core.multiarray
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
        names += [(arrays.scalar, f"{module}.scalar"), (arrays._reconstruct, f"{module}._reconstruct")]
    return names


def no_default(*_: object) -> dict[Any, Any]:
    """Replaces defaultdict, which the restricted unpickler does not fill."""
    return {}


def what_it_is(path: Path) -> str:
    """What a file without weights seems to be, for error messages; empty if unknown."""
    with open(path, "rb") as file:
        start = file.read(4096)
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch that with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page: the download was not of the file itself"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive: unpack it first"
    if start.startswith((b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")) or start[257:262] == b"ustar":
        return "an archive: unpack it first"
    if text.startswith((b"{", b"[")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return "a JSON file"
        except ValueError:
            pass
    return ""


def model_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of any known layout, with the model's own parameter names.

    Raises: `InputError` if averaged weights have no names.
    """
    state = checkpoint
    while inner := next((state[key] for key in STATE_KEYS if isinstance(state.get(key), dict)), None):
        state = inner
    if "shadow_params" in state:  # torch_ema, diffusers
        raise InputError("its averaged weights are a list without names (shadow_params); save the state dict "
                         "of the model that holds them")
    if any(AVERAGED in key for key in state):
        state = {key: value for key, value in state.items() if AVERAGED in key}
    return {bare(key): value for key, value in state.items() if bare(key) not in COUNTERS}


def bare(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    for wrapper in (*INSIDE, AVERAGED):
        name = name.replace(wrapper, "")
    while name.startswith(BEFORE):
        name = name.partition(".")[2]
    return name
