"""VideoMAE v2, a plain video transformer: the network of content-debiased FVD (Wang 2023, Ge 2024).

Parameter names are those of the published file, and its shapes give the size of the network. Shapes: B clips,
T frames, H x W pixels, L tokens, D width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.layouts import model_state
from common.weights import load_checkpoint, load_strict
from evaluations.weight_files import VIDEOMAE

SIDE, FRAMES = 224, 16
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # of the published sizes, by width
HEAD_SIZE = 64  # of any other width


class Attention(nn.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none."""

    def __init__(self, dim: int):
        super().__init__()
        self.heads = HEADS.get(dim, max(dim // HEAD_SIZE, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Same shape."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x_BLD, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed_BhLd = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(mixed_BhLd.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each on the normalised input and added to it."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Same shape."""
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD))
        return x_BLD + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x_BLD))))


class VideoMAENetwork(nn.Module):
    """The encoder up to the normalised mean of its tokens."""

    def __init__(self, dim: int, depth: int, hidden: int, patch: tuple[int, int, int]):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, dim, patch, patch)})
        self.blocks = nn.ModuleList(Block(dim, hidden) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, pixels_B3THW: Tensor) -> Tensor:
        """Pixels in [0, 1] -> features (B, D)."""
        x_BLD = self.patch_embed["proj"](pixels_B3THW).flatten(2).transpose(1, 2)
        x_BLD = x_BLD + positions(x_BLD.shape[1], x_BLD.shape[2]).to(x_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.fc_norm(x_BLD.mean(1))


def positions(tokens: int, dim: int) -> Tensor:
    """Sine (even places) and cosine (odd places) position codes (L, D) of Vaswani et al. 2017."""
    frequency_D = 10000.0 ** (-2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    angle_LD = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency_D
    return torch.where(torch.arange(dim) % 2 == 0, angle_LD.sin(), angle_LD.cos())


def network_for(state: dict[str, Tensor]) -> VideoMAENetwork:
    """An untrained network of the size of the weights. Raises: `KeyError` for another kind of weights."""
    dim, _, *patch = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    return VideoMAENetwork(dim, depth, len(state["blocks.0.mlp.fc1.weight"]), tuple(patch))


class VideoMAE:
    """VideoMAE v2 fine-tuned on Something-Something v2: more sensitive to motion than I3D."""

    name, min_frames = "videomae", FRAMES
    preprocessing = "every frame bilinear to 224 x 224 px, [0, 1]"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = VIDEOMAE.find(path, unverified)
        state = {key: value for key, value in model_state(load_checkpoint(path)).items()
                 if not key.startswith("head.")}  # the classifier comes after the features
        try:
            network = network_for(state)
        except (KeyError, ValueError):
            raise InputError(f"--videomae-weights {path}: not weights of a VideoMAE encoder") from None
        load_strict(network, state, f"--videomae-weights {path}")
        self.network = network.to(device).eval()

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, D)."""
        clips, frames = frames_BT3HW.shape[:2]
        if frames != FRAMES:
            raise InputError(f"--features videomae: needs clips of {FRAMES} frames, these have {frames}; "
                             f"--protocol stylegan-v cuts {FRAMES} out of longer ones")
        pixels_N3SS = F.interpolate(frames_BT3HW.flatten(0, 1).float() / 255, (SIDE, SIDE), mode="bilinear",
                                    align_corners=False)
        return self.network(pixels_N3SS.unflatten(0, (clips, frames)).transpose(1, 2))[:, None]
