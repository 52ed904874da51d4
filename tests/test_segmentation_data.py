"""Pictures, groups and splits of a segmentation comparison, and that nothing of the test is known before."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from ellipses import SIDE, annotated, ellipse, write_pair, write_pairs
from eval_data import make_clips
from PIL import Image

from common.errors import InputError
from common.files import write_json
from evaluations.folds import seen_recordings
from evaluations.segmentation_data import (
    check_masks,
    digest,
    draw,
    find_pictures,
    group_rule,
    level_of,
    load,
    read_pixels,
)
from evaluations.segmentation_plan import SegmentationConfig
from evaluations.segmentation_split import (
    clusters,
    directions,
    is_seen,
    near_test,
    split_pictures,
    without_class,
)

TINY = {"encoder": "test_resnet", "encoder_weights": "none"}


def test_stills_and_frames_are_found_with_their_masks(tmp_path):
    write_pair(tmp_path, "b", 1)
    write_pair(tmp_path, "clip/00000", 2)
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "b.PNG")
    pictures = find_pictures(tmp_path, "--data-path", True)
    assert [(own.name, own.group) for own in pictures] == [("b", "--data-path b"), ("clip/00000", "clip")]
    pixels, labels = load(pictures, SIDE, 1)
    for place, seed in enumerate((1, 2)):
        picture, mask = ellipse(seed)
        np.testing.assert_array_equal(pixels[place].permute(1, 2, 0), picture)
        np.testing.assert_array_equal(labels[place], mask)
    assert load(pictures, 20, 1)[0].shape == (2, 3, 20, 20) and check_masks(pictures, 1) == []
    before = digest(pictures)
    content = (tmp_path / "masks" / "b.png").read_bytes()
    (tmp_path / "masks" / "b.png").write_bytes(content[::-1])  # of the same size
    assert digest(pictures) != before
    Image.new("L", (9, 9)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(InputError, match=r"masks/b.png: not of the size of .*b.PNG"):
        load(pictures, 20, 1)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(InputError, match=r"--data-path .*images/b.PNG: has no mask"):
        find_pictures(tmp_path, "--data-path", True)
    write_pair(tmp_path, "b", 1)
    with pytest.raises(InputError, match=r"^--data-path .* has the same name"):
        find_pictures(tmp_path, "--data-path", True)


def test_sampler_layout_and_plain_folders(tmp_path):
    write_pair(tmp_path, "ulcer/000003/00000", 1, "frames")
    assert find_pictures(tmp_path, "--x", False)[0].mask == tmp_path / "masks/ulcer/000003/00000.png"
    plain = find_pictures(tmp_path / "frames", "--x", False)
    assert (plain[0].name, plain[0].mask) == ("ulcer/000003/00000", None)
    with pytest.raises(InputError, match="must hold images/"):
        find_pictures(tmp_path / "frames", "--x", True)
    with pytest.raises(InputError, match="no such folder"):
        find_pictures(tmp_path / "none", "--x", False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--x .*empty: holds no pictures"):
        find_pictures(tmp_path / "empty", "--x", False)
    (tmp_path / "empty" / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"--x .*empty: is a run of a training"):
        find_pictures(tmp_path / "empty", "--x", False)


def test_frames_of_a_prepared_data_set_are_its_training_cells(tmp_path):
    folder = make_clips(tmp_path / "grids", (2, 2), recordings=2)
    pictures = find_pictures(folder, "--x", False)
    assert len(pictures) == 2 * 16 and {own.group for own in pictures} == {"blue/rec0", "red/rec0"}
    with Image.open(folder / "blue" / "rec0_000000.png") as image:
        np.testing.assert_array_equal(read_pixels(pictures[5]), np.array(image)[16:32, 16:32])


def test_prepared_annotated_clips_are_labelled_frames(tmp_path):
    folder, labels_THW = annotated(tmp_path / "grids")
    added, pictures = (find_pictures(folder, "--x", labelled) for labelled in (False, True))
    assert [own.cell.frame for own in added[:8]] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert len(pictures) == 16 * 8 == 2 * len(added) and set(added) < set(pictures)
    assert check_masks(pictures, 1) == []
    with Image.open(pictures[5].path) as image:
        np.testing.assert_array_equal(read_pixels(pictures[5]), np.array(image)[32:48, 16:32])
    np.testing.assert_array_equal(load(pictures[:8], 16, 1)[1], labels_THW)
    seen = seen_recordings(folder)
    parts = split_pictures(pictures, [], np.arange(len(pictures)) // 8, without_class(seen), 0.2, 0.1)
    groups = {own.name: own.group for own in pictures}
    assert seen and seen.isdisjoint(groups[name] for part in ("test", "val") for name in parts[part])
    make_clips(tmp_path / "plain", (2, 2), recordings=2)
    with pytest.raises(InputError, match=r"--x .*plain: its clips have no masks"):
        find_pictures(tmp_path / "plain", "--x", True)
    folder, _ = annotated(tmp_path / "three", ((0, 0, 0), (255, 255, 255), (255, 0, 0)))
    three = find_pictures(folder, "--x", True)
    with pytest.raises(InputError, match=r"labels up to 2 \(--classes 1\)"):
        check_masks(three, 1)


def test_groups_by_expression_file_or_folder(tmp_path):
    assert group_rule(None, "--x")("a/b/1") == "a/b" and group_rule(None, "--x")("a") == "--x a"
    assert group_rule(r"^(p\d+)_", "--x")("p12_7") == "p12"
    write_json(tmp_path / "groups.json", {"a": 7})
    by_file = group_rule(str(tmp_path / "groups.json"), "--x")
    assert by_file("a") == "7"
    for wrong, name in ((by_file, "b"), (group_rule("^(x)", "--x"), "b")):
        with pytest.raises(InputError, match=r"--groups .* b$"):
            wrong(name)
    for wrong in ("(", "x"):
        with pytest.raises(InputError, match="--groups"):
            group_rule(wrong, "--x")


def test_what_the_split_goes_by_is_said(tmp_path):
    stills = find_pictures(write_pairs(tmp_path / "a", 3), "--x", True)
    frames = find_pictures(write_pairs(tmp_path / "b", 3, name="clip/{}"), "--x", True)
    assert level_of(stills, None).startswith("not patient-level")
    assert "by 1 recordings or folders" in level_of(frames, None) and "3 groups" in level_of(stills, "(.*)")


def test_a_draw_covers_groups_before_it_repeats_one(tmp_path):
    for clip in range(4):
        write_pairs(tmp_path, 3, name=f"{clip}/{{}}")
    pictures = find_pictures(tmp_path, "--x", True)
    drawn = draw(pictures, 0)
    assert sorted(own.name for own in drawn) == [own.name for own in pictures]
    assert all(len({own.group for own in drawn[i : i + 4]}) == 4 for i in (0, 4, 8))
    assert drawn == draw(pictures, 0) != draw(pictures, 1)


def test_clusters_join_groups_and_near_duplicates():
    points = np.array([[1, 0], [0, 1], [1, 0.1], [-1, 0], [0, -1]], float)
    own = directions(points + 3, np.array([3.0, 3]))
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1)
    numbers = clusters(["a", "b", "c", "b", "d"], own, 0.9)
    assert numbers[0] == numbers[2] and numbers[1] == numbers[3] and len(set(numbers)) == 3


def pool(tmp_path, count=20):
    return find_pictures(write_pairs(tmp_path / "pool", count), "--x", True)


def test_clusters_stay_on_one_side_and_seen_pictures_out_of_the_test(tmp_path):
    pictures = pool(tmp_path)
    numbers, seen = np.arange(20) // 2, {f"p{i:02}" for i in range(10)}
    parts = split_pictures(pictures, [], numbers, seen, 0.2, 0.1)
    places = {part: [int(name[1:]) for name in parts[part]] for part in ("train", "val", "test")}
    assert sorted(chain(*places.values())) == list(range(20))
    assert (len(places["test"]), len(places["val"])) == (4, 2)
    assert len({(part, i // 2) for part, own in places.items() for i in own}) == 10
    assert min(places["test"] + places["val"]) >= 10
    assert parts["clusters"] == [str(i // 2) for i in places["test"]]
    with pytest.raises(InputError, match=r"left for val: 20 pictures in 10 independent .*, 9 of 10 known"):
        split_pictures(pictures, [], numbers, {f"p{i:02}" for i in range(18)}, 0.2, 0.1)
    with pytest.raises(InputError, match="left for test: 20 pictures in 1 independent clusters"):
        split_pictures(pictures, [], np.zeros(20, int), set(), 0.2, 0.1)


def test_test_and_validation_share_what_the_generator_has_not_seen(tmp_path):
    pictures = pool(tmp_path)
    parts = split_pictures(pictures, [], np.arange(20), {f"p{i:02}" for i in range(17)}, 0.2, 0.1)
    assert (len(parts["test"]), len(parts["val"]), len(parts["train"])) == (2, 1, 17)


def test_one_large_cluster_is_no_test(tmp_path):
    numbers = np.array([0] * 4 + list(range(1, 17)))  # it has the very size of the test
    parts = split_pictures(pool(tmp_path), [], numbers, set(), 0.2, 0.1)
    assert len(parts["test"]) == len(set(parts["clusters"])) == 4 and "p00" in parts["train"]


def test_recordings_are_known_by_any_groups_and_frames_not_by_their_numbers(tmp_path):
    folder, _ = annotated(tmp_path / "grids")
    by_class = find_pictures(folder, "--x", True, r"^(\w+)/")
    assert {own.group for own in by_class} == {"blue", "red"}
    assert [is_seen(own, {"red/rec1"}) for own in by_class] == ["red/rec1_" in own.name for own in by_class]
    write_pairs(tmp_path / "frames", 3, name="clip/{}")
    frames = find_pictures(tmp_path / "frames", "--x", True)
    numbers = without_class({"polyp/1", "polyp/2"})  # videos with the names of frames
    assert not any(is_seen(own, numbers) for own in [*by_class, *frames])


def test_given_test_pictures_that_were_trained_on_are_named_and_their_twins_dropped(tmp_path):
    pictures = pool(tmp_path)
    test = find_pictures(write_pairs(tmp_path / "test", 2, name="t{}"), "--x", True)
    numbers = np.array([*range(20), 3, 30])
    parts = split_pictures(pictures, test, numbers, {"p05"}, 0.2, 0.1)
    assert (parts["test"], parts["dropped"]) == (["t0", "t1"], ["p03"])
    assert "p03" not in parts["train"] + parts["val"] and "p05" in parts["train"]
    with pytest.raises(InputError, match="--test-path: the generator was trained on 1 of its pictures: t1"):
        split_pictures(pictures, test, numbers, {"t1"}, 0.2, 0.1)
    with pytest.raises(InputError, match=r"--test-path: 1 of its pictures are near-dup.* trained on: t0"):
        split_pictures(pictures, test, numbers, {"p03"}, 0.2, 0.1)


def test_training_recordings_of_a_generator_are_read(tmp_path):
    folder = make_clips(tmp_path / "grids", (2, 2), recordings=2)
    assert seen_recordings(folder) == {"blue/rec0", "red/rec0"}
    assert without_class(seen_recordings(folder)) == {"blue/rec0", "red/rec0", "rec0"}
    assert seen_recordings(folder / "dataset.json") == seen_recordings(folder)
    clips = [["a/r_1_7.png", 0, "train"], ["a/s_7.png", 0, "val"], ["a/t_7.png", 0, "train", "a/patient"]]
    write_json(tmp_path / "codes.json", {"clips": clips})
    assert seen_recordings(tmp_path) == {"a/r_1", "a/patient"}
    with pytest.raises(InputError, match=r"--generator-data .*: names no training recordings"):
        seen_recordings(tmp_path / "grids" / "red")
    write_pair(tmp_path, "a/r_1/00000", 0)
    write_pair(tmp_path, "a/site1/r:1/00000", 0)  # the names that prepare gives to folders in folders
    picture, nested = find_pictures(tmp_path, "--x", True)
    assert is_seen(picture, {"a/r_1"}) and not is_seen(picture, {"a/r_2"})
    assert is_seen(nested, {"a/site1-r:1"}) and not is_seen(nested, {"b/site1-r:1"})


def test_pictures_near_the_test_are_found():
    random = np.random.RandomState(0)
    train, test, others = (directions(random.randn(50, 8), 0) for _ in range(3))
    assert near_test(np.concatenate([test[:3] + 1e-3, others]), train, test)[:3].all()
    assert near_test(others, train, test).mean() < 0.2


@pytest.mark.parametrize(("flags", "words"), [
    ({"arms": ("none",)}, "--arms none: must be some of"), ({"val_fraction": 0.0}, "--val-fraction 0.0"),
    ({"synthetic_path": (Path("a"), Path("a"))}, "--synthetic-path: names a folder twice"),
    ({"labels": ()}, "--labels"), ({"seeds": 0}, "--seeds 0"),
    ({"added_per_label": 0}, "--added-per-label 0")])
def test_wrong_flags_are_refused(flags, words):
    with pytest.raises(InputError, match=words):
        SegmentationConfig(data_path=Path("real"), output=Path("out"), **flags).filled()


def test_quick_fills_only_what_is_not_given():
    folders = {"data_path": Path("real"), "output": Path("out")}
    quick = SegmentationConfig(**folders, size=32, seeds=1, quick=True).filled()
    assert (quick.steps, quick.labels, quick.size, quick.seeds) == (100, (25, 100), 32, 1)
