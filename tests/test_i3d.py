"""The native I3D against golden values of the published network with weights that anyone can rebuild."""

import numpy as np
import pytest
import torch

from common.registry import MODELS_FOLDER
from common.weights import load_strict
from evaluations.extractor import StyleGANVI3D, VideoGPTI3D, square_pixels
from evaluations.frechet import frechet_distance
from evaluations.i3d import I3D, pad_same
from evaluations.weight_files import STYLEGANV_I3D


def hash01(n, index):
    """n values in [0, 1), a hash of their positions and of `index`."""
    x = (np.arange(n, dtype=np.uint64) + index * 0x9E3779B9) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> shift
        x = (x * factor) & 0xFFFFFFFF
    return (x ^ (x >> 16)) / 2**32


def hashed_state(shapes):
    """State dict (without batch counters) in which every value is a hash of its place."""
    state = {}
    for index, key in enumerate(sorted(shapes)):
        u = hash01(np.prod(shapes[key], dtype=int), index).reshape(shapes[key])
        if u.ndim == 5:
            value = (u - 0.5) * np.sqrt(24 / np.prod(u.shape[1:]))
        elif key.endswith("running_var"):
            value = 0.5 + u
        else:
            value = np.ones_like(u) if key.endswith("bn.weight") else (u - 0.5) * 0.2
        state[key] = torch.from_numpy(value).float()
    return state


@pytest.fixture(scope="module")
def hashed():
    network = I3D()
    keys = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = hashed_state({key: shape for key, shape in keys.items() if "num_batches" not in key})
    load_strict(network, state, "hashed", reinit=[key for key in keys if "num_batches" in key])
    return network.eval()


def test_size_and_names_are_the_published_ones(hashed):
    assert sum(parameter.numel() for parameter in hashed.parameters()) == 12_697_264
    state = hashed.state_dict()
    assert len(state) == 344 and sum("num_batches" not in key for key in state) == 287
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_4f.b2b.bn.running_mean"].shape == (128,)
    assert state["logits.conv3d.bias"].shape == (400,)


@pytest.mark.parametrize(("frames", "mean", "std", "norm"), [
    (10, 0.275984, 5.064328, 101.31035), (16, 0.381462, 6.149303, 123.06894),
    pytest.param(64, 0.434443, 7.253400, 145.14685, marks=pytest.mark.slow)])
def test_logits_are_the_golden_ones(hashed, frames, mean, std, norm):
    pixels_13THW = hash01(3 * frames * 224**2, 1000).reshape(1, 3, frames, 224, 224) * 2 - 1
    with torch.inference_mode():
        logits = hashed(torch.from_numpy(pixels_13THW).float().transpose(1, 2))
    found = [logits.mean().item(), logits.std().item(), logits.norm().item()]
    assert found == pytest.approx([mean, std, norm], rel=1e-4)
    if frames == 16:
        golden = [1.58756, 3.89415, 12.52722, 0.10618]
        np.testing.assert_allclose(logits[0, :4], golden, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 224, 224), (16, 225, 225), (16, 256, 256), (16, 224, 200)])
def test_clips_of_a_shape_that_would_come_out_wrong_are_refused(shape):
    with pytest.raises(ValueError, match="at least 9 frames of 224 x 224"):
        I3D()(torch.zeros(1, 3, *shape).transpose(1, 2))


def test_same_padding_puts_the_odd_pixel_behind():
    padded = pad_same(torch.ones(1, 1, 16, 224, 7), (7, 7, 3), (2, 2, 2))
    assert padded.shape[2:] == (16 + 5, 224 + 5, 7 + 2)
    assert (padded[0, 0, 2:18, 2:226, 1:8] == 1).all() and padded.sum() == 16 * 224 * 7


def test_weight_file_loads_strictly_and_features_are_the_logits(hashed, tmp_path):
    state = {key: value for key, value in hashed.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "i3d.pt")
    extractor = VideoGPTI3D(tmp_path / "i3d.pt", False, torch.device("cpu"))
    assert extractor.weights["file"] == "i3d.pt" and extractor.weights["verified"] is False
    own = extractor.network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    state.popitem()
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"--i3d-weights .*short.pt: 1 tensors do not fit"):
        VideoGPTI3D(tmp_path / "short.pt", False, torch.device("cpu"))


def test_frames_are_resized_one_by_one_and_the_middle_is_taken():
    frames = torch.zeros(2, 3, 3, 8, 16, dtype=torch.uint8)
    frames[:, 1, :, :, 4:12] = 255  # the middle square of the second frame
    pixels = square_pixels(frames, 8)
    assert pixels.shape == (2, 3, 3, 8, 8)
    assert (pixels[:, 1] == 1).all() and (pixels[:, [0, 2]] == -1).all()
    flat = torch.randint(0, 256, (1, 2, 3, 5, 5), dtype=torch.uint8)
    expected = torch.nn.functional.interpolate(flat[0].float(), (9, 9), mode="bilinear") / 127.5 - 1
    torch.testing.assert_close(square_pixels(flat, 9)[0], expected)


@pytest.mark.skipif(not (MODELS_FOLDER / STYLEGANV_I3D.name).exists(), reason="needs the published weights")
def test_published_weights_give_the_published_distance_of_black_and_white_clips():
    extractor = StyleGANVI3D(None, False, torch.device("cpu"))
    clips = torch.zeros(4, 30, 3, 64, 64, dtype=torch.uint8)
    clips[2:] = 255
    with torch.inference_mode():
        features = extractor.features(clips)[:, 0].numpy()
    assert frechet_distance(features[:2], features[2:]) == pytest.approx(151.25648, rel=1e-4)
