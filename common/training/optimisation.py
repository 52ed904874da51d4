"""The optimiser, averaged weights, and the scalars of the steps between two log records."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.distributed import own_part, whole_tensor
from common.training.config import TrainingConfig
from common.training.optimizers import MuonAdamW, adamw


def make_optimizer(model: nn.Module, config: TrainingConfig, recorded: bool = False) -> torch.optim.Optimizer:
    """The optimiser that the flags ask for; weight decay is on matrices only."""
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        return MuonAdamW(model, config.lr, config.weight_decay, betas, recorded)
    trained = [p for p in model.parameters() if p.requires_grad]
    return adamw(trained, config.lr, config.weight_decay, betas, recorded)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, where it is on the device there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class AveragedWeights:
    """Exponential moving average of a model's parameters, sharded as they are."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's parts of (averages, parameters), in the same order."""
        return tuple([own_part(value.detach()) for value in values]
                     for values in (self.averages.values(), self.model.parameters()))

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * parameter."""
        averages, parameters = self._pairs()
        torch._foreach_lerp_(averages, parameters, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the averages as its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(*self._pairs(), strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with the averages in place of its parameters."""
        return {**self.model.state_dict(), **self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages from what `state_dict` gave."""
        for name, average in self.averages.items():
            own_part(average).copy_(own_part(state[name]))


class Meter:
    """Means of scalars over the finite steps since the last reading; all on the device until it is read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}

    def add(self, scalars: dict[str, Tensor], finite: Tensor) -> None:
        """Count one step, or if it was not finite nothing."""
        for name, value in {**scalars, "steps": torch.ones_like(finite)}.items():
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, value, 0.0).double()

    def read(self) -> dict[str, float]:
        """The means, after which counting starts anew; waits for the device."""
        sums = self.state_dict()
        self.sums = {}
        steps = sums.pop("steps", 0)
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def state_dict(self) -> dict[str, float]:
        """The sums so far as plain numbers."""
        return {name: float(value) for name, value in self.sums.items()}

    def load_state_dict(self, sums: dict[str, float]) -> None:
        """Go on from these sums."""
        self.sums = dict(sums)


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down to the norm `limit` -> the norm before, also of sharded ones; no waiting."""
    return whole_tensor(nn.utils.clip_grad_norm_(model.parameters(), limit))


def skip_if(optimizer: torch.optim.AdamW | MuonAdamW, skip: Tensor) -> None:
    """Let the next step of a fused optimiser do nothing if `skip` is true, decided on the device."""
    optimizer.found_inf = skip.float()  # what torch.amp.GradScaler sets for the same purpose
