"""VQGAN: pictures <-> a grid of discrete tokens, with the layer names and shapes of LlamaGen's VQ-16.

Source: Esser et al., "Taming Transformers"; Sun et al., LlamaGen (l2-normalised codebook of low dimension).
Shapes: B batch, C channels, H x W pixels, h x w latent cells (H = h * downsample), V codebook entries, D code
width. Pixels are in [-1, 1].
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.pretrained import Pretrained

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class VQConfig:
    """Shape of the tokenizer; the defaults are the released VQ-16 (downsample 16)."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    num_res_blocks: int = 2
    norm_groups: int = 32
    """Groups of the group normalisations. With one channel per group a picture's mean colour is lost."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))  # JSON brings it back as a list
        if self.ch % self.norm_groups:
            raise InputError(f"--ch {self.ch}: must be a multiple of the {self.norm_groups} norm groups")

    @property
    def downsample(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.ch_mult) - 1)

    def norm(self) -> Norm:
        """Maker of the group normalisation used throughout, by its number of channels."""
        return partial(nn.GroupNorm, self.norm_groups, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions with a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (self.nin_shortcut(x_BCHW) if hasattr(self, "nin_shortcut") else x_BCHW)


class AttnBlock(nn.Module):
    """Single-head self-attention over all latent cells."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        q, k, v = (f(h_BCHW).flatten(2).mT.unsqueeze(1) for f in (self.q, self.k, self.v))  # (B, 1, hw, C)
        h_B1NC = F.scaled_dot_product_attention(q, k, v)
        return x_BCHW + self.proj_out(h_B1NC.squeeze(1).mT.reshape_as(x_BCHW))


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution, padded right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, at the coarsest each followed by attention, then a resampling."""

    def __init__(
        self, channels_in: int, channels: int, blocks: int, attention: bool, norm: Norm, **resample: nn.Module
    ):
        super().__init__()
        widths = [channels_in] + [channels] * blocks
        self.res = nn.ModuleList(ResnetBlock(before, after, norm) for before, after in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(channels, norm) for _ in range(blocks if attention else 0))
        for name, module in resample.items():  # "downsample" or "upsample", as the state dict has it
            self.add_module(name, module)
        self.resample = [*resample]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x_BCHW = block(x_BCHW)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW)
        for name in self.resample:
            x_BCHW = getattr(self, name)(x_BCHW)
        return x_BCHW


def middle(channels: int, norm: Norm) -> nn.Sequential:
    """The block between the levels and the latent."""
    before, after = (ResnetBlock(channels, channels, norm) for _ in range(2))
    return nn.Sequential(before, AttnBlock(channels, norm), after)


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> latent (B, z_channels, h, w)."""

    def __init__(self, config: VQConfig):
        super().__init__()
        widths, norm = [config.ch * m for m in config.ch_mult], config.norm()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            resample = {} if i == last else {"downsample": Downsample(width)}
            self.conv_blocks.append(Level(before, width, config.num_res_blocks, i == last, norm, **resample))
        self.mid = middle(widths[-1], norm)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(pixels_B3HW)
        for level in self.conv_blocks:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) -> what the last layer makes pixels of, (B, ch, H, W).

    The last layer, `conv_out`, stands outside `forward`, and so outside what training compiles: adversarial
    training asks for gradients of this layer alone.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        widths, norm = [config.ch * m for m in reversed(config.ch_mult)], config.norm()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], norm)
        self.conv_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            resample = {} if i == last else {"upsample": Upsample(width)}
            self.conv_blocks.append(Level(before, width, config.num_res_blocks + 1, i == 0, norm, **resample))
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(latent_BCHW))
        for level in self.conv_blocks:
            x_BCHW = level(x_BCHW)
        return F.silu(self.norm_out(x_BCHW))

    def pixels(self, latent_BCHW: Tensor) -> Tensor:
        """Latent (B, z_channels, h, w) -> pixels (B, 3, H, W)."""
        return self.conv_out(self(latent_BCHW))


