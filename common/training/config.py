"""Flags that every training command shares, and the learning rate that follows from them."""

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from common.command import require_at_least
from common.errors import InputError
from common.names import without_names

# What a rerun may change; everything else is part of what the run is.
MAY_CHANGE = {"max_steps", "log_every", "eval_every", "sample_every", "ckpt_every", "keep_checkpoints",
              "num_workers", "wandb_project", "device", "val_clips", "val_pictures", "data_parallel",
              "compile", "activation_checkpointing", "gradient_accumulation_steps", "max_skipped_steps",
              "dry_run"}
LOST = timedelta(minutes=30)  # longer than any work between two steps that the others wait for


def precision_that_suits() -> Literal["bf16", "none"]:
    """The default of --mixed-precision on this machine."""
    return "bf16" if torch.cuda.is_available() else "none"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Flags of every training command."""

    results_dir: Path
    """Run folder: config, log, curves, checkpoints, sheets. The same command continues what is there."""
    max_steps: int = 10_000
    """Optimiser steps in all."""
    global_batch_size: int = 8
    """Samples per optimiser step, over all processes."""
    gradient_accumulation_steps: int = 1
    """Parts that a global batch is computed in, to save memory."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the GPT's layers, AdamW for the rest; learns in fewer steps."""
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
    max_skipped_steps: int = 25
    """A step whose loss or gradient is not finite is skipped; so many in a row end the run."""
    mixed_precision: Literal["bf16", "none"] = field(default_factory=precision_that_suits)
    """bf16 autocast (default: on a GPU), or float32 throughout, which is faster on many processors."""
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
    data_parallel: Literal["ddp", "fsdp", "none"] = "ddp"
    """Several processes hold the model whole (ddp) or a part each (fsdp); one process is always none."""
    compile: bool = field(default_factory=lambda: torch.cuda.is_available())
    """Compile the model's blocks, and on one GPU record the whole step of a GPT (default: on a GPU); without
    a compiler the run goes on without."""
    activation_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass: a third slower, far less memory."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (offline unless WANDB_MODE says otherwise)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dry_run: bool = False
    """Take a few steps, print sizes, memory and the time that the run would take, and write nothing."""

    def __post_init__(self) -> None:
        require_at_least(self, max_steps=1, global_batch_size=1, gradient_accumulation_steps=1, log_every=1,
                         ckpt_every=1, keep_checkpoints=1, eval_every=0, sample_every=0, warmup_steps=0, lr=0,
                         weight_decay=0, max_grad_norm=0, num_workers=0, max_skipped_steps=1)
        if self.optimizer == "muon" and self.data_parallel == "fsdp":
            raise InputError("--optimizer muon: needs whole matrices, take --data-parallel ddp")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay {self.ema_decay}: must be in [0, 1)")

    def samples_at_once(self, processes: int) -> int:
        """Samples of the part of a batch that a process computes at once: what its memory has to hold."""
        return max(1, self.global_batch_size // (self.gradient_accumulation_steps * processes))

    def settings(self) -> dict[str, Any]:
        """The command line as JSON."""
        return json.loads(json.dumps(asdict(self), default=str))


def check_same_run(config: TrainingConfig, facts: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """`InputError` unless a checkpoint of the run folder is of the run that settings and facts describe."""
    folder = config.results_dir
    for name, value in config.settings().items():
        fixed = name not in MAY_CHANGE and not holds_path(getattr(config, name))
        if fixed and checkpoint["training"].get(name, value) != value:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {value}: the run in {folder} has {checkpoint['training'][name]}")
    for name, value in facts.items():
        if without_names(checkpoint[name]) != without_names(value):
            raise InputError(f"--results-dir {folder}: holds a run with another {name}; "
                             "choose another folder, or the settings of that run")
    planned, steps = checkpoint["training"]["max_steps"], config.max_steps
    if config.lr_schedule == "cosine" and steps != planned and steps > checkpoint["step"]:
        raise InputError(
            f"--max-steps {steps}: the run in {folder} has {planned}, where its cosine ends; another end "
            "makes the learning rate jump. To train longer start a new run elsewhere from its weights "
            "(--gpt-ckpt or --vq-ckpt)")


def holds_path(value: Any) -> bool:
    """True for a path and for a tuple of paths: where a thing lies does not matter to what it is."""
    return isinstance(value, Path) or (isinstance(value, tuple) and any(map(holds_path, value)))


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.lr_schedule == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup_steps) / max(1, config.max_steps - 1 - config.warmup_steps)
    return config.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))
