"""Convolutions with fewer multiplications: Winograd's way, on a CPU.

Outputs are made tile by tile. Tile and filter are taken as polynomials and multiplied at a few points (Toom
and Cook; Lavin and Gray 2016 for networks). Filters of 3 x 3 x 3 go this way over height and width: a tile of
4 x 4 outputs needs 6 x 6 products instead of 16 * 9, and over time the filter is applied as it is. Filters of
7 x 7 x 7 with stride 2 go this way over time: even and odd frames are filtered by 4 taps each, so that 8
outputs need 2 * 11 plane convolutions instead of 56, as long as the frames fill such tiles (multiples of 16).
Rounding errors in float32: 1e-6 and 6e-6 of the output.
Shapes: B clips, T frames, H x W pixels, C channels in, O out, P points, R rows and S columns of tiles,
t frames of a filter, K = 2 C channels of an even and an odd frame, X whatever is left.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, TILE = 3, 4  # of a filter and of the outputs of a tile
SEEN = TILE + SIDE - 1  # the side of what a tile of outputs looks at
LONG_SIDE, LONG_TILE = 7, 8  # the same of the filter with stride 2; its tiles are frames
TAPS = 4  # of it on even frames; one fewer on odd ones
POINTS = {  # and infinity
    (TILE, SIDE): (0, 1, -1, 1 / 2, -2),
    (LONG_TILE, TAPS): (0, 1, -1, 1 / 2, -1 / 2, 2, -2, 3 / 4, -3 / 4, 4),
}
ONE = 1  # the place of the point 1, whose products count once for every output: the bias is added there
BAND = 16  # rows of outputs at once
CHUNK = 2**20  # products at once, which fit the processor's caches


@cache
def matrices(tile: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (tile, P), G (P, taps), D (P, P): `A @ ((G @ filter) * (D @ values))` is a tile, convolved."""
    points = np.array(POINTS[tile, taps])

    def powers(degree: int) -> np.ndarray:
        return np.vstack([points[:, None] ** np.arange(degree), np.eye(1, degree, degree - 1)])

    data = np.linalg.inv(powers(len(points) + 1)).T
    scale = np.abs(data).max(1, keepdims=True)  # rounding errors stay small where no row is large
    return powers(tile).T, powers(taps) * scale, data / scale