class Codebook(nn.Module):
    """Nearest neighbour on the unit sphere: both latent and codebook are l2-normalised (LlamaGen).

    `codebook_used` holds the indices of the last 65,536 latent vectors seen in training, oldest first, -1
    where there were fewer: it shows which codes are in use.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        nn.init.normal_(self.embedding.weight)  # a uniform direction once normalised
        self.register_buffer("codebook_used", torch.full((65536,), -1.0))

    def vectors_VD(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, latent_BDhw: Tensor) -> Tensor:
        """(B, D, h, w) -> indices (B, h, w) of the codes nearest in angle, at the weights' precision."""
        with torch.autocast(latent_BDhw.device.type, enabled=False):
            latent_BhwD = latent_BDhw.movedim(1, -1).to(self.embedding.weight.dtype)
            flat_ND = F.normalize(latent_BhwD, dim=-1).flatten(0, -2)
            vectors_DV = self.vectors_VD().mT
            chunks = [(part_nD @ vectors_DV).argmax(-1) for part_nD in flat_ND.split(8192)]  # bounds memory
        return torch.cat(chunks).view(latent_BhwD.shape[:-1])

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Indices (B, h, w) -> unit vectors (B, D, h, w)."""
        return F.embedding(codes_Bhw, self.vectors_VD()).movedim(-1, 1)


@dataclass(frozen=True)
class Quantised:
    """What training needs of one forward pass."""

    pixels_B3HW: Tensor  # reconstruction, about [-1, 1]
    latent_BDhw: Tensor  # unit vectors before quantisation
    vectors_BDhw: Tensor  # their nearest codebook vectors
    codes_Bhw: Tensor


class VQModel(Pretrained, nn.Module):
    """The tokenizer: `encode` pixels to codes, `decode` codes to pixels."""

    loader = "tokenizer.loading:load_tokenizer"
    same_codes: tuple[str, ...] = ()
    """Hashes of tokenizers that differ in the decoder alone: their codes, and GPTs of these, fit this one."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.codebook_embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "VQModel":
        """A fresh model of the shape of a state dict: every size is read off it; 32 norm groups."""
        try:
            ch = state["encoder.conv_in.weight"].shape[0]
            pattern = re.compile(r"encoder\.conv_blocks.*conv2\.weight")
            convs = [key.split(".") for key in state if pattern.fullmatch(key)]
            levels, blocks = (1 + max(int(names[place]) for names in convs) for place in (2, 4))
            widths = [state[f"encoder.conv_blocks.{i}.res.0.conv2.weight"].shape[0] for i in range(levels)]
            size, width = state["quantize.embedding.weight"].shape
            z_channels = state["encoder.conv_out.weight"].shape[0]
        except (KeyError, ValueError, AttributeError):
            raise InputError("no VQ tokenizer: it lacks LlamaGen's parameter names") from None
        return cls(VQConfig(ch, tuple(w // ch for w in widths), z_channels, size, width, blocks))

    def forward(self, pixels_B3HW: Tensor, perturb: Callable[[Tensor], Tensor] | None = None) -> Quantised:
        """Reconstruct through the codebook, with a straight-through gradient to the encoder.

        `perturb` changes the codes (B, h, w) that the decoder sees, and no others.
        """
        latent_BDhw = F.normalize(self.latent(pixels_B3HW).float(), dim=1)
        codes_Bhw = self.quantize.nearest(latent_BDhw)
        vectors_BDhw = self.quantize.lookup(codes_Bhw)
        seen_BDhw = self.quantize.lookup(perturb(codes_Bhw)) if perturb else vectors_BDhw
        through_BDhw = latent_BDhw + (seen_BDhw - latent_BDhw).detach()
        return Quantised(self.pixels(through_BDhw), latent_BDhw, vectors_BDhw, codes_Bhw)

    def latent(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> latent (B, D, h, w) before quantisation."""
        height, width = pixels_B3HW.shape[-2:]
        if height % self.config.downsample or width % self.config.downsample:
            raise InputError(f"pictures of {height} x {width} pixels: not a multiple of the tokenizer's "
                             f"downsample factor {self.config.downsample}")
        return self.quant_conv(self.encoder(pixels_B3HW))

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> codes (B, h, w), int64 in [0, V)."""
        return self.quantize.nearest(self.latent(pixels_B3HW))

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes (B, h, w) -> pixels (B, 3, H, W), about [-1, 1]; clamp before use as a picture.

        On a CPU without gradients picture after picture, which bounds memory.
        """
        latent_BCHW = self.post_quant_conv(self.quantize.lookup(codes_Bhw))
        if latent_BCHW.device.type != "cpu" or torch.is_grad_enabled():
            return self.decoder.pixels(latent_BCHW)
        return torch.cat([self.decoder.pixels(latent_1CHW) for latent_1CHW in latent_BCHW.split(1)])

    def pixels(self, quantised_BDhw: Tensor) -> Tensor:
        """Quantised latent (B, D, h, w) -> pixels (B, 3, H, W)."""
        return self.decoder.pixels(self.post_quant_conv(quantised_BDhw))
