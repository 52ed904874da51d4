"""Clips of a GPT for a first look, while it trains and on its page on the Hub."""

from typing import Any

import numpy as np
import torch

from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT
from common.spread import evenly
from dataset.grid_images import to_uint8
from dataset.masks import shown_frames
from tokenizer.vq_model import VQModel

MOST = 8  # clips


@torch.no_grad()
def sampled_clips(model: GPT, tokenizer: VQModel, dataset: dict[str, Any], at_once: int
                  ) -> list[tuple[str, np.ndarray]]:
    """(class, frames (T, H, W, 3) uint8) of one clip of each class, at most 8 classes, with seed 0."""
    names, clips = dataset["class_names"], []
    for labels_B in torch.tensor(evenly(len(names), MOST)).split(at_once):
        tokens_BN = generate(model, labels_B, [0] * len(labels_B), top_k=2000)
        for label, tokens_N in zip(labels_B, tokens_BN, strict=True):
            picture_3HW = to_uint8(tokenizer.decode(tokens_N.view(1, *model.config.grid))[0])
            clips.append((names[label], shown_frames(picture_3HW.cpu(), dataset)))
    return clips
