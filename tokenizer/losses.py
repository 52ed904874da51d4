"""Losses of the tokenizer (VQ-VAE, van den Oord et al.; weights as in LlamaGen)."""

import torch.nn.functional as F
from torch import Tensor

from tokenizer.vq_model import Quantised


def reconstruction_loss(kind: str, output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Mean absolute ("l1") or squared ("l2") difference of pixels in [-1, 1]."""
    return {"l1": F.l1_loss, "l2": F.mse_loss}[kind](output_B3HW.float(), target_B3HW)


def codebook_losses(quantised: Quantised) -> tuple[Tensor, Tensor]:
    """(codebook, commitment): each side is drawn to the other, which stands still."""
    codebook = F.mse_loss(quantised.vectors_BDhw, quantised.latent_BDhw.detach())
    commitment = F.mse_loss(quantised.latent_BDhw, quantised.vectors_BDhw.detach())
    return codebook, commitment
