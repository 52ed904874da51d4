"""Counter-based noise for sampling and for dropout: a pure function of (clip seed, position, id).

There is no generator state, so a clip is the same alone, in a batch and on any rank. The bits come from
wrapping 32-bit integer products and shifts, which are equal on every device: two rounds of a multiply and
xor-shift hash similar to MurmurHash3's finaliser, each with one half of a 64-bit key.

Shapes: B clips, N positions, M candidate token ids, L positions of D channels.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN_64 = 0x9E3779B97F4A7C15 - 2**64  # 2**64 / golden ratio, the step of SplitMix64 (Steele et al. 2014)
GOLDEN_32 = 0x9E3779B9 - 2**32
# 31 random bits to (0, 1): the largest, which float32 rounds up to 2**31, must still stay below 1.
UNIT = 2.0**-31 * (1 - 2.0**-24)


def noise_keys(seeds: Sequence[int], positions: int, device: torch.device | str = "cpu") -> Tensor:
    """One 64-bit key per clip and position, as two int32 halves: (B, positions, 2). A seed is any integer."""
    digests = (hashlib.blake2b(str(int(seed)).encode(), digest_size=8).digest() for seed in seeds)
    words = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return spread_keys(torch.tensor(words, dtype=torch.int64, device="cpu"), positions).to(device)


def spread_keys(seed_B: Tensor, count: int) -> Tensor:
    """`count` 64-bit keys from each int64 seed, as two int32 halves: (B, count, 2), on the seeds' device."""
    key_BN = seed_B[:, None] + GOLDEN_64 * torch.arange(1, count + 1, device=seed_B.device)
    key_BN = (key_BN ^ _shift_right(key_BN, 30, 64)) * (0xBF58476D1CE4E5B9 - 2**64)
    key_BN = (key_BN ^ _shift_right(key_BN, 27, 64)) * (0x94D049BB133111EB - 2**64)
    return (key_BN ^ _shift_right(key_BN, 31, 64))[..., None].view(torch.int32)


def gumbel_noise(key_B2: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 (B, M), for token ids (M,) or (B, M) at the position with keys `key_B2`.

    It is -log(-log(1 - u)) with u from `uniform_noise`: small u give the largest noise, which decides the
    sampled token, and float32 is most precise there.
    """
    return uniform_noise(key_B2, ids).neg_().log1p_().neg_().log_().neg_()


def uniform_noise(key_B2: Tensor, ids: Tensor) -> Tensor:
    """Uniform noise strictly between 0 and 1, float32 (B, M)."""
    bits = _random_bits(key_B2, ids)
    return (bits & 0x7FFFFFFF).float().add_(0.5).mul_(UNIT)


def dropout(x_BLD: Tensor, rate: float, key_B2: Tensor | None) -> Tensor:
    """Zero values with probability `rate`, scale the rest up (Srivastava et al. 2014); identity without key.

    Each value uses 16 random bits: one hash serves two channels, D must be even, and `rate` is rounded.
    """
    dropped = round(rate * 65536)
    if key_B2 is None or dropped == 0:
        return x_BLD
    ids = torch.arange(x_BLD[0].numel() // 2, device=x_BLD.device)
    bits_BLD = _random_bits(key_B2, ids).view(torch.int16).view(x_BLD.shape)
    return x_BLD.masked_fill(bits_BLD < dropped - 32768, 0) * (65536 / (65536 - dropped))


def _random_bits(key_B2: Tensor, ids: Tensor) -> Tensor:
    low_B1, high_B1 = key_B2[:, :1], key_B2[:, 1:]
    bits = ids.int() * GOLDEN_32 + low_B1
    bits ^= _shift_right(bits, 16, 32)
    bits *= 0x7FEB352D
    bits ^= high_B1
    bits ^= _shift_right(bits, 15, 32)
    bits *= 0x846CA68B - 2**32
    bits ^= _shift_right(bits, 16, 32)
    return bits


def _shift_right(x: Tensor, shift: int, width: int) -> Tensor:
    """Logical right shift; `>>` of signed tensors repeats the sign bit."""
    return (x >> shift).bitwise_and_((1 << (width - shift)) - 1)
