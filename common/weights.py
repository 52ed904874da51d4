"""Weight files: loaded strictly, and without running code from them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from common.errors import InputError
from common.files import atomic_path
from common.layouts import safe_names, what_it_is

# What torch and safetensors raise for one damaged file or another.
BROKEN = (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
          AssertionError, BadZipFile)
SHARDS = ".shards"  # suffix of a folder in which every process of an FSDP run wrote its parts of the tensors
FACTS = "facts.pt"  # in such a folder: all but the tensors, see common.sharded
MAPPED = 1 << 28  # bytes from which on a file is memory-mapped; smaller ones may be overwritten while in use
STORED = "tensor in the safetensors files"  # marks a tensor there: {STORED: its key, "shape": shape}
PART = "part along dimension 0"  # the same in the older layout, <rank>-of-<n>.pt by process: {PART: tensor}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a safetensors, torch or sharded checkpoint; a large torch file is memory-mapped.

    A safetensors file gives {"model": tensors, **facts}. A torch file may hold tensors, plain values and the
    types in `common.layouts.safe_names`, such as the arguments in released checkpoints.

    Raises: `InputError` naming the file if it is missing, broken, or would run code.
    """
    path = Path(path)
    if path.suffix == SHARDS and path.is_dir():
        from common.sharded import is_sharded, read_sharded

        if is_sharded(path):
            return read_sharded(path)
        return join_parts([load_checkpoint(part) for part in part_files(path)])
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get("facts", "{}"))
                return {**facts, "model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        with torch.serialization.safe_globals(safe_names()):
            mapped = path.stat().st_size >= MAPPED and is_zipfile(path)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (UnpicklingError, *BROKEN) as error:
        says, reason = str(error), type(error).__name__
        if isinstance(error, UnpicklingError):  # torch then says how to load the file unsafely
            if code := re.search(r"(?:GLOBAL|class|type) (\S+)", says):
                raise InputError(f"{path}: refused, loading it would run code ({code[1]})") from None
        else:
            reason = says.partition("\n")[0][:120] or reason
        what = what_it_is(path)
        raise InputError(f"{path}: not a readable checkpoint " + (f"but {what}" if what else f"({reason})")
                         ) from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: not a checkpoint (holds a {type(checkpoint).__name__})")
    return checkpoint


def part_files(folder: Path) -> list[Path]:
    """The files of a sharded checkpoint of the older layout, by rank; `InputError` if one is missing."""
    found = sorted(folder.glob("*-of-*.pt"), key=lambda path: int(path.stem.split("-")[0]))
    if not found or len(found) != int(found[0].stem.split("-")[-1]):
        raise InputError(f"{folder}: not a readable checkpoint ({len(found)} parts)")
    return found


def join_parts(parts: list[Any]) -> Any:
    """The values of all processes as one: marked parts are concatenated, all else is taken from the first."""
    first = parts[0]
    if isinstance(first, dict):
        if PART in first:
            return torch.cat([part[PART] for part in parts])
        return {key: join_parts([part[key] for part in parts]) for key in first}
    return first


def load_strict(model: nn.Module, state: dict[str, torch.Tensor], name: str, reinit: Iterable[str] = ()
                ) -> list[str]:
    """Load `state` into `model`; every key and shape must agree, except keys that start with one of `reinit`.

    Parameters of `reinit` that do not fit keep their initialisation; returns their keys. `name` is the file,
    for the error message. A model on the meta device gets copies of the tensors.
    """
    own = model.state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    fresh = [key for key in own if key not in fits]
    unfit = [*fresh, *(key for key in state if key not in own)]
    wrong = [key for key in unfit if not key.startswith(tuple(reinit))]
    if wrong:
        key = wrong[0]
        shapes = [tuple(side[key].shape) if key in side else "absent" for side in (state, own)]
        raise InputError(f"{name}: {len(wrong)} tensors do not fit the model, first {key}: "
                         f"{shapes[0]} in the file, {shapes[1]} in the model")
    for key, value in fits.items():
        if value.is_floating_point() and value.numel() and not all(map(torch.isfinite, value.aminmax())):
            raise InputError(f"{name}: {key} holds values that are not finite (NaN or infinite)")
    if assign := any(value.is_meta for value in own.values()):
        fits = {key: value.to(own[key].dtype, copy=True) for key, value in fits.items()}
    model.load_state_dict(fits, strict=not fresh, assign=assign)
    return fresh


def save_safetensors(path: Path, state: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write weights and their facts (JSON-able) as one safetensors file that `load_checkpoint` reads back."""
    tensors = {key: value.contiguous() for key, value in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"facts": json.dumps(facts)})
