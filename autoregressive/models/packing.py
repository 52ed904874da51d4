"""A model's weights as decoding reads them fastest.

On a CPU linear layers are laid out for its matrix kernels (oneDNN) once: a plain layer does that at every
call, which takes as long as the product with the few rows of a decode step. The function is the same up to
rounding; the packed weights take the place of the others.

The operators are private ones of PyTorch. The public way, `torch.utils.mkldnn.to_mkldnn`, is slower: 16 rows
of a layer of GPT-B in bfloat16 take 0.64 ms by it, 0.39 ms as they are and 0.25 ms packed (2 cores, AVX-512).
A version of PyTorch without these operators decodes with the layers as they are.
"""

import torch
from torch import Tensor, nn

OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")


class PackedLinear(nn.Module):
    """x (..., D) -> (..., O) in `dtype`, without a bias."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, None, "none", [], "")


def pack(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Prepare a model that only decodes to compute in `dtype`.

    On a CPU that concerns its linear layers, if they can be packed, on a GPU every parameter, but not the
    tables of the rotary embedding.
    """
    if next(model.parameters()).is_cuda:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, x) for x in OPERATORS):
        return model
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child, dtype))
    return model
