"""Tokens -> grid pictures, a few at a time to limit the memory of feature maps.

Shapes: B clips of h x w codes, H x W pixels of a grid picture.
"""

from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from common.hardware import cpu_has_bf16
from common.image_quality import psnr
from dataset.grid_images import to_uint8
from tokenizer.vq_model import VQModel

LEAST_PSNR = 45.0  # dB between pictures in bfloat16 and in float32
TRIAL_SIDE = 16  # codes
CELLS = 8192  # codes decoded at once on a GPU: eight pictures of 32 x 32 codes; on a CPU one picture


@torch.no_grad()
def pictures_of(codes_Bhw: Tensor, tokenizer: VQModel, precision: str = "none") -> list[Tensor]:
    """uint8 pictures (3, H, W) on the CPU; "bf16" computes them in bfloat16 autocast."""
    device = codes_Bhw.device.type
    some = 1 if device == "cpu" else max(1, CELLS // codes_Bhw[0].numel())
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return [picture_3HW for codes_Shw in codes_Bhw.split(some)
                for picture_3HW in to_uint8(tokenizer.decode(codes_Shw)).cpu()]


def bfloat16_psnr(tokenizer: VQModel, dataset: dict[str, Any]) -> float:
    """PSNR in dB of (a part of) a grid picture of random codes in bfloat16 against that in float32."""
    shape = (min(TRIAL_SIDE, dataset[side] * dataset["frame_size"] // tokenizer.config.downsample)
             for side in ("rows", "cols"))
    codes_1hw = torch.randint(
        tokenizer.config.codebook_size, (1, *shape), generator=torch.Generator().manual_seed(0))
    codes_1hw = codes_1hw.to(tokenizer.quantize.embedding.weight.device)
    exact, coarse = (pictures_of(codes_1hw, tokenizer, precision)[0].numpy() / 255
                     for precision in ("none", "bf16"))
    return psnr(exact, coarse)


def check_bfloat16(tokenizer: VQModel, dataset: dict[str, Any]) -> None:
    """Raise `InputError` if bfloat16 changes pictures visibly."""
    if (score := bfloat16_psnr(tokenizer, dataset)) < LEAST_PSNR:
        raise InputError(f"--decode-precision bf16: this tokenizer's pictures are then {score:.1f} dB from "
                         f"those in float32, {LEAST_PSNR:.0f} are needed; take none")


def suiting_precision(tokenizer: VQModel, dataset: dict[str, Any], device: torch.device) -> str:
    """"bf16" on a CPU that multiplies bfloat16 itself, unless it changes pictures visibly; else "none"."""
    fast = device.type == "cpu" and cpu_has_bf16()
    return "bf16" if fast and bfloat16_psnr(tokenizer, dataset) >= LEAST_PSNR else "none"
