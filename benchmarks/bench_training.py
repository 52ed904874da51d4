"""Speed and memory of a GPT training step against the plain way:  python -m benchmarks.bench_training [flags]

Utilisation is relative to the fastest matrix product seen in the same process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from benchmarks.harness import BenchmarkConfig, main, timed
from benchmarks.plain import plain_loss
from common.distributed import Runtime
from common.training.config import TrainingConfig, precision_that_suits
from common.training.loop import TrainingState
from common.training.optimizers import make_optimizers
from common.training.task import Task

VARIANTS = {  # name -> flags of the training loop
    "ours": {"compile": False},
    "compiled": {"compile": True},
    "recomputed": {"compile": False, "activation_checkpointing": True},
    "compiled-recomputed": {"compile": True, "activation_checkpointing": True},
}


@dataclass(frozen=True, kw_only=True)
class TrainingBenchmark(BenchmarkConfig):
    """Measure training steps of a GPT on random tokens."""

    gpt_model: str = "GPT-B"
    """Size."""
    tokens: tuple[int, ...] = (1024, 4096)
    """Tokens per clip; each number is measured with all variants."""
    batch_size: int = 8
    """Clips per step."""
    vocab_size: int = 16384
    """Codes."""
    variants: tuple[str, ...] = ("plain", "ours", "compiled")
    """Of plain, ours, compiled, recomputed, compiled-recomputed."""
    steps: int = 5
    """Timed steps of a process, after two untimed ones (on a GPU five, of which the fourth is recorded)."""
    mixed_precision: Literal["auto", "bf16", "none"] = "auto"
    """bf16 autocast, or float32 throughout, of every variant (auto: that of training here)."""

    def cases(self) -> list[Sequence[str]]:
        return [[f"{variant}:{tokens}" for variant in self.variants] for tokens in self.tokens]

    def measure(self, case: str) -> dict[str, float]:
        """Times and memory of a step, tokens per second and utilisation."""
        variant, _, tokens = case.partition(":")
        device, precision = Runtime().device(self.device), self.mixed_precision
        if precision == "auto":
            precision = precision_that_suits(device.type, gpt=True)
        config = GPTConfig(**GPT_SIZES[self.gpt_model], vocab_size=self.vocab_size, block_size=int(tokens),
                           num_classes=8)
        flags = {"results_dir": Path("unused"), "global_batch_size": self.batch_size,
                 "mixed_precision": precision, "device": self.device}
        if variant == "plain":
            steps = plain_steps(config, TrainingConfig(**flags), device)
        else:
            steps = our_steps(config, TrainingConfig(**flags, **VARIANTS[variant]))
        found = timed(lambda: next(steps), device, 2 if device.type == "cpu" else 5, self.steps)
        rate = step_flops(config, self.batch_size) / found["s"]
        fastest = matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
        return {**found, "tokens_per_s": self.batch_size * int(tokens) / found["s"],
                "utilisation": rate / fastest}


class RandomClips(Task):
    """A task for the training loop: a GPT and random tokens."""

    methods, recordable = ("summed_loss",), True

    def __init__(self, config: GPTConfig, batch: int):
        torch.manual_seed(0)
        self.model: nn.Module = GPT(config)
        self.blocks, self.facts = list(self.model.layers), {}
        self.train_set = TensorDataset(*random_clips(config, batch))

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats per token."""
        return model.loss(*batch, seeds_B), {}


def random_clips(config: GPTConfig, batch: int) -> tuple[Tensor, Tensor]:
    """(tokens, labels) of the clips of one step."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(config.vocab_size, (batch, config.block_size), generator=generator),
            torch.randint(config.num_classes, (batch,), generator=generator))


def our_steps(config: GPTConfig, training: TrainingConfig) -> Iterator[None]:
    """Take one step of the project's training loop at each `next`."""
    state = TrainingState(RandomClips(config, training.global_batch_size), training, Runtime())
    batches = iter(state.batches())
    while True:
        state.optimise(state.step, batches)
        yield


def plain_steps(config: GPTConfig, training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Take one step of the plain model and loop, which reads the loss at every step, at each `next`."""
    torch.manual_seed(0)
    model = GPT(config).to(device).train()
    [optimizer] = make_optimizers(model, training)
    clips = random_clips(config, training.global_batch_size)
    while True:
        tokens_BN, labels_B = (part.to(device) for part in clips)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision == "bf16"):
            loss = plain_loss(model, tokens_BN, labels_B)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest of a few matrix products."""
    size = 2048 if device.type == "cpu" else 8192
    a, best = torch.randn(size, size, dtype=dtype, device=device), float("inf")
    for _ in range(10):
        started = perf_counter()
        a @ a
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, perf_counter() - started)
    return 2 * size**3 / best


def step_flops(config: GPTConfig, batch: int) -> float:
    """Operations that a step needs: 6 per weight and token, and causal attention; no recomputation."""
    with torch.device("meta"):
        model = GPT(config)
    embeddings = model.tok_embeddings.weight.numel() + model.cls_embedding.embedding_table.weight.numel()
    weights = sum(p.numel() for p in model.parameters()) - embeddings
    return 6.0 * (weights + config.n_layer * config.dim * config.block_size) * batch * config.block_size


if __name__ == "__main__":
    main(TrainingBenchmark)
