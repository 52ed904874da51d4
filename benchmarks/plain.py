"""The baselines: model, training step, sampling and decoding as the reference does them, the plain way.

They take the weights and modules of our models and compute the same function, but: token masking in a Python
loop over segments, normalisation and rotation in float32 spelled out, keys and values repeated for their
heads, the float32 logits of the whole batch in one tensor; caches of full length, attention over all of their
slots with a mask of (B, N, N), `torch.multinomial`, whose probabilities are kept; in the tokenizer channels
first, all pictures at once, and attention as two products with the whole matrix of scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.gpt import GPT
from autoregressive.models.layers import Block
from tokenizer.vq_model import AttnBlock, ResnetBlock, VQModel

Cache = list[list[Tensor]]  # keys and values of each layer, (R, heads, N, C)


def plain_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Root-mean-square normalisation in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).type_as(x) * norm.weight


def plain_rotate(x_BLHC: Tensor, cos_L1C: Tensor, sin_L1C: Tensor) -> Tensor:
    """Turn pairs of channels, each pair taken apart and put together again."""
    pairs = x_BLHC.float().reshape(*x_BLHC.shape[:-1], -1, 2)
    cos, sin = cos_L1C[None, ..., ::2], sin_L1C[None, ..., 1::2]
    turned = [pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin]
    return torch.stack(turned, dim=-1).flatten(3).type_as(x_BLHC)


def plain_layer(layer: Block, x_BLD: Tensor, turn: tuple[Tensor, Tensor], cache: list[Tensor] | None = None,
                position_1: Tensor | None = None, mask_B1LN: Tensor | None = None) -> Tensor:
    """Attention and SwiGLU of a whole clip, or with a cache of one position."""
    attention, ffn = layer.attention, layer.feed_forward
    parts = attention.wqkv(plain_norm(layer.attention_norm, x_BLD)).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (attention.heads, -1)) for part in parts)
    q, k, v = (part.transpose(1, 2) for part in (plain_rotate(q, *turn), plain_rotate(k, *turn), v))
    if cache:
        for stored, new in zip(cache, (k, v), strict=True):
            stored[:, :, position_1] = new.to(stored.dtype)
        k, v = cache
    k, v = k.repeat_interleave(1, dim=1), v.repeat_interleave(1, dim=1)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1LN, is_causal=mask_B1LN is None)
    out_BLD = attention.wo(attended.transpose(1, 2).reshape(x_BLD.shape))
    x_BLD = x_BLD + F.dropout(out_BLD, attention.resid_dropout_p, layer.training)
    y_BLD = plain_norm(layer.ffn_norm, x_BLD)
    return x_BLD + F.dropout(ffn.w2(F.silu(ffn.w1(y_BLD)) * ffn.w3(y_BLD)), ffn.ffn_dropout_p, layer.training)


def plain_loss(model: GPT, tokens_BN: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    config, count = model.config, tokens_BN.shape[1]
    if model.training:
        dropped_B = torch.rand(labels_B.shape, device=labels_B.device) < config.class_dropout_prob
        labels_B = torch.where(dropped_B, config.num_classes, labels_B)
    class_B1D = model.cls_embedding.embedding_table(labels_B)[:, None]
    x_BND = torch.cat([class_B1D, model.tok_embeddings(tokens_BN)], dim=1)[:, :count]
    if model.training:
        x_BND = plain_masking(x_BND, config.token_dropout_segment, config.token_dropout_p)
    for layer in model.layers:
        x_BND = plain_layer(layer, x_BND, (model.cos_LC[:count, None], model.sin_LC[:count, None]))
    logits_BNV = model.output(plain_norm(model.norm, x_BND)).float()
    return F.cross_entropy(logits_BNV.view(-1, logits_BNV.shape[-1]), tokens_BN.view(-1))


def plain_masking(x_BND: Tensor, segment: int, largest: float) -> Tensor:
    """Element-wise token masking, segment after segment."""
    masked_BND = x_BND.clone()
    for start in range(1, x_BND.shape[1] - segment + 1, segment):
        part = x_BND[:, start : start + segment]
        variance = part.var(dim=1, keepdim=True)
        rate = ((1 - variance / variance.max()) * largest).clamp(0, largest)
        noise = torch.rand(part.shape[1:], device=x_BND.device)
        masked_BND[:, start : start + segment] = part * (noise > rate)
    return masked_BND


def plain_caches(model: GPT, rows: int) -> Cache:
    """Caches of full length, written to: untouched memory costs nothing to read."""
    config, weight = model.config, model.output.weight
    shape = (rows, config.n_head, config.block_size, config.head_dim)
    return [[torch.full(shape, 0.0, dtype=weight.dtype, device=weight.device) for _ in range(2)]
            for _ in model.layers]


@torch.no_grad()
def plain_generate(model: GPT, caches: Cache, labels_B: Tensor, cfg_scale: float, temperature: float,
                   top_k: int, places: range) -> Tensor:
    """Sample the tokens at these places of one clip per label -> tokens_BN."""
    config, device = model.config, model.output.weight.device
    count, rows = config.block_size, 2 * len(labels_B)
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])
    mask_RNN = torch.ones(count, count, dtype=torch.bool, device=device).tril().repeat(rows, 1, 1)
    x_R1D, tokens, probabilities = model.cls_embedding.embedding_table(labels_R)[:, None], [], []
    for i in places:
        position_1 = torch.tensor([i], device=device)
        guided_BV = plain_step(model, caches, x_R1D, position_1, mask_RNN[:, None, position_1], cfg_scale)
        token_B1, probability_BV = plain_choose(guided_BV, temperature, top_k)
        tokens.append(token_B1)
        probabilities.append(probability_BV)
        x_R1D = model.tok_embeddings(token_B1.repeat(2, 1))
    return torch.cat(tokens, dim=1)


def plain_step(model: GPT, caches: Cache, x_R1D: Tensor, position_1: Tensor, mask_R11N: Tensor,
               cfg_scale: float) -> Tensor:
    """Guided logits of one position -> (B, V) float32."""
    turn = model.cos_LC[position_1, None], model.sin_LC[position_1, None]
    for layer, cache in zip(model.layers, caches, strict=True):
        x_R1D = plain_layer(layer, x_R1D, turn, cache, position_1, mask_R11N)
    conditional_BV, unconditional_BV = model.output(plain_norm(model.norm, x_R1D))[:, -1].float().chunk(2)
    return unconditional_BV + cfg_scale * (conditional_BV - unconditional_BV)


class FastStep(nn.Module):
    """What gpt-fast compiles: from a token of each clip (B, 1) and its position (1,) to the next (B, 1).

    The cache has its full length, and the draw is the largest ratio of a probability to exponential noise.
    """

    def __init__(self, model: GPT, caches: Cache, cfg_scale: float, top_k: int):
        super().__init__()
        self.model, self.cfg_scale, self.top_k = model, cfg_scale, top_k
        for i, (keys, values) in enumerate(caches):  # as buffers their addresses are known to stay
            self.register_buffer(f"keys{i}", keys)
            self.register_buffer(f"values{i}", values)
        self.register_buffer("slots_N", torch.arange(model.config.block_size, device=keys.device))

    def forward(self, token_B1: Tensor, position_1: Tensor) -> Tensor:
        caches = [[getattr(self, f"keys{i}"), getattr(self, f"values{i}")]
                  for i in range(len(self.model.layers))]
        x_R1D = self.model.tok_embeddings(token_B1.repeat(2, 1))
        seen_11N = (self.slots_N <= position_1)[None, None]
        logits_BV = plain_step(self.model, caches, x_R1D, position_1, seen_11N, self.cfg_scale)
        least_B1 = logits_BV.topk(self.top_k)[0][:, -1:]
        probability_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf).softmax(-1)
        return (probability_BV / torch.empty_like(probability_BV).exponential_()).argmax(-1, keepdim=True)


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


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def plain_block(block: ResnetBlock | AttnBlock, x_BCHW: Tensor) -> Tensor:
    """A residual or an attention block of the tokenizer's decoder."""
    if isinstance(block, ResnetBlock):
        h_BCHW = block.conv1(swish(block.norm1(x_BCHW)))
        h_BCHW = block.conv2(swish(block.norm2(h_BCHW)))
        return h_BCHW + (block.nin_shortcut(x_BCHW) if hasattr(block, "nin_shortcut") else x_BCHW)
    h_BCHW = block.norm(x_BCHW)
    q_BCN, k_BCN, v_BCN = (layer(h_BCHW).flatten(2) for layer in (block.q, block.k, block.v))
    scores_BNN = torch.bmm(q_BCN.permute(0, 2, 1), k_BCN) * q_BCN.shape[1] ** -0.5
    attended_BCN = torch.bmm(v_BCN, F.softmax(scores_BNN, dim=2).permute(0, 2, 1))
    return x_BCHW + block.proj_out(attended_BCN.reshape(x_BCHW.shape))


@torch.no_grad()
def plain_decode(model: VQModel, codes_Bhw: Tensor) -> Tensor:
    """Codes (B, h, w) -> pixels (B, 3, H, W)."""
    decoder = model.decoder
    x_BCHW = decoder.conv_in(model.post_quant_conv(model.quantize.lookup(codes_Bhw).contiguous()))
    for block in decoder.mid:
        x_BCHW = plain_block(block, x_BCHW)
    for level in decoder.conv_blocks:
        for i, block in enumerate(level.res):
            x_BCHW = plain_block(block, x_BCHW)
            if level.attn:
                x_BCHW = plain_block(level.attn[i], x_BCHW)
        if level.resample:
            x_BCHW = level.upsample.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
    return decoder.conv_out(swish(decoder.norm_out(x_BCHW)))
