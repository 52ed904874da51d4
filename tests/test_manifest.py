import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from common.presets import PRESETS, find_preset
from dataset.manifest import Clip, Manifest
from dataset.pictures import read_picture
from dataset.split import Piece, split_class

CLIPS = (Clip("polyps/a_000000.png", 0, "polyps/a", "train", 0.0),
         Clip("polyps/b_000016.png", 0, "polyps/b", "val", 1.28),
         Clip("ulcer é/c_000000.png", 1, "ulcer é/c", "train", 0.0))
SPLIT_BY = {"polyps": "recording", "ulcer é": "time"}
MANIFEST = Manifest(("polyps", "ulcer é"), 4, 4, 128, 12.5, None, SPLIT_BY, CLIPS)


def test_what_is_written_is_read_back(tmp_path):
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST


def test_facts_carry_everything_but_the_clips_as_json():
    facts = json.loads(json.dumps(MANIFEST.facts()))
    assert facts == {"class_names": ["polyps", "ulcer é"], "rows": 4, "cols": 4, "frame_size": 128,
                     "fps": 12.5, "frame_stride": None, "split_by": SPLIT_BY}
    assert MANIFEST.grid_size == (512, 512)
    assert [clip.name for clip in MANIFEST.select("val")] == ["polyps/b_000016.png"]


@pytest.mark.parametrize(("change", "reason"), [
    ({"version": 99}, "version"), ({"rows": 0}, "positive"), ({"cols": 2.0}, "positive integers"),
    ({"class_names": ["a", "a"]}, "twice"),
    ({"fps": None}, "TypeError"), ({"clips": [{"name": "x"}]}, "TypeError"), ({"rows": ...}, "rows"),
    ({"clips": [["polyps/a.png", 2, "polyps/a", "train", 0.0]]}, "TypeError"),
    ({"clips": [{"name": "x.png", "label": 2, "recording": "x", "split": "train", "start": 0}]}, "label 2"),
    ({"clips": [{"name": "x.png", "label": 0, "recording": "x", "split": "test", "start": 0}]}, "split test"),
])
def test_wrong_dataset_json_is_named_with_what_is_wrong(tmp_path, change, reason):
    MANIFEST.write(tmp_path)
    path = tmp_path / "dataset.json"
    record = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))
    with pytest.raises(ValueError, match=rf"dataset\.json: .*{reason}"):
        Manifest.read(tmp_path)


def test_broken_or_missing_data_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        Manifest.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds neither"):
        Manifest.read(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: not valid JSON"):
        Manifest.read(tmp_path)


def write_released(folder, side, names):
    for class_name, files in names.items():
        (folder / class_name).mkdir(parents=True)
        for file in files:
            Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / class_name / file)


@pytest.mark.parametrize(("side", "rows"), [(512, 4), (1024, 8)])
def test_released_layout_counts_as_prepared(tmp_path, side, rows):
    files = [f"{video}_{number}.png" for video in ("video 1", "x_y") for number in range(3)]
    write_released(tmp_path, side, {"ulcer": files, "cancer": ["video_0.png", "video_1.png"]})
    manifest = Manifest.read(tmp_path)
    assert manifest.class_names == ("cancer", "ulcer")
    assert (manifest.rows, manifest.cols, manifest.frame_size) == (rows, rows, 128)
    assert len(manifest.clips) == 8
    assert manifest.split_by == {"cancer": "time", "ulcer": "recording"}
    assert {clip.recording for clip in manifest.clips} == {"cancer/video", "ulcer/video 1", "ulcer/x_y"}
    sides = {(clip.recording, clip.split) for clip in manifest.clips if clip.label == 1}
    assert len(sides) == 2
    assert {split for _, split in sides} == {"train", "val"}
    assert Manifest.read(tmp_path) == manifest


