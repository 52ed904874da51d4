"""Triton kernels for the passes of a decoder on a GPU: attention with a cache, and the choice of a token.

Each replaces dozens of PyTorch's launches by one or two, and reads the position from device memory, so that
one recorded CUDA graph serves every position. They compute the same as `layers.Attention.window` and
`decoding.Rule`, up to rounding.

Shapes: R rows, W positions of a window, D width, H query heads, K key heads, G = H / K, C channels of a head,
S cache slots, L = 1 + tokens of a clip, V vocabulary; in the kernels M >= G W queries and T >= C channels,
padded to powers of two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from autoregressive.models.noise import GOLDEN_32, UNIT

BLOCKS = {2: (64, 4), 4: (32, 4)}  # bytes of a value -> slots that a program reads at once, its warps
PROGRAMS = 528  # that keep the 132 multiprocessors of an H100 reading: with few rows each is read in parts
STEP = tl.constexpr(GOLDEN_32 % 2**32)
SCALE = tl.constexpr(UNIT)
PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")  # of float32 products; AMD has no tf32x3


def check(device: torch.device) -> None:
    """Run the kernels once on what is easily known; an error means that they do not work on this device."""
    logits, key = torch.tensor([[0.0, 1]], device=device), torch.zeros(1, 2, dtype=torch.int32, device=device)
    token_1 = choose(logits, key, key[:, 0].long(), 0, 1.0, 1.0, 1)
    tables = torch.zeros(2, 4, 64, device=device)
    for dtype in (torch.bfloat16, torch.float32):
        keys, values = torch.zeros(2, 1, 1, 4, 64, dtype=dtype, device=device)
        qkv_11D = torch.arange(192, device=device).to(dtype)[None, None]
        out_11C = split_attention(qkv_11D, *tables, key[:, :1].long(), keys, values)
    if token_1 != 1 or not out_11C.allclose(qkv_11D[..., 128:]):  # the first position sees its own value only
        raise NotImplementedError("they compute something else here")


def split_attention(qkv_RWD: Tensor, cos_LC: Tensor, sin_LC: Tensor, positions_RW: Tensor, keys_RKSC: Tensor,
                    values_RKSC: Tensor) -> Tensor:
    """Rotary embedding, cache update and attention of W consecutive positions -> (R, W, H * C).

    Several programs per row and head read parts of the cache; their results are then combined (split-KV, Dao
    et al. 2023). `qkv_RWD` holds the queries, keys and values of a token, concatenated.
    """
    rows, window, width = qkv_RWD.shape
    kv_heads, slots, channels = keys_RKSC.shape[1:]
    heads = width // channels - 2 * kv_heads
    queries = heads // kv_heads * window
    padded = max(16, triton.next_power_of_2(queries))
    block, warps = BLOCKS[qkv_RWD.element_size()]
    splits = min(triton.cdiv(PROGRAMS, rows * kv_heads), triton.cdiv(slots, block))
    splits = triton.next_power_of_2(splits)
    out_RWD = qkv_RWD.new_empty(rows, window, heads * channels)
    parts = out_RWD.new_empty(rows * kv_heads, splits, padded, channels + 1, dtype=torch.float32)
    sizes = dict(W=window, G=heads // kv_heads, K=kv_heads, C=channels, M=padded, SPLITS=splits,
                 T=triton.next_power_of_2(channels))
    _attend[rows * kv_heads, splits](
        qkv_RWD.contiguous(), cos_LC, sin_LC, positions_RW.contiguous(), keys_RKSC, values_RKSC, out_RWD,
        parts, keys_RKSC.stride(0), keys_RKSC.stride(1), len(cos_LC), channels**-0.5, SLOTS=block,
        NEW=triton.next_power_of_2(window), num_warps=warps, num_stages=1, **sizes)
    if splits > 1:
        _combine[rows * kv_heads, queries](parts, out_RWD, **sizes)
    return out_RWD


@triton.jit
def _turned(base, cos, sin, table, channel, mask, C):
    """Channels of heads at `base`, rotated by the table's rows, in float32; see `rope.rotate`."""
    x = tl.load(base + channel, mask=mask, other=0).to(tl.float32)
    swapped = tl.load(base + (channel ^ 1), mask=mask, other=0).to(tl.float32)
    place = table * C + channel
    return x * tl.load(cos + place, mask=mask, other=0) + swapped * tl.load(sin + place, mask=mask, other=0)


