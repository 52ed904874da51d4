"""Winograd's convolution is the convolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluations import winograd


@pytest.mark.parametrize(("tile", "taps"), winograd.POINTS)
def test_transformed_filter_and_tile_give_sliding_products(tile, taps):
    random = np.random.RandomState(0)
    values, filter_ = random.randn(tile + taps - 1), random.randn(taps)
    output, points, data = winograd.matrices(tile, taps)
    found = output @ ((points @ filter_) * (data @ values))
    np.testing.assert_allclose(found, np.correlate(values, filter_), atol=1e-11)
    assert (output[:, winograd.ONE] == 1).all()


@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize("shape", [(1, 1, 4, 4, 3), (2, 3, 9, 6, 5), (1, 2, 7, 14, 4)])
def test_convolution_is_that_of_pytorch_however_it_is_cut(shape, chunk, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    torch.manual_seed(0)
    x_BTHWC, bias = torch.randn(shape), torch.randn(7)
    weight = torch.randn(7, shape[-1], 3, 3, 3)
    expected = F.conv3d(x_BTHWC.permute(0, 4, 1, 2, 3).double(), weight.double(), bias.double(), padding=1)
    found = winograd.convolve(x_BTHWC, winograd.transform_kernel(weight), bias).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(found, expected.relu().float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("frames", "height", "width"), [(16, 8, 12), (9, 7, 9), (18, 22, 6), (33, 5, 5)])
def test_long_filters_with_stride_too(frames, height, width, monkeypatch):
    monkeypatch.setattr(winograd, "BAND", 4)
    torch.manual_seed(0)
    x_BTHWC, bias = torch.randn(2, frames, height, width, 3), torch.randn(6)
    weight = torch.randn(6, 3, 7, 7, 7) / 32  # sums of 1,029 products
    pads = [(3, 3) if n % 2 else (2, 3) for n in (frames, height, width)]
    padded = F.pad(x_BTHWC.permute(0, 4, 1, 2, 3).double(), [n for pad in reversed(pads) for n in pad])
    expected = F.conv3d(padded, weight.double(), bias.double(), stride=2).relu().float()
    found = winograd.convolve_long(x_BTHWC, winograd.transform_long_kernel(weight), bias, pads)
    torch.testing.assert_close(found.permute(0, 4, 1, 2, 3), expected, rtol=1e-5, atol=1e-4)
