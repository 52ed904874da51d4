"""The baseline of decoding: the tokenizer's decoder as the reference is built, written the plain way.

Channels first, float32, all pictures at once, swish as a product, attention as two products with the whole
matrix of scores, the upsampled picture as a tensor of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.vq_model import AttnBlock, ResnetBlock, VQModel


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def plain_residual(block: ResnetBlock, x_BCHW: Tensor) -> Tensor:
    h_BCHW = block.conv1(swish(block.norm1(x_BCHW)))
    h_BCHW = block.conv2(swish(block.norm2(h_BCHW)))
    if hasattr(block, "nin_shortcut"):
        x_BCHW = block.nin_shortcut(x_BCHW)
    return x_BCHW + h_BCHW


def plain_attention(block: AttnBlock, x_BCHW: Tensor) -> Tensor:
    h_BCHW = block.norm(x_BCHW)
    q_BCN, k_BCN, v_BCN = (layer(h_BCHW).flatten(2) for layer in (block.q, block.k, block.v))
    scores_BNN = torch.bmm(q_BCN.permute(0, 2, 1), k_BCN) * q_BCN.shape[1] ** -0.5
    attended_BCN = torch.bmm(v_BCN, F.softmax(scores_BNN, dim=2).permute(0, 2, 1))
    return x_BCHW + block.proj_out(attended_BCN.reshape(x_BCHW.shape))


def plain_block(block: nn.Module, x_BCHW: Tensor) -> Tensor:
    return (plain_residual if isinstance(block, ResnetBlock) else plain_attention)(block, x_BCHW)


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
