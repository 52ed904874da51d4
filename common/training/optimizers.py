"""The optimizers of the training loop, averaged weights, and means of scalars between two log records.

AdamW trains all parameters, or with Muon those that are not hidden matrices. AdamW is first in the list.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.devices import FLOAT64
from common.distributed import own_part, shard_like
from common.errors import InputError
from common.training.config import TrainingConfig

MOMENTUM = 0.95  # of Muon
Optimizers = Sequence[torch.optim.Optimizer]


def make_optimizers(model: nn.Module, config: TrainingConfig, recorded: bool = False) -> Optimizers:
    """AdamW, with --optimizer muon also Muon, which trains the matrices of the GPT's layers.

    Weight decay is on matrices only. A `recorded` step (CUDA graph) reads the learning rate from the device.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {name: p for name, p in named.items()
              if config.optimizer == "muon" and name.startswith("layers.") and p.ndim == 2}
    if config.optimizer == "muon" and not hidden:
        raise InputError("--optimizer muon: is for the layers of a GPT, this model has none")
    rest = [p for name, p in named.items() if name not in hidden]
    groups = [{"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}]
    rate = torch.tensor(config.lr, device=rest[0].device) if recorded else config.lr
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(config.beta1, config.beta2), fused=True,
                              capturable=recorded)
    return [adamw, Muon(list(hidden.values()), rate, config.weight_decay)] if hidden else [adamw]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): the update of every matrix is orthogonalised.

    As torch.optim.Muon, but in float32 on a CPU, where bfloat16 takes 28 times as long on processors without
    it, and with `found_inf`. Updates have the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float | Tensor, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None  # see take_step

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient, unless `found_inf` is above 0."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                moment = self.state[p]["momentum_buffer"]
                new_moment = moment.lerp(p.grad, 1 - MOMENTUM)
                update = orthogonal(p.grad.lerp(new_moment, MOMENTUM))  # Nesterov
                new = p * (1 - group["lr"] * group["weight_decay"])
                new -= update * (0.2 * max(p.shape) ** 0.5 * group["lr"])
                if self.found_inf is not None:
                    new_moment = torch.where(self.found_inf > 0, moment, new_moment)
                    new = torch.where(self.found_inf > 0, p, new)
                moment.copy_(new_moment)
                p.copy_(new)


def orthogonal(matrix: Tensor) -> Tensor:
    """An approximation of the nearest orthogonal matrix: singular values become 0.7 to 1.2.

    Five steps of a quintic Newton-Schulz iteration with the coefficients of Jordan et al.
    """
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def states(optimizers: Optimizers) -> dict[str, Any]:
    """The state of AdamW for a checkpoint, with the state of Muon as its entry "muon"."""
    adamw, *muon = (optimizer.state_dict() for optimizer in optimizers)
    return {**adamw, "muon": muon[0]} if muon else adamw


def load_states(optimizers: Optimizers, saved: dict[str, Any]) -> None:
    """Load the result of `states`, of any number of processes."""
    parts = [saved]
    if len(optimizers) > 1:
        parts = [saved, saved["muon"]] if "muon" in saved else split_numbered(saved)
    for optimizer, part in zip(optimizers, parts, strict=True):
        optimizer.load_state_dict(fitted(optimizer, part))


def split_numbered(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of AdamW and Muon in older checkpoints, which number both as one, Muon's group first."""
    muon, *rest = saved["param_groups"]
    count = len(muon["params"])
    rest = [{**group, "params": [i - count for i in group["params"]]} for group in rest]
    return [{"state": {i - count: entry for i, entry in saved["state"].items() if i >= count},
             "param_groups": rest},
            {"state": {i: entry for i, entry in saved["state"].items() if i < count}, "param_groups": [muon]}]


def fitted(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """An unsharded state, sharded as the parameters are; settings of the device are those of `optimizer`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {i: {name: shard_like(value, parameters[i]) if value.ndim else value
                 for name, value in entry.items()} for i, entry in saved["state"].items()}
    groups = [{**group, **{name: own[name] for name in ("lr", "capturable") if name in own}}
              for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)]
    return {"state": state, "param_groups": groups}


def set_rate(optimizers: Optimizers, rate: float) -> None:
    """Set the learning rate, in place if it is a tensor."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class AveragedWeights:
    """Exponential moving average of a model's parameters, sharded like them."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.average = model, get_ema_multi_avg_fn(decay)
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's shards of (averages, parameters), in the same order."""
        return tuple([own_part(value.detach()) for value in values]
                     for values in (self.averages.values(), self.model.parameters()))

    def update(self) -> None:
        """average = decay * average + (1 - decay) * parameter."""
        self.average(*self._pairs(), None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A block in which the model's parameters are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(*self._pairs(), strict=True):
            before = parameter.clone()
            parameter.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with the averages in place of its parameters."""
        return {**self.model.state_dict(), **self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, average in self.averages.items():
            own_part(average).copy_(own_part(state[name]))


class Meter:
    """Means of scalars over the finite steps since the last `read`; on the device until then."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}

    def add(self, scalars: dict[str, Tensor], finite: Tensor) -> None:
        """Count one step if it was finite."""
        for name, value in {**scalars, "steps": torch.ones_like(finite)}.items():
            self.sums[name] = self.sums.get(name, 0.0) + widened(torch.where(finite, value, 0.0))

    def read(self) -> dict[str, float]:
        """The means; resets the meter. Waits for the device."""
        sums = self.state_dict()
        self.sums = {}
        steps = sums.pop("steps", 0)
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def state_dict(self) -> dict[str, float]:
        """The sums so far as plain numbers."""
        return {name: float(value) for name, value in self.sums.items()}

    def load_state_dict(self, sums: dict[str, float]) -> None:
        self.sums = dict(sums)


def widened(x: Tensor) -> Tensor:
    """`x` in float64 on devices that have it."""
    return x.double() if x.device.type in FLOAT64 else x


def take_step(optimizers: Optimizers, skip: Tensor) -> None:
    """One step of each optimizer unless `skip`, a tensor on the device, is true; clears the gradients."""
    for optimizer in optimizers:
        optimizer.found_inf = skip.float()  # what torch.amp.GradScaler sets for the same purpose
        if skip.device.type != "mps" or not skip:  # whose AdamW does not read it; this waits for the device
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
