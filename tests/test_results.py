"""Results as files: class names of any kind, sections of earlier commands, warnings."""

import base64
from dataclasses import replace

import numpy as np
import pytest
from eval_data import CLASSES, make_clips
from PIL import Image
from test_comparison import config_for
from test_failed_metrics import written
from tiny_extractor import write_torchscript

from common.errors import InputError
from evaluations import evaluate, fvd
from evaluations.comparison import CompareConfig


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_torchscript(tmp_path_factory.mktemp("weights") / "i3d.pt")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("real") / "grids", (8, 8))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("generated") / "grids", (5, 6), seed=500, recordings=6, val=0)


def test_classes_may_have_any_name_on_page_and_table(tmp_path, weights, runtime, monkeypatch, charts):
    names = ("macro", r"pooled $x$ <b>& 息肉")
    monkeypatch.setattr("eval_data.CLASSES", names)
    real = make_clips(tmp_path / "real", (8, 8))
    generated = make_clips(tmp_path / "generated", (5, 6), seed=500, recordings=6, val=0)
    results = fvd.run(config_for(real, generated, tmp_path / "out", weights, groups=0), runtime)
    for entry in results["sections"]["fvd"]["scores"].values():
        assert set(entry["per_class"]) == set(names)
        assert (entry["per_class"]["macro"]["n_generated"], entry["pooled"]["n_generated"]) == (5, 11)
    _, text, page = written(tmp_path / "out")
    assert text.count("fvd_inf    macro ") == 2 and text.count(names[1]) >= 7
    assert "<b>&" not in page.replace("<b>held-out</b>", "") and r"pooled $x$ &lt;b&gt;&amp; 息肉" in page
    chart = base64.b64decode(page.partition("svg+xml;base64,")[2].partition('"')[0]).decode()
    assert chart.count(r">pooled $x$ &lt;b&gt;&amp; 息肉</text>") == 7


def test_class_that_is_called_pooled_is_not_taken_for_all(tmp_path, weights, runtime, monkeypatch):
    monkeypatch.setattr("eval_data.CLASSES", ("pooled", "red"))
    real = make_clips(tmp_path / "real", (8, 8))
    results = fvd.run(config_for(real, real, tmp_path / "out", weights, groups=0), runtime)
    entry = results["sections"]["fvd"]["scores"]["fvd"]
    assert (entry["per_class"]["pooled"]["n_generated"], entry["pooled"]["n_generated"]) == (8, 16)


def test_damaged_results_of_an_earlier_command_are_overwritten(
    real, generated, tmp_path, weights, runtime, capsys
):
    config = config_for(real, generated, tmp_path, weights, groups=0)
    first = fvd.run(config, runtime)
    (tmp_path / "metrics.json").write_bytes(b"{\0")
    assert fvd.run(config, runtime) == first
    assert "metrics.json: not valid JSON" in capsys.readouterr().out


def test_folder_of_grids_may_hold_its_own_evaluation(tmp_path, runtime):
    samples = tmp_path / "samples"
    for name in CLASSES:  # the released layout, without a dataset.json; its frames are taken for 64 px
        (samples / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (256, 256), (60 * i, 90, 9)).save(samples / name / f"{i}.png")
    config = CompareConfig(data_path=samples, sample_path=samples, reference="all", device="cpu", groups=0)
    flags = {**vars(config), "metrics": ("temporal",)}
    first, again = (evaluate.run(evaluate.EvaluateConfig(**flags), runtime) for _ in range(2))
    assert first == again
    assert set(again["sections"]["temporal"]["scores"]["frozen"]["per_class"]) == set(CLASSES)


def test_results_of_overwritten_clips_are_dropped(tmp_path, weights, runtime):
    def fill(seed):
        for i in range(4):
            clip = np.random.RandomState(seed + i).randint(0, 255, (16, 16, 16, 3)).astype(np.uint8)
            np.savez(tmp_path / "samples" / "red" / f"{i}_0.npz", clip)  # always as many bytes

    (tmp_path / "samples" / "red").mkdir(parents=True)
    flags = vars(config_for(tmp_path / "samples", tmp_path / "samples", tmp_path / "out", weights, groups=0,
                            reference="all"))
    fill(0)
    evaluate.run(evaluate.EvaluateConfig(**flags, metrics=("temporal",)), runtime)
    both = evaluate.run(evaluate.EvaluateConfig(**flags, metrics=("fvd",)), runtime)
    assert set(both["sections"]) == {"temporal", "fvd", "memorisation"}
    fill(10)
    anew = evaluate.run(evaluate.EvaluateConfig(**flags, metrics=("temporal",)), runtime)
    assert set(anew["sections"]) == {"temporal"}


def test_classes_without_generated_clips_give_a_warning(real, tmp_path, weights, runtime):
    samples = make_clips(tmp_path / "samples", (0, 6), seed=500, recordings=6, val=0)
    config = config_for(real, samples, tmp_path / "out", weights, groups=0)
    assert "nothing was generated of blue" in fvd.run(config, runtime)["warnings"][-1]
    assert not fvd.run(replace(config, classes=("red", "red")), runtime)["warnings"]


def test_one_group_cannot_be_left_out(real, generated, tmp_path, weights):
    with pytest.raises(InputError, match="--groups 1"):
        config_for(real, generated, tmp_path, weights, groups=1)
