"""What a run would take: sizes, memory and time, from a few of its steps."""

import resource
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from common.distributed import Runtime, own_part
from common.training.config import TrainingConfig
from common.training.task import Task

TIMED_STEPS = 3


def dry_run(task: Task, config: TrainingConfig, runtime: Runtime, batch: Any,
            take_step: Callable[[int], object], untimed: int) -> str:
    """Take a few steps of a run that has not begun -> the report; nothing is written.

    `batch` is one of those to come. `take_step(step)` returns when the device has finished. The first
    `untimed` steps, which compile and allocate, do not count.
    """
    times = []
    for step in range(min(untimed + TIMED_STEPS, config.max_steps)):
        started = perf_counter()
        take_step(step)
        times.append(perf_counter() - started)
    parameters, samples = list(task.model.parameters()), len(task.train_set)
    held = sum(own_part(p).numel() for p in parameters)
    copies = 5 if config.ema_decay else 4
    device = parameters[0].device
    peak = max(runtime.gather(peak_memory(device)))
    step_time = median(times[untimed:] or times)
    return "\n".join([
        f"model: {sum(p.numel() for p in parameters):,} parameters, {task.facts['config']}",
        f"batch: {', '.join(tensor_shapes(batch))} in each of {config.gradient_accumulation_steps} parts "
        f"on each of {runtime.world_size} processes",
        f"memory of a process: {4 * copies * held / 1e9:.2f} GB for weights, gradients, "
        f"{'two moments and the average' if config.ema_decay else 'and two moments'}; "
        f"{peak / 1e9:.2f} GB at the peak of a step ({memory_kind(device)})",
        f"steps: {config.max_steps:,} of {config.global_batch_size} samples, "
        f"{config.max_steps * config.global_batch_size / samples:.1f} times over {samples:,} samples",
        f"time: {step_time:.3g} s per step, {duration(step_time * config.max_steps)} in all, "
        "without validation, sheets and checkpoints",
    ])


def tensor_shapes(batch: Any) -> list[str]:
    """Shape and type of each tensor of a batch."""
    if isinstance(batch, Tensor):
        return [f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"]
    return [shape for part in batch for shape in tensor_shapes(part)]


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far, of `memory_kind`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_kind(device: torch.device) -> str:
    """What `peak_memory` measures."""
    return "allocated on the GPU" if device.type == "cuda" else "resident, with Python and torch"


def duration(seconds: float) -> str:
    """A time as days, hours and minutes, or as seconds."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d " * bool(days) + f"{hours} h " * bool(days or hours) + f"{minutes % 60} min"
