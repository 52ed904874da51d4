"""The training loop of the tokenizer, the GPT and the video classifier. A `Task` defines what is trained.

All randomness of step s (data order, dropout, augmentation) is a function of (seed, s) and of a sample's
position in the global batch. So a checkpoint needs no random state, a rerun continues exactly, and the result
does not depend on the number of processes. DDP, FSDP, compilation and activation checkpointing wrap
`task.model` from outside.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.checkpoints import newest_checkpoint, save_checkpoint
from common.command import say_next
from common.devices import PINNED
from common.distributed import Runtime, shard_like, whole_tensor
from common.files import write_json
from common.hardware import compiler_works
from common.locks import locked
from common.recorded import Recorder, mapped
from common.sharded import ShardWriter, is_sharded, read_sharded
from common.training.config import TrainingConfig, check_same_run, learning_rate
from common.training.curves import draw_curves
from common.training.data_order import mix, sample_seeds, step_batches
from common.training.dry_run import dry_run
from common.training.optimizers import (
    AveragedWeights,
    Meter,
    load_states,
    make_optimizers,
    set_rate,
    states,
    take_step,
)
from common.training.run_log import RunLog
from common.training.signals import SkippedSteps, StopSignals, leave_signals_to_the_parent
from common.training.task import StepLoss, Task
from common.training.wrapping import wrap_blocks
from common.weights import load_checkpoint


def train(task: Task, config: TrainingConfig, runtime: Runtime) -> int:
    """Train `task.model` up to `config.max_steps`, from the newest checkpoint in the run folder if any.

    SIGTERM and SIGINT end training after the current step, with a checkpoint. A dry run only prints sizes,
    memory and time. Returns the step that was reached.

    Raises: `InputError` if the run folder holds another run or is in use by another job, or if too many
    consecutive steps were not finite.
    """
    kind = runtime.device(config.device).type
    config = runtime.agree(lambda: config.settled(kind, task.is_gpt))
    state = TrainingState(task, config, runtime)
    if config.dry_run:
        report = dry_run(state)
        if runtime.is_main:
            print("\n".join([*state.notes, *report]))
        return state.step
    with locked(config.results_dir, runtime):
        with runtime.together():
            lines = state.resume()
        with runtime.together():
            log = state.open_log(lines)
        try:
            with StopSignals() as stop, state.writer or nullcontext():
                run_steps(state, log, stop)
            if runtime.is_main:
                draw_curves(config.results_dir)
        finally:
            log.close()
    if runtime.is_main and task.next_command and state.step >= config.max_steps:
        say_next(*task.next_command, config.results_dir)
    return state.step


def run_steps(state: "TrainingState", log: RunLog, stop: StopSignals) -> None:
    """The remaining steps, with logging, validation, sample sheets and checkpoints in between."""
    config, runtime = state.config, state.runtime
    if state.step and not state.sharded and runtime.any(log.enabled and not log.validated):
        validate(state, log)  # that a signal forestalled; the blocks of FSDP must have trained before
    batches = iter(state.batches())
    since, started = state.step, perf_counter()
    bar = tqdm(range(state.step, config.max_steps), initial=state.step, total=config.max_steps, unit="step",
               disable=None if runtime.is_main else True)
    for step in bar:
        state.optimise(step, batches)
        stopping = runtime.any(bool(stop.name))
        if state.due(config.log_every):
            means = state.meter.read()
            skipped = state.skipped.check(state.step, config.max_skipped_steps, config.lr)
            means |= {"skipped": skipped} if skipped else {}
            log.record(state.step, **means, lr=learning_rate(config, step),
                       steps_per_s=(state.step - since) / (perf_counter() - started))
            since, started = state.step, perf_counter()
        if state.due(config.ckpt_every) or stopping:  # before what may fail or take long
            log.line(state.save())
        if stopping and state.step < config.max_steps:
            log.line(f"stopped by a signal at step {state.step} of {config.max_steps}; "
                     "run the same command again to continue")
            return
        validate(state, log)
        if state.due(config.sample_every):
            state.draw_sheet()


def validate(state: "TrainingState", log: RunLog) -> None:
    """Log the scalars of a validation where one is due; there are none if nothing is held out."""
    if state.due(state.config.eval_every) and (scalars := state.validate()):
        log.record(state.step, **{f"val_{name}": value for name, value in scalars.items()})


class TrainingState:
    """Model, averaged weights, optimizers and step of one run."""

    def __init__(self, task: Task, config: TrainingConfig, runtime: Runtime):
        self.task, self.config, self.runtime = task, config, runtime
        self.device = runtime.device(config.device)
        self.notes: list[str] = []
        self.model = task.model
        compiled = config.compile and compiler_works(self.device)
        if config.compile and not compiled:
            self.notes.append("no working compiler on this machine: training without torch.compile")
        wrap_blocks(task.blocks, compiled, config.activation_checkpointing)
        self.sharded = runtime.world_size > 1 and config.data_parallel == "fsdp"
        if compiled and not self.sharded:
            for name in task.methods:
                setattr(self.model, name, torch.compile(getattr(self.model, name), dynamic=False))
        half = config.mixed_precision == "bf16"
        self.step_loss = runtime.wrap(StepLoss(task), task.blocks, config.data_parallel, self.device, half)
        recorded = compiled and self.device.type == "cuda" and task.recordable and runtime.world_size == 1
        self.recorder = Recorder(before=3) if recorded else None
        self.optimizers = make_optimizers(self.model, config, recorded)
        self.ema = AveragedWeights(self.model, config.ema_decay) if config.ema_decay else None
        self.meter, self.skipped = Meter(), SkippedSteps(self.device)
        self.step = 0
        self.checkpoints = config.results_dir / "checkpoints"
        keep = config.keep_checkpoints
        self.writer = ShardWriter(self.checkpoints, keep, runtime) if self.sharded else None

    def resume(self) -> list[str]:
        """Load the newest checkpoint of the run, if any, of any number of processes; returns messages."""
        config = self.config
        checkpoint, warnings = newest_checkpoint(self.checkpoints, self.runtime, self.read)
        if not checkpoint:
            return self.notes
        check_same_run(config, self.task.facts, checkpoint)
        examples = self.model.state_dict()
        self.model.load_state_dict(shard_all(checkpoint["model"], examples))
        if self.ema:
            self.ema.load_state_dict(shard_all(checkpoint["ema"], examples))
        load_states(self.optimizers, checkpoint["optimizer"])
        self.step = checkpoint["step"]
        self.task.load_state_dict(checkpoint.get("task", {}), self.step)
        self.meter.load_state_dict(checkpoint.get("meter", {}))
        self.skipped = SkippedSteps(self.device, checkpoint.get("skipped", 0))
        return [*warnings, *self.notes, f"continuing at step {self.step} of {config.max_steps}"]

    def open_log(self, lines: list[str]) -> RunLog:
        """Write config.json and open the log at the current step; `lines` are printed first."""
        config = self.config
        log = RunLog(config.results_dir, self.runtime.is_main, self.step, config.wandb_project)
        for line in lines:
            log.line(line)
        if self.runtime.is_main:
            write_json(config.results_dir / "config.json", {"training": config.settings(), **self.task.facts})
        return log

    def read(self, path: Path) -> dict[str, Any]:
        """A checkpoint; of a sharded one each process reads only its own part."""
        if not (self.sharded and is_sharded(path)):
            return load_checkpoint(path)
        examples = self.model.state_dict()
        parameters = [p for group in self.optimizers[0].param_groups for p in group["params"]]

        def like(key: str) -> Tensor | None:
            part, *names = key.strip("/").split("/")
            if part == "optimizer" and names[-1] != "step":
                return parameters[int(names[1])]
            return examples.get(names[0]) if part in ("model", "ema") else None

        return read_sharded(path, like)

    def save(self) -> str:
        """Write a checkpoint, a sharded one in the background; returns a message."""
        ema = {"ema": self.ema.state_dict()} if self.ema else {}
        checkpoint = {"model": self.model.state_dict(), **ema, "optimizer": states(self.optimizers),
                      "step": self.step, "task": self.task.state_dict(),
                      "meter": self.meter.state_dict(), "skipped": int(self.skipped.total),
                      "training": self.config.settings(), **self.task.facts}
        if self.sharded:
            return f"writing {self.writer.save(self.step, checkpoint)}"
        path = None
        with self.runtime.together():
            if self.runtime.is_main:
                path = save_checkpoint(self.checkpoints, self.step, checkpoint, self.config.keep_checkpoints)
        return f"saved {path}"

    def batches(self) -> DataLoader:
        """This process's share of the batches of the steps that are left."""
        config = self.config
        sampler = step_batches(len(self.task.train_set), config.global_batch_size, config.global_seed,
                               self.step, config.max_steps, config.gradient_accumulation_steps, self.runtime)
        return DataLoader(self.task.train_set, batch_sampler=sampler, num_workers=config.num_workers,
                          worker_init_fn=leave_signals_to_the_parent,
                          pin_memory=self.device.type in PINNED)

    def due(self, every: int) -> bool:
        """True every `every` steps and at the last step; never if `every` is 0."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    def autocast(self) -> Any:
        if self.config.mixed_precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def optimise(self, step: int, batches: Any) -> None:
        """One optimiser step on the next global batch, without waiting for the device."""
        config, parts = self.config, self.config.gradient_accumulation_steps
        self.model.train()
        set_rate(self.optimizers, learning_rate(config, step))
        inputs = []
        for part in range(parts):
            seeds_B = sample_seeds(config.global_batch_size, config.global_seed, step, part, parts,
                                   self.runtime)
            inputs.append(to_device([next(batches), seeds_B], self.device))
        with self.autocast():
            self.task.before_step(inputs)
        means, finite = self.recorder(self.update, inputs) if self.recorder else self.update(inputs)
        if self.ema:
            self.ema.update()
        with torch.no_grad():
            self.task.after_step(step, self.ema.averages if self.ema else {})
        self.meter.add(means, finite)
        self.skipped.add(finite)
        self.step = step + 1

    def update(self, inputs: list[list[Any]]) -> tuple[dict[str, Tensor], Tensor]:
        """Update the weights from the batch and seeds of each part -> scalars to log, and True if finite."""
        config, parts = self.config, len(inputs)
        sums: dict[str, Tensor] = {}
        for part, batch_and_seeds in enumerate(inputs):
            if not self.recorder:  # the same for all parts and processes
                torch.manual_seed(mix(config.global_seed, self.step))
            self.step_loss.require_backward_grad_sync = part == parts - 1  # DDP: average once, at the end
            with self.autocast():
                loss, scalars = self.step_loss(*batch_and_seeds)
            (loss / parts).backward()
            for name, value in {"loss": loss, **scalars}.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / parts
        means = self.runtime.mean(torch.stack(list(sums.values()))).unbind()
        limit = config.max_grad_norm or math.inf
        norm = whole_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        finite = means[0].isfinite() & norm.isfinite()
        take_step(self.optimizers, ~finite)
        return {**dict(zip(sums, means, strict=True)), "grad_norm": norm}, finite

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The unsharded model in eval mode, with the averaged weights if there are any."""
        averaged = self.ema.in_place() if self.ema else nullcontext()
        with torch.no_grad(), averaged, self.runtime.whole(self.step_loss):
            yield self.model.eval()

    def validate(self) -> dict[str, float]:
        with self.evaluated() as model, self.autocast():
            return self.task.validate(model)

    def draw_sheet(self) -> None:
        """A sample sheet, and the curves so far, in the run folder."""
        autocast = self.autocast() if self.sharded else nullcontext()  # whose weights are bfloat16 in part
        with self.evaluated() as model, autocast, self.runtime.together():
            if self.runtime.is_main:
                self.task.draw_sheet(model, self.config.results_dir / "sheets" / f"{self.step:07d}.png")
                draw_curves(self.config.results_dir)


def shard_all(whole: dict[str, Tensor], examples: dict[str, Tensor]) -> dict[str, Tensor]:
    """An unsharded state dict, sharded as `examples` is; strict loading will name unknown keys."""
    return {name: shard_like(value, examples[name]) if name in examples else value
            for name, value in whole.items()}


def to_device(batch: Any, device: torch.device) -> Any:
    """Nested lists of tensors on `device`."""
    return mapped(lambda tensor: tensor.to(device, non_blocking=device.type in PINNED), batch)
