"""Sizes and settings of the GPT."""

import math
from dataclasses import dataclass

from common.errors import InputError

GPT_SIZES = {
    "GPT-XS": dict(n_layer=6, n_head=4, dim=256),
    "GPT-S": dict(n_layer=8, n_head=6, dim=384),
    "GPT-B": dict(n_layer=12, n_head=12, dim=768),
    "GPT-L": dict(n_layer=24, n_head=16, dim=1024),
    "GPT-XL": dict(n_layer=36, n_head=20, dim=1280),
    "GPT-XXL": dict(n_layer=48, n_head=24, dim=1536),
    "GPT-3B": dict(n_layer=24, n_head=32, dim=3200),
    "GPT-XXXL": dict(n_layer=48, n_head=40, dim=2560),
}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and rates of the model, saved in checkpoints as JSON."""

    dim: int
    n_layer: int
    n_head: int
    vocab_size: int
    block_size: int
    """Tokens of a clip without the class token."""
    num_classes: int
    n_kv_head: int | None = None
    """Heads of the keys and values; None means n_head."""
    grid_height: int | None = None
    """Rows of the token grid; None means a square grid."""
    multiple_of: int = 256
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    token_dropout_p: float = 0.3
    """Maximum masking rate of SAT."""
    token_dropout_mode: str = "token"
    token_dropout_segment: int = 8
    attn_dropout_p: float = 0.0  # uses torch's generator, unlike the others
    resid_dropout_p: float = 0.1
    ffn_dropout_p: float = 0.1
    class_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        height, width = self.grid
        if height < 1 or height * width != self.block_size:
            raise InputError(f"GPT: {self.block_size} tokens fill no grid of {height} rows (grid_height)")
        if self.dim % (4 * self.n_head):
            raise InputError(f"GPT: width {self.dim} is no multiple of 4 x {self.n_head} heads")
        if self.n_head % self.kv_heads:
            raise InputError(f"GPT: {self.n_head} heads cannot share {self.kv_heads} key and value heads")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        if self.grid_height is None:
            return math.isqrt(self.block_size), math.isqrt(self.block_size)
        return self.grid_height, self.block_size // max(self.grid_height, 1)

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def ffn_dim(self) -> int:
        """Two thirds of 4 D, rounded up to a multiple of `multiple_of`."""
        return -(-int(2 * 4 * self.dim / 3) // self.multiple_of) * self.multiple_of
