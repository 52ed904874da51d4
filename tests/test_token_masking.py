from pathlib import Path

import numpy as np
import pytest
import torch

from autoregressive.models.token_masking import MODES, SemanticAwareTokenMasking

GOLDENS = Path(__file__).parent / "goldens"


def graded_clip(batch: int, tokens: int, channels: int = 16, segment: int = 8) -> torch.Tensor:
    """Embeddings whose spread grows from segment to segment, with a class token in front."""
    noise_BLD = torch.randn(batch, 1 + tokens, channels, generator=torch.Generator().manual_seed(0))
    spread_N = torch.arange(tokens).div(segment, rounding_mode="floor").add(1).sqrt()
    noise_BLD[:, 1:] *= spread_N[:, None]
    return noise_BLD


def dropped(x_BLD: torch.Tensor) -> torch.Tensor:
    return (x_BLD == 0).all(-1)


def test_element_mode_is_the_released_masking_bit_for_bit():
    golden = np.load(GOLDENS / "sat_element.npz")
    torch.manual_seed(int(golden["torch_seed"]))
    y = SemanticAwareTokenMasking(float(golden["p"]), 8, "element")(torch.from_numpy(golden["x"]))
    assert np.array_equal(y.numpy().view(np.int32), golden["y"].view(np.int32))


def test_token_mode_masks_each_segment_at_the_rate_of_its_variance():
    x_BLD, repeats = graded_clip(2, 44), 4000  # five whole segments and one of four tokens
    segments = x_BLD[:, 1:].split(8, dim=1)
    variance_BS = torch.stack([part.var(dim=1, correction=0).mean(-1) for part in segments], dim=1)
    expected_BS = 0.5 * (1 - variance_BS / variance_BS.amax(1, keepdim=True))
    masking = SemanticAwareTokenMasking(0.5, 8, "token")
    generator = torch.Generator().manual_seed(1)
    rate_BL = sum(dropped(masking(x_BLD, generator)).float() for _ in range(repeats)) / repeats
    rate_BS = torch.stack([part.mean(1) for part in rate_BL[:, 1:].split(8, dim=1)], dim=1)
    assert (rate_BS - expected_BS).abs().max() < 5 * (0.25 / (4 * repeats)) ** 0.5
    assert expected_BS.max() > 0.3
    assert expected_BS.min() == 0


def test_token_mode_keeps_or_drops_whole_tokens_independently_per_sample():
    x_BLD = graded_clip(1, 64).expand(2, -1, -1)
    y_BLD = SemanticAwareTokenMasking(0.9)(x_BLD, torch.Generator().manual_seed(2))
    assert ((y_BLD == x_BLD).all(-1) | dropped(y_BLD)).all()
    assert not torch.equal(y_BLD[0], y_BLD[1])


def test_static_mode_masks_every_segment_alike():
    x_BLD, repeats, generator = graded_clip(2, 44), 2000, torch.Generator().manual_seed(4)
    masking = SemanticAwareTokenMasking(0.3, 8, "static")
    rate_N = sum(dropped(masking(x_BLD, generator))[:, 1:].float().mean(0) for _ in range(repeats)) / repeats
    assert (rate_N - 0.3).abs().max() < 5 * (0.21 / (2 * repeats)) ** 0.5


@pytest.mark.parametrize("mode", MODES)
def test_class_token_is_never_masked(mode):
    x_BLD = torch.ones(3, 17, 4)
    y_BLD = SemanticAwareTokenMasking(1.0, 8, mode)(x_BLD)
    assert (y_BLD[:, 0] == 1).all()
    assert (y_BLD[:, 1:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_constant_segments_are_masked_at_the_largest_rate(mode):
    x_BLD = torch.ones(200, 1 + 40, 8)
    y_BLD = SemanticAwareTokenMasking(0.3, 8, mode)(x_BLD, torch.Generator().manual_seed(3))
    assert y_BLD.isfinite().all()
    assert abs((y_BLD[:, 1:] == 0).float().mean() - 0.3) < 0.05


@pytest.mark.parametrize("mode", MODES)
def test_eval_mode_is_the_identity(mode):
    x_BLD = graded_clip(2, 16)
    assert SemanticAwareTokenMasking(0.9, 8, mode).eval()(x_BLD) is x_BLD


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_gradients_pass_only_where_tokens_do(mode, dtype):
    x_BLD = graded_clip(2, 16).to(dtype).requires_grad_()
    y_BLD = SemanticAwareTokenMasking(0.9, 8, mode)(x_BLD, torch.Generator().manual_seed(4))
    y_BLD.sum().backward()
    assert y_BLD.dtype == dtype
    assert torch.equal(x_BLD.grad, (y_BLD != 0).to(dtype))


@pytest.mark.parametrize(("mode", "tokens"), [
    ("token", 1), ("token", 7), ("token", 8), ("token", 9), ("element", 8), ("element", 9)])
def test_every_length_is_accepted(mode, tokens):
    y_BLD = SemanticAwareTokenMasking(0.5, 8, mode)(graded_clip(2, tokens))
    assert y_BLD.shape == (2, 1 + tokens, 16)
    assert y_BLD.isfinite().all()


@pytest.mark.parametrize(("arguments", "flag"), [
    ((1.5,), "--token-dropout-p"), ((-0.1,), "--token-dropout-p"), ((0.3, 1), "segment"),
    ((0.3, 8, "word"), "--tok-drop-method")])
def test_wrong_settings_are_named(arguments, flag):
    with pytest.raises(ValueError, match=flag):
        SemanticAwareTokenMasking(*arguments)
