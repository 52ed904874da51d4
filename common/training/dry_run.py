"""What a run would take: sizes, memory and time, from a few of its steps."""

import resource
import sys
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from common.devices import peak_memory
from common.distributed import own_part
from common.recorded import tensors

if TYPE_CHECKING:
    from common.training.loop import TrainingState

TIMED_STEPS = 3


def dry_run(state: "TrainingState") -> list[str]:
    """Take a few steps of a run that has not begun -> the lines of the report; nothing is written.

    The first steps, which compile and allocate, are not timed.
    """
    task, config, runtime, device = state.task, state.config, state.runtime, state.device
    untimed = 5 if state.recorder else 1  # a recorder lets three steps run before it records one
    shapes = [f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
              for x in tensors(next(iter(state.batches())))]
    batches, times = iter(state.batches()), []
    for step in range(min(untimed + TIMED_STEPS, config.max_steps)):
        started = perf_counter()
        state.optimise(step, batches)
        state.meter.read()  # waits for the device
        times.append(perf_counter() - started)
    step_time = median(times[untimed:] or times)
    if device.type != "cpu":
        peak, kind = peak_memory(device), "allocated on the GPU"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kind = "resident, with Python and torch"
    parameters, samples = list(task.model.parameters()), len(task.train_set)
    held = sum(own_part(p).numel() for p in parameters)
    copies, moments = (5, "two moments and the average") if config.ema_decay else (4, "and two moments")
    return [
        f"model: {sum(p.numel() for p in parameters):,} parameters, {task.facts['config']}",
        f"batch: {', '.join(shapes)} in each of {config.gradient_accumulation_steps} parts "
        f"on each of {runtime.world_size} processes",
        f"memory of a process: {4 * copies * held / 1e9:.2f} GB for weights, gradients, {moments}; "
        f"{max(runtime.gather(peak)) / 1e9:.2f} GB at the peak of a step ({kind})",
        f"steps: {config.max_steps:,} of {config.global_batch_size} samples, "
        f"{config.max_steps * config.global_batch_size / samples:.1f} times over {samples:,} samples",
        f"time: {step_time:.3g} s per step, {timedelta(seconds=round(step_time * config.max_steps))} in all, "
        "without validation, sheets and checkpoints",
    ]
