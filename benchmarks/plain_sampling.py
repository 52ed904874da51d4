"""The baseline of the sampling benchmark: decoding as the reference does it, written the plain way.

Same tokens as `autoregressive.models.generate` where the choice is greedy, but: caches of full length
written by index, attention over all of their slots with a mask of (B, N, N), keys and values repeated for
their heads, and softmax and `torch.multinomial`, whose probabilities are kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_gpt import PlainBlock, PlainGPT, plain_rotate


def plain_attend(block: PlainBlock, x_R1D: Tensor, turn: tuple[Tensor, Tensor], mask_R11N: Tensor,
                 position_1: Tensor, cache: list[Tensor]) -> Tensor:
    """One position through one block."""
    config = block.config
    parts = block.attention.wqkv(block.attention_norm(x_R1D)).split(config.dim, dim=-1)
    q, k, v = (part.view(len(part), 1, config.n_head, config.head_dim) for part in parts)
    q, k, v = (part.transpose(1, 2) for part in (plain_rotate(q, *turn), plain_rotate(k, *turn), v))
    for stored, new in zip(cache, (k, v), strict=True):
        stored[:, :, position_1] = new.to(stored.dtype)
    k, v = (stored.repeat_interleave(1, dim=1) for stored in cache)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R11N)
    x_R1D = x_R1D + block.attention.wo(attended.transpose(1, 2).reshape(x_R1D.shape))
    ffn, y_R1D = block.feed_forward, block.ffn_norm(x_R1D)
    return x_R1D + ffn.w2(F.silu(ffn.w1(y_R1D)) * ffn.w3(y_R1D))


def plain_choose(logits_BV: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """A token per row, and the probabilities that it was drawn from; temperature 0 takes the largest."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True), logits_BV.softmax(-1)
    logits_BV = logits_BV / temperature
    if top_k:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    probability_BV = logits_BV.softmax(-1)
    return torch.multinomial(probability_BV, 1), probability_BV


def plain_caches(model: PlainGPT, rows: int) -> list[list[Tensor]]:
    """Keys and values of each layer, full length, written to: untouched memory costs nothing to read."""
    config, device = model.config, model.output.weight.device
    shape = (rows, config.n_head, config.block_size, config.head_dim)
    dtype = model.output.weight.dtype
    return [[torch.full(shape, 0.0, dtype=dtype, device=device) for _ in range(2)] for _ in model.layers]


@torch.no_grad()
def plain_generate(
    model: PlainGPT, caches: list[list[Tensor]], labels_B: Tensor, cfg_scale: float, temperature: float,
    top_k: int, places: range,
) -> Tensor:
    """Sample the tokens at these places of one clip per label -> tokens_BN."""
    config, device = model.config, model.output.weight.device
    count, batch, rows = config.block_size, len(labels_B), 2 * len(labels_B)
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])
    mask_RNN = torch.ones(count, count, dtype=torch.bool, device=device).tril().repeat(rows, 1, 1)
    x_R1D, tokens, kept = model.cls_embedding.embedding_table(labels_R)[:, None], [], []
    for i in places:
        position_1 = torch.tensor([i], device=device)
        turn = model.cos_LC[position_1, None], model.sin_LC[position_1, None]
        for block, cache in zip(model.layers, caches, strict=True):
            x_R1D = plain_attend(block, x_R1D, turn, mask_RNN[:, None, position_1], position_1, cache)
        logits_RV = model.output(model.norm(x_R1D))[:, -1].float()
        conditional_BV, unconditional_BV = logits_RV.split(batch)
        guided_BV = unconditional_BV + cfg_scale * (conditional_BV - unconditional_BV)
        token_B1, probability_BV = plain_choose(guided_BV, temperature, top_k)
        tokens.append(token_B1)
        kept.append(probability_BV)
        x_R1D = model.tok_embeddings(token_B1.repeat(2, 1))
    return torch.cat(tokens, dim=1)
