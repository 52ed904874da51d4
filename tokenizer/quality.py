"""How well a tokenizer renders a set of pictures: PSNR, SSIM, and how much of its codebook it uses."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.image_quality import frame_quality
from dataset.grid_images import to_pixels, to_uint8
from dataset.masks import frames_of, mask_iou
from tokenizer.vq_model import VQModel

GOOD_PERPLEXITY = 0.02  # part of the codebook


@dataclass(frozen=True)
class Quality:
    """Means over frames, and the use of the codebook over all pictures."""

    psnr: float  # dB
    ssim: float
    usage: float  # part of the codebook used at least once, 0 to 1
    perplexity: float  # exp of the entropy of the codes: how many are used as if equally often
    frames: int
    mask_iou: float | None = None  # of the masks' labels, mean over pictures; see `dataset.masks.mask_iou`

    def collapsed(self, codebook_size: int) -> bool:
        """True if so few codes are in use that no GPT can make good clips of them."""
        return self.perplexity < GOOD_PERPLEXITY * codebook_size


@torch.no_grad()
def reconstruct(model: VQModel, picture_3HW: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 picture (3, H, W) -> its reconstruction, likewise uint8, and its codes (h, w)."""
    codes_1hw = model.encode(to_pixels(picture_3HW)[None].to(device))
    return to_uint8(model.decode(codes_1hw)[0]).cpu(), codes_1hw[0].cpu()


def measure_quality(
    model: VQModel, pictures: Iterable[Tensor], dataset: dict[str, Any], device: torch.device
) -> Quality:
    """Reconstruct grid pictures of a data set with these facts, and compare them frame by frame."""
    scores: list[np.ndarray] = []
    overlaps: list[float] = []
    counts_V = np.zeros(model.config.codebook_size)
    for picture_3HW in pictures:
        output_3HW, codes_hw = reconstruct(model, picture_3HW, device)
        counts_V += np.bincount(codes_hw.flatten().numpy(), minlength=len(counts_V))
        pair = picture_3HW.numpy(), output_3HW.numpy()
        scores += [*frame_quality(*(frames_of(side, dataset) for side in pair))]
        overlaps += [mask_iou(*pair, dataset)] if dataset.get("masks") else []
    means = np.mean(scores, axis=0)
    usage = float((counts_V > 0).mean())
    return Quality(float(means[0]), float(means[1]), usage, perplexity(counts_V), len(scores),
                   float(np.mean(overlaps)) if overlaps else None)


def perplexity(counts_V: np.ndarray) -> float:
    """exp of the entropy of the distribution that `counts_V` is a sample of."""
    p_V = counts_V[counts_V > 0] / counts_V.sum()
    return float(np.exp(-(p_V * np.log(p_V)).sum()))
