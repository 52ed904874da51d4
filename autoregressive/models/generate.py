"""Sampling clips token by token.

A clip depends on the weights, its class, its seed and the settings; what else is in the batch does not enter.
The loop neither waits for the device nor keeps anything per token but its id.

Shapes: B clips, N tokens of a clip, V vocabulary, M candidate tokens, R rows that the model runs: B, or 2 B
under guidance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.models.gpt import GPT, check_labels
from autoregressive.models.noise import gumbel_noise, noise_keys

OVERHEAD = 8  # tokens; measured on a CPU: 5 with 64 rows, 8 with 2 and with 16
TRIAL, REST = 8, 128  # passes over windows to see what they gain, and over single tokens where that is little
BUCKET = 128  # attention covers the used part of the cache, rounded up to this many slots


@dataclass(frozen=True)
class Rule:
    """How a token is chosen from logits; the names are those of `generate`."""

    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float

    def sample(self, logits_BV: Tensor, key_B2: Tensor) -> Tensor:
        """One token per row -> (B,) int64."""
        return sample(logits_BV, key_B2, self.temperature, self.top_k, self.top_p)

    def guide(self, logits_RV: Tensor) -> Tensor:
        """Logits of the conditional rows followed by the unconditional ones -> guided logits."""
        conditional_BV, unconditional_BV = logits_RV.chunk(2)
        return unconditional_BV + self.cfg_scale * (conditional_BV - unconditional_BV)


@torch.no_grad()
def generate(
    model: GPT, labels_B: Tensor, seeds: Sequence[int], cfg_scale: float = 1.0, cfg_interval: int = -1,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, given_BN: Tensor | None = None,
    towards: tuple[int, float] | None = None, decode_window: int = 1,
) -> Tensor:
    """Sample one clip per label and seed -> tokens_BN int64 on the model's device.

    cfg_scale      s in the logits uncond + s * (cond - uncond) (Ho and Salimans 2022); 1 is no guidance
    cfg_interval   -1 guides every token; k guides token 0 and decode steps 0 to k (step i makes token i + 1)
    temperature    divides the logits; 0 takes the most likely token (the lowest id of equals)
    top_k          keeps the k largest logits, exactly k of them; 0 keeps all
    top_p          then keeps the fewest tokens whose probability sums to at least p
    given_BN       tokens that are known beforehand, -1 where they are to be sampled
    towards        (label, w): the class token's embedding moves by the part w, 0 to 1, to that class
    decode_window  tokens worked on at once; the clip is the same, see `decode_in_windows`

    Raises: `ValueError` that names the flag.
    """
    config, device = model.config, model.output.weight.device
    batch, count = len(labels_B), config.block_size
    _check_settings(cfg_scale, cfg_interval, temperature, top_k, top_p)
    if not 1 <= decode_window <= count:
        raise ValueError(f"--decode-window {decode_window}: must be 1 to {count}")
    if len(seeds) != batch:
        raise ValueError(f"--seed: {len(seeds)} seeds for {batch} clips")
    check_labels(labels_B, config.num_classes - 1)
    labels_B = labels_B.to(device)
    guided = 0 if cfg_scale == 1 else count if cfg_interval == -1 else min(cfg_interval + 2, count)
    rule, rows = Rule(cfg_scale, temperature, top_k, top_p), 2 * batch if guided else batch
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])[:rows]
    class_RD = _class_embedding(model, labels_R, labels_B, towards)
    given_BN = _given(given_BN, batch, count, config.vocab_size).to(device)
    keys_BN2 = noise_keys(seeds, count, device)
    if decode_window > 1:
        return decode_in_windows(model, class_RD, keys_BN2, given_BN, guided, rule, decode_window)[0]
    return decode_in_steps(model, class_RD, keys_BN2, given_BN, guided, rule)


def decode_in_steps(
    model: GPT, class_RD: Tensor, keys_BN2: Tensor, given_BN: Tensor, guided: int, rule: Rule
) -> Tensor:
    """Token by token, the first `guided` of them under guidance."""
    batch, count = given_BN.shape
    known_N = (given_BN >= 0).all(0).tolist()
    cache = model.new_cache(len(class_RD), _compute_dtype(model))
    position_N = torch.arange(count, device=given_BN.device)
    tokens_BN = torch.empty_like(given_BN)
    for i in range(count):
        if i % BUCKET == 0 or i == guided:
            rows = 2 * batch if i < guided else batch
            view = cache.first(rows, (i // BUCKET + 1) * BUCKET)
        if i == 0:
            logits_RV = model.start(class_RD[:rows], view)
        else:
            last_R = tokens_BN[:, i - 1].repeat(rows // batch)
            logits_RV = model.step(last_R, position_N[i : i + 1], view)
        if known_N[i]:
            tokens_BN[:, i] = given_BN[:, i]
            continue
        sampled_B = rule.sample(rule.guide(logits_RV) if i < guided else logits_RV, keys_BN2[:, i])
        tokens_BN[:, i] = torch.where(given_BN[:, i] < 0, sampled_B, given_BN[:, i])
    return tokens_BN


def decode_in_windows(
    model: GPT, class_RD: Tensor, keys_BN2: Tensor, given_BN: Tensor, guided: int, rule: Rule, window: int
) -> tuple[Tensor, int]:
    """The tokens of `decode_in_steps`, and the number of passes: Jacobi iteration over a window of guesses.

    With the noise fixed, token i is a function of the tokens before it. A pass samples up to `window` tokens
    from guesses of those before them; up to the first wrong guess the samples are right and stay, the others
    are the next guesses (Santilli et al. 2023; Song et al. 2021). At first a token is guessed to be the one a
    frame's width back, the same cell of the previous frame. Every clip moves on by itself. Where a few passes
    over windows gain too little, many over single tokens follow before windows are tried again.
    """
    (batch, count), device = given_BN.shape, given_BN.device
    back, size, turn, before = model.config.token_dropout_segment, window, TRIAL, batch
    ahead_M = torch.arange(window, device=device)
    cache = model.new_cache(len(class_RD), _compute_dtype(model), spare=window)
    first_RV = model.start(class_RD, cache.first(len(class_RD), BUCKET))
    first_B = rule.sample(rule.guide(first_RV) if guided else first_RV, keys_BN2[:, 0])
    given_BM = F.pad(given_BN, (0, 2 * window), value=-1)  # the last windows reach beyond the clip's end
    keys_BM2 = F.pad(keys_BN2, (0, 0, 0, 2 * window))
    guesses_BM = torch.where(given_BM < 0, first_B[:, None], given_BM)
    done_B1 = torch.ones(batch, 1, dtype=torch.long, device=device)
    least = most = passes = 1
    while least < count:
        rows = 2 * batch if least < guided else batch
        view = cache.first(rows, min(-(-(most + size) // BUCKET) * BUCKET, count + window))
        places_BW = done_B1 + ahead_M[:size]
        copies = rows // batch
        inputs_RW = guesses_BM.gather(1, places_BW - 1).repeat(copies, 1)
        logits_RWV = model.window(inputs_RW, places_BW.repeat(copies, 1), view)
        logits_BWV = logits_RWV[:batch]
        if rows > batch:
            in_reach_BW1 = (places_BW < guided)[..., None]
            logits_BWV = torch.where(in_reach_BW1, rule.guide(logits_RWV), logits_BWV)
        keys_BW2 = keys_BM2.gather(1, places_BW[..., None].expand(-1, -1, 2))
        sampled_BW = rule.sample(logits_BWV.flatten(0, 1), keys_BW2.flatten(0, 1)).view(batch, size)
        known_BW = given_BM.gather(1, places_BW)
        sampled_BW = torch.where(known_BW < 0, sampled_BW, known_BW)
        right_BW = (sampled_BW == guesses_BM.gather(1, places_BW))[:, :-1].long().cumprod(1)
        guesses_BM.scatter_(1, places_BW, sampled_BW)
        fresh_BM = places_BW[:, -1:] + 1 + ahead_M
        known_BM = given_BM.gather(1, fresh_BM)
        guess_BM = guesses_BM.gather(1, (fresh_BM - back).clamp(min=0))
        guesses_BM.scatter_(1, fresh_BM, torch.where(known_BM < 0, guess_BM, known_BM))
        done_B1 = (done_B1 + 1 + right_BW.sum(1, keepdim=True)).clamp(max=count)
        least, most, total = torch.stack([done_B1.min(), done_B1.max(), done_B1.sum()]).tolist()
        passes, turn = passes + 1, turn - 1
        if turn == 0:
            wide = size == 1 or pays((total - before) / batch / TRIAL, window)
            size, turn, before = (window, TRIAL, total) if wide else (1, REST, total)
    return guesses_BM[:, :count], passes


def pays(tokens: float, window: int) -> bool:
    """True if passes over `window` tokens that gain so many of them are faster than one by one.

    A pass takes as long as OVERHEAD + window tokens do: keys and values are read however many there are.
    """
    return tokens * (OVERHEAD + 1) >= OVERHEAD + window


def _class_embedding(
    model: GPT, labels_R: Tensor, labels_B: Tensor, towards: tuple[int, float] | None
) -> Tensor:
    """Embeddings of the class tokens; under guidance the second half of the rows is unconditional."""
    table_KD = model.cls_embedding.embedding_table.weight
    class_RD = table_KD[labels_R]
    if towards:
        label, part = towards
        check_labels(torch.tensor([label]), model.config.num_classes - 1)
        if not 0 <= part <= 1:
            raise ValueError(f"--blend {part}: must be from 0 to 1")
        class_RD[: len(labels_B)] = torch.lerp(table_KD[labels_B], table_KD[label], part)
    return class_RD


def _given(given_BN: Tensor | None, batch: int, count: int, vocabulary: int) -> Tensor:
    """The given tokens, -1 where there are none."""
    if given_BN is None:
        return torch.full((batch, count), -1)
    if given_BN.shape != (batch, count) or given_BN.min() < -1 or given_BN.max() >= vocabulary:
        raise ValueError(f"given tokens {tuple(given_BN.shape)}: needed are ({batch}, {count}) from -1 to "
                         f"{vocabulary - 1}")
    return given_BN


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
