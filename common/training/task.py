"""What the training loop needs to know of the thing it trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset


class Task:
    """What the loop needs to know of the thing it trains."""

    model: nn.Module
    blocks: Sequence[nn.Module]  # parts of the model that are compiled, recomputed and sharded one by one
    methods: Sequence[str] = ()  # of the model, that are compiled too
    recordable = False  # True if `loss` neither waits for a GPU nor draws from torch's generator
    train_set: Dataset
    facts: dict[str, Any]  # JSON-able; saved in every checkpoint, and must agree on resume

    def loss(self, model: nn.Module, batch: Any, seeds_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch, and scalars to log beside it; `seeds_B` (int64) decide what is random."""
        raise NotImplementedError

    def before_step(self, parts: list[list[Any]]) -> None:
        """Look at all parts of a batch, (batch, seeds_B) each, before their losses are asked for."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scalars on the validation split; called on every process."""
        raise NotImplementedError

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """Write a picture that shows what the model does now; called on the main process."""

    def after_step(self, step: int, averages: dict[str, Tensor]) -> None:
        """Whatever the model needs between two steps, and with it its averaged weights if there are any, by
        name; the same on every process."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model."""
        return {}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from `state_dict` before step `step`."""


class StepLoss(nn.Module):
    """A task's loss as the forward of a module, which is where DDP and FSDP take hold."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.model = task, task.model

    def forward(self, batch: Any, seeds_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(self.model, batch, seeds_B)
