"""Decoding the tokens of a batch: one by one, or by Jacobi iteration over windows of guessed tokens.

Shapes: B clips, N tokens of a clip, M = N + 2 windows, V vocabulary, W tokens of a window, R rows of the
model's input: B, or 2 B under guidance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoregressive.models.gpt import GPT
from autoregressive.models.layers import KERNELS, WIDEST
from autoregressive.models.noise import gumbel_noise
from common.errors import InputError
from common.hardware import kernels_for
from common.recorded import Recorder

TRIAL, REST = 8, 128  # passes over windows per measurement of their gain; single-token passes if it is small
BUCKET = 128  # attention covers the used part of the cache, rounded up to this many slots


@dataclass(frozen=True)
class Rule:
    """How a token is sampled: arguments of `generate`. Raises: `InputError` naming the flag."""

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guided: int = 0
    """Number of tokens at the start of a clip that are sampled under guidance."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.cfg_scale):
            raise InputError(f"--cfg-scale {self.cfg_scale}: must be finite")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: must be 0 or more")
        if self.top_k < 0:
            raise InputError(f"--top-k {self.top_k}: must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1")

    def choose(self, logits_RV: Tensor, key_B2: Tensor, position_B: Tensor) -> Tensor:
        """One token per key -> (B,) int64; if R = 2 B, the second half of the rows is unconditional."""
        if self.top_p == 1 and (kernels := kernels_for(KERNELS, logits_RV)):
            return kernels.choose(
                logits_RV, key_B2, position_B, self.guided, self.cfg_scale, self.temperature, self.top_k)
        logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))  # before guidance
        logits_BV = logits_RV[: len(key_B2)]
        if len(logits_RV) > len(key_B2):
            unconditional_BV = logits_RV[len(key_B2) :]
            guided_BV = unconditional_BV + self.cfg_scale * (logits_BV - unconditional_BV)
            logits_BV = torch.where((position_B < self.guided)[:, None], guided_BV, logits_BV)
        return sample(logits_BV, key_B2, self.temperature, self.top_k, self.top_p)


