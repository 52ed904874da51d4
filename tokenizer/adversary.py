"""A discriminator of patches that makes reconstructions crisp: PatchGAN (Isola et al. 2017), as in VQGAN.

Shapes: B pictures of H x W pixels in [-1, 1].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.distributed import Runtime
from common.training.whole_batch import Mean, alone

R1_EVERY = 16  # steps: a regularisation as good as at every step (Karras et al. 2020)


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) -> logits (B, 1, h, w), one for each overlapping patch: real is positive.

    Group instead of batch normalisation, so that a picture's verdict does not depend on its batch.
    """

    def __init__(self, width: int = 64, layers: int = 3):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            blocks += [nn.Conv2d(widths[i], widths[i + 1], 4, stride, 1, bias=False),
                       nn.GroupNorm(8, widths[i + 1]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.layers(pixels_B3HW)


class Adversary:
    """The discriminator with its optimiser; the same on every process."""

    def __init__(self, lr: float, width: int, runtime: Runtime, device: torch.device, r1_weight: float = 0):
        self.r1_weight = r1_weight
        self.model = PatchDiscriminator(width).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.5, 0.9))
        self.runtime = runtime

    def generator_loss(self, output_B3HW: Tensor, others: Tensor, last_layer: nn.Parameter,
                       mean: Mean = alone) -> Tensor:
        """Hinge loss of the tokenizer, scaled so that its gradient at the decoder's last layer is as large as
        that of the `others` (Esser et al. 2021, eq. 7; at most 10,000), both of the whole batch by `mean`."""
        self.model.requires_grad_(False)
        loss = -self.model(output_B3HW).float().mean()
        self.model.requires_grad_(True)
        if not (torch.is_grad_enabled() and last_layer.requires_grad):
            return loss
        wanted, own = mean("last layer", lambda: torch.stack([
            torch.autograd.grad(part, last_layer, retain_graph=True)[0] for part in (others, loss)]))
        return (wanted.norm() / (own.norm() + 1e-4)).clamp(0, 1e4) * loss

    def step(self, real_B3HW: Tensor, fake_B3HW: Tensor, step: int = 0, parts: int = 1) -> Tensor:
        """Optimiser step number `step` on a batch of all processes, in `parts` -> hinge loss of the verdicts.

        Every `R1_EVERY` steps the gradient of the verdict on real pictures is held down: R1 (Mescheder et al.
        2018, eq. 9). Gradients that are not finite are passed over.
        """
        total = torch.zeros((), device=real_B3HW.device)
        for real, fake in zip(real_B3HW.chunk(parts), fake_B3HW.chunk(parts), strict=True):
            with torch.enable_grad():
                verdict_real, verdict_fake = self.model(real).float(), self.model(fake).float()
                hinge = (F.relu(1 - verdict_real).mean() + F.relu(1 + verdict_fake).mean()) / (2 * parts)
                loss = hinge
                if self.r1_weight and step % R1_EVERY == 0:
                    loss = hinge + self.r1_weight * R1_EVERY * self.r1_penalty(real) / parts
                loss.backward()
            total += hinge.detach()
        gradients = [self.runtime.mean(parameter.grad) for parameter in self.model.parameters()]
        if all(gradient.isfinite().all() for gradient in gradients):
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def r1_penalty(self, real_B3HW: Tensor) -> Tensor:
        """Half the squared gradient of a picture's mean verdict to its pixels, mean over pictures."""
        real_B3HW = real_B3HW.detach().requires_grad_()
        verdict = self.model(real_B3HW).float().mean((1, 2, 3)).sum()
        [gradient_B3HW] = torch.autograd.grad(verdict, real_B3HW, create_graph=True)
        return gradient_B3HW.square().sum((1, 2, 3)).mean() / 2

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
