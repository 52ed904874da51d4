"""The decoder by bands is the decoder: in every precision, with and without NNPACK, however bands are cut."""

import numpy as np
import pytest
import torch

import autoregressive.sample.pictures as pictures
import tokenizer.decoding as decoding
import tokenizer.vq_model as vq_model
from common.image_quality import psnr
from tokenizer.vq_model import VQConfig, VQModel

CODES = torch.randint(64, (2, 10, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VQModel(VQConfig(32, (1, 1, 2), 32, 64, num_res_blocks=1)).requires_grad_(False).eval()


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def bands(monkeypatch):
    """Bands on every processor."""
    monkeypatch.setattr(vq_model, "bands_pay", lambda dtype: True)


def whole(model):
    """What the decoder makes as it is built, with gradients."""
    assert torch.is_grad_enabled()
    return model.decode(CODES)


@torch.no_grad()
def by_bands(model):
    return model.decode(CODES)


@pytest.mark.parametrize("band", [1, 32 * 14 * 13, decoding.BAND])
def test_bands_of_any_size_make_the_same_picture(model, threads, band, monkeypatch):
    monkeypatch.setattr(decoding, "BAND", band)
    torch.testing.assert_close(by_bands(model), whole(model), rtol=0, atol=1e-4)
    model.double()
    torch.testing.assert_close(by_bands(model), whole(model), rtol=1e-9, atol=1e-11)


def test_pictures_are_the_same_one_by_one_and_several_at_once(model, monkeypatch):
    apart = pictures.pictures_of(CODES, model)
    monkeypatch.setattr(pictures, "CELLS", {"cpu": 2 * CODES[0].numel()})
    for one, other in zip(apart, pictures.pictures_of(CODES, model), strict=True):
        assert one.shape == (3, 40, 28) and torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize(("features", "dtype", "pay"), [
    ([], torch.float32, True), (["avx512f"], torch.float32, False), (["avx512f"], torch.bfloat16, True),
    (["avx512f", "amx_tile"], torch.bfloat16, False)])
def test_without_bands_where_the_processor_is_faster_so(model, monkeypatch, features, dtype, pay):
    monkeypatch.setattr(decoding, "has", lambda feature: feature in features)
    assert decoding.bands_pay(dtype) == pay
    in_bands = model.decode(CODES)
    monkeypatch.setattr(vq_model, "bands_pay", lambda dtype: False)
    torch.testing.assert_close(model.decode(CODES), in_bands, rtol=0, atol=1e-4)


def test_without_nnpack_upsampling_is_folded(model, monkeypatch):
    monkeypatch.setattr(decoding, "nnpack_there", lambda: False)
    torch.testing.assert_close(by_bands(model), whole(model), rtol=0, atol=1e-5)


def test_folded_kernels_are_convolution_after_upsampling():
    shapes = (1, 3, 7, 5), (4, 3, 3, 3), (4,)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    large = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, 1:-1]
    expected = torch.nn.functional.conv2d(large, weight, bias, padding=(0, 1))
    torch.testing.assert_close(decoding.upsampled_rows(x, weight, bias), expected)


def test_weights_in_any_memory_format_make_the_same_picture(model):
    expected = by_bands(model)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(by_bands(model), expected, rtol=0, atol=1e-4)


def test_a_picture_does_not_depend_on_its_batch(model):
    with torch.no_grad():
        assert torch.equal(model.decode(CODES[1:])[0], by_bands(model)[1])


def test_bfloat16_changes_little(model):
    with torch.autocast("cpu", torch.bfloat16):
        coarse = by_bands(model)
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, by_bands(model))
    assert psnr(*(np.asarray(x.clamp(-1, 1) / 2 + 0.5) for x in (coarse, by_bands(model)))) > 45
