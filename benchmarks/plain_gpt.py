"""The baseline of the training benchmark: the GPT as the reference is built, written the plain way.

Same weights and same function as `autoregressive.models.gpt.GPT`, but: token masking in a Python loop over
segments, normalisation and rotation in float32 spelled out, keys and values repeated for their heads, and the
float32 logits of the whole batch in one tensor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.gpt import GPT, GPTConfig


class PlainNorm(nn.Module):
    """Root-mean-square normalisation in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def plain_rotate(x_BLHC: Tensor, cos_L1C: Tensor, sin_L1C: Tensor) -> Tensor:
    """Turn pairs of channels, each pair split up and put together again."""
    pairs = x_BLHC.float().reshape(*x_BLHC.shape[:-1], -1, 2)
    cos, sin = cos_L1C[None, ..., ::2], sin_L1C[None, ..., 1::2]
    turned = [pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin]
    return torch.stack(turned, dim=-1).flatten(3).type_as(x_BLHC)


class PlainBlock(nn.Module):
    """Attention and SwiGLU; parameters are those of a `Block`."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.attention, self.feed_forward = nn.Module(), nn.Module()
        self.attention.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.attention.wo = nn.Linear(config.dim, config.dim, bias=False)
        for name in ("w1", "w3"):
            self.feed_forward.add_module(name, nn.Linear(config.dim, config.ffn_dim, bias=False))
        self.feed_forward.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.attention_norm = PlainNorm(config.dim, config.norm_eps)
        self.ffn_norm = PlainNorm(config.dim, config.norm_eps)
        self.resid_dropout, self.ffn_dropout = (
            nn.Dropout(p) for p in (config.resid_dropout_p, config.ffn_dropout_p))

    def forward(self, x_BLD: Tensor, cos_L1C: Tensor, sin_L1C: Tensor) -> Tensor:
        config = self.config
        q, k, v = self.attention.wqkv(self.attention_norm(x_BLD)).split(config.dim, dim=-1)
        q, k, v = (y.view(*y.shape[:2], config.n_head, config.head_dim) for y in (q, k, v))
        q, k = plain_rotate(q, cos_L1C, sin_L1C), plain_rotate(k, cos_L1C, sin_L1C)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        k, v = k.repeat_interleave(1, dim=1), v.repeat_interleave(1, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.resid_dropout(self.attention.wo(attended.transpose(1, 2).reshape(x_BLD.shape)))
        ffn, y = self.feed_forward, self.ffn_norm(x_BLD)
        return x_BLD + self.ffn_dropout(ffn.w2(F.silu(ffn.w1(y)) * ffn.w3(y)))


class PlainGPT(nn.Module):
    """Loads the weights of a `GPT` of the same configuration (as many key heads as query heads)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.cls_embedding = nn.Module()
        self.cls_embedding.embedding_table = nn.Embedding(config.num_classes + 1, config.dim)
        self.layers = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.norm = PlainNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        tables = GPT(config)
        self.register_buffer("cos_LC", tables.cos_LC, persistent=False)
        self.register_buffer("sin_LC", tables.sin_LC, persistent=False)

    def forward(self, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
        """-> float32 logits_BNV."""
        if self.training:
            dropped_B = torch.rand(labels_B.shape, device=labels_B.device) < self.config.class_dropout_prob
            labels_B = torch.where(dropped_B, self.config.num_classes, labels_B)
        class_B1D = self.cls_embedding.embedding_table(labels_B)[:, None]
        x_BND = torch.cat([class_B1D, self.tok_embeddings(tokens_BN)], dim=1)[:, : tokens_BN.shape[1]]
        if self.training:
            x_BND = self.mask_segments(x_BND)
        for layer in self.layers:
            x_BND = layer(x_BND, self.cos_LC[: x_BND.shape[1], None], self.sin_LC[: x_BND.shape[1], None])
        return self.output(self.norm(x_BND)).float()

    def mask_segments(self, x_BND: Tensor) -> Tensor:
        """Element-wise token masking, segment after segment."""
        segment, p = self.config.token_dropout_segment, self.config.token_dropout_p
        masked_BND = x_BND.clone()
        for start in range(1, x_BND.shape[1] - segment + 1, segment):
            part = x_BND[:, start : start + segment]
            variance = part.var(dim=1, keepdim=True)
            rate = ((1 - variance / variance.max()) * p).clamp(0, p)
            noise = torch.rand(part.shape[1:], device=x_BND.device)
            masked_BND[:, start : start + segment] = part * (noise > rate)
        return masked_BND

    def loss(self, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token."""
        logits_BNV = self(tokens_BN, labels_B)
        return F.cross_entropy(logits_BNV.view(-1, logits_BNV.shape[-1]), tokens_BN.view(-1))