@triton.jit
def _attend(qkv, cos, sin, positions, keys, values, out, parts, row_stride, head_stride, L, scale,
            W: tl.constexpr, G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
            SPLITS: tl.constexpr, T: tl.constexpr, SLOTS: tl.constexpr, NEW: tl.constexpr):
    """One part of the slots of one row and key head."""
    row, head, part = tl.program_id(0) // K, tl.program_id(0) % K, tl.program_id(1)
    dtype = qkv.dtype.element_ty
    width: tl.constexpr = (G + 2) * K * C
    qkv += row * W * width
    cache = row.to(tl.int64) * row_stride + head * head_stride
    first = tl.load(positions + row * W)
    query, channel = tl.arange(0, M), tl.arange(0, T)[None, :]
    place = query % W
    asked = (query < G * W)[:, None] & (channel < C)
    source = qkv + (place * width + (head * G + query // W) * C)[:, None]
    table = tl.minimum(first + place, L - 1)[:, None]
    q = _turned(source, cos, sin, table, channel, asked, C).to(dtype)

    each = tl.cdiv(tl.cdiv(first + W, SPLITS), SLOTS) * SLOTS
    start = part * each
    stop = tl.minimum(start + each, first + W)
    if stop > first:  # put the window into the cache; parts that share it write the same
        ahead = tl.arange(0, NEW)[:, None]
        new = (ahead < W) & (channel < C)
        own = qkv + ahead * width + (G * K + head) * C
        spot = cache + (first + ahead) * C + channel
        fresh = _turned(own, cos, sin, tl.minimum(first + ahead, L - 1), channel, new, C)
        tl.store(keys + spot, fresh.to(dtype), mask=new)
        tl.store(values + spot, tl.load(own + K * C + channel, mask=new, other=0), mask=new)
    tl.debug_barrier()  # all threads see it
    largest = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    gathered = tl.zeros([M, T], tl.float32)
    for begin in range(start, stop, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        spot, there = cache + slot[:, None] * C + channel, (slot < stop)[:, None] & (channel < C)
        k = tl.load(keys + spot, mask=there, other=0)
        v = tl.load(values + spot, mask=there, other=0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (slot[None, :] <= (first + place)[:, None]) & (slot < stop)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(scores - safe[:, None])
        fade = tl.exp(largest - safe)
        total = total * fade + tl.sum(weight, 1)
        gathered = gathered * fade[:, None] + tl.dot(weight.to(dtype), v, input_precision=PRECISION)
        largest = higher
    result = gathered / tl.where(total == 0, 1.0, total)[:, None]
    if SPLITS == 1:
        target = out + (row * W + place[:, None]) * G * K * C + (head * G + query // W)[:, None] * C
        tl.store(target + channel, result.to(dtype), mask=asked)
    else:
        line = parts + ((tl.program_id(0) * SPLITS + part) * M + query) * (C + 1)
        tl.store(line[:, None] + channel, result, mask=asked)
        tl.store(line + C, largest + tl.log(total), mask=query < G * W)


@triton.jit
def _combine(parts, out, W: tl.constexpr, G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
             SPLITS: tl.constexpr, T: tl.constexpr):
    """One query of one row and key head: the mean of the parts, weighted by their sums of exponentials."""
    row, head, query = tl.program_id(0) // K, tl.program_id(0) % K, tl.program_id(1)
    part, channel = tl.arange(0, SPLITS), tl.arange(0, T)
    line = parts + ((tl.program_id(0) * SPLITS + part) * M + query) * (C + 1)
    logs = tl.load(line + C)
    weight = tl.exp(logs - tl.max(logs, 0))
    results = tl.load(line[:, None] + channel[None, :], mask=(channel < C)[None, :], other=0)
    mean = tl.sum(results * weight[:, None], 0) / tl.sum(weight, 0)
    target = out + (row * W + query % W) * G * K * C + (head * G + query // W) * C
    tl.store(target + channel, mean.to(out.dtype.element_ty), mask=channel < C)


def choose(logits_RV: Tensor, key_B2: Tensor, position_B: Tensor, guided: int, cfg_scale: float,
           temperature: float, top_k: int) -> Tensor:
    """`decoding.sample` without top-p, of logits guided at positions below `guided` -> (B,) int64.

    With twice as many rows as keys the second half is unconditional. Of equal logits at the k-th place those
    with the lowest ids are kept.
    """
    batch, vocabulary = len(key_B2), logits_RV.shape[1]
    token_B = torch.empty(batch, dtype=torch.long, device=logits_RV.device)
    kept = top_k if top_k and top_k < vocabulary and temperature else 0
    position_B = position_B.expand(batch).contiguous()
    _choose[batch,](logits_RV.contiguous(), key_B2.contiguous(), position_B, token_B, guided, cfg_scale,
                    temperature, kept, batch, V=vocabulary, P=triton.next_power_of_2(vocabulary),
                    TWICE=len(logits_RV) > batch, CUT=kept > 0, NOISY=temperature > 0, num_warps=16)
    return token_B


@triton.jit
def _choose(logits, keys, positions, tokens, guided, cfg_scale, temperature, kept, batch, V: tl.constexpr,
            P: tl.constexpr, TWICE: tl.constexpr, CUT: tl.constexpr, NOISY: tl.constexpr):
    row, token = tl.program_id(0), tl.arange(0, P)
    value = tl.load(logits + row * V + token, mask=token < V, other=float("-inf")).to(tl.float32)
    if TWICE:
        factor = tl.where(tl.load(positions + row) < guided, cfg_scale, 1.0)
        other = tl.load(logits + (row + batch) * V + token, mask=token < V, other=0).to(tl.float32)
        value = tl.where(factor == 1, value, other + factor * (value - other))
    score = value
    if NOISY:
        score += temperature * _gumbel(tl.load(keys + 2 * row), tl.load(keys + 2 * row + 1), token)
    if CUT:
        bits = value.to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, ~bits, bits | -0x80000000)
        rank = ordered.to(tl.uint32, bitcast=True)  # in the order of the logits
        least = tl.zeros([], tl.uint32)  # the largest number that `kept` ranks reach, bit by bit
        for i in range(32):
            candidate = least | (tl.full([], 1, tl.uint32) << (31 - i))
            least = tl.where(tl.sum((rank >= candidate).to(tl.int32), 0) >= kept, candidate, least)
        above = rank > least
        equal = (rank == least).to(tl.int32)
        room = kept - tl.sum(above.to(tl.int32), 0)
        score = tl.where(above | ((equal == 1) & (tl.cumsum(equal, 0) <= room)), score, float("-inf"))
    tl.store(tokens + row, tl.argmax(score, 0).to(tl.int64))


@triton.jit
def _gumbel(low, high, token):
    """`noise.gumbel_noise` of one position."""
    bits = token.to(tl.uint32) * STEP + low.to(tl.uint32, bitcast=True)
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits ^= high.to(tl.uint32, bitcast=True)
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    bits ^= bits >> 16
    uniform = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * SCALE
    rest = 1 - uniform  # log1p as Kahan computes it
    log1p = tl.where(rest == 1, -uniform, tl.log(rest) * (-uniform / tl.where(rest == 1, 1.0, rest - 1)))
    return -tl.log(-log1p)
