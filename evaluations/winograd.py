"""3 x 3 x 3 convolutions with a quarter of the multiplications: Winograd's way over height and width.

A tile of 4 x 4 outputs needs 6 x 6 products instead of 16 * 9: tile and filter are taken as polynomials and
multiplied at six points (Toom and Cook; Lavin and Gray 2016 for networks). Over time the filter is applied as
it is. What is left are products of matrices. Rounding errors are about 1e-6 of the output in float32.
Shapes: B clips, T frames, H x W pixels, C channels in, O out, P = 36 points.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, TILE = 3, 4  # of a filter and of the outputs of a tile
SEEN = TILE + SIDE - 1  # the side of what a tile of outputs looks at
POINTS = (0, 1, -1, 1 / 2, -2)  # and infinity
CHUNK = 2**20  # products at once, which fit the processor's caches


@cache
def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A (16, P), G (P, 9), D (P, P), float64: `A @ ((G @ filter) * (D @ pixels))` is a convolved tile."""
    def powers(degree: int) -> np.ndarray:
        return np.vstack([np.array(POINTS)[:, None] ** np.arange(degree), np.eye(1, degree, degree - 1)])

    data = np.linalg.inv(powers(SEEN)).T
    scale = np.abs(data).max(1, keepdims=True)  # rounding errors stay small where no row is large
    return tuple(torch.from_numpy(np.kron(part, part))
                 for part in (powers(TILE).T, powers(SIDE) * scale, data / scale))


def transform_kernel(weight_OC333: Tensor) -> Tensor:
    """Filters of three frames as `convolve` takes them: (P, 3 * C, O)."""
    points_P9 = matrices()[1].to(weight_OC333.device)
    weight_9tCO = weight_OC333.double().flatten(3).permute(3, 2, 1, 0)
    kernel_PX = points_P9 @ weight_9tCO.flatten(1)
    return kernel_PX.float().unflatten(1, (SIDE * weight_OC333.shape[1], -1))


def convolve(x_BTHWC: Tensor, kernel_PKO: Tensor, bias_O: Tensor) -> Tensor:
    """(B, T, H, W, C) -> (B, T, H, W, O) with zeros around, plus a bias, at least 0."""
    clips, frames, height, width, channels = x_BTHWC.shape
    output_16P, _, data_PP = (part.to(x_BTHWC) for part in matrices())
    rows, columns = -(-height // TILE), -(-width // TILE)
    x_BTHWC = F.pad(x_BTHWC, (0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height))
    tiles_66BTRSC = x_BTHWC.unfold(2, SEEN, TILE).unfold(3, SEEN, TILE).permute(5, 6, 0, 1, 2, 3, 4)
    made = x_BTHWC.new_empty(clips, frames, rows, TILE, columns, TILE, len(bias_O))
    chunk = max(CHUNK // (len(kernel_PKO) * clips * frames * columns * len(bias_O)), 1)
    for first in range(0, rows, chunk):
        part = tiles_66BTRSC[:, :, :, :, first : first + chunk]
        data_PX = data_PP @ part.flatten(0, 1).flatten(1)
        data_PBTXC = F.pad(data_PX.view(len(kernel_PKO), clips, frames, -1, channels), (0, 0, 0, 0, 1, 1))
        data_PBTXK = torch.cat([data_PBTXC[:, :, i : i + frames] for i in range(SIDE)], 4)
        products_PXO = torch.bmm(data_PBTXK.flatten(1, 3), kernel_PKO)
        output_44BTRSO = (output_16P @ products_PXO.flatten(1)).view(TILE, TILE, *part.shape[2:6], -1)
        torch.add(output_44BTRSO.permute(2, 3, 4, 0, 5, 1, 6), bias_O, out=made[:, :, first : first + chunk])
    return made.flatten(4, 5).flatten(2, 3)[:, :, :height, :width].relu_()
