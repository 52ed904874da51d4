import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparing import prepare, report, tree
from synthetic import moving_texture, write_class_videos

from dataset.grid import grid_to_frames
from dataset.manifest import Manifest
from dataset.prepare import PrepareConfig
from dataset.screening import Thresholds
from dataset.video import read_frames, write_frames, write_gif, write_mp4


def frames_of(data: Path, name: str, rows=2, cols=2) -> np.ndarray:
    grid_HWC = np.asarray(Image.open(data / name))
    return grid_to_frames(grid_HWC.transpose(2, 0, 1), rows, cols).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two classes of three recordings each; copied by `videos`."""
    folder = tmp_path_factory.mktemp("made")
    write_class_videos(folder, ("polyps", "ulcer é"), recordings=3, frames=14, size=32)
    return folder


@pytest.fixture
def videos(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "videos")
    return tmp_path / "videos"


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


def test_every_grid_holds_the_frames_of_its_recording_in_order(videos, data):
    manifest = prepare(videos, data)
    assert manifest == Manifest.read(data)
    assert len(manifest.clips) == 2 * 3 * 3  # 14 frames hold 3 clips of 4
    assert {path for path in tree(data) if path.endswith(".png")} == {clip.name for clip in manifest.clips}
    for clip in manifest.clips:
        recording, _, start = clip.name.removesuffix(".png").rpartition("_")
        assert recording == clip.recording
        assert recording.split("/")[0] == manifest.class_names[clip.label]
        assert clip.start == pytest.approx(int(start) / 25)
        source = np.stack([frame.pixels for frame in read_frames(videos / f"{recording}.mp4")])
        halved = source[int(start) :][:4].reshape(4, 16, 2, 16, 2, 3).mean(axis=(2, 4))
        assert np.abs(frames_of(data, clip.name) - halved).max() <= 1


def test_facts_come_from_the_flags(videos, data):
    manifest = prepare(videos, data, rows=1, cols=3, fps=12.5, clip_stride=2, clips_per_recording=2)
    assert (manifest.rows, manifest.cols, manifest.frame_size) == (1, 3, 16)
    assert (manifest.fps, manifest.frame_stride) == (12.5, None)
    starts = sorted({clip.start for clip in manifest.clips})
    assert starts == [0.0, pytest.approx(0.32)]  # 7 frames hold clips from 0, 2 and 4: the outer two are kept
    assert report(data)["clips_over_maximum"] == 6
    strided = prepare(videos, data / "strided", frame_stride=3, clip_stride=1)
    assert (strided.fps, strided.frame_stride) == (pytest.approx(25 / 3, abs=0.01), 3)
    assert sorted({clip.start for clip in strided.clips}) == [0.0, pytest.approx(0.12)]


def test_whole_recordings_are_held_out(videos, data):
    manifest = prepare(videos, data)
    for label in (0, 1):
        sides = [{clip.recording for clip in manifest.select(side) if clip.label == label}
                 for side in ("train", "val")]
        assert (len(sides[0]), len(sides[1])) == (2, 1)
        assert not sides[0] & sides[1]
    assert set(manifest.split_by.values()) == {"recording"}


def test_only_recording_of_a_class_is_split_by_time_without_shared_frames(tmp_path, data):
    write_class_videos(tmp_path / "videos", ("only",), recordings=1, frames=40, size=32)
    manifest = prepare(tmp_path / "videos", data, clip_stride=1, val_fraction=0.25)
    assert manifest.split_by == {"only": "time"}
    last = max(clip.start for clip in manifest.select("train"))
    first = min(clip.start for clip in manifest.select("val"))
    assert first - last == pytest.approx(4 / 25)  # the very next clip that shares none of 4 frames
    assert report(data)["clips_between_train_and_val"] == 3
    assert {path for path in tree(data) if path.endswith(".png")} == {clip.name for clip in manifest.clips}


def test_pieces_of_a_recording_stay_together(tmp_path, data):
    for seed, name in enumerate(("op1_000", "op1_013", "op1_026", "op2_000", "op2_100")):
        write_mp4(tmp_path / "videos" / "a" / f"{name}.mp4", moving_texture(seed, 8, 32, 32), 25)
    manifest = prepare(tmp_path / "videos", data, recording_pattern=r"^(.*)_[^_]+$", val_fraction=0.4)
    assert {clip.recording: clip.split for clip in manifest.clips} == {"a/op1": "train", "a/op2": "val"}
    assert len(manifest.clips) == 10
    with pytest.raises(ValueError, match="--recording-pattern"):
        prepare(tmp_path / "videos", data, recording_pattern=r"^.*_")


def test_equal_names_do_not_collide(tmp_path, data):
    folder, names = tmp_path / "videos", ("a.mp4", "a.mov", "A.MP4", "deep/er/a.mp4", "deep-er/a.mp4")
    for seed, name in enumerate([*(f"x/{name}" for name in names), "y/a.mp4"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_mp4(folder / "plain.mp4", moving_texture(seed, 4, 32, 32), 25)
        (folder / "plain.mp4").rename(folder / name)
    write_frames(folder / "y" / "patient" / "a", moving_texture(8, 4, 32, 32))
    write_mp4(folder / "y" / f"{'long' * 60}.mp4", moving_texture(9, 4, 32, 32), 25)
    manifest = prepare(folder, data)
    assert len({clip.name.casefold() for clip in manifest.clips}) == 8
    assert len({clip.recording for clip in manifest.clips}) == 8
    assert len([path for path in tree(data) if path.endswith(".png")]) == 8


def test_every_bad_file_is_named_with_its_reason_and_the_others_go_on(videos, data):
    folder = videos / "polyps"
    good = (folder / "recording0.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video")
    (folder / "corrupt.mp4").write_bytes(bytes(64) + good[64:])
    (folder / "notes.txt").write_text("notes")
    (folder / "loose.png").write_bytes(b"")
    (folder / "link.avi").symlink_to("nowhere")
    (folder / ".hidden.mp4").write_bytes(b"")
    write_mp4(folder / "one.mp4", moving_texture(9, 1, 32, 32), 25)
    write_gif(folder / "short.gif", moving_texture(9, 3, 32, 32), 25)
    write_mp4(folder / "black.mp4", np.zeros((8, 32, 32, 3), np.uint8), 25)
    (videos / "nothing").mkdir()
    manifest = prepare(videos, data)
    reasons = {Path(entry["file"]).name: entry["reason"] for entry in report(data)["unusable"]}
    expected = {"empty.mp4": "empty file", "text.mp4": "not a readable video",
                "corrupt.mp4": "not a readable video", "notes.txt": "not a video",
                "loose.png": "not a video", "link.avi": "a broken link",
                "one.mp4": "only 1 frames", "short.gif": "only 3 frames", "black.mp4": "every clip rejected",
                "nothing": "without recordings"}
    assert set(reasons) == set(expected)
    assert all(words in reasons[name] for name, words in expected.items())
    assert str(videos) not in json.dumps(report(data))
    assert len(manifest.clips) == 18


def test_damaged_video_is_used_up_to_the_damage_and_named(videos, data):
    path = videos / "polyps" / "recording0.mp4"
    write_mp4(path, moving_texture(0, 40, 64, 64), 25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    manifest = prepare(videos, data)
    (note,) = report(data)["notes"]
    assert note["file"] == "polyps/recording0.mp4"
    frames = int(re.search(r"damaged after (\d+) frames", note["reason"]).group(1))
    clips = [clip for clip in manifest.clips if clip.recording == "polyps/recording0"]
    assert 0 < len(clips) == frames // 4 < 10


def test_rejected_clips_are_counted_by_reason(tmp_path, data):
    frames = moving_texture(0, 32, 32, 32)
    frames[5] = 0
    frames[9, :24] = 255
    frames[12:16] = frames[12]
    write_mp4(tmp_path / "videos" / "a" / "v.mp4", frames, 25)
    manifest = prepare(tmp_path / "videos", data)
    assert report(data)["rejected_clips"] == {"black": 1, "flash": 1, "frozen": 1}
    assert [round(25 * clip.start) for clip in manifest.clips] == [0, 16, 20, 24, 28]
    off = Thresholds(0, 1, 255, 0)
    assert len(prepare(tmp_path / "videos", tmp_path / "all", thresholds=off).clips) == 8
    assert report(tmp_path / "all")["rejected_clips"] == {}


def test_border_is_cropped_alike_in_all_frames_unless_told_otherwise(tmp_path, data):
    frames = np.zeros((8, 48, 96, 3), np.uint8)
    for seed, name in enumerate(("auto", "given", "middle")):
        frames[:, 8:40, 50:82] = moving_texture(seed, 8, 32, 32)
        write_mp4(tmp_path / "videos" / "a" / f"{name}.mp4", frames, 25)
    crops = tmp_path / "crops.json"
    crops.write_text(json.dumps({"a/given.mp4": "50,8,32", "a/middle.mp4": "none"}))
    manifest = prepare(tmp_path / "videos", data, crop_file=crops)
    found = {Path(path).stem: row["crop"] for path, row in report(data)["recordings"].items()}
    assert found["given"] == [50, 8, 32, "given"]
    assert found["middle"] == [24, 0, 48, "given"]
    assert found["auto"][3] == "field"
    assert np.abs(np.array(found["auto"][:3]) - [50, 8, 32]).max() <= 3
    assert all(frames_of(data, clip.name).mean(axis=-1).min() > 30 for clip in manifest.clips
               if clip.recording == "a/given")
    with pytest.raises(ValueError, match="reaches outside 96 x 48"):
        prepare(tmp_path / "videos", tmp_path / "other", crop="80,0,40")
    crops.write_text(json.dumps({"a/nobody.mp4": "none"}))
    with pytest.raises(ValueError, match=r"--crop-file .*nobody"):
        prepare(tmp_path / "videos", data, crop_file=crops)


def test_preset_names_the_classes_and_gives_defaults_that_flags_override(tmp_path, data):
    classes = ("Dissection", "Knot_Tying", "Needle_Driving", "zzz_other")
    write_class_videos(tmp_path / "videos", classes, recordings=1, frames=17, size=32)
    unset = {"rows": None, "cols": None}
    manifest = prepare(tmp_path / "videos", data, preset="surgvisdom16", **unset)
    assert manifest.class_names == classes[:3]
    assert (manifest.rows, manifest.cols, manifest.frame_size, manifest.frame_stride) == (4, 4, 16, 1)
    assert len(manifest.clips) == 3
    options = {"rows": 1, "cols": None, "clip_stride": 4, "fps": 25}
    manifest = prepare(tmp_path / "videos", data, preset="surgvisdom16", **options)
    assert (manifest.rows, manifest.cols, manifest.fps, manifest.frame_stride) == (1, 4, 25, None)
    assert len(manifest.clips) == 12
    with pytest.raises(ValueError, match="has no class folder barretts"):
        prepare(tmp_path / "videos", data, preset="hyperkvasir16")


def test_class_without_a_clip_keeps_its_id_only_with_a_preset(tmp_path, data):
    write_class_videos(tmp_path / "videos", ("Dissection", "Needle_Driving"), 1, frames=8, size=32)
    (tmp_path / "videos" / "Knot_Tying").mkdir()
    assert prepare(tmp_path / "videos", data).class_names == ("Dissection", "Needle_Driving")
    manifest = prepare(tmp_path / "videos", data, preset="surgvisdom16")
    assert manifest.class_names == ("Dissection", "Knot_Tying", "Needle_Driving")
    assert {clip.label for clip in manifest.clips} == {0, 2}


def test_released_grids_get_their_manifest_in_place(tmp_path):
    for number in range(20):
        path = tmp_path / "grids" / "ulcer" / f"video{number // 10}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 64)).save(path)
    options = {"rows": 4, "cols": 6, "frame_size": None, "fps": 8.0}
    with pytest.raises(ValueError, match="--data-path"):
        prepare(tmp_path / "grids", tmp_path / "elsewhere", **options)
    manifest = prepare(tmp_path / "grids", tmp_path / "grids", **options)
    assert manifest == Manifest.read(tmp_path / "grids")
    assert (manifest.grid_size, manifest.frame_size, manifest.fps) == ((64, 96), 16, 8.0)
    assert len(manifest.select("val")) == 10
    assert prepare(tmp_path / "grids", tmp_path / "grids", **options) == manifest


def test_folders_that_would_be_mixed_up_are_refused(videos, data):
    for inner in (videos, videos / "polyps" / "out"):
        with pytest.raises(ValueError, match="--data-path"):
            prepare(videos, inner)
    data.mkdir()
    (data / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="prepare did not make"):
        prepare(videos, data)
    with pytest.raises(ValueError, match="no such folder"):
        prepare(videos / "nowhere", videos.parent / "other")


@pytest.mark.parametrize(("name", "value"), [
    ("rows", 0), ("fps", -1), ("fps", float("nan")), ("frame_stride", 0), ("clip_stride", -4),
    ("val_fraction", 0.9), ("workers", 0), ("crop", "1,2"), ("crop", "0,0,0"), ("crop", "middle"),
    ("preset", "nonsense"),
])
def test_wrong_value_is_refused_by_its_flag(name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}"):
        PrepareConfig(Path("videos"), Path("data"), **{name: value})


def test_fps_and_frame_stride_exclude_each_other():
    with pytest.raises(ValueError, match=r"--fps.*--frame-stride"):
        PrepareConfig(Path("videos"), Path("data"), fps=5, frame_stride=2)


def test_still_pictures_are_clips_of_one_frame(tmp_path, data):
    folder = tmp_path / "stills" / "polyp"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, size in enumerate([(60, 80), (90, 60), (70, 70), (64, 100)]):
        Image.fromarray(rng.integers(40, 200, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no picture")
    manifest = prepare(tmp_path / "stills", data, rows=1, cols=1, frame_size=32, val_fraction=0.25)
    assert sorted(clip.split for clip in manifest.clips) == ["train"] * 3 + ["val"]
    assert {Image.open(data / clip.name).size for clip in manifest.clips} == {(32, 32)}
    refused = {"file": "polyp/notes.txt", "reason": "neither a video nor a picture"}
    assert report(data)["unusable"] == [refused]
