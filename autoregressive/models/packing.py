"""Linear layers whose weights are laid out for the processor's matrix kernels (oneDNN) once.

A plain linear layer lays them out at every call, which takes as long as the product with the few rows of a
decode step. The function is the same up to rounding; the packed weights take the place of the others.
"""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """x (..., D) -> (..., O) in `dtype`, without a bias."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, None, "none", [], "")


def pack(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Pack the linear layers of a model on the CPU that only decodes; none where oneDNN lacks `dtype`."""
    if not torch.backends.mkldnn.is_available() or (
            dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child, dtype))
    return model
