"""The interface between the training loop and what it trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset


class Task:
    """A model, its data, its loss and its validation."""

    model: nn.Module
    blocks: Sequence[nn.Module]  # parts of the model that are compiled, checkpointed and sharded separately
    methods: Sequence[str] = ()  # methods of the model that are compiled too
    is_gpt = False
    recordable = False  # True if `loss` neither waits for a GPU nor uses torch's generator
    train_set: Dataset
    facts: dict[str, Any]  # JSON values; saved in every checkpoint, and must be equal on resume
    next_command: Sequence[str] = ()  # what to run after training; the run folder is its last word

    def loss(self, model: nn.Module, batch: Any, seeds_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a batch, and further scalars to log; all randomness comes from `seeds_B` (int64)."""
        raise NotImplementedError

    def before_step(self, parts: list[list[Any]]) -> None:
        """Called before the losses with all parts of a batch, (batch, seeds_B) each."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scalars on the validation split; called on every process."""
        raise NotImplementedError

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """Write a picture of samples or reconstructions; called on the main process."""

    def after_step(self, step: int, averages: dict[str, Tensor]) -> None:
        """Called after each step with the averaged weights by name, if any; the same on every process."""

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints beside the model's."""
        return {}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Load the result of `state_dict`; the next step is `step`."""


class StepLoss(nn.Module):
    """A task's loss as the forward of a module, which DDP and FSDP can wrap."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.model = task, task.model

    def forward(self, batch: Any, seeds_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(self.model, batch, seeds_B)
