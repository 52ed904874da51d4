"""Losses of the tokenizer (VQ-VAE, van den Oord et al.; weights as in LlamaGen)."""

import torch.nn.functional as F
from torch import Tensor

from common.training.whole_batch import Mean, alone
from tokenizer.vq_model import Quantised


def reconstruction_loss(kind: str, output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Mean absolute ("l1") or squared ("l2") difference of pixels in [-1, 1]."""
    return {"l1": F.l1_loss, "l2": F.mse_loss}[kind](output_B3HW.float(), target_B3HW)


def colour_loss(output_B3HW: Tensor, target_B3HW: Tensor, side: int = 8) -> Tensor:
    """Mean absolute difference of two colour differences, each averaged over side x side pixels in [-1, 1].

    They are red minus green and blue minus the mean of both. Brightness makes most of the pixel loss of
    tissue, so that few codes are left for what is told by its colour: fibrin, bile, blood, veins.
    """
    red, green, blue = F.avg_pool2d(output_B3HW.float() - target_B3HW, side).unbind(1)
    return 0.5 * ((red - green).abs().mean() + (blue - 0.5 * (red + green)).abs().mean())


def codebook_losses(quantised: Quantised) -> tuple[Tensor, Tensor]:
    """(codebook, commitment): each side is drawn to the other, which stands still."""
    codebook = F.mse_loss(quantised.vectors_BDhw, quantised.latent_BDhw.detach())
    commitment = F.mse_loss(quantised.latent_BDhw, quantised.vectors_BDhw.detach())
    return codebook, commitment


def entropy_loss(latent_BDhw: Tensor, vectors_VD: Tensor, temperature: float = 0.01,
                 mean: Mean = alone) -> Tensor:
    """Entropy of a latent's soft choice of code, minus that of the choice on average (Yu et al. 2023).

    It is low when every latent is sure of its code and all codes are chosen alike. Both are unit vectors.
    The average is over the whole batch by `mean`.
    """
    latent_ND = latent_BDhw.movedim(1, -1).flatten(0, -2)
    log_NV = (latent_ND @ vectors_VD.mT / temperature).log_softmax(-1)
    sure = -(log_NV.exp() * log_NV).sum(-1).mean()
    own_V = log_NV.exp().mean(0)
    mean_V = own_V + (mean("choices", own_V.detach) - own_V).detach()  # its value, the part's gradient
    return sure + (mean_V * (mean_V + 1e-5).log()).sum()
