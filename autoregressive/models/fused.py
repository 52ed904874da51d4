"""Whether the Triton kernels of `kernels.py` can serve a tensor; that module needs Triton to be there."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(x: Tensor) -> ModuleType | None:
    """The kernels if they work on the device of `x` and in its dtype."""
    return _kernels(x.device) if x.is_cuda and x.dtype != torch.float64 else None


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    try:
        from autoregressive.models import kernels

        logits, key = torch.zeros(1, 2, device=device), torch.zeros(1, 2, dtype=torch.int32, device=device)
        kernels.choose(logits, key, key[:, 0].long(), 0, 1.0, 1.0, 1)
    except Exception:  # no Triton, no C compiler, a GPU too old: whatever they raise, the answer is no
        return None
    return kernels
