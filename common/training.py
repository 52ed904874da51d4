"""The training loop that the tokenizer and the GPT share. A task says what is trained; the loop says how.

Everything random at step s is seeded by (seed, s): data order, dropout, augmentation. So a checkpoint needs
no random state, and a rerun continues exactly. DDP, FSDP and compile go around `task.model` from outside.
"""

import copy
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.batches import StepBatches, mix
from common.checkpoints import newest_checkpoint, save_checkpoint
from common.command import require_at_least
from common.distributed import Runtime
from common.files import write_json
from common.run_log import RunLog

# What a rerun may change; everything else is part of what the run is.
MAY_CHANGE = {"max_steps", "log_every", "eval_every", "sample_every", "ckpt_every", "keep_checkpoints",
              "num_workers", "wandb_project", "device", "val_clips", "val_pictures"}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Flags of every training command."""

    results_dir: Path
    """Run folder: config, log, checkpoints, sample sheets. The same command continues what is there."""
    max_steps: int = 10_000
    """Optimiser steps in all."""
    global_batch_size: int = 8
    """Samples per optimiser step."""
    gradient_accumulation_steps: int = 1
    """Parts that a global batch is computed in, to save memory."""
    lr: float = 1e-4
    """Peak learning rate."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: stay, or fall to a tenth at the last step."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay of tensors with two or more dimensions."""
    beta1: float = 0.9
    """AdamW: decay of the first moment."""
    beta2: float = 0.95
    """AdamW: decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    mixed_precision: Literal["bf16", "none"] = "bf16"
    """bf16 autocast, or float32 throughout."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated; 0: none."""
    global_seed: int = 0
    """Seed of initialisation, data order, dropout and augmentation."""
    log_every: int = 50
    """Steps between two log records."""
    eval_every: int = 500
    """Steps between two validations; 0: never."""
    sample_every: int = 1000
    """Steps between two sample sheets; 0: never."""
    ckpt_every: int = 500
    """Steps between two checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    num_workers: int = 0
    """Processes that read data."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (offline unless WANDB_MODE says otherwise)."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require_at_least(self, max_steps=1, global_batch_size=1, gradient_accumulation_steps=1, log_every=1,
                         ckpt_every=1, keep_checkpoints=1, eval_every=0, sample_every=0, warmup_steps=0, lr=0,
                         weight_decay=0, max_grad_norm=0, num_workers=0)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay {self.ema_decay}: must be in [0, 1)")


