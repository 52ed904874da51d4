"""The log of a run: a jsonl file, lines on the terminal, and optionally Weights & Biases."""

import hashlib
import math
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import append_jsonl, read_jsonl, write_jsonl


class RunLog:
    """Writes the scalars of a training run, on the main process only (`enabled`)."""

    def __init__(self, folder: Path, enabled: bool, step: int, wandb_project: str | None = None):
        """Open `folder/log.jsonl` and remove records after `step`, where this run starts."""
        self.path = Path(folder) / "log.jsonl"
        self.enabled = enabled
        self.wandb = None
        self.validated = False  # at the step where this run starts
        if not enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = [record for record in read_jsonl(self.path) if record.get("step", 0) <= step]
        write_jsonl(self.path, records)
        self.validated = any(name.startswith("val_") for record in records if record.get("step") == step
                             for name in record)
        if wandb_project:
            os.environ.setdefault("WANDB_MODE", "offline")
            import wandb

            run = self.path.parent.resolve()
            earlier = [path.name.rpartition("-")[2] for path in run.glob("wandb/*run-*-*")]
            identity = earlier[0] if earlier else hashlib.sha256(str(run).encode()).hexdigest()[:16]
            self.wandb = wandb.init(
                project=wandb_project, name=run.name, dir=run, id=identity, resume="allow")

    def line(self, text: str) -> None:
        """Print a line that does not break a progress bar."""
        if self.enabled:
            tqdm.write(text)
            sys.stdout.flush()  # for readers of a file or a pipe

    def record(self, step: int, **scalars: Any) -> None:
        """Log the finite scalars of one step; JSON has no others."""
        if not self.enabled:
            return
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        append_jsonl(self.path, {"step": step, **scalars})
        self.line(f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in scalars.items()))
        if self.wandb:
            self.wandb.log(scalars, step=step)

    def close(self) -> None:
        if self.wandb:
            self.wandb.finish()
