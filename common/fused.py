"""Triton kernels, where they work. A module that holds some needs Triton to be imported, and has `check`."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(name: str, x: Tensor) -> ModuleType | None:
    """The module `name` if its kernels work on the device of `x` and in its dtype."""
    return _working(name, x.device) if x.is_cuda and x.dtype != torch.float64 else None


@cache
def _working(name: str, device: torch.device) -> ModuleType | None:
    try:
        module = import_module(name)
        module.check(device)
    except Exception:  # no Triton, no C compiler, a GPU too old: whatever they raise, the answer is no
        return None
    return module
