"""The comparison of segmentation as a command: all arms, reruns, leaks, several processes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from ellipses import annotated, write_pair, write_pairs
from PIL import Image
from ranks import run_ranks

from common.errors import InputError
from common.files import read_json, write_json
from dataset.manifest import Manifest
from evaluations import extractor, segmentation
from evaluations.segmentation import run
from evaluations.segmentation_data import load
from evaluations.segmentation_plan import ARMS, WITHOUT_NETWORK, SegmentationConfig, make_plan
from evaluations.segmenter import Training

TINY = {"encoder": "test_resnet", "encoder_weights": "none", "size": 32, "steps": 2, "batch_size": 2,
        "labels": (4,), "seeds": 1, "device": "cpu", "twin_cosine": 0.95}


@pytest.fixture(autouse=True)
def small_features(monkeypatch):
    monkeypatch.setattr(extractor, "LITE0_SIDE", 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Real pairs, their pictures after a tokenizer, and the sampler's folder with masks."""
    folder = tmp_path_factory.mktemp("segmentation")
    write_pairs(folder / "real", 24)
    shutil.copytree(folder / "real" / "images", folder / "rebuilt")
    for seed in range(8):
        write_pairs(folder / "samples", 2, 100 + 10 * seed, f"polyp/{seed:06}/{{:05}}")
    (folder / "samples" / "images").rename(folder / "samples" / "frames")
    return folder


