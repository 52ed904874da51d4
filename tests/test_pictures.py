"""Tokens become the same pictures one by one and several at once."""

import pytest
import torch

import autoregressive.sample.pictures as pictures
from tokenizer.vq_model import VQConfig, VQModel

CODES = torch.randint(64, (2, 10, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VQModel(VQConfig(32, (1, 1, 2), 32, 64, num_res_blocks=1)).requires_grad_(False).eval()


def test_pictures_are_the_same_one_by_one_and_several_at_once(model, monkeypatch):
    apart = pictures.pictures_of(CODES, model)
    monkeypatch.setattr(pictures, "CELLS", {"cpu": 2 * CODES[0].numel()})
    for one, other in zip(apart, pictures.pictures_of(CODES, model), strict=True):
        assert one.shape == (3, 40, 28) and torch.equal(one, other)
