"""A data set's archive as it unpacks: a preset finds its classes at any depth."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from preparing import prepare, report
from synthetic import moving_texture, write_class_videos

from common.errors import InputError
from common.presets import HYPERKVASIR
from dataset.video import write_mp4

FINDINGS = "upper-gi-tract/pathological-findings"

@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """HyperKvasir's archive, with one short recording a class."""
    root = tmp_path_factory.mktemp("archive") / "hyper-kvasir"
    names = [f"labeled-videos/{FINDINGS}/{name}" for name in (*HYPERKVASIR, "barretts-short-segment")]
    names += ["labeled-videos/lower-gi-tract/pathological-findings/polyps",
              "labeled-videos/lower-gi-tract/quality-of-mucosal-view/bbps-0-1"]
    for seed, name in enumerate(names):
        write_mp4(root / name / "763aea61.mp4", moving_texture(seed, 8, 32, 32), 25)
    for name in ("barretts", "polyps"):
        (root / "labeled-images" / FINDINGS / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(root / "labeled-images" / FINDINGS / name / "x.jpg")
    return root


@pytest.mark.parametrize("start", [".", "labeled-videos", "labeled-videos/upper-gi-tract",
                                   f"labeled-videos/{FINDINGS}"])
def test_a_preset_finds_its_classes_in_the_archive(unpacked, data, start):
    manifest = prepare(unpacked / start, data, preset="hyperkvasir16", clip_stride=None)
    assert manifest.class_names == HYPERKVASIR
    assert {clip.label for clip in manifest.clips} == set(range(8))
    assert sorted(report(data)["recordings"]) == [f"{name}/763aea61.mp4" for name in HYPERKVASIR]
    left_out = {os.path.normpath(f"{start}/{note['file']}") for note in report(data)["notes"]
                if note["reason"] == "left out by --preset"}
    expected = {f"labeled-videos/{FINDINGS}/barretts-short-segment"}
    if "upper" not in start:
        lower = "labeled-videos/lower-gi-tract"
        expected |= {lower, f"{lower}/pathological-findings/polyps"}
    if start == ".":
        images = f"labeled-images/{FINDINGS}"
        expected |= {"labeled-images", f"{images}/barretts", f"{images}/polyps"}
    assert left_out == expected


def test_places_that_a_preset_cannot_tell_apart_are_named(unpacked, tmp_path, data):
    for name in ("first", "second"):
        shutil.copytree(unpacked / "labeled-videos" / "upper-gi-tract", tmp_path / "both" / name)
    with pytest.raises(InputError, match=r"are in first/path\S+ and in second/path"):
        prepare(tmp_path / "both", data, preset="hyperkvasir16")
    (tmp_path / "both" / "second").rename(tmp_path / "both" / "upper-gi-tract")
    manifest = prepare(tmp_path / "both", data, preset="hyperkvasir16", clip_stride=None)
    assert {clip.label for clip in manifest.clips} == set(range(8))


def test_a_class_that_is_nowhere_is_named_with_the_folder_of_the_others(unpacked, tmp_path, data):
    shutil.copytree(unpacked, tmp_path / "archive")
    shutil.rmtree(tmp_path / "archive" / "labeled-videos" / FINDINGS / "cancer")
    with pytest.raises(InputError, match=rf"{FINDINGS}: has no class folder cancer"):
        prepare(tmp_path / "archive", data, preset="hyperkvasir16")


def test_folders_of_class_folders_taken_for_classes_are_remarked_on(unpacked, data, tmp_path):
    prepare(unpacked / "labeled-videos", data)
    (note,) = report(data)["notes"]
    assert note["file"] == "lower-gi-tract, upper-gi-tract"
    assert "barretts" in note["reason"] and "--preset" in note["reason"]
    videos = tmp_path / "videos"
    write_class_videos(videos, ("a", "b"), recordings=2, frames=14, size=32)
    (videos / "a" / "patient7").mkdir()
    (videos / "a" / "recording0.mp4").rename(videos / "a" / "patient7" / "x.mp4")
    prepare(videos, tmp_path / "other")
    assert report(tmp_path / "other")["notes"] == []
