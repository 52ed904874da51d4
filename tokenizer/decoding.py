"""The decoder on a CPU, without gradients: the function of `vq_model.Decoder.pixels`, some rows at a time.

A band of rows is normalised, activated and convolved while the processor's cache holds it, each thread has
bands of its own, and only two whole feature maps exist. 3x3 convolutions in float32 are NNPACK's, where
Winograd's transform (Lavin and Gray 2016) saves four of five products; else they are PyTorch's, and those
after an upsampling are folded to 2x2 ones.

Shapes: C or O channels, H x W cells of a feature map, R rows of a band, G groups of a normalisation.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.hardware import has

BAND = 3 << 20  # values of a band at most: it and its convolution fit into the cache
TILE = 6  # rows and columns that NNPACK computes at once
NARROW = 64  # with fewer channels NNPACK is no faster
FOLD_PHASE_TAP_3 = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


def bands_pay(dtype: torch.dtype) -> bool:
    """True if bands are faster here than the decoder as it is, whose maps are channels last.

    A processor with AMX takes 0.7 s for a picture of 512 px in bfloat16 as it is, 1.9 s in bands; one with
    AVX-512 3.0 s in float32, 3.4 s in bands by NNPACK, which knows AVX2 only (2 cores, VQ-16).
    """
    return not has("amx_tile" if dtype == torch.bfloat16 else "avx512f")


@torch.no_grad()
def decode_in_bands(decoder: nn.Module, latent_1CHW: Tensor, dtype: torch.dtype) -> Tensor:
    """One latent (1, C, H, W) -> its pixels, as `decoder` makes them, with 3x3 convolutions in `dtype`."""
    x_1CHW = convolve(latent_1CHW, decoder.conv_in, dtype)
    before, attention, after = decoder.mid
    scratch_1CHW = torch.empty_like(x_1CHW)
    x_1CHW = attention(residual(x_1CHW, before, dtype, scratch_1CHW)).contiguous()
    x_1CHW = residual(x_1CHW, after, dtype, scratch_1CHW)
    for level in decoder.conv_blocks:
        scratch_1CHW = x_1CHW.new_empty(1, level.res[0].conv2.out_channels, *x_1CHW.shape[2:])
        for i, block in enumerate(level.res):
            x_1CHW = residual(x_1CHW, block, dtype, scratch_1CHW)
            if level.attn:
                x_1CHW = level.attn[i](x_1CHW).contiguous()
        del scratch_1CHW
        if level.resample:
            x_1CHW = convolve(x_1CHW, level.upsample.conv, dtype, scale=2)
    return convolve(x_1CHW, decoder.conv_out, dtype, decoder.norm_out)


def residual(x_1CHW: Tensor, block: nn.Module, dtype: torch.dtype, scratch_1OHW: Tensor) -> Tensor:
    """A `ResnetBlock`; `x_1CHW` is overwritten where it has as many channels as the result."""
    convolve(x_1CHW, block.conv1, dtype, block.norm1, out_1OHW=scratch_1OHW)
    if hasattr(block, "nin_shortcut"):
        x_1CHW = block.nin_shortcut(x_1CHW).to(x_1CHW.dtype, memory_format=torch.contiguous_format)
    return convolve(scratch_1OHW, block.conv2, dtype, block.norm2, out_1OHW=x_1CHW, add=True)


def convolve(x_1CHW: Tensor, conv: nn.Conv2d, dtype: torch.dtype, norm: nn.GroupNorm | None = None,
             scale: int = 1, out_1OHW: Tensor | None = None, add: bool = False) -> Tensor:
    """3x3 convolution of x, of silu(norm(x)), or at scale 2 of x upsampled; put into or added to `out`."""
    channels, height, width = x_1CHW.shape[1:]
    if out_1OHW is None:
        out_1OHW = x_1CHW.new_empty(1, conv.out_channels, scale * height, scale * width)
    weight, bias = conv.weight.to(dtype).contiguous(), conv.bias.to(dtype)
    function = upsampled_rows if scale == 2 else convolved_rows
    factors = None if norm is None else scale_and_shift(x_1CHW, norm)
    threads = torch.get_num_threads()
    rows = min(BAND // (channels * width * scale**2), -(-height // threads))
    rows = max(-(-rows // TILE) * TILE, TILE)

    @torch.no_grad()
    def make(start: int) -> None:
        stop = min(start + rows, height)
        first, last = max(start - 1, 0), min(stop + 1, height)
        band_1CRW = x_1CHW.new_empty(1, channels, stop - start + 2, width)
        band_1CRW[:, :, :: stop - start + 1] = 0  # above and below the picture; elsewhere overwritten
        seen_1CRW = x_1CHW[:, :, first:last]
        place_1CRW = band_1CRW[:, :, first - start + 1 : last - start + 1]
        if factors:
            F.silu(torch.addcmul(factors[1], seen_1CRW, factors[0], out=place_1CRW), inplace=True)
        else:
            place_1CRW.copy_(seen_1CRW)
        made_1ORW = function(band_1CRW.to(dtype), weight, bias)
        place_1ORW = out_1OHW[:, :, scale * start : scale * stop]
        place_1ORW.add_(made_1ORW) if add else place_1ORW.copy_(made_1ORW)

    list(workers(threads).map(make, range(0, height, rows)))
    return out_1OHW


@cache
def workers(count: int) -> ThreadPoolExecutor:
    """Threads that compute alone: NNPACK's own and PyTorch's would wait for each other in busy loops."""
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def scale_and_shift(x_1CHW: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Factors a and b, (C, 1, 1) each, with norm(x) = a x + b."""
    groups_GM = x_1CHW.view(norm.num_groups, -1)
    mean_G = groups_GM.mean(1)
    spread_G = torch.stack([torch.linalg.vector_norm(group_M - mean)
                            for group_M, mean in zip(groups_GM, mean_G, strict=True)])
    variance_G = spread_G.square() / groups_GM.shape[1]
    each = x_1CHW.shape[1] // norm.num_groups
    scale_C = norm.weight * (variance_G + norm.eps).rsqrt().repeat_interleave(each)
    shift_C = norm.bias - mean_G.repeat_interleave(each) * scale_C
    return scale_C[:, None, None], shift_C[:, None, None]


