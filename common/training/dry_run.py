"""What a run would take: sizes, memory and time, from a few of its steps."""

import resource
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.distributed import own_part

if TYPE_CHECKING:
    from common.training.loop import TrainingState

STEPS = 3  # that are timed


def dry_run(state: "TrainingState") -> str:
    """Take a few steps of a run that has not begun -> the report; nothing is written."""
    config, samples = state.config, len(state.task.train_set)
    batches, times = iter(state.batches()), []
    shapes = ", ".join(tensor_shapes(next(iter(state.batches()))))
    untimed = 5 if state.recorder else 1  # compile, allocate, and are recorded
    for step in range(min(untimed + STEPS, config.max_steps)):
        started = perf_counter()
        state.optimise(step, batches)
        state.meter.read()  # waits for the device
        times.append(perf_counter() - started)
    parameters = sum(p.numel() for p in state.model.parameters())
    held = sum(own_part(p).numel() for p in state.model.parameters())
    copies = 5 if state.ema else 4
    peak = max(state.runtime.gather(peak_memory(state.device)))
    step_time = median(times[untimed:] or times)
    return "\n".join([
        f"model: {parameters:,} parameters, {state.task.facts['config']}",
        f"batch: {shapes} in each of {config.gradient_accumulation_steps} parts on each of "
        f"{state.runtime.world_size} processes",
        f"memory of a process: {4 * copies * held / 1e9:.2f} GB for weights, gradients, "
        f"{'two moments and the average' if state.ema else 'and two moments'}; "
        f"{peak / 1e9:.2f} GB at the peak of a step ({memory_kind(state.device)})",
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
