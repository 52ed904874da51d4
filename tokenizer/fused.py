"""Where the Triton kernels of `kernels.py` take part in the tokenizer."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hardware import kernels_for


def fused(x: Tensor) -> ModuleType | None:
    """The kernels that serve `x`, without gradients and outside code that is compiled as a whole."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return None if plain else kernels_for("tokenizer.kernels", x)


def norm_silu(norm: nn.GroupNorm, x_BCHW: Tensor) -> Tensor:
    """silu(norm(x))."""
    kernels = fused(x_BCHW)
    return kernels.norm_silu(x_BCHW, norm) if kernels else F.silu(norm(x_BCHW))
