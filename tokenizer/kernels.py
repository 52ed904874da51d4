"""Triton kernels for what is not a convolution in a tokenizer's residual blocks, on a GPU without gradients.

Feature maps are channels last, in any of float32, bfloat16 and float16; sums are in float32. The bias of a
convolution is left to them: to add it by itself would be a pass over the whole map.

Shapes: B pictures, C channels, N = H x W cells, P parts of N, G groups, R cells that a program reads at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

PARTS, LEAST = 64, 256  # parts of a map, and cells of a part
TILE = 8192  # values


def check(device: torch.device) -> None:
    """Run the kernels once; whatever it raises says that they do not work here."""
    x_BCHW = torch.zeros(1, 8, 4, 4, device=device)
    add(x_BCHW, norm_silu(x_BCHW, nn.GroupNorm(2, 8, device=device)), x_BCHW[0, :, 0, 0])


def norm_silu(x_BCHW: Tensor, norm: nn.GroupNorm, bias_C: Tensor | None = None) -> Tensor:
    """silu(norm(x + bias)), channels last."""
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    batch, channels, cells = *x_BCHW.shape[:2], x_BCHW.shape[2] * x_BCHW.shape[3]
    if bias_C is None:
        bias_C = torch.zeros_like(norm.bias)
    part = max(LEAST, triton.cdiv(cells, PARTS))
    parts = triton.cdiv(cells, part)
    sums = torch.empty(batch, parts, 2, channels, device=x_BCHW.device)
    factors = torch.empty(batch, 2, channels, device=x_BCHW.device)
    padded = triton.next_power_of_2(channels)
    rows = max(1, TILE // 2 // padded)
    _sums[batch, parts](x_BCHW, bias_C, sums, cells, part, C=channels, T=padded, R=rows)
    width = channels // norm.num_groups
    _factors[batch, norm.num_groups](sums, norm.weight, norm.bias, bias_C, factors, cells, parts, norm.eps,
                                     C=channels, E=width, T=triton.next_power_of_2(width))
    out_BCHW = torch.empty_like(x_BCHW)
    _scale_silu[triton.cdiv(x_BCHW.numel(), TILE),](
        x_BCHW, factors, out_BCHW, x_BCHW.numel(), cells, C=channels, M=TILE, num_warps=8)
    return out_BCHW


def add(x_BCHW: Tensor, y_BCHW: Tensor, bias_C: Tensor) -> Tensor:
    """x + y + bias, channels last, in the dtype of y."""
    x_BCHW, y_BCHW = (z.contiguous(memory_format=torch.channels_last) for z in (x_BCHW, y_BCHW))
    out_BCHW = torch.empty_like(y_BCHW)
    _add[triton.cdiv(y_BCHW.numel(), TILE),](
        x_BCHW, y_BCHW, bias_C, out_BCHW, y_BCHW.numel(), C=y_BCHW.shape[1], M=TILE, num_warps=8)
    return out_BCHW


@triton.jit
def _sums(x, bias, sums, N, part, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr):
    """Sums and sums of squares of x + bias, over the cells of one part, of each channel."""
    picture, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel, row = tl.arange(0, T), tl.arange(0, R)
    shift = tl.load(bias + channel, mask=channel < C, other=0).to(tl.float32)[None, :]
    total, squares = tl.zeros([R, T], tl.float32), tl.zeros([R, T], tl.float32)
    for start in range(number * part, tl.minimum(number * part + part, N), R):
        cell = start + row
        there = (cell < tl.minimum(number * part + part, N))[:, None] & (channel < C)[None, :]
        place = x + (picture * N + cell[:, None]) * C + channel[None, :]
        value = tl.where(there, tl.load(place, mask=there, other=0).to(tl.float32) + shift, 0.0)
        total += value
        squares += value * value
    target = sums + (picture * tl.num_programs(1) + number) * 2 * C + channel
    tl.store(target, tl.sum(total, 0), mask=channel < C)
    tl.store(target + C, tl.sum(squares, 0), mask=channel < C)


@triton.jit
def _factors(sums, weight, offset, bias, factors, N, parts, eps, C: tl.constexpr, E: tl.constexpr,
             T: tl.constexpr):
    """Factors a and b of one group's channels, with norm(x + bias) = a x + b."""
    picture, each = tl.program_id(0), tl.arange(0, T)
    channel = tl.program_id(1) * E + each
    total, squares = tl.zeros([T], tl.float64), tl.zeros([T], tl.float64)
    for part in range(parts):
        place = sums + (picture * parts + part) * 2 * C + channel
        total += tl.load(place, mask=each < E, other=0).to(tl.float64)
        squares += tl.load(place + C, mask=each < E, other=0).to(tl.float64)
    mean = tl.sum(total, 0) / (N * E)
    variance = tl.maximum(tl.sum(squares, 0) / (N * E) - mean * mean, 0.0).to(tl.float32)
    scale = tl.load(weight + channel, mask=each < E, other=0).to(tl.float32) / tl.sqrt(variance + eps)
    shift = tl.load(bias + channel, mask=each < E, other=0).to(tl.float32) - mean.to(tl.float32)
    target = factors + picture * 2 * C + channel
    tl.store(target, scale, mask=each < E)
    shift = tl.load(offset + channel, mask=each < E, other=0).to(tl.float32) + shift * scale
    tl.store(target + C, shift, mask=each < E)


@triton.jit
def _scale_silu(x, factors, out, count, N, C: tl.constexpr, M: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    factor = factors + place // (C * N) * 2 * C + place % C
    there = place < count
    value = tl.load(x + place, mask=there, other=0).to(tl.float32)
    value = value * tl.load(factor, mask=there, other=0) + tl.load(factor + C, mask=there, other=0)
    value = value / (1 + tl.exp(-value))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < count)


@triton.jit
def _add(x, y, bias, out, count, C: tl.constexpr, M: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    value = tl.load(x + place, mask=place < count, other=0).to(tl.float32)
    value += tl.load(y + place, mask=place < count, other=0).to(tl.float32)
    value += tl.load(bias + place % C).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < count)