class Task(Protocol):
    """What the loop needs to know of the thing it trains."""

    model: nn.Module
    train_set: Dataset
    facts: dict[str, Any]  # JSON-able; saved in every checkpoint, and must agree on resume

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch, and scalars to log beside it."""

    def after_step(self, step: int) -> None:
        """Whatever the model needs between two steps."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scalars on the validation split."""

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """Write a picture that shows what the model does now."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.lr_schedule == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup_steps) / max(1, config.max_steps - 1 - config.warmup_steps)
    return config.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, over parameters; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for mine, theirs in zip(ema.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def train(task: Task, config: TrainingConfig, runtime: Runtime) -> None:
    """Train `task.model` up to `config.max_steps`, from the newest checkpoint in the run folder if any."""
    if runtime.world_size > 1:
        raise ValueError("torchrun: training runs as one process so far")
    state = TrainingState(task, config, runtime)
    log = state.log
    batches = iter(state.batches())
    started, seen = perf_counter(), 0
    sums: dict[str, Tensor] = {}
    bar = tqdm(range(state.step, config.max_steps), initial=state.step, total=config.max_steps, unit="step",
               disable=None if runtime.is_main else True)
    for step in bar:
        torch.manual_seed(mix(config.global_seed, step))
        scalars = state.optimise(step, batches)
        task.after_step(step)
        sums = {name: value + sums.get(name, 0) for name, value in scalars.items()}
        state.step, seen = step + 1, seen + 1
        if state.due(config.log_every):
            means = {name: (value / seen).item() for name, value in sums.items()}
            log.record(state.step, **means, lr=learning_rate(config, step),
                       steps_per_s=seen / (perf_counter() - started))
            started, seen, sums = perf_counter(), 0, {}
        if state.due(config.eval_every):
            log.record(state.step, **{f"val_{name}": value for name, value in state.validate().items()})
        if runtime.is_main and state.due(config.sample_every):
            state.draw_sheet()
        if state.due(config.ckpt_every):
            log.line(f"saved {state.save()}")
    log.close()


class TrainingState:
    """Model, averaged weights, optimiser and step of one run, tied to its folder."""

    def __init__(self, task: Task, config: TrainingConfig, runtime: Runtime):
        self.task, self.config = task, config
        self.device = runtime.device(config.device)
        self.model = task.model.to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if config.ema_decay else None
        self.step = 0
        checkpoint, warnings = newest_checkpoint(config.results_dir / "checkpoints")
        if warnings and not checkpoint:
            raise ValueError(f"--results-dir {config.results_dir}: none of its checkpoints can be read")
        if checkpoint:
            self.restore(checkpoint)
        self.log = RunLog(config.results_dir, runtime.is_main, self.step, config.wandb_project)
        for warning in warnings:
            self.log.line(warning)
        if checkpoint:
            self.log.line(f"continuing at step {self.step} of {config.max_steps}")
        if runtime.is_main:
            write_json(config.results_dir / "config.json", {"training": self.settings(), **task.facts})

    def settings(self) -> dict[str, Any]:
        """The command line as JSON."""
        return {name: str(value) if isinstance(value, Path) else value
                for name, value in asdict(self.config).items()}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint of this run."""
        there, folder = checkpoint["training"], self.config.results_dir
        for name, value in self.settings().items():
            fixed = name not in MAY_CHANGE and not isinstance(getattr(self.config, name), Path)
            if fixed and there[name] != value:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} {value}: the run in {folder} has {there[name]}")
        for name, value in self.task.facts.items():
            if without_path(checkpoint[name]) != without_path(value):
                raise ValueError(f"--results-dir {folder}: holds a run with another {name}; "
                                 "choose another folder, or the settings of that run")
        self.model.load_state_dict(checkpoint["model"])
        if self.ema:
            self.ema.load_state_dict(checkpoint["ema"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step = checkpoint["step"]

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        ema = {"ema": self.ema.state_dict()} if self.ema else {}
        checkpoint = {"model": self.model.state_dict(), **ema, "optimizer": self.optimizer.state_dict(),
                      "step": self.step, "training": self.settings(), **self.task.facts}
        return save_checkpoint(self.config.results_dir / "checkpoints", self.step, checkpoint,
                               self.config.keep_checkpoints)

    def batches(self) -> DataLoader:
        """The batches of the steps that are left."""
        config = self.config
        sampler = StepBatches(len(self.task.train_set), config.global_batch_size, config.global_seed,
                              self.step, config.max_steps, config.gradient_accumulation_steps)
        return DataLoader(self.task.train_set, batch_sampler=sampler, num_workers=config.num_workers)

    def due(self, every: int) -> bool:
        """True each `every` steps and at the last one; never if `every` is 0."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    def autocast(self) -> Any:
        """The precision that the forward pass runs in."""
        if self.config.mixed_precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def optimise(self, step: int, batches: Any) -> dict[str, Tensor]:
        """One optimiser step on the next global batch; returns scalars on the device (no synchronisation)."""
        config = self.config
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        parts = config.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        for _ in range(parts):
            with self.autocast():
                loss, scalars = self.task.loss(self.model, to_device(next(batches), self.device))
            (loss / parts).backward()
            for name, value in {"loss": loss, **scalars}.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        limit = config.max_grad_norm or math.inf
        sums["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            update_ema(self.ema, self.model, config.ema_decay)
        return sums

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The task's validation scalars, of the averaged weights where there are any."""
        with self.autocast():
            return self.task.validate((self.ema or self.model).eval())

    @torch.no_grad()
    def draw_sheet(self) -> None:
        """A sample sheet in the run folder."""
        self.task.draw_sheet((self.ema or self.model).eval(),
                             self.config.results_dir / "sheets" / f"{self.step:07d}.png")


def without_path(fact: Any) -> Any:
    """A fact without the place where a file was found, which does not matter to what it is."""
    return {key: value for key, value in fact.items() if key != "path"} if isinstance(fact, dict) else fact


def to_device(batch: Any, device: torch.device) -> Any:
    """A tensor, or a list of tensors, on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return [to_device(part, device) for part in batch]
