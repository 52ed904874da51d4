"""Failed metrics are reported, give status 2 and leave the others; undefined scores are no failures."""

import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from eval_data import CLASSES, make_clips
from PIL import Image
from ranks import run_ranks
from test_comparison import config_for
from test_features import extraction
from tiny_extractor import TinyExtractor, write_torchscript

from common.command import run_command
from common.errors import InputError
from common.files import read_json
from dataset.video import write_frames
from evaluations import evaluate, fvd, pairs, temporal
from evaluations.clips import ClipSet
from evaluations.comparison import CompareConfig
from evaluations.failures import NoValue, attempt
from evaluations.frechet import frechet_distance
from evaluations.scores import inception_score, kernel_distance, neighbourhood_scores
from evaluations.uncertainty import extrapolate


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_torchscript(tmp_path_factory.mktemp("weights") / "i3d.pt")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("real") / "grids", (8, 8))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("generated") / "grids", (5, 6), seed=500, recordings=6, val=0)


def written(folder):
    """metrics.json, and the texts of metrics.txt and report.html."""
    return read_json(folder / "metrics.json"), *((folder / name).read_text()
                                                 for name in ("metrics.txt", "report.html"))


@pytest.mark.parametrize("few", [0, 1])
def test_scores_of_too_few_features_have_no_value(few):
    a, b = np.zeros((few, 4)), np.ones((9, 4))
    for score in (frechet_distance, kernel_distance, neighbourhood_scores):
        for sides in ((a, b), (b, a)):
            with pytest.raises(NoValue):
                score(*sides)
    with pytest.raises(NoValue):
        extrapolate(lambda i, j: 1.0, few, 9)
    if not few:
        with pytest.raises(NoValue):
            inception_score(a)


def test_one_clip_of_a_class_is_no_failure(real, tmp_path, weights, runtime):
    one = make_clips(tmp_path / "one", (1, 6), seed=500, recordings=6, val=0)
    fvd.run(config_for(real, one, tmp_path / "out", weights), runtime)
    results, text, page = written(tmp_path / "out")
    scores = results["sections"]["fvd"]["scores"]
    assert scores["fvd"]["per_class"]["red"]["value"] > 0 and scores["fvd"]["pooled"]["value"] > 0
    for name, reason in (("fvd", "a covariance needs more than 1 features, there is 1"),
                         ("fvd_inf", "too few clips to extrapolate from"),
                         ("kvd", "the kernel distance needs two features on each side"),
                         ("coverage", "neighbourhood scores need more than 3 features on each side")):
        record = scores[name]["per_class"]["blue"]
        assert record["value"] is None and record["reason"] == reason and "failed" not in record
        assert f"of blue: {reason}" in text and f"of blue: {reason}" in page
    assert "no value: precision, recall, density, coverage of blue:" in text and "failed" not in text
    assert "No value: precision, recall, density, coverage of blue:" in page and "Failed" not in page


