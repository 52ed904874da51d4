"""Synthetic clips in classification: folds without leaks, arms, resume."""

import dataclasses
import shutil

import numpy as np
import pytest
from small_data import CLASSES, make_grids

from common.errors import InputError
from common.files import read_json, write_json
from dataset.manifest import Manifest
from evaluations import classification
from evaluations.classification_plan import ClassificationConfig, Experiment
from evaluations.clips import ClipSet
from evaluations.folds import draw, left_out, make_folds, recordings_of


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Synthetic clips that show the other class than the one they are named after."""
    folder = tmp_path_factory.mktemp("samples")
    grids = Manifest.read(make_grids(folder / "grids", clips_per_class=4))
    clips = tuple(dataclasses.replace(clip, label=1 - clip.label, recording=f"seed {clip.recording}")
                  for clip in grids.clips)
    dataclasses.replace(grids, clips=clips).write(folder / "grids")
    write_json(folder / "samples.json", {"clips": [{"class": CLASSES[clip.label]} for clip in clips]})
    return folder


@pytest.fixture
def config(grids, samples, tmp_path):
    return ClassificationConfig(
        data_path=grids, sample_path=(samples,), results_dir=tmp_path / "out", network="probe",
        weights="none", size=32, frames=2, seeds=2, max_steps=12, warmup_steps=0, lr=3e-3,
        global_batch_size=4, device="cpu")


@pytest.fixture
def clips(grids):
    return ClipSet.read(grids, "--data-path")


def change_clips(folder, change):
    """Replace every clip of a data set by `change(number, clip)`."""
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, clips=tuple(map(change, range(99), manifest.clips))).write(folder)
    return folder


def test_folds_share_no_recording_and_test_every_clip_once(tmp_path):
    change_clips(make_grids(tmp_path), lambda i, clip: dataclasses.replace(
        clip, recording=f"{clip.label}/{i % 6 // 2}"))  # three recordings of two clips
    clips = ClipSet.read(tmp_path, "--data-path")
    folds = make_folds(clips, 3)
    assert sorted(place for fold in folds for place in fold.test) == list(range(12))
    for fold in folds:
        assert sorted(fold.train + fold.test) == list(range(12))
        assert not recordings_of(clips, fold.train) & recordings_of(clips, fold.test)
        assert {clips.entries[place].class_name for place in fold.test} == set(CLASSES)
    assert not left_out(clips, 3)
    assert left_out(clips, 4)["red wall"] == "3 recordings, at least 4 are needed"


def test_recordings_that_two_classes_have_are_never_tested(tmp_path):
    make_grids(tmp_path)
    shutil.copyfile(tmp_path / CLASSES[0] / "rec2_000000.png", tmp_path / CLASSES[1] / "rec4_000000.png")
    clips = ClipSet.read(tmp_path, "--data-path")
    folds = make_folds(clips, 5)
    tested = [recording for fold in folds for recording in recordings_of(clips, fold.test)]
    shared = {f"{CLASSES[0]}/rec2", f"{CLASSES[1]}/rec4"}
    assert len(tested) == 10 and not shared & set(tested)
    assert all(shared <= recordings_of(clips, fold.train) for fold in folds)
    assert left_out(clips, 6)[CLASSES[0]] == "5 recordings, at least 6 are needed"


def test_one_fold_is_the_split_of_the_data_set(clips):
    (fold,) = make_folds(clips, 1)
    assert [clips.entries[place].split for place in fold.test] == ["val"] * 4
    assert [clips.entries[place].split for place in fold.train] == ["train"] * 8


def test_fewer_recordings_are_among_more_and_seeds_choose_others(clips):
    def chosen(count, seed):
        return recordings_of(clips, draw(clips, range(12), count, seed))

    assert len(chosen(2, 0)) == 4 and chosen(2, 0) < chosen(3, 0) < chosen(None, 0)
    assert len({frozenset(chosen(2, seed)) for seed in range(8)}) > 1


def test_arms_train_on_their_clips_and_a_rerun_makes_what_is_missing(config, runtime, monkeypatch, capsys):
    report = classification.run(config, runtime)
    rows = {row["arm"]: row for row in report["rows"]}
    assert list(rows) == ["real", "real + synthetic", "synthetic"]
    assert rows["real"]["scores"]["accuracy"] == [1, 1, 1] and rows["real"]["difference"] is None
    assert rows["synthetic"]["difference"]["macro_f1"] == [-1, -1, -1]
    assert rows["synthetic"]["by_class"]["red wall"] == {"clips": 4, "accuracy": 0, "taken_for": [4, 0]}
    runs = [read_json(path) for path in config.results_dir.glob("runs/*.json")]
    assert {(run["arm"], run["real"], run["synthetic"]) for run in runs} == {
        ("real", 8, 0), ("real + synthetic", 8, 8), ("synthetic", 0, 8)}
    assert "near-copies" in report["warnings"][1] and not list(config.results_dir.rglob("*.pt"))
    page = (config.results_dir / "report.html").read_text()
    assert "svg+xml;base64" in page and "100.0 [100.0, 100.0]" in page and "taken for" in page
    assert "synthetic         -" in (config.results_dir / "classification.txt").read_text()

    trained = []

    def train(task, own, runtime):
        trained.append(own.results_dir.name)
        return own.max_steps

    monkeypatch.setattr(classification, "train", train)
    (config.results_dir / "runs" / "synthetic-all-fold0-seed1.json").unlink()
    assert len(classification.run(config, runtime)["rows"]) == 3
    assert trained == ["synthetic-all-fold0-seed1"]
    with pytest.raises(InputError, match=r"--lr: .*seed0.json was made with 0.003; choose another"):
        classification.run(dataclasses.replace(config, lr=1e-3), runtime)


def test_runs_of_another_split_are_refused(config, grids, tmp_path, runtime):
    shutil.copytree(grids, tmp_path / "grids")
    config = dataclasses.replace(config, data_path=tmp_path / "grids", sample_path=(), seeds=1, max_steps=1)
    classification.run(config, runtime)
    change_clips(config.data_path, lambda i, clip: dataclasses.replace(
        clip, split="val" if i % 2 else "train"))  # the same files
    with pytest.raises(InputError, match=r"--data-path: .* was made with another split of the clips; choose"):
        classification.run(config, runtime)


def test_few_recordings_give_a_point_of_the_curve_each_and_a_warning(config, runtime):
    config = dataclasses.replace(config, recordings_per_class=(9, 1, 9), seeds=1, max_steps=1)
    report = classification.run(config, runtime)
    assert [(row["arm"], row["recordings_per_class"]) for row in report["rows"]] == [
        ("real", 1), ("real + synthetic", 1), ("real", 9), ("real + synthetic", 9), ("synthetic", None)]
    assert report["warnings"][0].startswith("one seed")
    assert report["warnings"][1] == "9 recordings per class: of some class there are 4"
    assert "learnt from 8 recordings, the real arm from 2: a gain" in report["warnings"][3]


def test_stopped_run_ends_the_comparison(config, runtime, monkeypatch):
    monkeypatch.setattr(classification, "train", lambda *_: 3)
    with pytest.raises(KeyboardInterrupt):
        classification.run(config, runtime)
    assert not list(config.results_dir.glob("runs/*.json"))


def test_generator_must_not_have_seen_a_test_recording(config, tmp_path):
    with pytest.raises(InputError, match=r"fold 0 tests on \d recordings that the generator was trained on"):
        Experiment(dataclasses.replace(config, folds=2))
    other = change_clips(make_grids(tmp_path), lambda i, clip: dataclasses.replace(
        clip, recording=f"other {clip.recording}"))
    Experiment(dataclasses.replace(config, folds=2, generator_data=(other,)))


def test_samples_must_not_show_a_test_recording(config, grids, tmp_path):
    experiment = Experiment(config)
    assert "near-copies" in experiment.warnings()[-1]
    shutil.copytree(grids, tmp_path / "rebuilt")  # as tokenizer.reconstruct writes them
    rebuilt = dataclasses.replace(config, sample_path=(tmp_path / "rebuilt",))
    with pytest.raises(InputError, match=r"fold 0 tests on 4 recordings .* such as blue.*it has not seen"):
        Experiment(rebuilt)
    manifest = Manifest.read(grids)
    dataclasses.replace(manifest, clips=tuple(manifest.select("train"))).write(tmp_path / "rebuilt")
    assert "near-copies" in Experiment(rebuilt).warnings()[-1]


def test_precision_of_the_device_is_a_setting_of_the_runs(config):
    assert config.settled("cpu").mixed_precision == "none"
    assert config.settled("cuda").mixed_precision == "bf16"
    bf16 = dataclasses.replace(config, mixed_precision="bf16")
    assert bf16.settled("cpu") is bf16


def test_folds_are_data_sets_for_generators_of_their_own(config, grids, runtime):
    real = dataclasses.replace(config, folds=2, sample_path=(), max_steps=1, seeds=1)
    assert [row["arm"] for row in classification.run(real, runtime)["rows"]] == ["real"]
    data = tuple(config.results_dir / "folds" / name for name in "01")
    own = ClipSet.read(data[0], "--data-path")
    assert np.array_equal(own.frames(own.entries[0]), ClipSet.read(grids, "").frames(own.entries[0]))
    two = dataclasses.replace(config, folds=2, sample_path=2 * config.sample_path, generator_data=data)
    assert {run.fold for run in Experiment(two).runs()} == {0, 1}
    assert any(line.startswith("each fold has a generator of its own") for line in Experiment(two).warnings())
    with pytest.raises(InputError, match="fold 0 tests on"):
        Experiment(dataclasses.replace(two, generator_data=data[::-1]))


def test_seeds_take_the_generators_in_turn(config, tmp_path):
    paths = (*config.sample_path, shutil.copytree(config.sample_path[0], tmp_path / "second"))
    several = dataclasses.replace(config, sample_path=paths, seeds=3, global_seed=5)
    experiment = Experiment(several)
    assert "".join(experiment.of(run, "ab") for run in experiment.runs() if run.arm == "synthetic") == "bab"
    assert experiment.generators == 2
    assert any(line.startswith("the seeds take the synthetic data of 2") for line in experiment.warnings())
    with pytest.raises(InputError, match="--sample-path: 2 folders for --seeds 1; each needs a seed"):
        dataclasses.replace(several, seeds=1)
    with pytest.raises(InputError, match="--sample-path: names a folder twice"):
        dataclasses.replace(several, sample_path=2 * config.sample_path)


def test_class_with_too_few_recordings_is_left_out_and_said(config, grids, tmp_path):
    def third_class(folder, source, recordings):
        shutil.copytree(source, folder)
        manifest = Manifest.read(folder)
        extra = tuple(dataclasses.replace(clip, label=2, recording=f"c/{i % recordings}")
                      for i, clip in enumerate(manifest.clips[:4]))
        dataclasses.replace(manifest, class_names=(*CLASSES, "c"), clips=manifest.clips + extra).write(folder)
        return folder

    experiment = Experiment(dataclasses.replace(config, data_path=third_class(tmp_path / "one", grids, 1)))
    assert experiment.class_names == CLASSES
    assert experiment.warnings()[0].startswith("c is left out: 1 recordings, at least 2")
    many = change_clips(third_class(tmp_path / "many", grids, 4), lambda i, clip: dataclasses.replace(
        clip, split="train" if clip.label == 2 else "val"))
    with pytest.raises(InputError, match=r"--folds 1: fewer than two classes .*all its clips are in the val"):
        Experiment(dataclasses.replace(config, data_path=many))


@pytest.mark.parametrize(("flags", "words"), [
    ({"network": "resnet"}, "--network resnet: timm"),
    ({"network": "test_resnet", "weights": "package"}, "--weights package: of tf_efficientnet_lite0 only"),
    ({"network": "test_vit", "size": 32}, "--size 32: test_vit takes frames of 160 px only"),
    ({"unit": "frames"}, "--network probe: needs"),
    ({"weights": "package"}, "--network probe: needs"),
    ({"recordings_per_class": (5, 0)}, "--recordings-per-class 0: must be at least 1"),
    ({"size": 4}, "--size 4: must be at least 8"),
    ({"folds": 3, "sample_path": ("a", "b")}, "--sample-path: 2 folders for 3 folds"),
    ({"max_steps": 0}, "--max-steps 0: must be at least 1"),
])
def test_wrong_flags_are_named(config, runtime, flags, words):
    with pytest.raises(InputError, match=words):
        classification.run(dataclasses.replace(config, **flags), runtime)


def test_class_of_one_tested_recording_is_named(config, tmp_path):
    folder = change_clips(make_grids(tmp_path), lambda i, clip: dataclasses.replace(
        clip, split="val" if clip.recording.endswith("5") or i == 4 else "train"))
    warnings = Experiment(dataclasses.replace(config, data_path=folder)).warnings()
    assert "only one recording of red wall is tested: there are no intervals" in warnings


def test_samples_that_do_not_fit_are_refused(config, samples, tmp_path):
    make_grids(tmp_path / "large", size=64)
    with pytest.raises(InputError, match=r"--sample-path .*large: frames of 64 px, real ones have 32 px"):
        Experiment(dataclasses.replace(config, sample_path=(tmp_path / "large",)))
    shutil.copytree(samples / "grids", tmp_path / "part")
    manifest = Manifest.read(tmp_path / "part")
    dataclasses.replace(manifest, clips=manifest.clips[:4]).write(tmp_path / "part")
    with pytest.raises(InputError, match=r"--sample-path .*part: no clip of blue wall"):
        Experiment(dataclasses.replace(config, sample_path=(tmp_path / "part",)))
