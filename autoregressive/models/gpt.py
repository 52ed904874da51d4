"""The autoregressive model: LlamaGen's GPT (Sun et al. 2024, arXiv 2406.06525), class token first.

Names and shapes of the weights are the released ones. Training and decoding are different methods of the same
modules: `forward`, `hidden` and `loss` see a whole clip, `prefill` and `step` one position and a cache.

Shapes: B batch, N tokens of a clip in raster order over the grid, L = N positions that are read (the class
token, then tokens 0 to N - 2), D width, V vocabulary, K classes, G queries that share a key, C channels of
a head, S cache slots.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoregressive.models.rope import rotary_tables, rotate
from autoregressive.models.token_masking import SemanticAwareTokenMasking

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
LOSS_CHUNK = 2**25  # logits of the loss that exist at once: 128 MB in float32


@dataclass(frozen=True)
class GPTConfig:
    """Everything that fixes the model's function; plain values, so that checkpoints carry it as JSON."""

    dim: int
    n_layer: int
    n_head: int
    vocab_size: int
    block_size: int
    """Tokens of a clip, the class token not counted."""
    num_classes: int
    n_kv_head: int | None = None
    """Heads of the keys and values; None means n_head."""
    grid_height: int | None = None
    """Rows of the token grid; None means a square grid."""
    multiple_of: int = 256
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    token_dropout_p: float = 0.3
    """Largest masking rate of SAT."""
    token_dropout_mode: str = "token"
    token_dropout_segment: int = 8
    attn_dropout_p: float = 0.0
    resid_dropout_p: float = 0.1
    ffn_dropout_p: float = 0.1
    class_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        height, width = self.grid
        if height < 1 or height * width != self.block_size:
            raise ValueError(f"GPT: {self.block_size} tokens fill no grid of {height} rows (grid_height)")
        if self.dim % (4 * self.n_head):
            raise ValueError(f"GPT: width {self.dim} is no multiple of 4 x {self.n_head} heads")
        if self.n_head % self.kv_heads:
            raise ValueError(f"GPT: {self.n_head} heads cannot share {self.kv_heads} key and value heads")

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


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, one (B, kv heads, S, C) tensor each; slot 0 is the class token's."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def first(self, batch: int, slots: int) -> "KVCache":
        """A view of the first `batch` sequences and `slots` slots; nothing is copied."""
        return KVCache(*(tuple(x[:batch, :, :slots] for x in side) for side in (self.keys, self.values)))


class ClassEmbedding(nn.Module):
    """Labels 0 to K - 1, and K for no class; in training a label becomes K with probability `dropout`."""

    def __init__(self, num_classes: int, dim: int, dropout: float):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)
        self.num_classes, self.dropout = num_classes, dropout

    def forward(self, labels_B: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            dropped_B = torch.rand(labels_B.shape, device=labels_B.device) < self.dropout
            labels_B = labels_B.masked_fill(dropped_B, self.num_classes)
        return self.embedding_table(labels_B)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.wqkv = nn.Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.attn_dropout_p = config.attn_dropout_p
        self.resid_dropout = nn.Dropout(config.resid_dropout_p)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., D) -> query (..., heads, C), key and value (..., kv heads, C); query and key turned."""
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
        q, k = rotate(qk, cos, sin).split([self.heads, self.kv_heads], dim=-2)
        return q, k, v

    def forward(self, x_BLD: Tensor, cos_L1C: Tensor, sin_L1C: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in self.project(x_BLD, cos_L1C, sin_L1C))  # (B, heads, L, C)
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.attn_dropout_p if self.training else 0.0,
            enable_gqa=self.heads != self.kv_heads)
        return self.resid_dropout(self.wo(attended.transpose(1, 2).flatten(2)))

    def step(self, x_BD: Tensor, cos_1C: Tensor, sin_1C: Tensor, mask_S: Tensor, position_1: Tensor,
             keys: Tensor, values: Tensor) -> Tensor:
        """One position: store its key and value, attend to slots where `mask_S` is 0 and not -inf."""
        batch, width = x_BD.shape
        q, k, v = self.project(x_BD, cos_1C, sin_1C)
        keys.index_copy_(2, position_1, k[:, :, None])
        values.index_copy_(2, position_1, v[:, :, None])
        q = q.reshape(batch * self.kv_heads, -1, self.head_dim)  # (B * kv heads, G, C)
        scores = torch.baddbmm(mask_S, q, keys.flatten(0, 1).transpose(1, 2), alpha=self.head_dim**-0.5)
        attended = scores.softmax(-1) @ values.flatten(0, 1)
        return self.wo(attended.view(batch, width))


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.mix(x))

    def mix(self, x: Tensor) -> Tensor:
        """SwiGLU (Shazeer 2020), without the dropout."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)

    def forward(self, x_BLD: Tensor, cos_L1C: Tensor, sin_L1C: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cos_L1C, sin_L1C)
        return x_BLD + self.feed_forward(self.ffn_norm(x_BLD))

    def step(self, x_BD: Tensor, *context: Tensor) -> Tensor:
        x_BD = x_BD + self.attention.step(self.attention_norm(x_BD), *context)
        return x_BD + self.feed_forward.mix(self.ffn_norm(x_BD))


