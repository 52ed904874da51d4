"""Speed and memory of sampling against the plain way:  python -m benchmarks.bench_sampling [flags]

Each measurement is a process of its own; the variants take turns (A B A B), and medians are printed, as a
table and as a JSON line. The GPT is that of a checkpoint, or one of the shapes asked for with random weights.
With those windows are of no interest: how many guesses come true depends on what the weights have learnt.
Run it on an otherwise idle machine.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import tyro

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.generate import Rule, decode_in_steps, decode_in_windows
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from autoregressive.models.noise import noise_keys
from benchmarks.children import resident, run_child
from benchmarks.plain_gpt import PlainGPT
from benchmarks.plain_sampling import plain_generate
from common.distributed import Runtime


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the sampling of whole clips, in tokens."""

    gpt_ckpt: Path | None = None
    """A checkpoint; without it random weights."""
    gpt_model: str = "GPT-B"
    """Size of the model with random weights."""
    tokens: int = 1024
    """Tokens per clip of the model with random weights."""
    vocab_size: int = 16384
    """Codes of the model with random weights."""
    batch_size: int = 8
    """Clips at once."""
    cfg_scale: float = 1.5
    """Guidance."""
    variants: tuple[str, ...] = ("plain", "steps")
    """plain, steps, or a number: the decode window."""
    rounds: int = 3
    """Processes per variant."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 2
    """Threads on the CPU."""
    child: str = ""
    """Set by the program itself: the variant that this process measures."""


def make_model(config: BenchmarkConfig) -> GPT:
    """The model to sample from."""
    if config.gpt_ckpt:
        return load_gpt(config.gpt_ckpt)[0].eval()
    torch.manual_seed(0)
    model = GPT(GPTConfig(**GPT_SIZES[config.gpt_model], vocab_size=config.vocab_size,
                          block_size=config.tokens, num_classes=8))
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model.eval()


@torch.no_grad()
def sample_once(model: GPT | PlainGPT, variant: str, config: BenchmarkConfig) -> int:
    """Sample one batch; the number of passes through the model."""
    settings, device = model.config, model.output.weight.device
    labels_B = torch.arange(config.batch_size, device=device) % settings.num_classes
    if isinstance(model, PlainGPT):
        plain_generate(model, labels_B, config.cfg_scale, 1.0, 2000)
        return settings.block_size
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, settings.num_classes)])
    class_RD = model.cls_embedding.embedding_table.weight[labels_R]
    keys_BN2 = noise_keys(range(config.batch_size), settings.block_size, device)
    given_BN = torch.full(keys_BN2.shape[:2], -1, device=device)
    rule = Rule(config.cfg_scale, 1.0, 2000, 1.0)
    rest = class_RD, keys_BN2, given_BN, settings.block_size, rule
    if variant == "steps":
        decode_in_steps(model, *rest)
        return settings.block_size
    return decode_in_windows(model, *rest, int(variant))[1]


def measure(config: BenchmarkConfig, variant: str) -> dict[str, Any]:
    """Seconds for a batch, passes, and peak memory in bytes, of one variant in this process."""
    torch.set_num_threads(config.threads)
    device, model = Runtime().device(config.device), make_model(config)
    if variant == "plain":
        plain = PlainGPT(model.config).eval()
        plain.load_state_dict(model.state_dict())
        model = plain
    model.to(device)
    before, started = resident(), perf_counter()
    passes = sample_once(model, variant, config)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident() - before
    return {"seconds": seconds, "passes": passes, "peak": peak, "tokens": model.config.block_size}


def benchmark(config: BenchmarkConfig) -> None:
    """Measure all variants in turn and print a table and a JSON line."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in config.variants}
    for _ in range(config.rounds):
        for name in config.variants:
            measured = run_child("benchmarks.bench_sampling", config, name)
            results[name] += [measured] if measured else []
    rows: list[dict[str, Any]] = []
    for name, measured in results.items():
        if measured:
            seconds = median(result["seconds"] for result in measured)
            peak = max(result["peak"] for result in measured)
            first = rows[0] if rows else {"s_per_clip": seconds / config.batch_size, "peak_mb": peak / 1e6}
            rows.append({"variant": name, "s_per_clip": seconds / config.batch_size,
                         "tokens_per_pass": measured[0]["tokens"] / measured[0]["passes"],
                         "peak_mb": peak / 1e6, "speed": first["s_per_clip"] * config.batch_size / seconds,
                         "memory": peak / 1e6 / first["peak_mb"]})
    print(f"batch {config.batch_size}, guidance {config.cfg_scale}, float32, torch {torch.__version__}, "
          f"{config.threads} threads")
    for row in rows:
        print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{value}"
                        for name, value in row.items()))
    print(json.dumps({"config": {**asdict(config), "gpt_ckpt": str(config.gpt_ckpt)}, "rows": rows}))


if __name__ == "__main__":
    arguments = tyro.cli(BenchmarkConfig)
    if arguments.child:
        print(json.dumps(measure(arguments, arguments.child)))
    else:
        benchmark(arguments)
