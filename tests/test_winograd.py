"""Winograd's convolution is the convolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluations import winograd


def test_transformed_filter_and_tile_give_sliding_products():
    random = np.random.RandomState(0)
    pixels, filter_33 = random.randn(winograd.SEEN, winograd.SEEN), random.randn(3, 3)
    output, points, data = (part.numpy() for part in winograd.matrices())
    found = output @ ((points @ filter_33.ravel()) * (data @ pixels.ravel()))
    expected = [(pixels[y : y + 3, x : x + 3] * filter_33).sum() for y in range(4) for x in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


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
