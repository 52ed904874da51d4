"""STAGE: grid pictures -> tokenizer, trained from scratch or fine-tuned.

Shapes: B crops per batch, each of window x window frames of S pixels a side: (3, window*S, window*S).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.files import atomic_path
from common.training import TrainingConfig, train
from dataset.grid import mirror_frames
from dataset.grid_images import GridImages, to_pixels
from dataset.manifest import Manifest
from tokenizer.losses import codebook_losses, reconstruction_loss
from tokenizer.quality import measure_quality, reconstruct
from tokenizer.vq_model import Quantised, VQConfig, VQModel
from tokenizer.weights import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainVQConfig(TrainingConfig):
    """Train a VQGAN tokenizer on the grid pictures of a prepared data set."""

    data_path: Path
    """Folder of grid pictures written by dataset.prepare."""
    vq_ckpt: Path | None = None
    """Start from this tokenizer (fine-tuning); its shape then replaces the five flags that follow."""
    ch: int = 128
    """Channels at full resolution, a multiple of 4."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiple of each level; n levels make a downsample factor of 2^(n-1)."""
    z_channels: int = 256
    """Channels of the latent."""
    num_res_blocks: int = 2
    """Residual blocks per level of the encoder."""
    codebook_size: int = 16384
    """Number of codes."""
    codebook_embed_dim: int = 8
    """Width of a code vector."""
    window: int = 1
    """Side of a training crop in frames, always whole frames: 1 is one frame, rows the whole grid."""
    recon_loss: Literal["l1", "l2"] = "l1"
    """Pixel loss."""
    commit_weight: float = 0.25
    """Weight of the commitment loss."""
    val_pictures: int = 32
    """Grid pictures that a validation looks at."""


    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, ch=4, num_res_blocks=1, codebook_size=2, codebook_embed_dim=1, window=1,
                         commit_weight=0, val_pictures=1)


class Crops(Dataset):
    """All aligned crops of window x window frames of all pictures, without overlap."""

    def __init__(self, images: GridImages, window: int):
        rows, cols = images.manifest.rows, images.manifest.cols
        if rows % window or cols % window:
            raise ValueError(f"--window {window}: does not divide the grid of {rows} x {cols} frames")
        self.images, self.down, self.across = images, rows // window, cols // window

    def __len__(self) -> int:
        return len(self.images) * self.down * self.across

    def __getitem__(self, index: int) -> Tensor:
        index, cell = divmod(index, self.down * self.across)
        crops = rearrange(self.images[index], "c (r h) (k w) -> (r k) c h w", r=self.down, k=self.across)
        return crops[cell]


