"""The transformer layers of the GPT, with the parameter names of LlamaGen.

Each has several forms of the same function: `forward` over a whole clip, the others over one or a few
positions with a cache. Shapes: B batch, L positions, D width, G queries that share a key, C channels of a
head, S cache slots, W positions of a window.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.config import GPTConfig
from autoregressive.models.noise import dropout
from autoregressive.models.rope import rotate

KERNELS = "autoregressive.models.kernels"
WIDEST = 64  # positions of a window that the kernels hold at once


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.wqkv = nn.Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.attn_dropout_p, self.resid_dropout_p = config.attn_dropout_p, config.resid_dropout_p

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., D) -> query (..., heads, C), key and value (..., kv heads, C); query and key turned."""
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
        q, k = rotate(qk, cos, sin).split([self.heads, self.kv_heads], dim=-2)
        return q, k, v

    def forward(self, x_BLD: Tensor, cos_L1C: Tensor, sin_L1C: Tensor, key_B2: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in self.project(x_BLD, cos_L1C, sin_L1C))  # (B, heads, L, C)
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.attn_dropout_p if self.training else 0.0,
            enable_gqa=self.heads != self.kv_heads)
        return dropout(self.wo(attended.transpose(1, 2).flatten(2)), self.resid_dropout_p, key_B2)

    def step(self, x_BD: Tensor, cos_1C: Tensor, sin_1C: Tensor, mask_S: Tensor, position_1: Tensor,
             keys: Tensor, values: Tensor) -> Tensor:
        """One position: store its key and value, attend to slots where `mask_S` is 0 and not -inf."""
        batch, width = x_BD.shape
        q, k, v = self.project(x_BD, cos_1C, sin_1C)
        keys.index_copy_(2, position_1, k[:, :, None])
        values.index_copy_(2, position_1, v[:, :, None])
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":  # `baddbmm` copies the keys there: slow
            attended = F.scaled_dot_product_attention(
                q[:, :, None], keys, values, mask_S[None].to(q.dtype), enable_gqa=self.heads != self.kv_heads)
            return self.wo(attended.flatten(1))
        q = q.reshape(batch * self.kv_heads, -1, self.head_dim)  # (B * kv heads, G, C)
        scores = torch.baddbmm(mask_S, q, keys.flatten(0, 1).transpose(1, 2), alpha=self.head_dim**-0.5)
        attended = scores.softmax(-1) @ values.flatten(0, 1)
        return self.wo(attended.view(batch, width))

    def window(self, x_BWD: Tensor, cos_BW1C: Tensor, sin_BW1C: Tensor, mask_B1WS: Tensor,
               positions_BW: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """W consecutive positions of each row, each row at its own place."""
        q, k, v = self.project(x_BWD, cos_BW1C, sin_BW1C)  # (B, W, heads, C)
        slots = torch.arange(len(k), device=k.device)[:, None], positions_BW
        keys.transpose(1, 2).index_put_(slots, k)  # `scatter_` copies the whole cache in bfloat16
        values.transpose(1, 2).index_put_(slots, v)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, mask_B1WS.to(q.dtype), enable_gqa=self.heads != self.kv_heads)
        return self.wo(attended.transpose(1, 2).flatten(2))

    def fused_window(self, x_BWD: Tensor, kernels: ModuleType, cos_LC: Tensor, sin_LC: Tensor,
                     positions_BW: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`window` by a GPU's kernels, which look up angles and hide slots themselves."""
        return self.wo(kernels.split_attention(self.wqkv(x_BWD), cos_LC, sin_LC, positions_BW, keys, values))


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.ffn_dropout_p = config.ffn_dropout_p

    def forward(self, x_BLD: Tensor, key_B2: Tensor | None) -> Tensor:
        return dropout(self.mix(x_BLD), self.ffn_dropout_p, key_B2)

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

    def forward(self, x_BLD: Tensor, cos_L1C: Tensor, sin_L1C: Tensor,
                attention_key_B2: Tensor | None = None, ffn_key_B2: Tensor | None = None) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cos_L1C, sin_L1C, attention_key_B2)
        return x_BLD + self.feed_forward(self.ffn_norm(x_BLD), ffn_key_B2)

    def decode(self, form: str, x: Tensor, *context: Any) -> Tensor:
        """With a cache; `form` is the attention's method: step, window or fused_window."""
        x = x + getattr(self.attention, form)(self.attention_norm(x), *context)
        return x + self.feed_forward.mix(self.ffn_norm(x))
