"""Speed and memory of sampling against the plain way:  python -m benchmarks.bench_sampling [flags]

Each measurement is a process of its own; the variants take turns (A B A B), and medians are printed, as a
table and as a JSON line. The GPT is that of a checkpoint, or one of the shapes asked for with random weights.
With those windows are of no interest: how many guesses come true depends on what the weights have learnt.
Run it on an otherwise idle machine; where others work, only processor time on one thread means something.
"""

import json
import resource
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import torch
import tyro

import benchmarks.sampling_work as work
from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.gpt import GPT
from benchmarks.children import forget_peak, resident, run_child
from common.distributed import Runtime


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the sampling of clips: in tokens, from tokens to pictures, or from weights to files."""

    work: Literal["tokens", "pictures", "clips"] = "tokens"
    """tokens: of a batch; pictures: of random tokens, by a random VQ-16; clips: the demo with its files."""
    gpt_ckpt: Path | None = None
    """A checkpoint; without it random weights."""
    gpt_model: str = "GPT-B"
    """Size of the model with random weights."""
    tokens: int = 1024
    """Tokens per clip of the model with random weights."""
    vocab_size: int = 16384
    """Codes of the model with random weights."""
    batch_size: int = 8
    """Clips at once; the demo has eight, and `clips` makes so many, eight at least."""
    cfg_scale: float = 1.5
    """Guidance."""
    steps: int = 0
    """Tokens of a clip made by plain and steps, from its middle, on caches that are there; 0: all."""
    mixed_precision: Literal["bf16", "none"] = "none"
    """bf16: of the GPT's weights, plain ones too, and of our pictures, but not those of clips."""
    variants: tuple[str, ...] = ("plain", "steps")
    """plain, steps, or a number: the decode window. Of pictures: plain or ours."""
    rounds: int = 3
    """Processes per variant."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 2
    """Threads on the CPU."""
    child: str = ""
    """Set by the program itself: the variant that this process measures."""
    models: Path | None = None
    """Likewise: where the demo's checkpoints are."""


def make_gpt(config: BenchmarkConfig) -> GPT:
    """The model to sample from."""
    if config.gpt_ckpt:
        return load_gpt(config.gpt_ckpt)[0]
    return work.random_gpt(config.gpt_model, config.tokens, config.vocab_size)


def processor_seconds() -> float:
    """Processor time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(config: BenchmarkConfig, variant: str) -> dict[str, Any]:
    """Seconds for a batch, passes, and peak memory in bytes, of one variant in this process."""
    torch.set_num_threads(config.threads)
    device = Runtime().device(config.device)
    with TemporaryDirectory() as folder:
        if config.work == "tokens":
            timed = work.token_work(make_gpt(config), variant, config.batch_size, config.cfg_scale,
                                    config.steps, config.mixed_precision, device)
        elif config.work == "pictures":
            timed = work.picture_work(
                variant, config.batch_size, config.tokens, config.mixed_precision, device)
        else:
            timed = work.clip_work(config.models, variant, config.batch_size, config.cfg_scale,
                                   config.mixed_precision, Path(folder), device)
        before = forget_peak()
        if config.steps:
            timed()  # which makes a processor's kernels
        if device.type == "cuda" and config.work != "clips":
            timed()  # which compiles kernels
            timed()  # which records graphs
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        processor, started = processor_seconds(), perf_counter()
        passes = timed()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return {"seconds": perf_counter() - started, "processor": processor_seconds() - processor,
                "passes": passes, "peak": torch.cuda.max_memory_allocated() if device.type == "cuda"
                else resident() - before}


def benchmark(config: BenchmarkConfig) -> None:
    """Measure all variants in turn and print a table and a JSON line."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in config.variants}
    with TemporaryDirectory() as folder:
        if config.work == "clips":
            config = replace(config, models=Path(folder))
            work.write_models(config.models, make_gpt(config), work.random_tokenizer())
        for _ in range(config.rounds):
            for name in config.variants:
                measured = run_child("benchmarks.bench_sampling", config, name)
                results[name] += [measured] if measured else []
    rows = summary(results)
    print(f"{config.work}, batch {config.batch_size}, guidance {config.cfg_scale}, mixed precision "
          f"{config.mixed_precision}, torch {torch.__version__}, {Runtime().device(config.device).type}, "
          f"{config.threads} threads")
    for row in rows:
        print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in row.items()))
    paths = {"gpt_ckpt": str(config.gpt_ckpt), "models": ""}
    print(json.dumps({"config": {**asdict(config), **paths}, "rows": rows}))


def summary(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per variant that could be measured; speeds and memory are against the first of them."""
    rows: list[dict[str, Any]] = []
    for name, measured in results.items():
        if measured:
            seconds = median(result["seconds"] for result in measured)
            processor = median(result["processor"] for result in measured)
            row = {"variant": name, "s": seconds, "processor_s": processor, "passes": measured[0]["passes"],
                   "peak_mb": max(result["peak"] for result in measured) / 1e6}
            first = rows[0] if rows else row
            rows.append({**row, "speed": first["s"] / seconds,
                         "processor_speed": first["processor_s"] / processor,
                         "memory": row["peak_mb"] / first["peak_mb"]})
    return rows


if __name__ == "__main__":
    arguments = tyro.cli(BenchmarkConfig)
    if arguments.child:
        print(json.dumps(measure(arguments, arguments.child)))
    else:
        benchmark(arguments)