def sample(logits_BV: Tensor, key_B2: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One token per row -> (B,) int64, from softmax(logits / temperature) filtered by top_k, then by top_p.

    The argmax of logits plus temperature times Gumbel noise is such a sample (Gumbel 1954); it needs no
    normalisation and works at any temperature. `torch.topk` decides between equal logits at the k-th place.
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
        probability_BM = ((values_BM - values_BM[:, :1]) / temperature).softmax(-1)
        before_BM = probability_BM.cumsum(-1) - probability_BM  # mass of the likelier tokens; 0 for the first
        values_BM = values_BM.masked_fill(before_BM >= top_p, -torch.inf)
    winner_B1 = (values_BM + temperature * gumbel_noise(key_B2, ids_BM)).argmax(-1, keepdim=True)
    return ids_BM.gather(1, winner_B1)[:, 0]


def decode_in_steps(model: GPT, class_RD: Tensor, keys_BN2: Tensor, given_BN: Tensor, rule: Rule) -> Tensor:
    """Sample one token after the other -> tokens_BN."""
    batch, count = given_BN.shape
    known_N = (given_BN >= 0).all(0).tolist()
    cache = model.new_cache(len(class_RD), compute_dtype(model))
    position_N = torch.arange(count, device=given_BN.device)
    tokens_BN = torch.empty_like(given_BN)
    for i in range(count):
        if i % BUCKET == 0 or i == rule.guided:
            rows = 2 * batch if i < rule.guided else batch
            view = cache.first(rows, (i // BUCKET + 1) * BUCKET)
        if i == 0:
            logits_RV = model.start(class_RD[:rows], view)
        else:
            last_R = tokens_BN[:, i - 1].repeat(rows // batch)
            logits_RV = model.step(last_R, position_N[i : i + 1], view)
        if known_N[i]:
            tokens_BN[:, i] = given_BN[:, i]
            continue
        sampled_B = rule.choose(logits_RV, keys_BN2[:, i], position_N[i : i + 1])
        tokens_BN[:, i] = torch.where(given_BN[:, i] < 0, sampled_B, given_BN[:, i])
    return tokens_BN


class Passes:
    """Passes over the next tokens of each clip of a batch, on tensors with fixed addresses.

    A pass uses only these, so on CUDA its second call is recorded as a CUDA graph, which later calls replay,
    also for later batches.
    """

    def __init__(self, model: GPT, batch: int, rule: Rule, window: int, frame_width: int = 1):
        config, device = model.config, model.output.weight.device
        self.model, self.rule, self.device = model, rule, device
        self.batch, self.count, self.window, self.frame_width = batch, config.block_size, window, frame_width
        rows = 2 * batch if rule.guided else batch
        reach = self.count + 2 * window  # windows reach beyond the end
        self.cache = model.new_cache(rows, compute_dtype(model), spare=window)
        self.class_RD = model.cls_embedding.embedding_table.weight.new_empty(rows, config.dim)
        self.given_BM = torch.full((batch, reach), -1, device=device)
        self.keys_BM2 = torch.zeros(batch, reach, 2, dtype=torch.int32, device=device)
        self.guesses_BM = torch.zeros_like(self.given_BM)
        self.done_B1 = torch.ones_like(self.given_BM[:, :1])  # number of final tokens of each clip
        self.ahead_W = torch.arange(window, device=device)
        self.recorders: dict[tuple, Recorder] = {}

    def begin(self, class_RD: Tensor, keys_BN2: Tensor, given_BN: Tensor) -> None:
        """The first token of new clips. It is the first guess of all others that are not given."""
        self.class_RD.copy_(class_RD)
        self.given_BM[:, : self.count] = given_BN
        self.keys_BM2[:, : self.count] = keys_BN2
        self._run(self._begin)

    def take(self, size: int, rows: int, slots: int) -> None:
        """A pass over `size` tokens of each clip, with the first `slots` slots of the cache."""
        self._run(self._take, size, rows, slots)

    def _begin(self) -> None:
        logits_RV = self.model.start(self.class_RD, self.cache.first(len(self.class_RD), BUCKET))
        position_B = torch.zeros_like(self.done_B1[:, 0])
        first_B = self.rule.choose(logits_RV, self.keys_BM2[:, 0], position_B)
        self.guesses_BM.copy_(torch.where(self.given_BM < 0, first_B[:, None], self.given_BM))
        self.done_B1.fill_(1)

    def _take(self, size: int, rows: int, slots: int) -> None:
        guesses_BM, copies = self.guesses_BM, rows // self.batch
        places_BW = self.done_B1 + self.ahead_W[:size]
        inputs_RW = guesses_BM.gather(1, places_BW - 1).repeat(copies, 1)
        logits_RWV = self.model.window(inputs_RW, places_BW.repeat(copies, 1), self.cache.first(rows, slots))
        keys_BW2 = self.keys_BM2.gather(1, places_BW[..., None].expand(-1, -1, 2))
        sampled_BW = self.rule.choose(
            logits_RWV.flatten(0, 1), keys_BW2.flatten(0, 1), places_BW.flatten()).view(-1, size)
        known_BW = self.given_BM.gather(1, places_BW)
        sampled_BW = torch.where(known_BW < 0, sampled_BW, known_BW)
        right_BW = (sampled_BW == guesses_BM.gather(1, places_BW))[:, :-1].long().cumprod(1)
        guesses_BM.scatter_(1, places_BW, sampled_BW)
        fresh_BW = places_BW[:, -1:] + 1 + self.ahead_W
        known_BW = self.given_BM.gather(1, fresh_BW)
        guess_BW = guesses_BM.gather(1, (fresh_BW - self.frame_width).clamp(min=0))
        guesses_BM.scatter_(1, fresh_BW, torch.where(known_BW < 0, guess_BW, known_BW))
        self.done_B1.add_(1 + right_BW.sum(1, keepdim=True)).clamp_(max=self.count)

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.device.type != "cuda":
            return function(*arguments)
        recorder = self.recorders.setdefault((function.__name__, *arguments), Recorder())
        recorder(lambda _: function(*arguments))


def decode_in_windows(passes: Passes, class_RD: Tensor, keys_BN2: Tensor, given_BN: Tensor,
                      watch: Callable[[Tensor], None] | None = None) -> tuple[Tensor, int]:
    """The tokens of `decode_in_steps`, and the number of passes: Jacobi iteration over a window of guesses.

    With fixed noise, token i is a function of the tokens before it. A pass samples up to `window` tokens from
    guesses of those before them. Samples up to the first wrong guess are final, the others are the next
    guesses (Santilli et al. 2023; Song et al. 2021). The first guess of a token is the token a frame's width
    before it: the same position in the previous frame. Each clip advances on its own. If the passes over
    windows gain too little, many single-token passes follow before the next trial; if half a window would
    gain too little, as in large batches on a CPU, there are no windows. With a window of one token nothing
    waits for the device. `watch` is called as in `generate`.
    """
    batch, count, window = passes.batch, passes.count, passes.window
    overhead = pass_overhead(passes.device.type, len(passes.class_RD))
    if not pays(window / 2, window, overhead):  # so many right guesses are rare
        window = 1
    size, turn, before = window, TRIAL, batch
    passes.begin(class_RD, keys_BN2, given_BN)
    least = most = taken = 1
    while least < count:
        if watch:
            watch(passes.guesses_BM[:, :least])
        rows = 2 * batch if least < passes.rule.guided else batch
        slots = min(-(-(most + size) // BUCKET) * BUCKET, count + window)
        if window <= WIDEST and kernels_for(KERNELS, passes.class_RD):  # which read only what is used
            slots = count + window
        passes.take(size, rows, slots)
        taken, turn = taken + 1, turn - 1
        if window == 1:
            least = most = taken
            continue
        done_B1 = passes.done_B1
        least, most, total = torch.stack([done_B1.min(), done_B1.max(), done_B1.sum()]).tolist()
        if turn == 0:
            wide = size == 1 or pays((total - before) / batch / TRIAL, window, overhead)
            size, turn, before = (window, TRIAL, total) if wide else (1, REST, total)
    return passes.guesses_BM[:, :count].clone(), taken


def pass_overhead(device: str, rows: int) -> float:
    """Approximate fixed time of a pass, in units of the time of one token of each row.

    Measured: on a CPU 5 with 2 rows and 1 with 16; on an H200 260 with 2, 113 with 16, 27 with 128, 22 with
    256.
    """
    return 10 / rows if device == "cpu" else 20 + 500 / rows


def pays(tokens: float, window: int, overhead: float) -> bool:
    """True if passes over `window` tokens, `tokens` of which become final, are faster than single-token ones.

    A pass takes the time of `overhead` + window tokens.
    """
    return tokens * (overhead + 1) >= overhead + window


def compute_dtype(model: GPT) -> torch.dtype:
    """The dtype of the model's activations, with or without autocast."""
    weight = model.output.weight
    if model.native:
        return model.native.cache_dtype
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
