"""Speed and memory of a GPT training step against the plain way:  python -m benchmarks.bench_training [flags]

Each measurement is a process of its own, so that its peak memory is its own; the variants take turns
(A B A B), and medians over all timed steps are printed, as a table and as a JSON line. Utilisation is of the
fastest matrix product seen in the same run. Run it on an otherwise idle machine.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from benchmarks.children import resident, run_child
from benchmarks.plain_gpt import PlainGPT
from common.distributed import Runtime
from common.training.config import TrainingConfig, precision_that_suits
from common.training.loop import TrainingState
from common.training.optimizers import make_optimizers
from common.training.task import Task

VARIANTS = {  # name -> flags of the training loop; None is the plain way
    "plain": None,
    "ours": {"compile": False},
    "compiled": {"compile": True},
    "recomputed": {"compile": False, "activation_checkpointing": True},
    "compiled-recomputed": {"compile": True, "activation_checkpointing": True},
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure training steps of a GPT on random tokens."""

    gpt_model: str = "GPT-B"
    """Size."""
    tokens: tuple[int, ...] = (1024, 4096)
    """Tokens per clip."""
    batch_size: int = 8
    """Clips per step."""
    vocab_size: int = 16384
    """Codes."""
    variants: tuple[str, ...] = ("plain", "ours", "compiled")
    """Of plain, ours, compiled, recomputed, compiled-recomputed."""
    rounds: int = 3
    """Processes per variant."""
    steps: int = 5
    """Timed steps of a process, after two that are not, five on a GPU, where the fourth is recorded."""
    mixed_precision: Literal["bf16", "none"] = field(default_factory=precision_that_suits)
    """bf16 autocast, or float32 throughout, of every variant (default: that of training here)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 2
    """Threads on the CPU."""
    child: str = ""
    """Set by the program itself: the variant and number of tokens that this process measures."""


class RandomClips(Task):
    """A task for the training loop: a GPT and random tokens."""

    methods, recordable = ("summed_loss",), True

    def __init__(self, config: BenchmarkConfig, tokens: int):
        torch.manual_seed(0)
        self.model: nn.Module = GPT(model_config(config, tokens))
        self.blocks, self.facts = list(self.model.layers), {}
        self.train_set = TensorDataset(*random_clips(config, tokens))

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats per token."""
        return model.loss(*batch, seeds_B), {}


def model_config(config: BenchmarkConfig, tokens: int) -> GPTConfig:
    """A model of the size asked for, with all that training drops."""
    return GPTConfig(**GPT_SIZES[config.gpt_model], vocab_size=config.vocab_size, block_size=tokens,
                     num_classes=8)


def random_clips(config: BenchmarkConfig, tokens: int) -> tuple[Tensor, Tensor]:
    """(tokens, labels) of enough clips for one step."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.batch_size, tokens)
    return (torch.randint(config.vocab_size, shape, generator=generator),
            torch.randint(8, shape[:1], generator=generator))


def our_steps(config: BenchmarkConfig, tokens: int, flags: dict[str, Any]) -> Any:
    """Take one step of the project's training loop at each `next`."""
    training = TrainingConfig(results_dir=Path("unused"), global_batch_size=config.batch_size,
                              mixed_precision=config.mixed_precision, device=config.device, **flags)
    state = TrainingState(RandomClips(config, tokens), training, Runtime())
    batches = iter(state.batches())
    while True:
        state.optimise(state.step, batches)
        yield


def plain_steps(config: BenchmarkConfig, tokens: int) -> Any:
    """Take one step of the plain model and loop, which reads the loss at every step, at each `next`."""
    device = Runtime().device(config.device)
    torch.manual_seed(0)
    model = PlainGPT(model_config(config, tokens)).to(device).train()
    nn.init.zeros_(model.output.weight)
    [optimizer] = make_optimizers(model, TrainingConfig(results_dir=Path("unused")))
    clips = random_clips(config, tokens)
    while True:
        tokens_BN, labels_B = (part.to(device) for part in clips)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            loss = model.loss(tokens_BN, labels_B)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield


def measure(config: BenchmarkConfig, variant: str, tokens: int) -> dict[str, Any]:
    """Times of the timed steps in s and peak memory of training in bytes, of one variant in this process."""
    device = Runtime().device(config.device)
    torch.set_num_threads(config.threads)
    before, flags = resident(), VARIANTS[variant]
    steps = plain_steps(config, tokens) if flags is None else our_steps(config, tokens, flags)
    times, untimed = [], 5 if device.type == "cuda" else 2
    for _ in range(untimed + config.steps):
        started = perf_counter()
        next(steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident() - before
    return {"times": times[untimed:], "peak": peak}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest of a few matrix products."""
    size = 8192 if device.type == "cuda" else 2048
    a, best = torch.randn(size, size, dtype=dtype, device=device), float("inf")
    for _ in range(10):
        started = perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, perf_counter() - started)
    return 2 * size**3 / best


def step_flops(config: BenchmarkConfig, tokens: int) -> float:
    """Operations that a step needs: 6 per weight and token, and causal attention; no recomputation."""
    with torch.device("meta"):
        model = GPT(model_config(config, tokens))
    looked_up = model.tok_embeddings.weight.numel() + model.cls_embedding.embedding_table.weight.numel()
    weights = sum(p.numel() for p in model.parameters()) - looked_up
    attention = model.config.n_layer * model.config.dim * tokens
    return 6.0 * (weights + attention) * config.batch_size * tokens


def benchmark(config: BenchmarkConfig) -> None:
    """Measure all variants in turn and print a table and a JSON line."""
    device = Runtime().device(config.device)
    torch.set_num_threads(config.threads)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    rate, rows = matmul_rate(device, dtype), []
    print(f"{config.gpt_model}, batch {config.batch_size}, mixed precision {config.mixed_precision}, "
          f"torch {torch.__version__}, {device.type}, {config.threads} threads, fastest matrix product "
          f"{rate / 1e12:.3g} Tflop/s")
    for tokens in config.tokens:
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in config.variants}
        for _ in range(config.rounds):
            for name in config.variants:
                measured = run_child("benchmarks.bench_training", config, f"{name}:{tokens}")
                results[name] += [measured] if measured else []
        rows += summary(config, tokens, rate, results)
    for row in rows:
        print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{value}"
                        for name, value in row.items()))
    print(json.dumps({"config": asdict(config), "matmul_flops": rate, "rows": rows}))


def summary(config: BenchmarkConfig, tokens: int, rate: float, results: dict[str, list[dict[str, Any]]]
            ) -> list[dict[str, Any]]:
    """One row per variant that could be measured; `speed` and `memory` are against the first of them."""
    rows: list[dict[str, Any]] = []
    for name, measured in results.items():
        times = [time for result in measured for time in result["times"]]
        if times:
            step = median(times)
            row = {"variant": name, "tokens": tokens, "s_per_step": step,
                   "tokens_per_s": config.batch_size * tokens / step,
                   "utilisation": step_flops(config, tokens) / step / rate,
                   "peak_gb": max(result["peak"] for result in measured) / 1e9}
            first = rows[0] if rows else row
            rows.append({**row, "speed": first["s_per_step"] / step,
                         "memory": row["peak_gb"] / first["peak_gb"]})
    return rows


if __name__ == "__main__":
    arguments = tyro.cli(BenchmarkConfig)
    if arguments.child:
        name, count = arguments.child.split(":")
        print(json.dumps(measure(arguments, name, int(count))))
    else:
        benchmark(arguments)
