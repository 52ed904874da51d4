"""VideoMAE v2, a plain video transformer: the network of content-debiased FVD (Wang 2023, Ge 2024).

Parameter names are those of the published file, and its shapes give the size of the network. Shapes: B clips,
T frames, H x W pixels, L tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, FRAMES = 224, 16  # of a clip
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
