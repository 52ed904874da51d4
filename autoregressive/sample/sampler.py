"""Classes and seeds -> grid pictures, and the batch size that fits the memory.

Shapes: B clips at once, N tokens of a clip, H x W pixels of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoregressive.models.decoding import Passes
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT
from autoregressive.sample.clip_files import ClipJob
from autoregressive.sample.pictures import pictures_of
from autoregressive.sample.starts import continued
from common.distributed import Runtime
from common.hardware import free_memory
from dataset.masks import clip_length
from tokenizer.vq_model import VQModel

LINK_SEED = 1 << 40  # from the seed of one link of a chain to that of the next


@dataclass
class ClipSampler:
    """Makes the grid pictures of clips; all models are on one device."""

    gpt: GPT
    tokenizer: VQModel
    dataset: dict[str, Any]
    generate_arguments: dict[str, Any]
    """Keyword arguments of `generate` that are the same for all clips."""
    links: int = 1
    """Clips joined to a longer one; each begins with the last row of frames of the previous one."""
    start_N: Tensor | None = None
    """Tokens given for every clip, -1 where they are to be sampled."""
    autocast: bool = False
    """Run the GPT in bfloat16 autocast on a CPU."""
    decode_precision: str = "none"
    """"bf16": run the tokenizer in bfloat16 autocast."""
    caches: dict[tuple, Passes] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, jobs: Sequence[ClipJob]) -> list[list[Tensor]]:
        """For each job the grid pictures of its links, uint8 (3, rows*H, cols*W)."""
        labels_B = torch.tensor([job.label for job in jobs])
        height, width = self.gpt.config.grid
        given_BN = None if self.start_N is None else self.start_N.expand(len(jobs), -1)
        frame_rows = clip_length(self.dataset) // self.dataset["cols"]
        pictures = []
        for link in range(self.links):
            seeds = [job.seed + link * LINK_SEED for job in jobs]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                tokens_BN = generate(
                    self.gpt, labels_B, seeds, given_BN=given_BN, frame_width=width // self.dataset["cols"],
                    caches=self.caches, **self.generate_arguments)
            codes_Bhw = tokens_BN.unflatten(1, (height, width))
            pictures.append(pictures_of(codes_Bhw, self.tokenizer, self.decode_precision))
            if link + 1 < self.links:
                given_BN = continued(tokens_BN, frame_rows)
        return [list(of_clip) for of_clip in zip(*pictures, strict=True)]


def fitting_batch(gpt: GPT, device: torch.device, runtime: Runtime) -> int:
    """Batch size: 32, on a GPU 128, or less if keys and values would take more than half the free memory."""
    config, weight = gpt.config, gpt.output.weight
    slots = 2 * 2 * config.n_layer * config.block_size * config.kv_heads * config.head_dim  # under guidance
    if device.type == "cuda":
        free, most = torch.cuda.mem_get_info(device)[0], 128
    else:
        free, most = free_memory() // runtime.world_size, 32
    return max(1, min(most, int(free // 2 // (slots * weight.element_size()))))