class TokenizerTask:
    """What the training loop needs to know of the tokenizer."""

    def __init__(self, config: TrainVQConfig, runtime: Runtime):
        self.config, self.manifest = config, Manifest.read(config.data_path)
        torch.manual_seed(config.global_seed)
        self.model: nn.Module = start_model(config)
        train_clips, val_clips = (self.manifest.select(split) for split in ("train", "val"))
        self.train_set = Crops(GridImages(config.data_path, self.manifest, train_clips), config.window)
        every = max(1, len(val_clips) // config.val_pictures)
        self.val_set = GridImages(config.data_path, self.manifest, val_clips[::every][: config.val_pictures])
        names = json.dumps([clip.name for clip in train_clips])
        self.facts: dict[str, Any] = {"config": asdict(self.model.config), "dataset": self.manifest.facts(),
                                      "data_hash": hashlib.sha256(names.encode()).hexdigest()[:16]}
        self.device = runtime.device(config.device)

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction + codebook + commitment loss of uint8 crops (B, 3, H, W)."""
        pixels_B3HW = flip_frames(to_pixels(batch), self.config.window)
        quantised = model(pixels_B3HW)
        pixel = reconstruction_loss(self.config.recon_loss, quantised.pixels_B3HW, pixels_B3HW)
        codebook, commitment = codebook_losses(quantised)
        if model.training:
            self.seen = quantised
        total = pixel + codebook + self.config.commit_weight * commitment
        return total, {"pixel": pixel, "codebook": codebook, "commitment": commitment}

    def after_step(self, step: int) -> None:
        """Keep the codebook alive."""
        revive_dead_codes(self.model, self.seen, step, fresh=step == 0 and not self.config.vq_ckpt)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR, SSIM and codebook use on held-out pictures; nothing if none are held out."""
        if not len(self.val_set):
            return {}
        pictures = [self.val_set[i] for i in range(len(self.val_set))]
        quality = measure_quality(model, pictures, self.manifest.rows, self.manifest.cols, self.device)
        return {name: value for name, value in asdict(quality).items() if name != "frames"}

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """Held-out pictures above their reconstructions (training pictures if none are held out)."""
        images = self.val_set if len(self.val_set) else self.train_set.images
        pictures = [images[i] for i in range(0, len(images), max(1, len(images) // 4))][:4]
        again = [reconstruct(model, picture, self.device)[0] for picture in pictures]
        sheet_3HW = torch.cat([torch.cat(pictures, -1), torch.cat(again, -1)], -2)
        with atomic_path(path) as temporary:
            Image.fromarray(sheet_3HW.permute(1, 2, 0).numpy()).save(temporary)


def start_model(config: TrainVQConfig) -> VQModel:
    """A fresh tokenizer of the shape that the flags say, or the one to fine-tune."""
    if config.vq_ckpt:
        return load_tokenizer(config.vq_ckpt).requires_grad_(True)
    return VQModel(VQConfig(config.ch, config.ch_mult, config.z_channels, config.codebook_size,
                            config.codebook_embed_dim, config.num_res_blocks, min(32, config.ch // 4)))


def flip_frames(pixels_B3HW: Tensor, window: int) -> Tensor:
    """Mirror the frames of each crop in their places, with probability 1/2 per crop."""
    flip_B111 = torch.rand(len(pixels_B3HW), 1, 1, 1, device=pixels_B3HW.device) < 0.5
    return torch.where(flip_B111, mirror_frames(pixels_B3HW, window), pixels_B3HW)


@torch.no_grad()
def revive_dead_codes(model: VQModel, seen: Quantised, step: int, fresh: bool) -> None:
    """Record which codes the batch used; move codes that nothing has used for long onto latents of it.

    Those are the codes absent from the last 65,536 latents, looked at each time as many have come by; of a
    `fresh` codebook all, so that training starts with codes where the data is. Without this most codes of a
    codebook trained from scratch are never used.
    """
    used = model.quantize.codebook_used
    codes_N = seen.codes_Bhw.flatten()[-len(used):]
    used.copy_(torch.cat([used[len(codes_N):], codes_N.to(used)]))
    latents_ND = rearrange(seen.latent_BDhw, "b d h w -> (b h w) d")
    weight_VD = model.quantize.embedding.weight
    if fresh:
        dead_n = torch.arange(len(weight_VD), device=used.device)
    elif (step + 1) % max(1, len(used) // len(codes_N)) == 0:
        counts_V = torch.zeros(len(weight_VD), device=used.device)
        counts_V.index_add_(0, used.clamp(min=0).long(), (used >= 0).float())
        dead_n = (counts_V == 0).nonzero().flatten()
    else:
        return
    pick_n = torch.randint(len(latents_ND), (len(dead_n),), device=used.device)
    noise_nD = 0.02 * torch.randn(len(dead_n), weight_VD.shape[1], device=used.device)
    weight_VD[dead_n] = (latents_ND[pick_n] + noise_nD).to(weight_VD)


def run(config: TrainVQConfig, runtime: Runtime) -> None:
    """Train until `config.max_steps`."""
    train(TokenizerTask(config, runtime), config, runtime)


if __name__ == "__main__":
    run_command(TrainVQConfig, run)
