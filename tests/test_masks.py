"""Annotated data: masks beside their frames in the grid, and masks that are wrong."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from annotated import annotated_frames, write_annotated, write_masks
from PIL import Image
from preparing import prepare, report, tree
from video_files import change_packets, encode

from dataset.grid_images import load_grid
from dataset.manifest import Manifest, read_facts
from dataset.masks import Masks, frames_of, labels_of, mask_iou, palette, shown_frames, tile
from dataset.video import write_mp4
from tokenizer.extract_codes import variants

ONE_GRID = {"rows": 2, "cols": 2, "frame_size": 16, "crop": "none"}


@pytest.fixture
def source(tmp_path):
    write_annotated(tmp_path)
    return tmp_path


def annotated(source, **options):
    return prepare(source / "videos", source / "data",
                   **{**ONE_GRID, "masks": source / "masks", "mask_labels": 3, **options})


@pytest.mark.parametrize("count", [2, 3, 32, 255])
def test_colours_are_distinct_and_begin_with_black_and_white(count):
    colours = palette(count)
    assert colours[:2] == ((0, 0, 0), (255, 255, 255)) and len(set(colours)) == count
    distance = np.linalg.norm(np.array(colours)[:, None] - np.array(colours), axis=-1) + 1e9 * np.eye(count)
    assert distance.min() >= {2: 441, 3: 277, 32: 89, 255: 36}[count]


@pytest.mark.parametrize("place", ["after", "before"])
@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (2, 3), (1, 2), (1, 4)])
def test_labels_come_back_from_the_grid_and_stand_where_they_should(place, rows, cols):
    length, random = rows * cols // 2, np.random.default_rng(0)
    frames = random.integers(0, 255, (length, 3, 4, 4), np.uint8)
    labels = random.integers(0, 20, (length, 4, 4), np.uint8)
    masks = Masks(place, palette(20))
    facts = {"rows": rows, "cols": cols, "masks": json.loads(json.dumps(masks.facts()))}
    assert Masks.of(facts) == masks
    grid = tile(frames, labels, rows, cols, masks)
    noisy = (grid + random.integers(-15, 15, grid.shape)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(frames_of(grid, facts), frames)
    assert torch.equal(frames_of(torch.from_numpy(grid), facts), torch.from_numpy(frames))
    assert np.array_equal(labels_of(noisy, facts), labels)
    first, second = grid[:, :4, :4], grid[:, :4, 4:8] if rows == 1 else grid[:, 4:8, :4]
    frame, mask = (first, second) if place == "after" else (second, first)
    assert np.array_equal(frame, frames[0]) and np.array_equal(mask, masks.pictures(labels)[0])


@pytest.mark.parametrize("place", ["after", "before"])
def test_every_grid_holds_frames_and_masks_of_its_recording_cropped_alike(source, place):
    manifest = annotated(source, mask_place=place, crop="2,1,12", frame_size=12)
    facts, data = manifest.facts(), source / "data"
    assert Manifest.read(data) == manifest
    assert read_facts(str(data / "dataset.json"))["masks"] == facts["masks"]
    assert facts["masks"]["place"] == place and len(facts["masks"]["colours"]) == 3
    assert len(manifest.clips) == 2 * 3 * 3  # 6 frames hold 3 clips of 2
    for clip in manifest.clips:
        grid = load_grid(data, clip, manifest).numpy()
        number, start = (int(part) for part in clip.name.removesuffix(".png").split("rec")[1].split("_"))
        frames, masks = annotated_frames(10 * clip.label + number, 6, 16)
        place = np.s_[start : start + 2, 1:13, 2:14]
        assert np.array_equal(labels_of(grid, facts), masks[place])
        assert np.array_equal(frames_of(grid, facts), frames[place].transpose(0, 3, 1, 2))


def test_mirrored_clips_have_mirrored_masks(source):
    manifest = annotated(source)
    facts = manifest.facts()
    grid = load_grid(source / "data", manifest.clips[0], manifest)
    plain, mirrored = variants(grid[None], manifest.cols, True)[0].numpy()
    assert np.array_equal(labels_of(mirrored, facts), labels_of(plain, facts)[..., ::-1])
    assert np.array_equal(frames_of(mirrored, facts), frames_of(plain, facts)[..., ::-1])


def test_masks_of_videos_are_those_of_the_sampled_frames(tmp_path):
    frames, masks = annotated_frames(3, 12, 16, labels=2)
    write_mp4(tmp_path / "videos" / "a" / "rec.mp4", frames, 25)
    write_masks(tmp_path / "masks" / "a" / "rec", masks.astype(bool))
    manifest = annotated(tmp_path, mask_labels=2, frame_stride=3)
    grids = [load_grid(tmp_path / "data", clip, manifest).numpy() for clip in manifest.clips]
    labels = np.concatenate([labels_of(grid, manifest.facts()) for grid in grids])
    assert np.array_equal(labels, masks[::3])
    encode(tmp_path / "masks" / "a" / "rec.mkv", "ffv1", "gray", 255 * masks, "gray")
    with pytest.raises(ValueError, match=r"both a/rec and a/rec.mkv"):
        annotated(tmp_path, mask_labels=2)
    shutil.rmtree(tmp_path / "masks" / "a" / "rec")
    manifest = annotated(tmp_path, mask_labels=2, frame_stride=3)
    assert np.array_equal(labels_of(load_grid(tmp_path / "data", manifest.clips[0], manifest).numpy(),
                                    manifest.facts()), masks[:6:3])


def test_a_still_and_its_mask_stand_side_by_side(tmp_path):
    for index in range(4):
        frames, masks = annotated_frames(index, 1, 16, labels=2)
        for side, picture in (("videos", frames[0]), ("masks", 255 * masks[0])):
            (tmp_path / side / "polyp").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / side / "polyp" / f"{index}.png")
    manifest = annotated(tmp_path, rows=1, cols=2, mask_labels=2)
    assert len(manifest.clips) == 4
    for clip in manifest.clips:
        grid = load_grid(tmp_path / "data", clip, manifest).numpy()
        frames, masks = annotated_frames(int(clip.recording[-1]), 1, 16, labels=2)
        assert np.array_equal(labels_of(grid, manifest.facts()), masks)
        assert np.array_equal(grid[:, :, :16], frames[0].transpose(2, 0, 1))


def rewritten(mask, change):
    change(np.asarray(Image.open(mask)).astype(np.uint8)).save(mask)


WRONG = {
    "missing": (lambda folder: shutil.rmtree(folder), "no masks: --masks holds nothing called a/rec1$"),
    "misnamed": (lambda folder: folder.rename(folder.with_name("rec1_mask")),
                 "a/rec1; is a/rec1_mask its mask"),
    "resized": (lambda folder: rewritten(folder / "3.png",
                                         lambda mask: Image.fromarray(mask).resize((20, 16))),
                "its mask has 20 x 16 pixels, the frame 16 x 16; a mask is of the whole frame"),
    "smooth": (lambda folder: rewritten(folder / "3.png", lambda mask: Image.fromarray(120 * mask)),
               "a/rec1/3.png: a mask with 3 values from 0 to 240, but labels are 0 to 2; give --mask-labels"),
    "coloured": (lambda folder: rewritten(folder / "3.png", lambda mask: Image.fromarray(
        np.stack([mask, 0 * mask, mask], -1))), "a/rec1/3.png: has colours; save the numbers of the labels"),
    "few": (lambda folder: (folder / "5.png").unlink(), "5 masks, but more frames"),
    "shifted": (lambda folder: (folder / "2.png").rename(folder / "9.png"),
                "a/rec1/3.png: in the place of the mask of 00002.png"),
    "broken": (lambda folder: (folder / "4.png").write_bytes(b"no"), "a/rec1/4.png: not a readable picture"),
}


def test_class_that_has_no_masks_is_said_to_be_left_out(source, capsys):
    shutil.rmtree(source / "masks" / "a")
    assert tuple(annotated(source).class_names) == ("b",)
    assert "left out: class a, none of its recordings is usable" in capsys.readouterr().out


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_masks_are_named_and_the_other_recordings_used(source, kind):
    change, reason = WRONG[kind]
    change(source / "masks" / "a" / "rec1")
    manifest = annotated(source)
    used = {clip.recording for clip in manifest.clips}
    assert used == {f"{name}/rec{i}" for name in "ab" for i in range(3)} - {"a/rec1"}
    (entry,) = report(source / "data")["unusable"]
    assert entry["file"] == "a/rec1" and str(source) not in entry["reason"]
    assert re.search(reason, entry["reason"])
    noted = [note["file"] for note in report(source / "data")["notes"]]
    assert noted == (["a/rec1_mask"] if kind == "misnamed" else [])


def test_recordings_that_differ_in_suffix_are_not_given_the_same_masks(tmp_path):
    frames, masks = annotated_frames(3, 4, 16)
    write_masks(tmp_path / "masks" / "a" / "rec", masks)
    for suffix in ("mp4", "mkv"):
        write_mp4(tmp_path / "videos" / "a" / f"rec.{suffix}", frames + (suffix == "mkv"), 25)
    with pytest.raises(ValueError, match=r"a/rec.mkv and a/rec.mp4 would have the same"):
        annotated(tmp_path)


def test_smooth_masks_of_two_labels_need_a_threshold(tmp_path):
    masks = annotated_frames(3, 2, 16, labels=2)[1]
    write_annotated(tmp_path, recordings=1, count=2, labels=2)
    shutil.rmtree(tmp_path / "masks" / "a" / "rec0")
    write_masks(tmp_path / "masks" / "a" / "rec0", 180 * masks)
    annotated(tmp_path, mask_labels=2)
    assert "--mask-threshold 128" in report(tmp_path / "data")["unusable"][0]["reason"]
    manifest = annotated(tmp_path, mask_labels=2, mask_threshold=128)
    grid = load_grid(tmp_path / "data", manifest.clips[0], manifest).numpy()
    assert manifest.clips[0].recording == "a/rec0"
    assert np.array_equal(labels_of(grid, manifest.facts()), masks)


def test_masks_of_a_damaged_recording_are_not_guessed(tmp_path):
    frames, masks = annotated_frames(3, 40, 64, labels=2)
    encode(tmp_path / "whole.avi", "mpeg4", "yuv420p", frames, g="10")
    (tmp_path / "videos" / "a").mkdir(parents=True)
    change_packets(tmp_path / "whole.avi", tmp_path / "videos" / "a" / "rec.avi",
                   lambda number, data: data[: len(data) // 2] if number == 25 else data)
    write_masks(tmp_path / "masks" / "a" / "rec", masks)
    with pytest.raises(ValueError, match=r"frames \(it is damaged\), but more masks"):
        annotated(tmp_path, mask_labels=2)


@pytest.mark.parametrize(("flags", "reason"), [
    ({"rows": 3}, "--rows 3, --cols 2: masks need even rows"),
    ({"rows": 1, "cols": 3}, "one row and even cols"),
    ({"mask_labels": 1}, "--mask-labels 1: must be 2 to 255"),
    ({"mask_threshold": 9}, "--mask-threshold 9: must be 1 to 255, for two labels"),
    ({"mask_threshold": 0, "mask_labels": 2}, "--mask-threshold 0"),
    ({"masks": None}, "need --masks"),
])
def test_wrong_flag_is_named(source, flags, reason):
    with pytest.raises(ValueError, match=reason):
        annotated(source, **flags)


def test_folder_of_masks_must_be_there_and_elsewhere(source):
    for folder, reason in (("none", "--masks .*none: no such folder"), ("videos/a", "lies in --video-path")):
        with pytest.raises(ValueError, match=reason):
            prepare(source / "videos", source / "data", masks=source / folder, **ONE_GRID)


def test_rerun_keeps_pictures_until_masks_or_their_place_change(source):
    annotated(source)
    before = tree(source / "data")
    annotated(source)
    assert tree(source / "data") == before
    rewritten(source / "masks" / "a" / "rec1" / "3.png", lambda mask: Image.fromarray(0 * mask))
    annotated(source)
    changed = {name for name, data in tree(source / "data").items() if before.get(name) != data}
    assert {name for name in changed if name.endswith(".png")} == {"a/rec1_000002.png"}
    annotated(source, mask_place="before")
    assert all(tree(source / "data")[name] != data for name, data in before.items() if name.endswith(".png"))


def test_data_without_the_fact_have_frames_only(source):
    manifest = prepare(source / "videos", source / "data", **ONE_GRID)
    assert manifest.masks is None and "masks" not in manifest.facts()
    grid = load_grid(source / "data", manifest.clips[0], manifest).numpy()
    assert len(frames_of(grid, manifest.facts())) == 4 and labels_of(grid, manifest.facts()) is None
    record = json.loads((source / "data" / "dataset.json").read_text())
    for wrong in ({"place": "below", "colours": [[0, 0, 0], [1, 1, 1]]}, {"place": "after"}, ["after"],
                  {"place": "after", "colours": [[0, 0, 0]]}, {"place": "after", "colours": 2 * [[0, 0, 0]]}):
        (source / "data" / "dataset.json").write_text(json.dumps({**record, "masks": wrong}))
        with pytest.raises(ValueError, match=r"dataset.json: its masks are"):
            Manifest.read(source / "data")


def test_overlap_and_outline_follow_the_labels():
    frames, labels = annotated_frames(0, 2, 16, labels=2)
    masks = Masks("after", palette(2))
    facts = {"rows": 2, "cols": 2, "masks": masks.facts()}
    grid, other = (tile(frames.transpose(0, 3, 1, 2), own, 2, 2, masks)
                   for own in (labels, np.roll(labels, 2, 1)))
    assert mask_iou(grid, grid, facts) == 1 and 0.3 < mask_iou(grid, other, facts) < 0.9
    marked = (shown_frames(grid, facts) == 255).all(-1)
    assert marked.sum() == 2 * (4 * 4 - 2 * 2) and (labels[marked] == 1).all()
    assert np.array_equal(frames_of(grid, facts), frames.transpose(0, 3, 1, 2))
