"""Classes and seeds -> grid pictures, and the batch size that fits the memory.

Shapes: B clips at once, N tokens of a clip, H x W pixels of a frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoregressive.models.checkpoint import find_gpt, load_gpt
from autoregressive.models.decoding import Passes, compute_dtype
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT
from autoregressive.sample.clip_files import ClipJob
from autoregressive.sample.pictures import pictures_of
from autoregressive.sample.starts import continued
from common import devices
from common.checkpoints import checkpoint_file
from common.distributed import Runtime
from common.hardware import free_memory
from common.registry import MODELS_FOLDER, registry
from dataset.masks import clip_length
from tokenizer.loading import find_tokenizer
from tokenizer.vq_model import VQModel

LINK_SEED = 1 << 40  # from the seed of one link of a chain to that of the next


@dataclass(frozen=True)
class Models:
    """A GPT, its tokenizer and what is known of them, on the CPU."""

    gpt: GPT
    tokenizer: VQModel
    dataset: dict[str, Any]
    path: Path
    vq_path: Path
    entry: dict[str, Any]
    """The registry's entry for a file of pretrained_models, else empty."""

    @classmethod
    def load(cls, gpt_ckpt: Path | None, name: str | None, preset: str | None, vq_ckpt: Path | None,
             runtime: Runtime) -> "Models":
        """The models that the sampler's flags of these names ask for."""
        path = find_gpt(gpt_ckpt, name, runtime)
        known = path.parent.resolve() == MODELS_FOLDER.resolve()
        entry = registry().get(path.name, {}) if known else {}
        given = vq_ckpt and checkpoint_file(vq_ckpt, runtime)
        gpt, dataset, wanted = load_gpt(path, preset, given)
        tokenizer, vq_path = find_tokenizer(wanted, given, path)
        return cls(gpt, tokenizer, dataset, path, vq_path, entry)

    @property
    def best_settings(self) -> dict[str, float]:
        """Guidance and temperature that suit the model."""
        return {"cfg_scale": 1.0, "temperature": 1.0, **self.entry.get("sampling", {})}


def usual_window(gpt: GPT, device: torch.device) -> int:
    """Tokens of a pass for which sampling is fast."""
    return min(8 if device.type == "cpu" else 16, gpt.config.block_size)


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
        given_BN = None if self.start_N is None else self.start_N.expand(len(jobs), -1)
        frame_rows = clip_length(self.dataset) // self.dataset["cols"]
        pictures = []
        for link in range(self.links):
            tokens_BN = self.tokens(labels_B, [job.seed + link * LINK_SEED for job in jobs], given_BN)
            pictures.append(self.pictures(tokens_BN))
            if link + 1 < self.links:
                given_BN = continued(tokens_BN, frame_rows)
        return [list(of_clip) for of_clip in zip(*pictures, strict=True)]

    def tokens(self, labels_B: Tensor, seeds: Sequence[int], given_BN: Tensor | None,
               watch: Callable[[Tensor], None] | None = None) -> Tensor:
        """The tokens (B, N) of one link; `watch` as in `generate`."""
        frame_width = self.gpt.config.grid[1] // self.dataset["cols"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return generate(self.gpt, labels_B, seeds, given_BN=given_BN, frame_width=frame_width,
                            caches=self.caches, watch=watch, **self.generate_arguments)

    def pictures(self, tokens_BN: Tensor) -> list[Tensor]:
        """Grid pictures, uint8 (3, H, W), of whole rows of tokens."""
        codes_Bhw = tokens_BN.unflatten(1, (-1, self.gpt.config.grid[1]))
        return pictures_of(codes_Bhw, self.tokenizer, self.decode_precision)


def fitting_batch(gpt: GPT, device: torch.device, runtime: Runtime) -> int:
    """Batch size: 32, on a GPU 128, or less if keys and values would take more than half the free memory."""
    config = gpt.config
    slots = 2 * 2 * config.n_layer * config.block_size * config.kv_heads * config.head_dim  # under guidance
    if device.type == "cpu":
        free, most = free_memory() // runtime.world_size, 32
    else:
        free, most = devices.free_memory(device), 128
    return max(1, min(most, int(free // 2 // (slots * compute_dtype(gpt).itemsize))))
