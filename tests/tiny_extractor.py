"""An extractor without a weight file, and a stand-in for the TorchScript I3D, for tests around them."""

import warnings

import numpy as np
import torch

CELLS, DIMENSIONS = 4, 6


def projection(inputs):
    return torch.from_numpy(np.random.RandomState(0).randn(inputs, DIMENSIONS).astype(np.float32))


class TinyExtractor:
    """A random projection of coarse pictures: of every frame, or of the clip's mean and motion."""

    weights, min_frames = {"file": "none", "sha256": "0" * 64, "verified": True}, 1
    preprocessing = "cells"

    def __init__(self, per_frame=False):
        self.name, self.per_frame = "tiny-frames" if per_frame else "tiny", per_frame
        self.batches = []

    def features(self, frames_BT3HW):
        self.batches.append(len(frames_BT3HW))
        pixels_N3HW = frames_BT3HW.flatten(0, 1).float() / 255
        coarse_BTX = torch.nn.functional.adaptive_avg_pool2d(pixels_N3HW, CELLS).flatten(1)
        coarse_BTX = coarse_BTX.unflatten(0, frames_BT3HW.shape[:2])
        if not self.per_frame:
            motion_BX = coarse_BTX.diff(dim=1).abs().mean(1)
            coarse_BTX = torch.cat([coarse_BTX.mean(1), motion_BX], -1)[:, None]
        return coarse_BTX @ projection(coarse_BTX.shape[-1])


class TinyTorchScript(torch.nn.Module):
    """The calling contract of StyleGAN-V's I3D file with next to nothing inside."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(projection(2 * 3 * CELLS * CELLS))

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        frames = x.transpose(1, 2)
        coarse = torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1), 4).flatten(1) / 127.5 - 1
        coarse = coarse.unflatten(0, [frames.size(0), frames.size(1)])
        return torch.cat([coarse.mean(1), coarse.diff(dim=1).abs().mean(1)], -1) @ self.weight


def write_torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(TinyTorchScript()).save(str(path))
    return path