@pytest.mark.parametrize("error", [InputError("it went <wrong>"), np.linalg.LinAlgError("it went <wrong>")])
def test_score_that_fails_is_said_everywhere(real, generated, tmp_path, weights, runtime, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("evaluations.measures.kernel_distance", fails)
    with pytest.raises(InputError, match="kvd of blue: it went <wrong>; kvd of red: it"):
        fvd.run(config_for(real, generated, tmp_path, weights), runtime)
    results, text, page = written(tmp_path)
    scores = results["sections"]["fvd"]["scores"]
    assert scores["kvd"]["per_class"]["blue"]["failed"] and scores["kvd"]["pooled"]["failed"]
    assert "failed: kvd of blue: it went <wrong>" in text and "macro: no value for blue, red" in text
    assert "Failed: kvd of blue: it went &lt;wrong&gt;" in page
    assert scores["fvd"]["macro"]["value"] > 0 and "memorisation" in results["sections"]


def test_number_that_is_not_finite_is_a_failure(real, generated, tmp_path, weights, runtime, monkeypatch):
    monkeypatch.setattr("evaluations.measures.kernel_distance", lambda *_: float("nan"))
    with pytest.raises(InputError, match="kvd of blue: the result is nan"):
        fvd.run(config_for(real, generated, tmp_path, weights), runtime)
    assert read_json(tmp_path / "metrics.json")["sections"]["fvd"]["scores"]["kvd"]["pooled"]["failed"]


def test_memorisation_that_fails_leaves_the_scores(real, generated, tmp_path, weights, runtime, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("evaluations.memorisation.write_sheet", full)
    with pytest.raises(InputError, match="memorisation: no space left"):
        fvd.run(config_for(real, generated, tmp_path, weights), runtime)
    results, text, page = written(tmp_path)
    assert results["sections"]["memorisation"] == {"failed": True, "reason": "no space left"}
    assert results["sections"]["fvd"]["scores"]["fvd"]["pooled"]["value"] > 0
    assert "failed: no space left" in text and "Failed: no space left" in page


class NoLPIPS:
    """Stands in for the network, which frames of 16 px never reach."""

    def __init__(self, *_):
        self.weights = {}


def test_metric_that_fails_ends_the_command_with_status_2_after_the_others(
    real, generated, tmp_path, weights, monkeypatch, capsys
):
    monkeypatch.setattr(pairs, "LPIPS", NoLPIPS)
    flags = ["--data-path", real, "--sample-path", generated, "--i3d-weights", weights, "--output", tmp_path,
             "--unverified-weights", "--device", "cpu", "--groups", 0, "--metrics", "lpips", "temporal"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        run_command(evaluate.EvaluateConfig, evaluate.run)
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert error.startswith(f"error: some metrics failed, all others are in {tmp_path}: lpips: --metrics")
    results, text, page = written(tmp_path)
    assert results["sections"]["temporal"]["scores"]["motion_ratio"]["pooled"]["value"] > 0
    assert results["sections"]["lpips"]["failed"]
    assert "lpips\n  failed: --metrics lpips: needs frames of at least 32 px" in text
    assert "Failed: --metrics lpips: needs frames of at least 32 px" in page


def test_fault_of_the_program_keeps_what_was_measured_before_it(
    real, generated, tmp_path, weights, runtime, monkeypatch
):
    monkeypatch.setattr(pairs, "measure_reconstruction", lambda *_: [][0])
    flags = vars(config_for(real, generated, tmp_path, weights, groups=0))
    with pytest.raises(IndexError):
        evaluate.run(evaluate.EvaluateConfig(**flags, metrics=("temporal", "reconstruction")), runtime)
    assert set(read_json(tmp_path / "metrics.json")["sections"]) == {"temporal"}


def test_every_process_learns_of_a_failure_on_one(real, generated, tmp_path):
    reconstructed = shutil.copytree(real, tmp_path / "reconstructed")
    bad = sorted(reconstructed.rglob("*.png"))[1]  # that the second process reads
    bad.write_bytes(b"no picture")
    config = evaluate.EvaluateConfig(
        data_path=real, sample_path=generated, reconstruction_path=reconstructed, device="cpu", groups=0,
        output=tmp_path / "out", metrics=("temporal", "reconstruction"))

    def work(runtime):
        with pytest.raises(InputError, match="some metrics failed") if runtime.is_main else nullcontext():
            evaluate.run(config, runtime)

    assert run_ranks(work, 2) == [0, 0]
    sections = read_json(tmp_path / "out" / "metrics.json")["sections"]
    assert set(sections) == {"temporal", "reconstruction"}
    assert all(section["failed"] and bad.name in section["reason"] for section in sections.values())


def test_attempt_lets_faults_of_the_program_through():
    assert attempt("x", lambda: {"x": 1}) == {"x": 1}
    for error in (NoValue("few"), InputError("bad"), OSError("full")):
        def fails(error=error):
            raise error
        assert attempt("x", fails) == {"x": {"failed": True, "reason": str(error)}}
    with pytest.raises(ZeroDivisionError):
        attempt("x", lambda: 1 / 0)


class Spoils(TinyExtractor):
    """Gives a number that is not finite for one clip, which it knows by its first pixel."""

    def __init__(self, frames, number):
        super().__init__()
        self.mark, self.number = frames[0, :, 0, 0].tolist(), number

    def features(self, frames_BT3HW):
        features_BRD = super().features(frames_BT3HW)
        for features_RD, frames_T3HW in zip(features_BRD, frames_BT3HW, strict=True):
            if frames_T3HW[0, :, 0, 0].tolist() == self.mark:
                features_RD[0, 2] = self.number
        return features_BRD


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_features_that_are_not_finite_name_their_clip(real, tmp_path, runtime, number, skip_bad):
    clips = ClipSet.read(real, "x")
    spoils = extraction(tmp_path, extractor=Spoils(clips.frames(clips.entries[5]), number), skip_bad=skip_bad)
    with pytest.raises(InputError, match=f"{clips.entries[5].name}: its tiny features are not finite"):
        spoils.run(clips, runtime, "test")
    made = extraction(tmp_path, skip_bad=skip_bad).run(clips, runtime, "test")  # nothing of it was kept
    assert len(made) == 16 and np.isfinite(made.vectors()).all()


def test_class_whose_clips_are_all_bad_has_no_value(real, generated, tmp_path, weights, runtime):
    samples = shutil.copytree(generated, tmp_path / "samples")
    for path in (samples / "red").iterdir():
        path.write_bytes(b"no picture")
    config = config_for(real, samples, tmp_path / "out", weights, skip_bad=True)
    flags = {**vars(config), "metrics": ("fvd", "temporal")}
    evaluate.run(evaluate.EvaluateConfig(**flags), runtime)
    sections, text, page = written(tmp_path / "out")
    for section, name in (("fvd", "fvd"), ("temporal", "motion_distance")):
        entry = sections["sections"][section]["scores"][name]
        assert entry["per_class"]["red"]["reason"] == "there are no clips on one side"
        assert entry["pooled"]["n_generated"] == 5 and entry["pooled"]["value"] > 0
    assert "of red: there are no clips" in text and "of red: there are no clips" in page


def test_still_real_clips_have_no_share_of_their_motion(generated, tmp_path, runtime):
    real = make_clips(tmp_path / "real", (4, 4))
    for path in real.rglob("*.png"):
        picture = np.array(Image.open(path))
        Image.fromarray(np.tile(picture[:16, :16], (4, 4, 1))).save(path)
    comparison = CompareConfig(data_path=real, sample_path=generated, device="cpu",
                               output=tmp_path / "out").open(runtime)
    scores = temporal.measure(comparison, runtime)["temporal"]["scores"]
    assert scores["motion_ratio"]["pooled"]["reason"] == "the real clips have no motion"
    assert scores["frozen"]["pooled"]["reason"] == "most real clips do not move"
    assert scores["motion_distance"]["pooled"]["value"] > 0
    json.dumps(scores, allow_nan=False)


def reconstructions(real, folder, change):
    """The clips of a prepared data set as frame folders on both sides; `change` spoils the second one's."""
    clips = ClipSet.read(real, "x")
    for side in ("real", "reconstructed"):
        for i, entry in enumerate(clips.entries):
            frames_THWC = clips.frames(entry).transpose(0, 2, 3, 1)
            spoiled = side == "reconstructed" and i == 1
            write_frames(folder / side / entry.name.removesuffix(".png"),
                         change(frames_THWC) if spoiled else frames_THWC)
    return CompareConfig(data_path=folder / "real", sample_path=real, reference="all", device="cpu",
                         reconstruction_path=folder / "reconstructed", output=folder / "out")


@pytest.mark.parametrize(("change", "message"), [
    (lambda frames: frames[:9], "16 frames of 16 x 16 px and 9 frames of 16 x 16 px"),
    (lambda frames: frames[:, :8], "16 frames of 16 x 16 px and 16 frames of 8 x 16 px")])
def test_reconstructions_of_another_length_or_size_are_named_or_skipped(
    real, tmp_path, runtime, change, message
):
    config = reconstructions(real, tmp_path, change)
    with pytest.raises(InputError, match=rf"reconstructed/blue/\w+: {message}"):
        pairs.measure_reconstruction(config.open(runtime), runtime)
    skipping = replace(config, skip_bad=True).open(runtime)
    section = pairs.measure_reconstruction(skipping, runtime)["reconstruction"]
    assert [message in reason for reason in section["bad_clips"]["reconstructed"]] == [True]
    assert [section["per_class"][name]["psnr"]["pairs"] for name in CLASSES] == [7, 8]


def test_pairs_with_a_number_that_is_not_finite_are_named(real, tmp_path, runtime):
    clips = ClipSet.read(real, "x")
    chosen = {"red": pairs.disjoint_pairs(clips, clips.entries)}
    with pytest.raises(InputError, match=r"LPIPS of \w+/rec\d_\d+.png and \w+/rec\d_\d+.png is nan"):
        pairs.over_pairs(lambda a, b: float("nan"), chosen, runtime, "LPIPS")