@cache
def nnpack_there() -> bool:
    """True if NNPACK knows this processor; asking sets it up."""
    return torch._nnpack_available()


def use_nnpack(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and min(weight.shape[:2]) >= NARROW and nnpack_there()


def convolved_rows(band_1CRW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R rows, the first and last of which are only looked at -> (1, O, R - 2, W)."""
    if use_nnpack(weight):
        return torch._nnpack_spatial_convolution(band_1CRW, weight, bias, [0, 1])
    return F.conv2d(band_1CRW, weight, bias, padding=(0, 1))


def upsampled_rows(band_1CRW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same of rows that nearest-neighbour upsampling makes twice as large -> (1, O, 2 R - 4, 2 W).

    A 3x3 kernel meets only 2x2 different cells, by one of four kernels of sums of its weights.
    """
    if use_nnpack(weight):
        large_1CRW = F.interpolate(band_1CRW, scale_factor=2.0, mode="nearest")[:, :, 1:-1]
        return convolved_rows(large_1CRW, weight, bias)
    fold = FOLD_PHASE_TAP_3.to(weight)
    folded = torch.einsum("pta,qub,ocab->pqoctu", fold, fold, weight).flatten(0, 2)
    made = F.conv2d(band_1CRW, folded, bias.repeat(4), padding=(0, 1)).unflatten(1, (2, 2, -1))
    rows, width = band_1CRW.shape[2] - 2, band_1CRW.shape[3]
    out_1ORW = made.new_empty(1, len(bias), 2 * rows, 2 * width)
    for p in (0, 1):
        for q in (0, 1):
            out_1ORW[:, :, p::2, q::2] = made[:, p, q, :, p : p + rows, q : q + width]
    return out_1ORW
