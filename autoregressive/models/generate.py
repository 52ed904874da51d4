"""Sampling clips token by token.

A clip depends on the weights, its class, its seed and the settings; what else is in the batch does not enter.
The loop neither waits for the device nor keeps anything per token but its id.

Shapes: B clips, N tokens of a clip, V vocabulary, M candidate tokens, R rows that the model runs: B, or 2 B
under guidance.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autoregressive.models.gpt import GPT, check_labels
from autoregressive.models.noise import gumbel_noise, noise_keys

BUCKET = 128  # attention covers the used part of the cache, rounded up to this many slots


@torch.no_grad()
def generate(
    model: GPT, labels_B: Tensor, seeds: Sequence[int], cfg_scale: float = 1.0, cfg_interval: int = -1,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
) -> Tensor:
    """Sample one clip per label and seed -> tokens_BN int64 on the model's device.

    cfg_scale     s in the logits uncond + s * (cond - uncond) (Ho and Salimans 2022); 1 is no guidance
    cfg_interval  -1 guides every token; k guides token 0 and decode steps 0 to k (step i makes token i + 1)
    temperature   divides the logits; 0 takes the most likely token (the lowest id of equals)
    top_k         keeps the k largest logits, exactly k of them; 0 keeps all
    top_p         then keeps the fewest tokens whose probability sums to at least p

    Raises: `ValueError` that names the flag.
    """
    config, device = model.config, model.output.weight.device
    batch, count = len(labels_B), config.block_size
    _check_settings(cfg_scale, cfg_interval, temperature, top_k, top_p)
    if len(seeds) != batch:
        raise ValueError(f"--seed: {len(seeds)} seeds for {batch} clips")
    check_labels(labels_B, config.num_classes - 1)
    labels_B = labels_B.to(device)
    keys_BN2 = noise_keys(seeds, count, device)
    guided = 0 if cfg_scale == 1 else count if cfg_interval == -1 else min(cfg_interval + 2, count)
    rows = 2 * batch if guided else batch

    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])[:rows]
    cache = model.new_cache(rows, _compute_dtype(model))
    position_N = torch.arange(count, device=device)
    tokens_BN = torch.empty(batch, count, dtype=torch.long, device=device)
    for i in range(count):
        if i % BUCKET == 0 or i == guided:
            rows = 2 * batch if i < guided else batch
            view = cache.first(rows, (i // BUCKET + 1) * BUCKET)
        if i == 0:
            logits_RV = model.prefill(labels_R, view)
        else:
            last_R = tokens_BN[:, i - 1].repeat(rows // batch)
            logits_RV = model.step(last_R, position_N[i : i + 1], view)
        logits_BV = _guide(logits_RV, cfg_scale) if i < guided else logits_RV
        tokens_BN[:, i] = sample(logits_BV, keys_BN2[:, i], temperature, top_k, top_p)
    return tokens_BN


def sample(logits_BV: Tensor, key_B2: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One token per row -> (B,) int64, from softmax(logits / temperature) cut by top_k, then by top_p.

    The largest of logits plus temperature times Gumbel noise is such a sample (Gumbel 1954), so nothing needs
    to be normalised, and no temperature is too small. Of logits that tie for the last place among the top k,
    `torch.topk` chooses which stay.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    vocabulary = logits_BV.shape[-1]
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    kept = min(top_k or vocabulary, vocabulary)
    if kept == vocabulary and top_p == 1:
        ids = torch.arange(vocabulary, dtype=torch.int32, device=logits_BV.device)
        return (logits_BV + temperature * gumbel_noise(key_B2, ids)).argmax(-1)
    values_BM, ids_BM = logits_BV.topk(kept, sorted=top_p < 1)
    if top_p < 1:
        values_BM = _nucleus(values_BM, temperature, top_p)
    winner_B1 = (values_BM + temperature * gumbel_noise(key_B2, ids_BM)).argmax(-1, keepdim=True)
    return ids_BM.gather(1, winner_B1)[:, 0]


def _nucleus(values_BM: Tensor, temperature: float, top_p: float) -> Tensor:
    """Descending logits with all but the fewest that hold at least `top_p` of the mass set to -inf."""
    probability_BM = ((values_BM - values_BM[:, :1]) / temperature).softmax(-1)
    before_BM = probability_BM.cumsum(-1) - probability_BM  # mass of the likelier tokens; 0 for the first
    return values_BM.masked_fill(before_BM >= top_p, -torch.inf)


def _guide(logits_RV: Tensor, scale: float) -> Tensor:
    conditional_BV, unconditional_BV = logits_RV.chunk(2)
    return unconditional_BV + scale * (conditional_BV - unconditional_BV)


def _compute_dtype(model: GPT) -> torch.dtype:
    """The dtype that the model's products come out in, under autocast or not."""
    weight = model.output.weight
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def _check_settings(
    cfg_scale: float, cfg_interval: int, temperature: float, top_k: int, top_p: float,
) -> None:
    if not math.isfinite(cfg_scale):
        raise ValueError(f"--cfg-scale {cfg_scale}: must be finite")
    if cfg_interval < -1:
        raise ValueError(f"--cfg-interval {cfg_interval}: must be -1 (every step) or the last guided step")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature {temperature}: must be 0 or more")
    if top_k < 0:
        raise ValueError(f"--top-k {top_k}: must be 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p {top_p}: must be above 0 and at most 1")
