"""I3D, the network behind FVD: Inception v1 inflated to three dimensions (Carreira and Zisserman 2017).

The layers and their names are those of the VideoGPT weight file, so that it loads strictly. They are computed
frame by frame: a kernel over k frames is a kernel over one picture that has the channels of k frames, which
2-D convolutions with channels last in memory are fast with. Shapes: B clips, T frames, C channels, H x W
pixels, N = B * T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def frames_side_by_side(x_BTCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, T, C, H, W) -> (B, T / stride, kernel * C, H, W): frames under a temporal kernel as channels."""
    if kernel == stride == 1:
        return x_BTCHW
    (before, after), = same_padding((x_BTCHW.shape[1],), (kernel,), (stride,))
    x_BTCHW = F.pad(x_BTCHW, (0, 0, 0, 0, 0, 0, before, after))
    steps = (x_BTCHW.shape[1] - kernel) // stride + 1
    return torch.cat([x_BTCHW[:, i : i + (steps - 1) * stride + 1 : stride] for i in range(kernel)], 2)


def slide_max(x: Tensor, dim: int, kernel: int, stride: int) -> Tensor:
    """Maximum under a window that slides along one dimension with SAME padding.

    The padding takes no part: the network pads with zeros, and what it pools is not negative.
    """
    size = x.shape[dim]
    (before, _), = same_padding((size,), (kernel,), (stride,))

    def every(start: int, stop: int, step: int) -> tuple[slice, ...]:
        return (slice(None),) * dim + (slice(start, stop, step),)

    largest = x[every(0, size, stride)].clone()
    for offset in range(-before, kernel - before):
        first = -(offset // stride) if offset < 0 else 0  # the first window in which it is inside
        last = min((size - 1 - offset) // stride, largest.shape[dim] - 1)
        part = largest[every(first, last + 1, 1)]
        torch.maximum(part, x[every(first * stride + offset, last * stride + offset + 1, stride)], out=part)
    return largest


class MaxPool(nn.Module):
    """Max pooling with SAME padding, one dimension after the other."""

    def __init__(self, kernel: Size, stride: Size):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """(B, T, C, H, W) -> each of T, H, W divided by the stride, rounded up."""
        for dim, kernel, stride in zip((4, 3, 1), reversed(self.kernel), reversed(self.stride), strict=True):
            if kernel > 1:
                x_BTCHW = slide_max(x_BTCHW, dim, kernel, stride)
        return x_BTCHW


class Unit(nn.Module):
    """Convolution with SAME padding, batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, side: int, stride: int, eps: float):
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, side, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=eps)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """(B, T, channels in, H, W) -> (B, T / stride, channels out, H / stride, W / stride)."""
        side, stride = self.conv3d.kernel_size[0], self.conv3d.stride[0]
        stacked_BTCHW = frames_side_by_side(x_BTCHW, side, stride)
        x_NCHW = stacked_BTCHW.flatten(0, 1)
        (top, bottom), (left, right) = same_padding(tuple(x_NCHW.shape[2:]), (side, side), (stride, stride))
        padding = (top, left)
        if top != bottom or left != right:
            x_NCHW, padding = F.pad(x_NCHW, (left, right, top, bottom)), (0, 0)
        weight = self.conv3d.weight.transpose(1, 2).flatten(1, 2)  # channels of the first frame first
        x_NCHW = F.conv2d(x_NCHW, weight.contiguous(memory_format=torch.channels_last), None, stride, padding)
        bn = self.bn
        x_NCHW = F.batch_norm(x_NCHW, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return F.relu_(x_NCHW).unflatten(0, stacked_BTCHW.shape[:2])


class Mixed(nn.Module):
    """Four branches side by side: 1x1; 1x1 then 3x3, twice; pooling then 1x1."""

    def __init__(self, channels_in: int, out: tuple[int, ...], eps: float):
        super().__init__()
        self.b0 = Unit(channels_in, out[0], 1, 1, eps)
        self.b1a, self.b1b = Unit(channels_in, out[1], 1, 1, eps), Unit(out[1], out[2], 3, 1, eps)
        self.b2a, self.b2b = Unit(channels_in, out[3], 1, 1, eps), Unit(out[3], out[4], 3, 1, eps)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit(channels_in, out[5], 1, 1, eps)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """Same T, H and W."""
        x = x_BTCHW
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 2)


class Logits(nn.Module):
    """Average pooling over two time steps and all places, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(sum(MIXED["Mixed_5c"][i] for i in (0, 2, 4, 5)), CLASSES, 1)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """(B, T, 1024, 7, 7) -> (B, 400), averaged over time."""
        mean_BTC = x_BTCHW.mean((3, 4))
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

    def forward(self, pixels_BT3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1], (B, T >= 9, 3, 224, 224), best with channels last -> logits (B, 400).

        Batch norm always uses the stored statistics.
        """
        frames, _, *sides = pixels_BT3HW.shape[1:]
        if frames < MIN_FRAMES or sides != [SIDE, SIDE]:
            raise ValueError(f"I3D needs at least {MIN_FRAMES} frames of {SIDE} x {SIDE} pixels, "
                             f"not {frames} of {sides[0]} x {sides[1]}")
        x = pixels_BT3HW
        for layer in self.children():  # in the order in which they were added
            x = layer(x)
        return x
