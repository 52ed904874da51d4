"""Frame metrics, motion, nearest neighbours and LPIPS, with small or random networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from eval_data import CLASSES, make_clips
from scipy.stats import wasserstein_distance
from test_features import extraction
from tiny_extractor import TinyExtractor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from common.files import read_json
from evaluations import fid, temporal
from evaluations.clips import ClipSet, Entry
from evaluations.comparison import CompareConfig
from evaluations.extractor import Inception
from evaluations.features import Features
from evaluations.fid import FIDConfig
from evaluations.frechet import frechet_distance
from evaluations.memorisation import class_report, nearest
from evaluations.pairs import LPIPS, disjoint_pairs, measure_lpips
from evaluations.scores import inception_score, kernel_distance
from evaluations.temporal import FrameDifferences
from evaluations.weight_files import ALEXNET


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, runtime):
    folder = tmp_path_factory.mktemp("clips")
    real = make_clips(folder / "real", (8, 8))
    generated = make_clips(folder / "generated", (6, 5), seed=500, recordings=6, val=0)
    return CompareConfig(data_path=real, sample_path=generated, output=folder / "out", device="cpu",
                         groups=3).open(runtime)


def test_frame_metrics_are_those_of_all_frames(comparison, runtime, monkeypatch):
    monkeypatch.setattr(fid, "POOLED", 4)  # of six numbers: four features, two logits
    scores = fid.measure(comparison, TinyExtractor(per_frame=True), runtime)["fid"]["scores"]
    real, generated, _ = comparison.features(TinyExtractor(per_frame=True), runtime)
    held_out = real.take([i for i, entry in enumerate(real.entries) if entry.split == "val"])
    sides = held_out.vectors()[:, :4], generated.vectors()[:, :4]
    pooled = {name: entry["pooled"] for name, entry in scores.items()}
    assert pooled["fid"]["value"] == pytest.approx(frechet_distance(*sides), rel=1e-9)
    assert pooled["kid"]["value"] == pytest.approx(kernel_distance(*sides))
    assert pooled["is"]["value"] == pytest.approx(inception_score(generated.vectors()[:, 4:]))
    assert set(scores) == {"fid", "kid", "precision", "recall", "density", "coverage", "is"}
    assert all(pooled[name]["stderr"] >= 0 and pooled[name]["floor"]["n"] == 8 for name in scores)


def random_inception(path):
    """torch-fidelity's network with random weights, which are also written to `path`."""
    torch.manual_seed(0)
    module = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch:  # its constructor only takes weights from somewhere
        module_name = FeatureExtractorInceptionV3.__module__
        patch.setattr(f"{module_name}.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        module.__init__("inception", ["2048", "logits_unbiased"])
    torch.save(module.state_dict(), path)
    return module


def test_inception_features_are_those_of_torch_fidelity(tmp_path):
    path = tmp_path / "inception.pth"
    module = random_inception(path)
    extractor = Inception(path, True, torch.device("cpu"))
    frames = torch.randint(0, 256, (1, 2, 3, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        features = extractor.features(frames)
        expected = torch.cat(module(frames[0]), 1)
    assert features.shape == (1, 2, 3056)
    torch.testing.assert_close(features[0], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"sha256 .* is not that of pt_inception"):
        Inception(path, False, torch.device("cpu"))


def test_stopped_fid_command_keeps_the_features_it_has(comparison, tmp_path, runtime, monkeypatch):
    class Stops(TinyExtractor):
        def __init__(self, *_):
            super().__init__(per_frame=True)

        def features(self, frames_BT3HW):
            if len(self.batches) == 16:  # all real clips
                raise KeyboardInterrupt
            return super().features(frames_BT3HW)

    class Continues(TinyExtractor):
        def __init__(self, *_):
            super().__init__(per_frame=True)

    config = FIDConfig(data_path=comparison.real.folder, sample_path=comparison.generated.folder,
                       output=tmp_path, groups=0, device="cpu")
    monkeypatch.setattr(fid, "POOLED", 4)
    monkeypatch.setattr(fid, "Inception", Stops)
    with pytest.raises(KeyboardInterrupt):
        fid.run(config, runtime)
    assert not (tmp_path / "metrics.json").exists()
    [features] = tmp_path.rglob("features.json")
    stamp = features.stat().st_mtime_ns
    monkeypatch.setattr(fid, "Inception", Continues)
    fid.run(config, runtime)
    assert features.stat().st_mtime_ns == stamp
    scores = read_json(tmp_path / "metrics.json")["sections"]["fid"]["scores"]
    assert scores["fid"]["pooled"]["value"] > 0 and (tmp_path / "report.html").exists()


def test_motion_statistics_of_known_clips():
    frames = np.zeros((3, 4, 3, 2, 2), np.uint8)
    frames[1, :] = np.array([0, 10, 20, 30])[:, None, None, None]  # grows evenly
    frames[2, 2] = 40  # one bright frame
    values = FrameDifferences().features(torch.from_numpy(frames))[:, 0]
    np.testing.assert_allclose(
        values, [[0, 0, 0, 0, 0], [10, 10, 0, 10, 0], [80 / 3, 40, 60, 80 / 3, 20]], rtol=1e-6)


def test_frozen_clips_are_told_from_moving_ones(comparison, runtime, tmp_path, monkeypatch):
    whole = temporal.measure(comparison, runtime)["temporal"]["scores"]
    still = replace(comparison, cache=tmp_path, real=replace(comparison.real))
    monkeypatch.setattr(ClipSet, "frames", lambda self, entry, read=ClipSet.frames: (
        read(self, entry) if self is still.real else np.repeat(read(self, entry)[:1], 16, 0)))
    frozen = temporal.measure(still, runtime)["temporal"]["scores"]
    assert whole["frozen"]["pooled"]["value"] == 0 and frozen["frozen"]["pooled"]["value"] == 1
    assert frozen["motion_ratio"]["pooled"]["value"] == 0 and whole["motion_ratio"]["macro"]["value"] > 0.5
    real = extraction(tmp_path, extractor=FrameDifferences()).run(still.real, runtime, "test")
    held_out = [i for i, entry in enumerate(real.entries) if entry.split == "val"]
    expected = wasserstein_distance(real.take(held_out).vectors()[:, 0], np.zeros(11))
    assert frozen["motion_distance"]["pooled"]["value"] == pytest.approx(expected)


def features_of(names, values):
    clips = [Entry(name, "red", name[0], "train") for name in names]
    stored_NRD = np.asarray(values, np.float32)[:, None]
    return Features(tuple(clips), stored_NRD, np.arange(len(clips)), {})


def test_nearest_leaves_out_own_recording_and_the_clip_itself(monkeypatch):
    monkeypatch.setattr("evaluations.scores.CHUNK", 2)
    clips = features_of(["a0", "a1", "b0"], [[0, 0], [3, 4], [0, 12]])
    assert nearest(clips, clips)[0].tolist() == [0, 0, 0]
    distances, places = nearest(clips, clips, except_same="name")
    np.testing.assert_allclose(distances, [5, 5, np.sqrt(73)], rtol=1e-6)
    assert places.tolist() == [1, 0, 1]
    assert nearest(clips, clips, except_same="recording")[1].tolist() == [2, 2, 1]
    assert np.isinf(nearest(clips.take([0, 1]), clips.take([0, 1]), except_same="recording")[0]).all()


@pytest.mark.parametrize(("names", "splits", "yardstick"), [
    (["a0", "b0", "c0"], ["train", "train", "val"], "held-out clips"),
    (["a0", "b0", "a1"], ["train", "train", "val"], "training clips, other recordings"),
    (["a0", "a1", "a2"], ["train", "train", "val"], "held-out clips of the same recording"),
    (["a0", "a1", "a2"], ["train"] * 3, None)])
def test_yardstick_of_copies_is_other_recordings_if_there_are_any(names, splits, yardstick):
    real = features_of(names, [[0, 0], [3, 4], [0, 12]])
    real = replace(real, entries=tuple(replace(entry, split=split)
                                       for entry, split in zip(real.entries, splits, strict=True)))
    report, _ = class_report(real, features_of(["g0"], [[1, 1]]))
    assert report.get("yardstick") == yardstick and ("reason" in report) == (yardstick is None)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / ALEXNET.name
    torch.save(torchvision.models.alexnet().state_dict(), path)
    return LPIPS(path, True, torch.device("cpu"))


def test_lpips_is_zero_on_itself_symmetric_and_grows_with_noise(lpips):
    random = np.random.RandomState(0)
    clip = random.randint(60, 200, (5, 3, 64, 64)).astype(np.uint8)
    near, far = ((clip + random.randint(0, size, clip.shape)).astype(np.uint8) for size in (5, 50))
    assert lpips(clip, clip) == 0 and lpips.weights["verified"] is False
    assert 0 < lpips(clip, near) < lpips(clip, far)
    assert lpips(clip, far) == pytest.approx(lpips(far, clip), rel=1e-5)


def test_lpips_compares_generated_pairs_and_nearest_training_clips(comparison, runtime):
    def mean_difference(a, b):  # stands in for the network, which needs larger pictures
        return float(np.abs(a.astype(float) - b).mean())

    mean_difference.weights = {}
    features = comparison.features(TinyExtractor(), runtime)[:2]
    with pytest.raises(ValueError, match="--metrics lpips: needs frames of at least 32 px, these have 16"):
        measure_lpips(comparison, mean_difference, *features, runtime)
    features = [replace(side, facts={**side.facts, "height": 64, "width": 64}) for side in features]
    section = measure_lpips(comparison, mean_difference, *features, runtime)["lpips"]
    assert set(section["per_class"]) == set(CLASSES)
    blue = section["per_class"]["blue"]
    assert {kind: record["pairs"] for kind, record in blue.items()} == {
        "diversity": 3, "real_diversity": 4, "to_nearest": 6, "real_to_nearest": 4}
    pairs = disjoint_pairs(comparison.generated, features[1].of_class("blue").entries)
    values = [mean_difference(a.frames(x), b.frames(y)) for a, x, b, y in pairs]
    assert blue["diversity"]["value"] == pytest.approx(np.mean(values))
    assert len({entry.name for _, x, _, y in pairs for entry in (x, y)}) == 6
