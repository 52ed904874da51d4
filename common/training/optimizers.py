"""The optimisers of the training loop: AdamW, or Muon for hidden matrices with AdamW for the rest."""

from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError

MOMENTUM = 0.95  # of Muon


def adamw(parameters: list[nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, float],
          recorded: bool = False) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices only; to be recorded its learning rate is on the device."""
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    rate = device_rate(lr, parameters) if recorded else lr
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True, capturable=recorded)


def device_rate(lr: float, parameters: list[nn.Parameter]) -> Tensor:
    """A learning rate that a recorded step can read."""
    return torch.tensor(lr, device=parameters[0].device)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): every update of a matrix is made orthogonal.

    That of torch.optim, but on a CPU in float32: it computes in bfloat16, which takes 28 times as long on
    processors without it. Updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float | Tensor, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None  # see common.training.optimisation.skip_if

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient, unless `found_inf` says not to."""
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
    """The orthogonal matrix nearest to `matrix`, roughly: its singular values become 0.7 to 1.2.

    Five steps of a quintic Newton-Schulz iteration with the coefficients of Jordan et al.
    """
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class MuonAdamW:
    """Muon for the matrices of a transformer's layers, AdamW for all else, at one learning rate.

    To the training loop it is one optimiser, whose state counts Muon's parameters first.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float],
                 recorded: bool = False):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if name.startswith("layers.") and p.ndim == 2]
        if not hidden:
            raise InputError("--optimizer muon: is for the layers of a GPT, this model has none")
        rest = [p for name, p in named if not (name.startswith("layers.") and p.ndim == 2)]
        self.count = len(hidden)
        self.muon = Muon(hidden, device_rate(lr, hidden) if recorded else lr, weight_decay)
        self.adamw = adamw(rest, lr, weight_decay, betas, recorded)
        self.found_inf: Tensor | None = None  # see common.training.optimisation.skip_if

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.muon.param_groups + self.adamw.param_groups

    def step(self) -> None:
        """Both steps."""
        self.muon.found_inf = self.adamw.found_inf = self.found_inf
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        muon, rest = self.muon.state_dict(), self.adamw.state_dict()
        return {"state": {**muon["state"], **renumbered(rest["state"], self.count)},
                "param_groups": muon["param_groups"] + shifted(rest["param_groups"], self.count)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        first, *others = saved["param_groups"]
        mine = {i: entry for i, entry in saved["state"].items() if i < self.count}
        rest = {i: entry for i, entry in saved["state"].items() if i >= self.count}
        self.muon.load_state_dict({"state": mine, "param_groups": [first]})
        self.adamw.load_state_dict({"state": renumbered(rest, -self.count),
                                    "param_groups": shifted(others, -self.count)})


def renumbered(state: dict[int, Any], by: int) -> dict[int, Any]:
    """The entries of an optimiser's state under other numbers."""
    return {i + by: entry for i, entry in state.items()}


def shifted(groups: list[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    """Parameter groups under other numbers."""
    return [{**group, "params": [i + by for i in group["params"]]} for group in groups]
