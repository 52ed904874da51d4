"""Two-dimensional rotary position embedding over the token grid (RoFormer, Su et al. 2021; LlamaGen's form).

Half of a head's channel pairs are rotated by the row of a token, half by its column.
"""

import torch
from torch import Tensor


def rotary_tables(height: int, width: int, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Factors (cos_LC, sin_LC) of `rotate`, float32, for the class token and then the grid in raster order.

    L = 1 + height * width, C = head_dim. Row 0 belongs to the class token and is zero, as in the released
    models: its query and key are zero, every token attends to it with score 0, and the class acts only
    through its value. Factors are repeated for both channels of a pair, the sine with its sign, so that a
    rotation takes few kernels.
    """
    half = head_dim // 2
    frequency_F = base ** -(torch.arange(0, half, 2, dtype=torch.float64, device="cpu") / half)
    row_N = torch.arange(height, dtype=torch.float64, device="cpu").repeat_interleave(width)
    column_N = torch.arange(width, dtype=torch.float64, device="cpu").repeat(height)
    angle_NP = torch.cat([row_N[:, None] * frequency_F, column_N[:, None] * frequency_F], dim=1)  # P pairs
    cos_NC = angle_NP.cos().repeat_interleave(2, dim=1)
    sin_NC = torch.stack([-angle_NP.sin(), angle_NP.sin()], dim=2).flatten(1)
    class_1C = cos_NC.new_zeros(1, head_dim)
    return torch.cat([class_1C, cos_NC]).float(), torch.cat([class_1C, sin_NC]).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate consecutive channel pairs of x (..., heads, C) by the angles of `cos` and `sin` (..., 1, C)."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)
