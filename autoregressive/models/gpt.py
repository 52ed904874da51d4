"""The autoregressive model: LlamaGen's GPT (Sun et al. 2024, arXiv 2406.06525), class token first.

Names and shapes of the weights are the released ones. `forward`, `hidden` and `loss` read a whole clip;
`prefill`, `step` and `window` use a cache.

Shapes: B batch, N tokens of a clip in raster order over the grid, L = N input positions (the class token,
then tokens 0 to N - 2), D width, V vocabulary, K classes, C channels of a head, S cache slots, W positions of
a window.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoregressive.models.config import GPT_SIZES, GPTConfig
from autoregressive.models.layers import KERNELS, WIDEST, Block
from autoregressive.models.noise import spread_keys, uniform_noise
from autoregressive.models.rope import rotary_tables
from autoregressive.models.token_masking import SemanticAwareTokenMasking
from common.hardware import kernels_for
from common.pretrained import Pretrained

__all__ = ["GPT", "GPT_SIZES", "GPTConfig", "KVCache", "check_labels"]
LOSS_CHUNK = 2**25  # logits that the loss holds in memory at once: 128 MB in float32


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, one (B, kv heads, S, C) tensor each; slot 0 is the class token's."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def first(self, batch: int, slots: int) -> "KVCache":
        """A view of the first `batch` sequences and `slots` slots; nothing is copied."""
        return KVCache(*(tuple(x[:batch, :, :slots] for x in side) for side in (self.keys, self.values)))


class ClassEmbedding(nn.Module):
    """Labels 0 to K - 1, and K for no class; with a key a label becomes K with probability `dropout`."""

    def __init__(self, num_classes: int, dim: int, dropout: float):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)
        self.num_classes, self.dropout = num_classes, dropout

    def forward(self, labels_B: Tensor, key_B2: Tensor | None = None) -> Tensor:
        if key_B2 is not None:
            noise_B1 = uniform_noise(key_B2, torch.zeros(1, dtype=torch.long, device=labels_B.device))
            labels_B = labels_B.masked_fill(noise_B1[:, 0] < self.dropout, self.num_classes)
        return self.embedding_table(labels_B)


class GPT(Pretrained, nn.Module):
    """p(token i | class, tokens < i) over a grid of tokens."""

    loader = "autoregressive.models.checkpoint:load_model"
    needs = ("dataset", "tokenizer")

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
        self.native: Callable[[Tensor, Tensor, KVCache], Tensor] | None = None  # does `step` and `window`
        self.apply(_init)
        nn.init.zeros_(self.output.weight)

    def forward(self, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
        """-> logits_BNV; row i predicts token i from the class token and tokens < i."""
        return self.output(self.hidden(tokens_BN, labels_B))

    def hidden(self, tokens_BN: Tensor, labels_B: Tensor, seeds_B: Tensor | None = None) -> Tensor:
        """-> x_BND, the normalised activations before `output`. Label K means no class.

        In training mode `seeds_B`, int64, determine all dropout; without them torch's generator draws seeds.

        Raises: `ValueError` for a wrong number of tokens, and on the CPU for a label outside 0 to K (on a GPU
        the embedding asserts).
        """
        self._check(tokens_BN, labels_B)
        (class_key_B2, masking_key_B2), *layer_keys = self._keys(labels_B, seeds_B)
        class_B1D = self.cls_embedding(labels_B, class_key_B2)[:, None]
        x_BND = torch.cat([class_B1D, self.tok_embeddings(tokens_BN[:, :-1])], dim=1)
        x_BND = self.token_masking(x_BND, key_B2=masking_key_B2)
        count = tokens_BN.shape[1]
        cos_N1C, sin_N1C = self.cos_LC[:count, None], self.sin_LC[:count, None]
        for layer, keys in zip(self.layers, layer_keys, strict=True):
            x_BND = layer(x_BND, cos_N1C, sin_N1C, *keys)
        return self.norm(x_BND)

    def _keys(self, labels_B: Tensor, seeds_B: Tensor | None) -> list[tuple[Tensor | None, ...]]:
        """Keys (B, 2) of class dropout and masking, then of each layer's two dropouts; None in eval mode."""
        if not self.training:
            return [(None, None)] * (1 + len(self.layers))
        if seeds_B is None:
            seeds_B = torch.randint(2**62, labels_B.shape, device=labels_B.device)
        keys_BS2 = spread_keys(seeds_B, 2 + 2 * len(self.layers))
        return [pair_B22.unbind(1) for pair_B22 in keys_BS2.split(2, dim=1)]

    def loss(self, tokens_BN: Tensor, labels_B: Tensor, seeds_B: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats per token; computed in chunks, so that not all logits are in memory."""
        x_MD, targets_M = self.hidden(tokens_BN, labels_B, seeds_B).flatten(0, 1), tokens_BN.flatten().long()
        chunk = max(1, LOSS_CHUNK // self.config.vocab_size)
        if len(x_MD) <= chunk:
            return self.summed_loss(x_MD, targets_M) / len(x_MD)
        parts = zip(x_MD.split(chunk), targets_M.split(chunk), strict=True)
        return sum(checkpoint(self.summed_loss, *part, use_reentrant=False, preserve_rng_state=False)
                   for part in parts) / len(x_MD)

    def summed_loss(self, x_MD: Tensor, targets_M: Tensor) -> Tensor:
        """Sum of the cross-entropy of M tokens in nats."""
        logits_MV = self.output(x_MD)
        wide = torch.promote_types(logits_MV.dtype, torch.float32)
        return F.cross_entropy(logits_MV.to(wide), targets_M, reduction="sum")

    def new_cache(self, batch: int, dtype: torch.dtype | None = None, spare: int = 0) -> KVCache:
        """An empty cache for `batch` clips, in the weights' dtype unless another is given.

        A window of W tokens may reach beyond the clip's end: it needs W `spare` slots.
        """
        config, weight = self.config, self.output.weight
        shape = (2, config.n_layer, batch, config.kv_heads, config.block_size + spare, config.head_dim)
        keys, values = torch.zeros(shape, dtype=dtype or weight.dtype, device=weight.device)
        return KVCache(keys.unbind(), values.unbind())

    def prefill(self, labels_B: Tensor, cache: KVCache) -> Tensor:
        """Put the class token into the cache -> logits_BV of token 0. Label K means no class."""
        return self.start(self.cls_embedding.embedding_table(labels_B), cache)

    def start(self, class_BD: Tensor, cache: KVCache) -> Tensor:
        """`prefill` from an embedding of the class token, which may be interpolated between classes."""
        return self._decode(class_BD, torch.zeros(1, dtype=torch.long, device=class_BD.device), cache)

    def step(self, tokens_B: Tensor, position_1: Tensor, cache: KVCache) -> Tensor:
        """Put token position - 1 into slot `position` -> logits_BV of token `position`.

        `position_1` is a one-element int64 tensor, so that every position uses the same kernels. Later slots
        of `cache` are masked, so a short view of it (`KVCache.first`) is faster.
        """
        return self._decode(self.tok_embeddings(tokens_B), position_1, cache)

    def window(self, tokens_BW: Tensor, positions_BW: Tensor, cache: KVCache) -> Tensor:
        """`step` for W consecutive positions of each row at once -> logits_BWV.

        Row b puts token positions[b, j] - 1 into slot positions[b, j]; each position attends to the slots up
        to its own, so that the logits are those of W steps.
        """
        x_BWD = self.tok_embeddings(tokens_BW)
        if self.native:
            return self.native(x_BWD, positions_BW, cache)
        kernels = kernels_for(KERNELS, x_BWD) if tokens_BW.shape[1] <= WIDEST else None
        if kernels:
            context = "fused_window", (kernels, self.cos_LC, self.sin_LC, positions_BW)
        else:
            slots_S = torch.arange(cache.keys[0].shape[2], device=tokens_BW.device)
            beyond_B1WS = slots_S > positions_BW[:, None, :, None]
            mask_B1WS = torch.zeros_like(beyond_B1WS, dtype=x_BWD.dtype).masked_fill_(beyond_B1WS, -torch.inf)
            rows_BW = positions_BW.clamp(max=self.config.block_size)
            turn = self.cos_LC[rows_BW][:, :, None], self.sin_LC[rows_BW][:, :, None]
            context = "window", (*turn, mask_B1WS, positions_BW)
        return self._through_layers(x_BWD, *context, cache)

    def _decode(self, x_BD: Tensor, position_1: Tensor, cache: KVCache) -> Tensor:
        if self.native:
            return self.native(x_BD[:, None], position_1.expand(len(x_BD), 1), cache)[:, 0]
        cos_1C, sin_1C = self.cos_LC[position_1], self.sin_LC[position_1]
        slots_S = torch.arange(cache.keys[0].shape[2], device=x_BD.device)
        mask_S = torch.zeros_like(slots_S, dtype=x_BD.dtype).masked_fill_(slots_S > position_1, -torch.inf)
        return self._through_layers(x_BD, "step", (cos_1C, sin_1C, mask_S, position_1), cache)

    def _through_layers(self, x: Tensor, form: str, context: tuple, cache: KVCache) -> Tensor:
        """Logits of x after all layers; `form` and `context` as in `Block.decode`."""
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = layer.decode(form, x, *context, keys, values)
        return self.output(self.norm(x))

    def _check(self, tokens_BN: Tensor, labels_B: Tensor) -> None:
        if tokens_BN.ndim != 2 or not 1 <= tokens_BN.shape[1] <= self.config.block_size:
            raise ValueError(f"tokens {tuple(tokens_BN.shape)}: needed are (B, {self.config.block_size}), or "
                             "the beginnings of clips")
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
