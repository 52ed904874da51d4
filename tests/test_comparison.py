"""Whole comparisons: protocols against brute force, processes, planted copies, floors, error messages."""

import json
import shutil
import subprocess
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from eval_data import CLASSES, SIDE, SIZE, make_clips, moving_blob
from PIL import Image
from ranks import run_ranks
from tiny_extractor import TinyTorchScript, write_torchscript

from common.files import read_json, write_json
from evaluations import evaluate, fvd
from evaluations.page import write_page
from evaluations.protocols import PROTOCOLS


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_torchscript(tmp_path_factory.mktemp("weights") / "i3d.pt")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("real") / "grids", (24, 20))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("generated") / "grids", (7, 9), seed=500, recordings=9, val=0)


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """To draw the page takes longer than to compare so few clips; the one of `held_out` is drawn before."""
    monkeypatch.setattr("evaluations.results.write_page", lambda *_: None)


def config_for(real, generated, output, weights, **flags):
    return fvd.FVDConfig(data_path=real, sample_path=generated, output=output, i3d_weights=weights,
                         unverified_weights=True, device="cpu", **flags)


def plain_features(clips):
    """Features of uint8 (T, 3, H, W) clips, one by one, without anything of the evaluation."""
    network = TinyTorchScript()
    with torch.no_grad():
        inputs = (torch.from_numpy(clip.transpose(1, 0, 2, 3).copy())[None].float() for clip in clips)
        return np.concatenate([network(x, True, True, True).numpy() for x in inputs]).astype(np.float64)


