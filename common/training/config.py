"""Flags of all training commands, and the learning rate schedule."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from common.command import require_at_least
from common.devices import best_kind
from common.errors import InputError
from common.files import read_json
from common.hardware import cpu_has_bf16
from common.hub import readable
from common.names import without_names

# Settings that a rerun may change; all others must be equal on resume.
MAY_CHANGE = {"max_steps", "log_every", "eval_every", "sample_every", "ckpt_every", "keep_checkpoints",
              "num_workers", "wandb_project", "device", "val_clips", "val_pictures", "data_parallel",
              "compile", "activation_checkpointing", "gradient_accumulation_steps", "max_skipped_steps",
              "dry_run"}
LOST = timedelta(minutes=30)  # timeout of training; longer than any work of one process between two steps


def precision_that_suits(kind: str, gpt: bool) -> Literal["bf16", "none"]:
    """The faster precision of training on a kind of device.

    On a CPU with bfloat16 instructions a step of a GPT takes 0.4 of the time of float32
    (benchmarks/RESULTS.md); a tokenizer's was not measured.
    """
    return "bf16" if kind in ("cuda", "xpu") or (kind == "cpu" and gpt and cpu_has_bf16()) else "none"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Flags of every training command."""

    results_dir: Path
    """Run folder: config, log, curves, checkpoints, sample sheets. The same command continues it."""
    max_steps: int = 10_000
    """Total number of optimizer steps."""
    global_batch_size: int = 8
    """Samples per optimizer step, over all processes."""
    gradient_accumulation_steps: int = 1
    """Number of parts that the global batch is computed in, to save memory."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the GPT's layers, AdamW for the rest. It needs fewer steps."""
    lr: float = 1e-4
    """Peak learning rate."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up. cosine: decays to a tenth of the peak at the last step."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay of parameters with two or more dimensions."""
    beta1: float = 0.9
    """AdamW: decay of the first moment."""
    beta2: float = 0.95
    """AdamW: decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: no clipping."""
    max_skipped_steps: int = 25
    """A step whose loss or gradient is not finite is skipped. This many consecutive ones end the run."""
    mixed_precision: Literal["auto", "bf16", "none"] = "auto"
    """bf16: autocast. none: float32. auto: what the run has; a new one has bf16 on CUDA and XPU, a GPT also
    on a CPU with AMX or AVX-512 for bfloat16."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is used for evaluation; 0: no average."""
    global_seed: int = 0
    """Seed of initialisation, data order, dropout and augmentation."""
    log_every: int = 50
    """Steps between log records."""
    eval_every: int = 500
    """Steps between validations; 0: never."""
    sample_every: int = 1000
    """Steps between sample sheets; 0: never."""
    ckpt_every: int = 500
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 2
    """Number of checkpoints kept."""
    num_workers: int = 0
    """Number of processes that read data."""
    data_parallel: Literal["ddp", "fsdp", "none"] = "ddp"
    """With several processes. ddp: each holds the whole model. fsdp: each holds a shard of it."""
    compile: bool = field(default_factory=lambda: best_kind() == "cuda")
    """Compile the model's blocks. On a single GPU also record the step of the GPT as a CUDA graph. Without a
    compiler training continues uncompiled. The default on cuda is --compile."""
    activation_checkpointing: bool = False
    """Recompute the activations of blocks in the backward pass: a third slower, far less memory."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (offline unless WANDB_MODE is set)."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""
    dry_run: bool = False
    """Take a few steps and print sizes, memory and the estimated time. Nothing is written."""

    def __post_init__(self) -> None:
        require_at_least(self, max_steps=1, global_batch_size=1, gradient_accumulation_steps=1, log_every=1,
                         ckpt_every=1, keep_checkpoints=1, eval_every=0, sample_every=0, warmup_steps=0, lr=0,
                         weight_decay=0, max_grad_norm=0, num_workers=0, max_skipped_steps=1)
        if self.optimizer == "muon" and self.data_parallel == "fsdp":
            raise InputError("--optimizer muon: needs whole matrices, take --data-parallel ddp")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay {self.ema_decay}: must be in [0, 1)")

    def settled(self, kind: str, gpt: bool) -> "TrainingConfig":
        """With a precision instead of "auto", on a kind of device."""
        if self.mixed_precision != "auto":
            return self
        file = self.results_dir / "config.json"
        try:
            known = file.exists() and read_json(file)["training"]["mixed_precision"]
        except (KeyError, TypeError):
            raise InputError(f"--results-dir {self.results_dir}: its config.json is not of a run") from None
        return replace(self, mixed_precision=known or precision_that_suits(kind, gpt))

    def samples_at_once(self, processes: int) -> int:
        """Samples that a process computes at once."""
        return max(1, self.global_batch_size // (self.gradient_accumulation_steps * processes))

    def settings(self) -> dict[str, Any]:
        """The flags as JSON values."""
        return json.loads(json.dumps(asdict(self), default=readable))


def check_same_run(config: TrainingConfig, facts: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """`InputError` unless the checkpoint has the same settings and facts."""
    folder = config.results_dir
    for name, value in config.settings().items():
        fixed = name not in MAY_CHANGE and not holds_path(getattr(config, name))
        if fixed and checkpoint["training"].get(name, value) != value:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {value}: the run in {folder} has {checkpoint['training'][name]}")
    for name, value in facts.items():
        if without_names(checkpoint.get(name, value)) != without_names(value):
            raise InputError(f"--results-dir {folder}: holds a run with another {name}; "
                             "choose another folder, or the settings of that run")
    planned, steps = checkpoint["training"]["max_steps"], config.max_steps
    if config.lr_schedule == "cosine" and steps != planned and steps > checkpoint["step"]:
        raise InputError(
            f"--max-steps {steps}: the run in {folder} has {planned}, where its cosine ends; another end "
            "makes the learning rate jump. To train longer start a new run elsewhere from its weights "
            "(--gpt-ckpt or --vq-ckpt)")


def holds_path(value: Any) -> bool:
    """True for a path and a tuple of paths, which may differ between runs of the same data."""
    return isinstance(value, Path) or (isinstance(value, tuple) and any(map(holds_path, value)))


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.lr_schedule == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup_steps) / max(1, config.max_steps - 1 - config.warmup_steps)
    return config.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))