@pytest.fixture(scope="module")
def first(data, tmp_path_factory, runtime):
    """(configuration, rows) of a comparison with all arms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "LITE0_SIDE", 32)
        config = SegmentationConfig(
            data_path=data / "real", output=tmp_path_factory.mktemp("results") / "out",
            synthetic_path=(data / "samples",), reconstruction_path=data / "rebuilt", **TINY)
        return config, run(config, runtime)


def test_every_arm_has_a_row_and_the_report_its_files(first):
    config, rows = first
    assert [row["arm"] for row in rows] == list(ARMS)
    count = rows[ARMS.index("synthetic")]["added"]
    assert {row["arm"]: row["added"] for row in rows} == {
        "constant": 0, "copy": 0, "real": 0, "strong": 0, "reconstructions": 4, "synthetic": count,
        "synthetic_unlabelled": count, "real_unlabelled": 13}
    assert 10 < count <= 16
    assert all(("difference" in row["dice"]) == (row["arm"] != "real") for row in rows)
    assert read_json(config.output / "results.json")["rows"] == rows
    page, text = ((config.output / name).read_text() for name in ("report.html", "table.txt"))
    for words in ("not patient-level", "no --generator-data", "one seed: the intervals lack the spread",
                  "the test has 5 independent groups; intervals are rough",
                  "real_unlabelled with 4 labels: 13 pictures added, not 16", "lack the spread between gen",
                  "17 pictures to train on, 2 for validation, 5 for the test"):
        assert words in page and words in text
    assert "<title>Synthetic pictures for seg" in page and "tr.sum td" in page  # the style of page.html
    assert page.count("data:image/png") == 2 and text.count("synthetic_unlabelled ") == 4
    for name in ("overlays", "curve"):
        with Image.open(config.output / f"{name}.png") as picture:
            assert picture.width > 8 * 128


def test_no_two_arms_predict_the_same(first):
    files = (first[0].output / "jobs").glob("*.json")
    results = {path.stem: read_json(path)["result"] for path in files}
    assert len(results) == len(ARMS)
    assert len({tuple(result["iou"] + result["hd95"]) for result in results.values()}) == len(results)
    assert all(len(own["validation_dice"]) == (0 if name.split("-")[0] in WITHOUT_NETWORK else 2)
               for name, own in results.items())


def test_rerun_trains_nothing_and_a_lost_result_comes_again(first, runtime, monkeypatch):
    config, rows = first

    def train(*_):
        raise AssertionError("it was trained again")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", train)
        assert run(config, runtime) == rows
    job = config.output / "jobs" / "real-4-0.json"
    before = read_json(job)
    job.unlink()
    (config.output / "jobs" / "constant-4-0.png").unlink()
    run(replace(config, arms=("constant",)), runtime)
    again = read_json(job)
    assert {**again["result"], "seconds": 0} == {**before["result"], "seconds": 0}


@pytest.mark.parametrize(("change", "words"), [
    ({"steps": 3}, "jobs/constant-4-0.json: was made with steps 2, now it is 3"),
    ({"test_fraction": 0.3}, "split.json: was made with --test-fraction 0.2, now it is 0.3")])
def test_changed_settings_are_refused_by_name(first, runtime, change, words):
    with pytest.raises(InputError, match=words):
        run(replace(first[0], **change), runtime)


def test_two_processes_get_the_results_of_one(first, tmp_path):
    config = replace(first[0], output=tmp_path, arms=("constant",), synthetic_path=(),
                     reconstruction_path=None)
    assert run_ranks(lambda runtime: run(config, runtime), 2) == [0, 0]
    rows = read_json(tmp_path / "results.json")["rows"]
    assert rows == [row for row in first[1] if row["arm"] in ("constant", "real")]


def test_report_names_what_the_generator_was_trained_on(first, tmp_path, runtime):
    write_json(tmp_path / "vq" / "codes.json", {"clips": [["polyp/p03_0.png", 0, "train"]]})
    config = replace(first[0], output=tmp_path / "out", arms=("copy",), seeds=1, labels=(4,),
                     generator_data=(tmp_path / "vq",))
    run(config, runtime)
    facts = read_json(tmp_path / "out" / "results.json")
    assert facts["config"]["generator_data"] == [str(tmp_path / "vq")]


def test_copy_is_the_mask_of_the_nearest_labelled_picture(tmp_path, runtime):
    write_pairs(tmp_path / "real", 24)
    for number in range(3):  # of which one is in the test, one among the labels
        write_pair(tmp_path / "test", f"t{number}", number)
    config = SegmentationConfig(data_path=tmp_path / "real", test_path=tmp_path / "test", arms=("copy",),
                                output=tmp_path / "out", **{**TINY, "labels": (21,), "twin_cosine": 2})
    [copied] = [row for row in run(config, runtime) if row["arm"] == "copy"]
    assert copied["dice"]["mean"] > 0.99


def plan(config, **flags):
    import torch

    return make_plan(replace(config, **flags).filled(), torch.device("cpu"))


def test_rerun_of_some_arms_says_what_its_report_leaves_out(first, data, tmp_path, runtime):
    output = shutil.copytree(first[0].output, tmp_path / "out")
    run(replace(first[0], output=output, arms=("copy",)), runtime)
    notes = read_json(output / "results.json")["notes"]
    words = "6 finished trainings are not in this report, as constant-4-0: give their flags"
    assert any(note.startswith(words) for note in notes)


def test_nothing_that_the_generator_saw_is_tested_on(first, tmp_path):
    clips = [[f"polyp/p{number:02}_0.png", 0, "train"] for number in range(12)]
    write_json(tmp_path / "codes.json", {"clips": clips})
    write_json(tmp_path / "vq" / "codes.json", {"clips": [["polyp/p12_0.png", 0, "train"]]})
    found = plan(first[0], output=tmp_path / "out", generator_data=(tmp_path, tmp_path / "vq"))
    assert min(own.name for own in (*found.test, *found.val)) >= "p13"
    assert any(note.startswith("the generator was trained on 13 of 17 training") for note in found.notes)
    write_pair(tmp_path / "test", "p03", 900)
    with pytest.raises(InputError, match="--test-path: the generator was trained on 1 of its pictures: p03"):
        plan(first[0], output=tmp_path / "other", generator_data=(tmp_path,), test_path=tmp_path / "test")
    write_json(tmp_path / "codes.json", {"clips": [["polyp/another_0.png", 0, "train"]]})
    found = plan(first[0], output=tmp_path / "third", generator_data=(tmp_path,))
    assert any(note.startswith("NOT checked (--groups): no picture") for note in found.notes)


def test_unlabelled_pictures_of_held_out_recordings_are_left_out(tmp_path):
    for number in range(8):
        write_pairs(tmp_path / "real", 3, 10 * number, f"r{number}/{{}}")
        write_pairs(tmp_path / "more", 2, 500 + 10 * number, f"polyp/r{number}/{{}}")
    config = SegmentationConfig(data_path=tmp_path / "real", output=tmp_path / "out",
                                unlabelled_path=tmp_path / "more", **TINY)
    found = plan(config)
    held_out = {own.group for own in (*found.test, *found.val)}
    left = {own.group for own in found.added["unlabelled_path"][0]}
    assert held_out and left and not left & {f"polyp/{group}" for group in held_out}
    words = f"{2 * len(held_out)} of 16 pictures of --unlabelled-path are left out: of a recording of"
    assert any(note.startswith(words) for note in found.notes)
    shutil.rmtree(tmp_path / "more")
    for group in held_out:
        write_pair(tmp_path / "more", f"{group}/0", 900)
    found = plan(config, output=tmp_path / "none")
    more = tmp_path / "more"
    assert (f"left out: real_unlabelled, none of the pictures of --unlabelled-path {more} is left"
            in segmentation.plan_jobs(config, found)[1])
    write_pair(tmp_path / "more", "r0/0", 900)
    found = plan(config, output=tmp_path / "other", groups=r"r(\d)/")
    assert not ({own.group for own in (*found.test, *found.val)}
                & {own.group for own in found.added["unlabelled_path"][0]})


def test_pictures_of_one_name_in_data_and_test_are_two(first, tmp_path):
    test = write_pairs(tmp_path / "test", 3, seed=700)  # p00 to p02, others than in the data
    found = plan(first[0], output=tmp_path / "out", test_path=test, synthetic_path=())
    assert {"p00", "p01", "p02"} <= {own.name for own in (*found.train, *found.val)}


def test_synthetic_copies_of_test_pictures_are_left_out_and_counted(first, tmp_path):
    config, _ = first
    names = read_json(config.output / "split.json")["result"]["test"]
    shutil.copytree(config.synthetic_path[0], tmp_path / "samples")
    for number, name in enumerate(names):
        write_pair(tmp_path / "samples", f"polyp/copy/{number:05}", int(name[1:]), "frames")
    found = plan(config, output=tmp_path / "out", synthetic_path=(tmp_path / "samples",))
    left = [own.name for own in found.added["synthetic_path"][0]]
    assert not any("copy" in name for name in left)
    assert f"{21 - len(left)} of 21 pictures of --synthetic-path are left out" in " ".join(found.notes)


def test_seeds_take_the_generators_in_turn(first, tmp_path):
    for seed in range(6):
        write_pairs(tmp_path / "other", 2, 700 + 10 * seed, f"polyp/{seed:06}/o{{}}")
    config = replace(first[0], output=tmp_path / "out", seeds=3, arms=("synthetic",),
                     synthetic_path=(*first[0].synthetic_path, tmp_path / "other"))
    found = plan(config)
    jobs, notes = segmentation.plan_jobs(config, found)
    roots = {job.seed: {own.path.relative_to(tmp_path).parts[0] == "other"
                        if own.path.is_relative_to(tmp_path) else False
                        for own in segmentation.job_pictures(job, config, found)[1]}
             for job in jobs if job.arm == "synthetic"}
    assert roots == {0: {False}, 1: {True}, 2: {False}}
    words = "the seeds take the synthetic data of 2 generators in turn, and intervals go by generator"
    assert any(note.startswith(words) for note in found.notes)
    assert sum("of 12 pictures of --synthetic-path are left out" in note for note in found.notes) == 1
    assert sum(note.startswith("synthetic with 4 labels: ") for note in notes) == 2
    with pytest.raises(InputError, match="--synthetic-path: 2 folders for --seeds 1; each needs a seed"):
        replace(config, seeds=1).filled()
    shutil.rmtree(tmp_path / "other" / "masks")
    with pytest.raises(InputError, match=r"--arms synthetic: --synthetic-path .*other has no"):
        segmentation.plan_jobs(config, plan(config, output=tmp_path / "unlabelled"))


def test_reconstructions_of_annotated_clips_have_the_masks_of_the_clips(tmp_path):
    folder, labels_THW = annotated(tmp_path / "grids")
    shutil.copytree(folder, tmp_path / "rebuilt")
    for path in (tmp_path / "rebuilt").rglob("*.png"):  # a tokenizer that leaves nothing
        Image.new("RGB", (64, 64)).save(path)
    found = plan(SegmentationConfig(data_path=folder, output=tmp_path / "out",
                                    reconstruction_path=tmp_path / "rebuilt", **{**TINY, "twin_cosine": 2}))
    [rebuilt] = found.added["reconstruction_path"]
    assert {own.name for own in rebuilt} == {own.name for own in found.train}
    pixels, labels = load(rebuilt[:8], 16, 1)
    assert not pixels.any()
    np.testing.assert_array_equal(labels, labels_THW)
    manifest = Manifest.read(folder)
    replace(manifest, fps=2 * manifest.fps).write(tmp_path / "rebuilt")
    with pytest.raises(InputError, match=r"--reconstruction-path .*: is not of --data-path"):
        plan(SegmentationConfig(data_path=folder, output=tmp_path / "other",
                                reconstruction_path=tmp_path / "rebuilt", **TINY))


def test_twins_of_a_given_test_and_its_own_pictures_do_not_train(first, tmp_path):
    test = write_pairs(tmp_path / "test", 2, seed=5, name="t{}")  # the pictures p05 and p06
    found = plan(first[0], output=tmp_path / "out", test_path=test, synthetic_path=())
    assert [own.name for own in found.test] == ["t0", "t1"]
    assert not {"p05", "p06"} & {own.name for own in (*found.train, *found.val)}
    assert any(note.startswith("2 pictures of --data-path are left out: near-dup") for note in found.notes)


def test_several_classes_are_learnt(data, tmp_path, runtime):
    write_pairs(tmp_path / "real", 12)
    for place, path in enumerate(sorted((tmp_path / "real" / "masks").iterdir())):
        with Image.open(path) as mask:
            labels = (np.array(mask) > 0).astype(np.uint8) * (1 + place % 2)
        Image.fromarray(labels).save(path)
    config = SegmentationConfig(data_path=tmp_path / "real", output=tmp_path / "out", arms=("real",),
                                **{**TINY, "classes": 2})
    assert [row["arm"] for row in run(config, runtime)] == ["real"]
    with pytest.raises(InputError, match=r"from 0 to 2, but .* \(--classes 1\)"):
        run(replace(config, classes=1, output=tmp_path / "other"), runtime)


@pytest.mark.parametrize(("flags", "words"), [
    ({"arms": ("synthetic",), "synthetic_path": ()}, "--arms synthetic: no --synthetic-path"),
    ({"encoder": "swin_tiny_patch4_window7_224"}, "--encoder swin_tiny_patch4_window7_224 --size 32: "),
    ({"labels": (400,)}, "there are 17 pictures to train on")])
def test_arms_without_data_and_too_many_labels_are_refused(first, runtime, flags, words):
    with pytest.raises(InputError, match=words):
        run(replace(first[0], **flags), runtime)


def test_what_is_left_out_is_said(first, tmp_path):
    config = replace(first[0], synthetic_path=(), reconstruction_path=None, labels=(4, 17, 400))
    jobs, notes = segmentation.plan_jobs(config, plan(config))
    assert {job.labels for job in jobs} == {4, 17}
    assert "real_unlabelled-17-0" not in {job.name for job in jobs}
    assert [note.removeprefix("left out: ") for note in notes] == [
        "reconstructions, no --reconstruction-path", "synthetic, no --synthetic-path",
        "synthetic_unlabelled, no --synthetic-path",
        "real_unlabelled with 4 labels: 13 pictures added, not 16",
        "real_unlabelled with 17 labels, seed 0: nothing to add",
        "400 labels, there are 17 pictures to train on"]
    two = replace(config, synthetic_path=(tmp_path / "a", tmp_path / "b"))
    empty = replace(plan(config), added={"synthetic_path": [plan(config).train, []]})
    assert (f"left out: synthetic, none of the pictures of --synthetic-path {tmp_path / 'b'} is left"
            in segmentation.plan_jobs(two, empty)[1])