def test_released_picture_of_wrong_size_or_kind_is_named(tmp_path):
    write_released(tmp_path / "odd", 500, {"a": ["v_0.png"]})
    with pytest.raises(ValueError, match="500 x 500"):
        Manifest.read(tmp_path / "odd")
    write_released(tmp_path / "mixed", 512, {"a": ["v_0.png"]})
    Image.new("RGB", (256, 512)).save(tmp_path / "mixed" / "a" / "v_1.png")
    with pytest.raises(ValueError, match=r"v_1\.png: 256 x 512"):
        Manifest.read(tmp_path / "mixed")
    (tmp_path / "mixed" / "a" / "v_1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"v_1\.png: not a readable picture"):
        Manifest.read(tmp_path / "mixed")


def test_data_set_that_prepare_has_not_finished_is_not_taken_for_a_released_one(tmp_path):
    write_released(tmp_path, 512, {"a": ["v_0.png"]})
    (tmp_path / ".prepare").mkdir()
    with pytest.raises(ValueError, match="run it again"):
        Manifest.read(tmp_path)


def starts_in(files):
    """Some (file, first frame) pairs."""
    pairs = st.tuples(st.sampled_from(files), st.integers(0, 200))
    return st.lists(pairs, min_size=1, max_size=60, unique=True)


PIECES = starts_in("abcdef")


def pieces_from(pairs, length=16):
    return [Piece(f"{file}_{start}", file, file, start, start + length) for file, start in pairs]


@given(pairs=PIECES, fraction=st.floats(0.01, 0.5))
@settings(max_examples=80, deadline=None)
def test_no_recording_is_on_both_sides_and_no_side_is_empty(pairs, fraction):
    pieces = pieces_from(pairs)
    splits, split_by = split_class(pieces, fraction)
    recordings = {piece.recording for piece in pieces}
    if len(recordings) > 1:
        assert split_by == "recording"
        sides = {(piece.recording, split) for piece, split in zip(pieces, splits, strict=True)}
        assert len(sides) == len(recordings)
        assert set(splits) == {"train", "val"}


@given(starts=starts_in("12"), fraction=st.floats(0.01, 0.5))
@settings(max_examples=80, deadline=None)
def test_split_by_time_puts_the_end_in_val_and_shares_no_frame(starts, fraction):
    pieces = [Piece(f"{file}_{start}", "only", file, start, start + 16) for file, start in starts]
    splits, split_by = split_class(pieces, fraction)
    assert split_by == "time"
    sides = {side: [piece for piece, split in zip(pieces, splits, strict=True) if split == side]
             for side in ("train", "val")}
    assert sides["train"]
    for early in sides["train"]:
        for late in sides["val"]:
            assert (early.file, early.start) < (late.file, late.start)
            assert early.file != late.file or early.end <= late.start


@given(pairs=PIECES, fraction=st.floats(0.01, 0.5), random=st.randoms())
@settings(max_examples=50, deadline=None)
def test_split_does_not_depend_on_the_order_of_the_clips(pairs, fraction, random):
    pieces = pieces_from(pairs)
    expected = dict(zip(pieces, split_class(pieces, fraction)[0], strict=True))
    random.shuffle(pieces)
    assert dict(zip(pieces, split_class(pieces, fraction)[0], strict=True)) == expected


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35])
def test_val_has_about_the_fraction_asked_for(fraction):
    pieces = pieces_from([(f"video{video}", 16 * i) for video in range(20) for i in range(10)])
    splits, _ = split_class(pieces, fraction)
    assert Counter(splits)["val"] == 200 * fraction
    splits, _ = split_class(pieces_from([("only", 16 * i) for i in range(200)]), fraction)
    assert Counter(splits)["val"] == 200 * fraction


def test_fraction_zero_leaves_val_empty():
    for pairs in ([("a", 0), ("b", 0)], [("a", 0), ("a", 16)]):
        assert set(split_class(pieces_from(pairs), 0)[0]) == {"train"}


def test_class_ids_of_the_presets_are_alphabetical_and_facts_match_the_manifest():
    for name in PRESETS:
        preset = find_preset(name)
        assert list(preset.class_names) == sorted(preset.class_names)
        assert set(MANIFEST.facts()) - set(preset.facts()) == {"split_by"}
    assert [len(find_preset(name).class_names) for name in ("hyperkvasir16", "surgvisdom16")] == [8, 3]
    assert find_preset("hyperkvasir64").rows == find_preset("hyperkvasir64").cols == 8
    with pytest.raises(ValueError, match=r"--preset nonsense: .*hyperkvasir16"):
        find_preset("nonsense")


def test_size_of_released_grids_is_that_of_the_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn
    (tmp_path / "red").mkdir()
    Image.new("RGB", (128, 256)).save(tmp_path / "red/v_1.png", exif=exif)
    Image.new("RGB", (256, 128)).save(tmp_path / "red/v_2.png")
    manifest = Manifest.read(tmp_path)
    assert (manifest.rows, manifest.cols) == (1, 2)
    assert read_picture(tmp_path / "red/v_1.png").shape[:2] == manifest.grid_size
