"""Sharpness by octave, the two-sample test and flicker against closed forms; Lite0 features."""

import math

import numpy as np
import pytest
import torch
from eval_data import make_clips
from scipy.stats import norm

from common.networks import Lite0
from common.weights import load_checkpoint
from evaluations import evaluate, extractor
from evaluations.failures import NoValue
from evaluations.sharpness import octave_energy, octaves_of
from evaluations.temporal import FrameDifferences
from evaluations.two_sample import cross_validated_accuracy

SIDE, OCTAVES = 128, 4
LOW, HIGH = ([2.0 ** -(k + n) for k in range(OCTAVES)] for n in (2, 1))  # cycles per pixel


@pytest.fixture(scope="module")
def noise():
    return 10 * torch.randn(24, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_octaves_of_white_noise_hold_their_part_of_the_plane_of_frequencies(noise):
    found = octave_energy(noise, OCTAVES).mean(0)
    wanted = [100 * math.pi * (high**2 - low**2) for high, low in zip(HIGH, LOW, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=0.06)


def test_octaves_of_blurred_noise_are_those_of_the_blur(noise):
    sigma = 1.0
    squared = torch.fft.fftfreq(SIDE)[:, None] ** 2 + torch.fft.fftfreq(SIDE) ** 2
    blurred = torch.fft.ifft2(torch.fft.fft2(noise) * torch.exp(-2 * (math.pi * sigma) ** 2 * squared)).real
    found = octave_energy(blurred, OCTAVES).mean(0) / octave_energy(noise, OCTAVES).mean(0)
    steep = (2 * math.pi * sigma) ** 2
    wanted = [(math.exp(-steep * low**2) - math.exp(-steep * high**2)) / (steep * (high**2 - low**2))
              for high, low in zip(HIGH, LOW, strict=True)]
    np.testing.assert_allclose(found[1:], wanted[1:], rtol=0.03)
    assert found[0] == pytest.approx(wanted[0], rel=0.2) and found[0] < 0.1


def test_octaves_fit_the_frame():
    assert [octaves_of(side, 2 * side) for side in (8, 16, 64, 128, 512)] == [1, 1, 3, 4, 5]
    wave = torch.cos(2 * math.pi * torch.arange(64) / 6).expand(1, 64, 64)  # 6 pixels: the second octave
    energy = octave_energy(wave, octaves_of(64, 64))[0]
    assert energy[1] > 0.95 * energy.sum() and energy[1] == pytest.approx(0.5, rel=0.05)


def test_two_samples_of_one_distribution_are_told_apart_by_chance_alone():
    random, groups = np.random.RandomState(0), [str(i) for i in range(100)]
    found = [cross_validated_accuracy(*random.randn(2, 100, dimensions), groups, [f"s{i}" for i in groups])
             for dimensions in (3, 3, 3, 500, 500, 500)]
    assert np.mean(found) == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(1200))


def test_shifted_samples_are_told_apart_as_often_as_they_can_be():
    random, groups = np.random.RandomState(0), [str(i) for i in range(1000)]
    a, b = random.randn(2, 1000, 3)
    found = cross_validated_accuracy(a, b + np.array([1.5, 0, 0]), groups, [f"s{i}" for i in groups])
    assert found == pytest.approx(norm.cdf(0.75), abs=0.03)


def test_what_is_peculiar_to_a_recording_tells_no_sides_apart():
    random, groups = np.random.RandomState(0), [f"recording {i // 10}" for i in range(100)]
    together = []
    for _ in range(6):
        ours, theirs = (np.repeat(random.randn(10, 200), 10, 0) for _ in range(2))
        clips = [f"clip {i}" for i in range(200)]  # another clip of its recording gives a clip away
        assert cross_validated_accuracy(ours, theirs, clips[:100], clips[100:]) > 0.95
        together.append(cross_validated_accuracy(ours, theirs, groups, [f"their {name}" for name in groups]))
    assert np.mean(together) == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(6 * 20))
    assert cross_validated_accuracy(ours, ours, groups, groups) == pytest.approx(0.5)
    with pytest.raises(NoValue, match="10 clips of two recordings"):
        cross_validated_accuracy(ours, theirs, groups, ["one"] * 100)


def test_reversal_is_the_flicker_of_what_stands_still_and_no_motion():
    frames = np.zeros((2, 6, 3, 2, 2), np.uint8)
    frames[0, 1::2] = 7  # to and fro
    frames[1] = np.arange(0, 60, 10)[:, None, None, None]  # grows
    assert FrameDifferences().features(torch.from_numpy(frames))[:, 0, 4].tolist() == [7, 0]


@pytest.fixture(scope="module")
def lite0():
    return Lite0()


def test_lite0_weights_are_those_of_the_layers_that_the_file_names(lite0):
    kinds = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}
    ours, theirs = lite0.network.state_dict(), load_checkpoint(lite0.path)
    assert len(ours) == len(theirs) - 2  # without the classifier
    for (own, value), (name, original) in zip(ours.items(), theirs.items(), strict=False):
        table = kinds if "_blocks" not in name else first if "_blocks.0." in name else inner
        assert own.split(".")[-2:] == [table[name.split(".")[-2]], name.split(".")[-1]]
        assert torch.equal(value, original)


def test_lite0_sees_edges_of_the_whole_picture(lite0):
    picture = torch.rand(2, 3, 64, 96) * 2 - 1
    assert [tuple(stage.shape[1:]) for stage in lite0.stages(picture)] == [
        (16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]
    features = lite0(picture)
    assert features.shape == (2, 1280) and not any(p.requires_grad for p in lite0.parameters())
    torch.testing.assert_close(lite0(picture[1:]), features[1:], rtol=1e-3, atol=1e-4)


def test_evaluation_without_any_downloaded_weights(tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(extractor, "LITE0_SIDE", 32)
    real = make_clips(tmp_path / "real", (22, 20))
    generated = make_clips(tmp_path / "generated", (12, 11), seed=500, recordings=6, val=0)
    sections = evaluate.run(evaluate.EvaluateConfig(
        data_path=real, sample_path=generated, output=tmp_path / "out", device="cpu", groups=2,
        metrics=("temporal", "sharpness", "lite0")), runtime)["sections"]
    assert set(sections) == {"temporal", "sharpness", "lite0", "memorisation-lite0"}
    assert set(sections["sharpness"]["scores"]) == {"energy_2_4px", "c2st"}
    scores = sections["lite0"]["scores"]
    assert scores["frechet_lite0"]["pooled"]["value"] > 0 and sections["lite0"]["weights"]["verified"]
    for section in ("sharpness", "lite0", "temporal"):
        assert sections[section]["scores"]["c2st"]["pooled"]["floor"]["n"] >= 10
    assert (tmp_path / "out" / "memorisation-lite0.png").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "memorisation-lite0" in page and "energy_2_4px" in page