def plain_frechet(a, b, ddof):
    """The textbook formula with a matrix square root."""
    covariances = [np.cov(side, rowvar=False, ddof=ddof) for side in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def read_grid(path):
    picture = np.array(Image.open(path))
    rows = [picture[r * SIZE : (r + 1) * SIZE] for r in range(SIDE)]
    frames_THWC = np.stack([row[:, c * SIZE : (c + 1) * SIZE] for row in rows for c in range(SIDE)])
    return frames_THWC.transpose(0, 3, 1, 2)


def test_endogen_protocol_is_the_released_script(real, generated, tmp_path, weights, runtime):
    config = config_for(real, generated, tmp_path, weights, protocol="endogen", groups=0)
    results = fvd.run(config, runtime)
    scores = results["sections"]["fvd"]["scores"]["fvd"]
    clips = read_json(real / "dataset.json")["clips"]
    expected = []
    for label, name in enumerate(CLASSES):
        own = [clip for clip in clips if clip["label"] == label and clip["split"] == "train"]
        train = sorted(clip["name"] for clip in own)
        made = sorted((generated / name).iterdir())
        n = min(len(train), len(made))
        files = [real / path for path in train[:n]], made[:n]
        sides = [plain_features(map(read_grid, side)) for side in files]
        expected.append(plain_frechet(*sides, ddof=1))
        record = scores["per_class"][name]
        assert record["value"] == pytest.approx(expected[-1], rel=1e-4)
        assert (record["n_real"], record["n_generated"]) == (n, n)
    assert scores["macro"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert "the model was trained on" in results["warnings"][0]


def write_long_clips(folder, count, seed, frames=20):
    (folder / "red").mkdir(parents=True)
    for index in range(count):
        clip = np.concatenate([moving_blob(seed + index, 1)] * 2)[:frames]
        np.savez(folder / "red" / f"clip{index:02d}.npz", clip.transpose(0, 2, 3, 1))
    return folder


def test_styleganv_protocol_is_fvd2048_16f(tmp_path, weights, runtime, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "stylegan-v", replace(PROTOCOLS["stylegan-v"], most_clips=6))
    real, generated = (write_long_clips(tmp_path / name, count, seed)
                       for name, count, seed in (("real", 9, 0), ("generated", 5, 700)))
    config = config_for(real, generated, tmp_path / "out", weights, protocol="stylegan-v", groups=0)
    results = fvd.run(config, runtime)
    comparison, sides = config.open(runtime), []
    for clips in (comparison.real, comparison.generated):
        windows = [comparison.protocol.window(entry, 20) for entry in clips.entries]
        assert all(window.stop - window.start == 16 and 0 <= window.start <= 4 for window in windows)
        assert len({window.start for window in windows}) > 1
        chosen = sorted(np.random.RandomState(0).permutation(len(windows))[:6])
        arrays = [np.load(clips.folder / clips.entries[i].name)["arr_0"][windows[i]] for i in chosen]
        sides.append(plain_features([frames_THWC.transpose(0, 3, 1, 2) for frames_THWC in arrays]))
    record = results["sections"]["fvd"]["scores"]["fvd"]["pooled"]
    assert (record["n_real"], record["n_generated"]) == (6, 5)
    assert record["value"] == pytest.approx(plain_frechet(*sides, ddof=0), rel=1e-4)
    short = write_long_clips(tmp_path / "short", 3, 0, frames=15)
    with pytest.raises(ValueError, match="--protocol stylegan-v: needs 16 frames, clips have 15"):
        fvd.run(config_for(short, short, tmp_path / "out", weights, protocol="stylegan-v"), runtime)


@pytest.fixture(scope="module")
def held_out(real, generated, tmp_path_factory, weights, runtime):
    """(results, output folder) of the default protocol."""
    folder = tmp_path_factory.mktemp("held_out")
    return fvd.run(config_for(real, generated, folder, weights), runtime), folder


def test_held_out_protocol_compares_with_recordings_that_were_not_trained_on(real, generated, held_out):
    scores = held_out[0]["sections"]["fvd"]["scores"]
    clips = [clip for clip in read_json(real / "dataset.json")["clips"] if clip["split"] == "val"]
    sides = [plain_features([read_grid(real / clip["name"]) for clip in clips]),
             plain_features([read_grid(path) for path in sorted(generated.rglob("*.png"))])]
    pooled = scores["fvd"]["pooled"]
    assert pooled["value"] == pytest.approx(plain_frechet(*sides, ddof=1), rel=1e-4)
    assert pooled["stderr"] > 0 and (pooled["n_real"], pooled["n_generated"]) == (22, 16)
    floor = pooled["floor"]
    assert floor["n"] == 16 and floor["split"] == "recording" and floor["value"] < floor["same_n"]
    assert set(scores) == {"fvd", "fvd_inf", "kvd", "precision", "recall", "density", "coverage"}
    for entry in scores.values():
        assert set(entry["per_class"]) == set(CLASSES)
        assert entry["macro"]["value"] == pytest.approx(
            np.mean([record["value"] for record in entry["per_class"].values()]))


def test_clips_of_the_real_distribution_score_as_low_as_the_floor(real, tmp_path, weights, runtime):
    more = make_clips(tmp_path / "more", (24, 20), seed=300)
    results = fvd.run(config_for(real, more, tmp_path / "out", weights), runtime)
    pooled = results["sections"]["fvd"]["scores"]["fvd"]["pooled"]
    assert pooled["value"] < pooled["floor"]["value"] + 3 * pooled["stderr"]


def test_reconstructions_give_a_floor_and_their_quality(real, generated, tmp_path, weights, runtime):
    reconstructed = tmp_path / "reconstructed"
    shutil.copytree(real, reconstructed)
    for path in reconstructed.rglob("*.png"):
        picture = np.array(Image.open(path)).astype(int)
        Image.fromarray((picture + 10).clip(0, 255).astype(np.uint8)).save(path)
    flags = vars(config_for(real, generated, tmp_path / "out", weights, reconstruction_path=reconstructed))
    config = evaluate.EvaluateConfig(**flags, metrics=("fvd", "temporal", "reconstruction"))
    sections = evaluate.run(config, runtime)["sections"]
    shifted = 3 * 16 * (10 / 127.5) ** 2  # what a constant does to the mean of these features, before mixing
    tokenizer = sections["fvd"]["scores"]["fvd"]["pooled"]["tokenizer"]
    assert tokenizer["n"] == 22 and 0 < tokenizer["value"] < 100 * shifted
    assert sections["temporal"]["scores"]["motion_distance"]["pooled"]["tokenizer"]["value"] < 0.5
    for record in sections["reconstruction"]["per_class"].values():
        assert record["psnr"]["value"] == pytest.approx(20 * np.log10(25.5), abs=0.3)
        assert 0.9 < record["ssim"]["value"] < 1


def test_planted_copies_of_training_clips_are_found(real, generated, tmp_path, weights, runtime):
    samples = tmp_path / "samples"
    shutil.copytree(generated, samples)
    clips = read_json(real / "dataset.json")["clips"]
    copied = sorted(clip["name"] for clip in clips if clip["split"] == "train")
    targets = sorted((samples / "blue").iterdir())
    shutil.copy(real / copied[3], targets[2])
    shutil.copy(targets[2], targets[5])
    results = fvd.run(config_for(real, samples, tmp_path / "out", weights), runtime)
    section = results["sections"]["memorisation"]
    found = {(pair["generated"], pair["train"]) for pair in section["closest"][:2]}
    assert found == {(f"blue/{targets[i].name}", copied[3]) for i in (2, 5)}
    assert section["per_class"]["blue"]["too_near"] >= 2 / 7
    assert section["per_class"]["blue"]["exact_duplicates"] == pytest.approx(2 / 7)
    assert section["per_class"]["red"]["exact_duplicates"] == 0
    assert (tmp_path / "out" / section["sheet"]).exists()


def test_skipped_clips_are_counted_and_named(real, generated, tmp_path, weights, runtime, monkeypatch):
    monkeypatch.setattr("evaluations.results.write_page", write_page)
    samples = tmp_path / "samples"
    shutil.copytree(generated, samples)
    bad = sorted((samples / "red").iterdir())[1]
    bad.write_bytes(b"no picture")
    config = config_for(real, samples, tmp_path / "out", weights, groups=0)
    with pytest.raises(ValueError, match=rf"red/{bad.name}: not a readable picture.*--skip-bad"):
        fvd.run(config, runtime)
    section = fvd.run(replace(config, skip_bad=True), runtime)["sections"]["fvd"]
    assert [bad.name in reason for reason in section["bad_clips"]["generated"]] == [True]
    assert not section["bad_clips"]["real"] and section["scores"]["fvd"]["pooled"]["n_generated"] == 15
    for name in ("metrics.txt", "report.html"):
        assert bad.name in (tmp_path / "out" / name).read_text()


def test_page_stands_alone_and_table_names_every_score(held_out):
    page, table = ((held_out[1] / name).read_text() for name in ("report.html", "metrics.txt"))
    assert page.count("data:image/svg+xml") == 1 and page.count("data:image/png") == 1
    assert "http" not in page.replace("http://www.w3.org", "") and "src=\"data:" in page
    names = "fvd_inf", "kvd", "coverage", "macro", "pooled", "i3d.pt", "(sha256 ", "not verified", *CLASSES
    for name in names:
        assert name in page and name in table


def test_sections_of_the_same_comparison_stay_and_others_go(real, generated, tmp_path, weights, runtime):
    config = config_for(real, generated, tmp_path, weights, groups=0)
    first = fvd.run(config, runtime)
    record = read_json(tmp_path / "metrics.json")
    assert record == json.loads(json.dumps(first))
    record["sections"]["fid"] = {"lines": []}  # as another command left it
    write_json(tmp_path / "metrics.json", record)
    assert "fid" in fvd.run(config, runtime)["sections"]
    assert "fid" not in fvd.run(replace(config, protocol="endogen"), runtime)["sections"]


def test_results_do_not_depend_on_the_number_of_processes(tmp_path, weights, runtime, monkeypatch):
    monkeypatch.setattr("evaluations.features.BLOCK", 3)  # several blocks for each process
    real = make_clips(tmp_path / "real", (5, 6))
    generated = make_clips(tmp_path / "generated", (4, 5), seed=500, recordings=9, val=0)
    for count in (1, 2, 3):
        flags = vars(config_for(real, generated, tmp_path / str(count), weights, groups=0,
                                reconstruction_path=real))
        config = evaluate.EvaluateConfig(**flags, metrics=("fvd", "temporal", "reconstruction"))
        if count == 1:
            evaluate.run(config, runtime)
        else:
            assert run_ranks(partial(evaluate.run, config), count) == [0] * count
    results = {(tmp_path / str(count) / "metrics.json").read_bytes() for count in (1, 2, 3)}
    assert len(results) == 1


def one_line(arguments, python, env):
    command = [python, "-m", *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_missing_weights_are_reported_in_one_line_before_any_work(
    real, generated, tmp_path, python, command_env
):
    flags = ["--data-path", real, "--sample-path", generated, "--output", tmp_path / "out", "--i3d-weights",
             tmp_path / "none.pt"]
    line = one_line(["evaluations.evaluate", *flags], python, command_env)
    assert "--i3d-weights" in line and "none.pt is missing" in line and "curl -L" in line
    assert not (tmp_path / "out").exists()


def test_standard_errors_over_a_single_recording_give_a_warning(generated, tmp_path, weights, runtime):
    real = make_clips(tmp_path / "real", (6, 6), recordings=2)
    results = fvd.run(config_for(real, generated, tmp_path / "out", weights), runtime)
    assert "the reference of blue, red is one recording" in results["warnings"][0]
    assert results["sections"]["fvd"]["scores"]["fvd"]["pooled"]["stderr"] > 0


@pytest.mark.parametrize(("flags", "message"), [
    ({"classes": ("green",)}, "--data-path .* no clip of class green"),
    ({"reconstruction_path": "generated"}, "--reconstruction-path .* is no clip of --data-path"),
    ({"data_path": "generated"}, "--reference val: .* has no val clips of class blue"),
    ({"sample_path": "nowhere"}, "--sample-path .*nowhere: no such folder"),
])
def test_inputs_that_do_not_fit_are_refused_with_their_flag(
    real, generated, tmp_path, weights, runtime, flags, message
):
    paths = {"generated": generated, "nowhere": tmp_path / "nowhere"}
    flags = {name: paths.get(value, value) for name, value in flags.items()}
    with pytest.raises(ValueError, match=message):
        fvd.run(replace(config_for(real, generated, tmp_path, weights), **flags), runtime)


def test_weights_of_another_hash_are_refused_unless_asked_for(real, generated, tmp_path, weights, runtime):
    config = config_for(real, generated, tmp_path, weights)
    with pytest.raises(ValueError, match=r"sha256 .* not that of i3d_torchscript.pt.*--unverified-weights"):
        fvd.run(replace(config, unverified_weights=False), runtime)


def test_sizes_that_differ_between_the_sides_are_refused(real, tmp_path, weights, runtime):
    small = tmp_path / "small"
    shutil.copytree(real, small)
    for path in small.rglob("*.png"):
        Image.open(path).resize((32, 32)).save(path)
    record = read_json(small / "dataset.json")
    write_json(small / "dataset.json", {**record, "frame_size": 8})
    with pytest.raises(ValueError, match="features cannot be compared: height is 16 for one side and 8"):
        fvd.run(config_for(real, small, tmp_path / "out", weights), runtime)