class GPT(nn.Module):
    """p(token i | class, tokens < i) over a grid of tokens."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.cls_embedding = ClassEmbedding(config.num_classes, config.dim, config.class_dropout_prob)
        self.token_masking = SemanticAwareTokenMasking(
            config.token_dropout_p, config.token_dropout_segment, config.token_dropout_mode)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        cos_LC, sin_LC = rotary_tables(*config.grid, config.head_dim, config.rope_base)
        self.register_buffer("cos_LC", cos_LC, persistent=False)
        self.register_buffer("sin_LC", sin_LC, persistent=False)
        self.apply(_init)
        nn.init.zeros_(self.output.weight)

    def forward(self, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
        """-> logits_BNV; row i predicts token i from the class token and tokens < i."""
        return self.output(self.hidden(tokens_BN, labels_B))

    def hidden(self, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
        """-> x_BND, the normalised activations that `output` turns into logits. Label K means no class.

        Raises: `ValueError` for a wrong number of tokens, and for a label outside 0 to K where reading it
        costs no synchronisation (on the CPU; on a GPU the embedding asserts).
        """
        self._check(tokens_BN, labels_B)
        class_B1D = self.cls_embedding(labels_B)[:, None]
        x_BND = self.token_masking(torch.cat([class_B1D, self.tok_embeddings(tokens_BN[:, :-1])], dim=1))
        count = tokens_BN.shape[1]
        cos_N1C, sin_N1C = self.cos_LC[:count, None], self.sin_LC[:count, None]
        for layer in self.layers:
            x_BND = layer(x_BND, cos_N1C, sin_N1C)
        return self.norm(x_BND)

    def loss(self, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token; a chunk's logits live only while it is worked on."""
        x_MD, targets_M = self.hidden(tokens_BN, labels_B).flatten(0, 1), tokens_BN.flatten().long()
        chunk = max(1, LOSS_CHUNK // self.config.vocab_size)
        if len(x_MD) <= chunk:
            return self._summed_loss(x_MD, targets_M) / len(x_MD)
        parts = zip(x_MD.split(chunk), targets_M.split(chunk), strict=True)
        return sum(checkpoint(self._summed_loss, *part, use_reentrant=False) for part in parts) / len(x_MD)

    def _summed_loss(self, x_MD: Tensor, targets_M: Tensor) -> Tensor:
        logits_MV = self.output(x_MD)
        wide = torch.promote_types(logits_MV.dtype, torch.float32)
        return F.cross_entropy(logits_MV.to(wide), targets_M, reduction="sum")

    def new_cache(self, batch: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` clips, in the weights' dtype unless another is given."""
        config, weight = self.config, self.output.weight
        shape = (2, config.n_layer, batch, config.kv_heads, config.block_size, config.head_dim)
        keys, values = torch.zeros(shape, dtype=dtype or weight.dtype, device=weight.device)
        return KVCache(keys.unbind(), values.unbind())

    def prefill(self, labels_B: Tensor, cache: KVCache) -> Tensor:
        """Put the class token into the cache -> logits_BV of token 0. Label K means no class."""
        first_1 = torch.zeros(1, dtype=torch.long, device=labels_B.device)
        return self._decode(self.cls_embedding.embedding_table(labels_B), first_1, cache)

    def step(self, tokens_B: Tensor, position_1: Tensor, cache: KVCache) -> Tensor:
        """Put token position - 1 into slot `position` -> logits_BV of token `position`.

        `position_1` is a one-element int64 tensor, so that the same kernels serve every position; all slots
        of `cache` from there on are masked out, so a short view (`KVCache.first`) of a long cache is less
        work.
        """
        return self._decode(self.tok_embeddings(tokens_B), position_1, cache)

    def _decode(self, x_BD: Tensor, position_1: Tensor, cache: KVCache) -> Tensor:
        cos_1C, sin_1C = self.cos_LC[position_1], self.sin_LC[position_1]
        slots_S = torch.arange(cache.keys[0].shape[2], device=x_BD.device)
        mask_S = torch.zeros_like(slots_S, dtype=x_BD.dtype).masked_fill_(slots_S > position_1, -torch.inf)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x_BD = layer.step(x_BD, cos_1C, sin_1C, mask_S, position_1, keys, values)
        return self.output(self.norm(x_BD))

    def _check(self, tokens_BN: Tensor, labels_B: Tensor) -> None:
        if tokens_BN.ndim != 2 or tokens_BN.shape[1] != self.config.block_size:
            raise ValueError(f"tokens {tuple(tokens_BN.shape)}: needed are (B, {self.config.block_size})")
        if labels_B.shape != tokens_BN.shape[:1]:
            raise ValueError(f"labels {tuple(labels_B.shape)}: one per clip is needed, ({len(tokens_BN)},)")
        if labels_B.device.type == "cpu" and not torch.compiler.is_compiling():
            check_labels(labels_B, self.config.num_classes)


def check_labels(labels_B: Tensor, largest: int) -> None:
    """Raise `ValueError` unless every label is from 0 to `largest`."""
    wrong = labels_B[(labels_B < 0) | (labels_B > largest)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])}: must be from 0 to {largest}")


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
