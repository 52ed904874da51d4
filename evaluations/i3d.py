"""I3D, the network behind FVD: Inception v1 inflated to three dimensions (Carreira and Zisserman 2017).

The layers and their names are those of the VideoGPT weight file, so that it loads strictly. Shapes: B clips,
T frames, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError

SIDE = 224  # pixels of a frame's side; other sizes give a wrong shape after the last pooling
MIN_FRAMES = 9  # the last pooling needs two time steps
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


def pad_same(x_BCTHW: Tensor, kernel: Size, stride: Size) -> Tensor:
    """`x` in zeros, as TensorFlow's SAME padding does it: an odd number has one more after than before."""
    pads: list[int] = []
    for n, k, s in zip(x_BCTHW.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):  # the last comes first
        total = max(k - (n % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x_BCTHW, pads)


class MaxPool(nn.Module):
    """Max pooling with SAME padding; it follows a ReLU, so that zeros do not change the maximum."""

    def __init__(self, kernel: Size, stride: Size):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> each of T, H, W divided by the stride, rounded up."""
        return F.max_pool3d(pad_same(x_BCTHW, self.kernel, self.stride), self.kernel, self.stride)


class Unit(nn.Module):
    """Convolution with SAME padding, batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, side: int, stride: int, eps: float):
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, side, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=eps)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, channels in, T, H, W) -> (B, channels out, T / stride, H / stride, W / stride)."""
        x_BCTHW = pad_same(x_BCTHW, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu_(self.bn(self.conv3d(x_BCTHW)))


class Mixed(nn.Module):
    """Four parallel branches: 1x1; 1x1 then 3x3, twice; pooling then 1x1."""

    def __init__(self, channels_in: int, out: tuple[int, ...], eps: float):
        super().__init__()
        self.b0 = Unit(channels_in, out[0], 1, 1, eps)
        self.b1a, self.b1b = Unit(channels_in, out[1], 1, 1, eps), Unit(out[1], out[2], 3, 1, eps)
        self.b2a, self.b2b = Unit(channels_in, out[3], 1, 1, eps), Unit(out[3], out[4], 3, 1, eps)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit(channels_in, out[5], 1, 1, eps)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return torch.cat([self.b0(x_BCTHW), self.b1b(self.b1a(x_BCTHW)), self.b2b(self.b2a(x_BCTHW)),
                          self.b3b(self.b3a(x_BCTHW))], 1)


class Logits(nn.Module):
    """Average pooling over two time steps and all pixels, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(sum(MIXED["Mixed_5c"][i] for i in (0, 2, 4, 5)), CLASSES, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 1024, T, 7, 7) -> (B, 400), averaged over time."""
        return self.conv3d(F.avg_pool3d(x_BCTHW, (2, 7, 7), 1)).mean((2, 3, 4))


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
        """Pixels in [-1, 1], (B, T >= 9, 3, 224, 224) -> logits (B, 400).

        Batch norm always uses the stored statistics. Raises: `InputError` for other shapes.
        """
        frames, _, *sides = pixels_BT3HW.shape[1:]
        if frames < MIN_FRAMES or sides != [SIDE, SIDE]:
            raise InputError(f"I3D needs at least {MIN_FRAMES} frames of {SIDE} x {SIDE} pixels, "
                             f"not {frames} of {sides[0]} x {sides[1]}")
        x = pixels_BT3HW.transpose(1, 2).contiguous()
        for layer in self.children():  # in the order in which they were added
            x = layer(x)
        return x
