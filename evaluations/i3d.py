"""I3D, the network behind FVD: Inception v1 inflated to three dimensions (Carreira and Zisserman 2017).

The layers and their names are those of the VideoGPT weight file, so that it loads strictly. Feature
maps lie with channels last in memory, where 1 x 1 x 1 convolutions are products of matrices; larger ones take
Winograd's algorithm on a CPU, and batch norm is folded into the weights. Shapes: B clips, T frames,
C channels, H x W pixels.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from evaluations import winograd

SIDE = 224  # pixels of a frame's side: other sizes come out of the last pooling with a wrong shape
MIN_FRAMES = 9  # two time steps must be left at the last pooling
CLASSES = 400

# Inception module -> channels of its branches: 1x1, (1x1, 3x3), (1x1, 3x3), pooled 1x1
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128), "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
Size = tuple[int, int, int]


def same_padding(size: Size, kernel: Size, stride: Size) -> list[tuple[int, int]]:
    """(before, after) of every dimension as TensorFlow's SAME has it: the odd one comes after."""
    pads = []
    for n, k, s in zip(size, kernel, stride, strict=True):
        total = max(k - (n % s or s), 0)
        pads.append((total // 2, total - total // 2))
    return pads


def largest_of_three(x: Tensor, dim: int) -> Tensor:
    """Maximum of each value and its neighbours along a dimension of at least two places."""
    last, made = x.shape[dim] - 1, torch.empty_like(x)
    pairs = torch.maximum(x.narrow(dim, 0, last), x.narrow(dim, 1, last))
    inner = made.narrow(dim, 1, last - 1)
    torch.maximum(pairs.narrow(dim, 0, last - 1), pairs.narrow(dim, 1, last - 1), out=inner)
    for place in (0, last):
        made.select(dim, place).copy_(pairs.select(dim, min(place, last - 1)))
    return made


class MaxPool(nn.Module):
    """Max pooling with SAME padding, over the plane, then over time.

    The padding takes no part: the network pads with zeros, and what it pools is not negative.
    """

    def __init__(self, kernel: Size, stride: Size):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """(B, T, H, W, C) -> each of T, H, W divided by the stride, rounded up."""
        if self.kernel == (3, 3, 3) and self.stride == (1, 1, 1):
            return reduce(largest_of_three, (3, 2, 1), x_BTHWC)
        pads = [before for before, _ in same_padding(tuple(x_BTHWC.shape[1:4]), self.kernel, self.stride)]

        def pool(x_NHWC: Tensor, kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int]) -> Tensor:
            return F.max_pool2d(x_NHWC.movedim(3, 1), kernel, stride, pad, ceil_mode=True).movedim(1, 3)

        made_NHWC = pool(x_BTHWC.flatten(0, 1), self.kernel[1:], self.stride[1:], pads[1:])
        made_BTHWC = made_NHWC.unflatten(0, x_BTHWC.shape[:2])
        if self.kernel[0] > 1:  # a plane of time and place
            made_BTNC = pool(made_BTHWC.flatten(2, 3), (self.kernel[0], 1), (self.stride[0], 1), (pads[0], 0))
            made_BTHWC = made_BTNC.unflatten(2, made_BTHWC.shape[2:4])
        return made_BTHWC


class Unit(nn.Module):
    """Convolution with SAME padding, batch norm and ReLU. `fold` comes before `forward`."""

    def __init__(self, channels_in: int, channels_out: int, side: int, stride: int, eps: float):
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, side, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=eps)

    def fused(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of convolution and batch norm in one."""
        scale_O = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        weight = self.conv3d.weight * scale_O[:, None, None, None, None]
        return weight, self.bn.bias - self.bn.running_mean * scale_O

    @torch.no_grad()
    def fold(self, transform: bool) -> None:
        """Make the weights that are computed with, of larger filters transformed as `winograd` takes them."""
        weight, bias = self.fused()
        kind = self.conv3d.kernel_size[0], self.conv3d.stride[0]
        if kind == (1, 1):
            weight = weight.flatten(1)
        elif transform:
            weight = {(3, 1): winograd.transform_kernel, (7, 2): winograd.transform_long_kernel}[kind](weight)
        self.register_buffer("folded", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """(B, T, H, W, channels in) -> (B, T / stride, H / stride, W / stride, channels out)."""
        if self.folded.ndim == 2:  # a linear layer at every place
            return F.relu_(F.linear(x_BTHWC, self.folded, self.bias))
        if self.folded.ndim == 4:
            return winograd.convolve(x_BTHWC, self.folded, self.bias)
        pads = same_padding(tuple(x_BTHWC.shape[1:4]), self.conv3d.kernel_size, self.conv3d.stride)
        if self.folded.ndim == 6:
            return winograd.convolve_long(x_BTHWC, self.folded, self.bias, pads)
        x_BCTHW = F.pad(x_BTHWC.permute(0, 4, 1, 2, 3), [n for pad in reversed(pads) for n in pad])
        x_BCTHW = F.conv3d(x_BCTHW.contiguous(), self.folded, self.bias, self.conv3d.stride)
        return F.relu_(x_BCTHW).permute(0, 2, 3, 4, 1)


class Mixed(nn.Module):
    """Four branches side by side: 1x1; 1x1 then 3x3, twice; pooling then 1x1."""

    def __init__(self, channels_in: int, out: tuple[int, ...], eps: float):
        super().__init__()
        self.b0 = Unit(channels_in, out[0], 1, 1, eps)
        self.b1a, self.b1b = Unit(channels_in, out[1], 1, 1, eps), Unit(out[1], out[2], 3, 1, eps)
        self.b2a, self.b2b = Unit(channels_in, out[3], 1, 1, eps), Unit(out[3], out[4], 3, 1, eps)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit(channels_in, out[5], 1, 1, eps)

    @torch.no_grad()
    def fold(self, transform: bool) -> None:
        """As in `Unit`; the first layers of three branches become one, which reads `x` once."""
        for unit in (self.b1b, self.b2b, self.b3b):
            unit.fold(transform)
        weights, biases = zip(*(unit.fused() for unit in (self.b0, self.b1a, self.b2a)), strict=True)
        self.sizes = [len(bias) for bias in biases]
        self.register_buffer("folded", torch.cat(weights).flatten(1), persistent=False)
        self.register_buffer("bias", torch.cat(biases), persistent=False)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Same T, H and W."""
        b0, b1, b2 = F.relu_(F.linear(x_BTHWC, self.folded, self.bias)).split(self.sizes, 4)
        return torch.cat([b0, self.b1b(b1), self.b2b(b2), self.b3b(self.b3a(x_BTHWC))], 4)


class Logits(nn.Module):
    """Average pooling over two time steps and all places, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(sum(MIXED["Mixed_5c"][i] for i in (0, 2, 4, 5)), CLASSES, 1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """(B, T, 7, 7, 1024) -> (B, 400), averaged over time."""
        mean_BTC = x_BTHWC.mean((2, 3))
        pairs_BTC = (mean_BTC[:, 1:] + mean_BTC[:, :-1]) / 2
        return F.linear(pairs_BTC, self.conv3d.weight.flatten(1), self.conv3d.bias).mean(1)


class I3D(nn.Module):
    """Kinetics-400 logits of clips."""

    def __init__(self, bn_eps: float = 1e-5):
        """`bn_eps` is 1e-5 in the VideoGPT file, 1e-3 in the TensorFlow graph that its weights come from."""
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2, bn_eps)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, 1, bn_eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, 1, bn_eps)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, out in MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Mixed(channels, out, bn_eps))
            channels = out[0] + out[2] + out[4] + out[5]
        self.logits = Logits()

    def fold(self) -> "I3D":
        """Itself, ready for `forward`; to be called once the weights are there."""
        transform = self.logits.conv3d.weight.device.type == "cpu"  # cuDNN has its own ways
        for layer in self.children():
            if isinstance(layer, Unit | Mixed):
                layer.fold(transform)
        return self

    def forward(self, pixels_BT3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1], (B, T >= 9, 3, 224, 224) -> logits (B, 400); `fold` comes first.

        Batch norm always uses the stored statistics. Raises: `InputError` for other shapes.
        """
        frames, _, *sides = pixels_BT3HW.shape[1:]
        if frames < MIN_FRAMES or sides != [SIDE, SIDE]:
            raise InputError(f"I3D needs at least {MIN_FRAMES} frames of {SIDE} x {SIDE} pixels, "
                             f"not {frames} of {sides[0]} x {sides[1]}")
        x = pixels_BT3HW.permute(0, 1, 3, 4, 2)
        for layer in self.children():  # in the order in which they were added
            x = layer(x)
        return x