@cache
def plane_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A, G, D, float64, for 3 x 3 filters and tiles of 4 x 4 outputs, whose points are P = 36."""
    return tuple(torch.from_numpy(np.kron(part, part)) for part in matrices(TILE, SIDE))


def transform_kernel(weight_OC333: Tensor) -> Tensor:
    """Filters as `convolve` takes them: (3 frames, P, C, O)."""
    weight_9tCO = weight_OC333.double().flatten(3).permute(3, 2, 1, 0)
    kernel_PX = plane_matrices()[1] @ weight_9tCO.flatten(1)
    return kernel_PX.float().unflatten(1, weight_9tCO.shape[1:]).transpose(0, 1).contiguous()


def convolve(x_BTHWC: Tensor, kernel_tPCO: Tensor, bias_O: Tensor) -> Tensor:
    """(B, T, H, W, C) -> (B, T, H, W, O) with zeros around, plus a bias, at least 0."""
    clips, frames, height, width = x_BTHWC.shape[:4]
    output_16P, _, data_PP = (part.to(x_BTHWC) for part in plane_matrices())
    rows, columns = -(-height // TILE), -(-width // TILE)
    x_BTHWC = F.pad(x_BTHWC, (0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height, 1, 1))
    tiles_B66TRSC = x_BTHWC.unfold(2, SEEN, TILE).unfold(3, SEEN, TILE).permute(0, 5, 6, 1, 2, 3, 4)
    made_BTR4S4O = x_BTHWC.new_empty(clips, frames, rows, TILE, columns, TILE, len(bias_O))
    step = max(CHUNK // (len(data_PP) * frames * columns * len(bias_O)), 1)
    for tiles_66TRSC, made_TR4S4O in zip(tiles_B66TRSC, made_BTR4S4O, strict=True):
        for row in range(0, rows, step):
            part_66TRSC = tiles_66TRSC[:, :, :, row : row + step]
            data_PX = data_PP @ part_66TRSC.flatten(0, 1).flatten(1)
            data_PTXC = data_PX.view(len(data_PP), frames + SIDE - 1, -1, x_BTHWC.shape[4])
            products_PXO = torch.bmm(data_PTXC[:, :frames].flatten(1, 2), kernel_tPCO[0])
            for time in range(1, SIDE):
                products_PXO.baddbmm_(data_PTXC[:, time : time + frames].flatten(1, 2), kernel_tPCO[time])
            products_PXO[ONE * SEEN + ONE] += bias_O
            output_16X = output_16P @ products_PXO.flatten(1)
            output_44TRSO = output_16X.view(TILE, TILE, frames, -1, columns, len(bias_O))
            torch.clamp_min(output_44TRSO.permute(2, 3, 0, 4, 1, 5), 0, out=made_TR4S4O[:, row : row + step])
    return made_BTR4S4O.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def transform_long_kernel(weight_OC777: Tensor) -> Tensor:
    """Filters with stride 2 as `convolve_long` takes them: (P, O, 2, C, 7, 7), even frames first.

    In memory the channels come last.
    """
    weight_8X = F.pad(weight_OC777.double().movedim(2, 0).flatten(1), (0, 0, 0, 1))
    weight_t2X = weight_8X.unflatten(0, (TAPS, 2))
    kernel_PX = torch.from_numpy(matrices(LONG_TILE, TAPS)[1]) @ weight_t2X.flatten(1)
    kernel_P2OCHW = kernel_PX.float().view(-1, 2, *weight_OC777.shape[:2], LONG_SIDE, LONG_SIDE)
    return kernel_P2OCHW.permute(0, 2, 4, 5, 1, 3).contiguous().permute(0, 1, 4, 5, 2, 3)


def convolve_long(
    x_BTHWC: Tensor, kernel_PO2CHW: Tensor, bias_O: Tensor, pads: Sequence[tuple[int, int]]
) -> Tensor:
    """(B, T, H, W, C) -> (B, T / 2, H / 2, W / 2, O), rounded up, plus a bias, at least 0.

    `pads` are the zeros before and after T, H and W.
    """
    clips, frames, *sides, channels = x_BTHWC.shape
    output_8P, _, data_PP = (torch.from_numpy(part).to(x_BTHWC) for part in matrices(LONG_TILE, TAPS))
    tiles, seen = -(-frames // (2 * LONG_TILE)), len(data_PP)
    height, width = (before + n + after for n, (before, after) in zip(sides, pads[1:], strict=True))
    pairs_BTHW2C = x_BTHWC.new_zeros(clips, LONG_TILE * (tiles - 1) + seen, height, width, 2, channels)
    first, top, left = (before for before, _ in pads)
    inside_BTHW2C = pairs_BTHW2C[:, :, top : top + sides[0], left : left + sides[1]]
    for odd in range(2):
        part_BTHWC = x_BTHWC[:, (first + odd) % 2 :: 2]
        start = (first + 1 - odd) // 2
        inside_BTHW2C[:, start : start + part_BTHWC.shape[1], :, :, odd] = part_BTHWC
    windows = [clip[LONG_TILE * tile :][:seen].flatten(1) for clip in pairs_BTHW2C for tile in range(tiles)]
    data_XPX = torch.stack([data_PP @ window_PX for window_PX in windows])  # X: tiles of all clips
    data_PXKHW = data_XPX.view(-1, seen, height, width, 2 * channels).permute(1, 0, 4, 2, 3)
    biases = (bias_O if point == ONE else None for point in range(seen))
    products = [F.conv2d(data_XKHW, kernel_O2CHW.flatten(1, 2), bias, 2).movedim(1, 3)
                for data_XKHW, kernel_O2CHW, bias in zip(data_PXKHW, kernel_PO2CHW, biases, strict=True)]
    made_X8HWO = x_BTHWC.new_empty(clips * tiles, LONG_TILE, *products[0].shape[1:])
    for index, made_8HWO in enumerate(made_X8HWO):
        for row in range(0, made_8HWO.shape[1], BAND):
            products_PHWO = torch.stack([product[index, row : row + BAND] for product in products])
            made_8X = made_8HWO[:, row : row + BAND].flatten(1)
            torch.mm(output_8P, products_PHWO.flatten(1), out=made_8X).relu_()
    return made_X8HWO.unflatten(0, (clips, tiles)).flatten(1, 2)[:, : -(-frames // 2)]
