"""Which recordings a folder holds: links, copies, junk, unknown suffixes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparing import command, prepare, report, shell
from synthetic import moving_texture, write_class_videos

from dataset.manifest import Manifest
from dataset.recordings import find_sources
from dataset.split import Piece, split_class
from dataset.video import write_frames, write_mp4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two classes of two recordings each; copied by `videos`."""
    folder = tmp_path_factory.mktemp("made")
    write_class_videos(folder, ("a", "b"), recordings=2, frames=14, size=32)
    return folder


@pytest.fixture
def videos(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "videos")
    return tmp_path / "videos"


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


def paths(folder: Path, **options) -> list[str]:
    return [source.path for source in find_sources(folder, None, None, **options).sources]


def reasons(entries: list[dict]) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in entries}


PLAIN = ["a/recording0.mp4", "a/recording1.mp4", "b/recording0.mp4", "b/recording1.mp4"]


def test_links_that_lead_back_up_are_not_followed(videos, data):
    for name, target in (("a/back", ".."), ("a/self", "."), ("all", "."), ("b/top", "../.."),
                         ("b/absolute", videos), ("around", "around")):
        (videos / name).symlink_to(target, target_is_directory=True)
    (videos / "a" / "deep").mkdir()
    (videos / "a" / "deep" / "up").symlink_to("../..")
    manifest = prepare(videos, data)
    assert sorted(job for job in report(data)["recordings"]) == PLAIN
    assert len(manifest.clips) == 12
    links = {"a/back", "a/self", "all", "b/top", "b/absolute", "a/deep/up"}
    assert set(reasons(report(data)["notes"])) == links
    assert set(reasons(report(data)["unusable"])) == {"around"}


def test_links_across_each_other_end(videos):
    (videos / "a" / "other").symlink_to("../b")
    (videos / "b" / "other").symlink_to("../a")
    found = find_sources(videos, None, None)
    assert [source.path for source in found.sources] == PLAIN
    assert len(found.copies) == 4


def test_data_on_another_disk_is_followed(videos, tmp_path, data):
    (tmp_path / "disk").mkdir()
    shutil.move(videos / "b", tmp_path / "disk" / "holdings")
    (videos / "b").symlink_to(tmp_path / "disk" / "holdings")
    shutil.move(videos / "a" / "recording0.mp4", tmp_path / "disk" / "one.mp4")
    (videos / "a" / "recording0.mp4").symlink_to(tmp_path / "disk" / "one.mp4")
    prepare(videos, data)
    assert sorted(report(data)["recordings"]) == PLAIN
    assert report(data)["copies"] == report(data)["unusable"] == report(data)["notes"] == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_counts_once_however_many_links_it_has(videos, link, data):
    link(videos / "b" / "recording0.mp4", videos / "b" / "again.mp4")
    link(videos / "b" / "recording1.mp4", videos / "b" / "twice.mp4")
    prepare(videos, data)
    kept = set(report(data)["recordings"])
    assert len(kept) == 4
    assert all("the same file as b/" in reason for reason in reasons(report(data)["copies"]).values())
    if link is os.symlink:
        assert kept == set(PLAIN)  # the real one, though its name comes later


def test_a_file_linked_into_another_class_stays_in_its_own(videos):
    (videos / "a" / "0.mp4").symlink_to("../b/recording0.mp4")
    (videos / "a2").symlink_to("b")
    found = find_sources(videos, None, None)
    assert [source.path for source in found.sources] == PLAIN
    copies = dict(found.copies)
    assert set(copies) == {"a/0.mp4", "a2/recording0.mp4", "a2/recording1.mp4"}
    assert copies["a/0.mp4"] == "the same file as b/recording0.mp4 in another class, left out"
    assert ("a2", "a class folder without recordings") in found.unusable


def test_a_file_of_a_pool_linked_into_two_classes_has_the_first(videos, tmp_path):
    pool = tmp_path / "pool.mp4"
    write_mp4(pool, moving_texture(5, 8, 32, 32), 25)
    for name in "ab":
        (videos / name / "pooled.mp4").symlink_to(pool)
    found = find_sources(videos, None, None)
    assert [source.path for source in found.sources].count("a/pooled.mp4") == 1
    assert [path for path, _ in found.copies] == ["b/pooled.mp4"]


def test_copies_in_a_class_are_one_recording(videos, data):
    shutil.copy(videos / "a" / "recording0.mp4", videos / "a" / "recording7.MP4")
    write_frames(videos / "b" / "frames", moving_texture(50, 8, 32, 32))
    shutil.copytree(videos / "b" / "frames", videos / "b" / "frames (copy)")
    for file in (videos / "b" / "frames (copy)").iterdir():
        file.rename(file.with_name(f"img_{file.name}"))
    (videos / "a" / "empty1.mp4").touch()
    (videos / "a" / "empty2.mp4").touch()
    prepare(videos, data)
    assert reasons(report(data)["copies"]) == {
        "a/recording7.MP4": "a copy of a/recording0.mp4, left out",
        "b/frames (copy)": "a copy of b/frames, left out"}
    assert {path for path in reasons(report(data)["unusable"])} == {"a/empty1.mp4", "a/empty2.mp4"}


def test_files_that_differ_in_the_middle_alone_are_no_copies(videos):
    content = bytearray(np.random.default_rng(0).bytes(1 << 18))
    (videos / "a" / "x.mp4").write_bytes(content)
    content[1 << 17] ^= 1
    (videos / "a" / "y.mp4").write_bytes(content)
    assert find_sources(videos, None, None).copies == []


def test_copies_in_two_classes_are_never_in_val(tmp_path, data):
    write_class_videos(tmp_path / "videos", ("a", "b"), recordings=6, frames=8, size=32)
    for index in range(3):
        shutil.copy(tmp_path / f"videos/a/recording{index}.mp4", tmp_path / f"videos/b/copy{index}.mp4")
    manifest = prepare(tmp_path / "videos", data, val_fraction=0.5)
    held_out = {clip.recording for clip in manifest.select("val")}
    assert {f"a/recording{index}" for index in range(3)} | {f"b/copy{index}" for index in range(3)} <= {
        clip.recording for clip in manifest.select("train")}
    assert len(held_out) == 3 + 4  # half of each class all the same, as far as the others reach
    assert "a copy of a/recording0.mp4 in another class" in reasons(report(data)["copies"])["b/copy0.mp4"]


def test_only_recording_of_a_class_stays_in_train_if_another_class_has_it():
    pieces = [Piece(f"{i}.png", "a/x", "a/x.mp4", i, i + 1) for i in range(10)]
    assert split_class(pieces, 0.5, {"a/x"}) == (["train"] * 10, "recording")
    assert "val" in split_class(pieces, 0.5)[0]


@pytest.mark.parametrize("suffix", [".vob", ".MTS", ".m2ts", ".TS", ".dat", ".DAT", "", ".x264-old"])
def test_what_the_video_library_can_open_is_a_recording(videos, suffix):
    (videos / "a" / "recording0.mp4").rename(videos / "a" / f"video{suffix}")
    assert f"a/video{suffix}" in paths(videos)


def test_files_without_moving_pictures_are_named_and_do_not_end_the_program(tmp_path, data, python):
    folder = tmp_path / "videos" / "a"
    folder.mkdir(parents=True)
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (folder / "IM000001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (folder / "notes").write_text("a text without a suffix\n" * 100)
    (folder / "table.csv").write_text("a,b\n1,2\n" * 100)
    Image.new("RGB", (32, 32)).save(folder / "picture", format="PNG")
    Image.new("RGB", (32, 32)).save(folder / "photo.jfif", format="JPEG")
    os.mkfifo(folder / "pipe.mp4")
    result = shell(command(python, tmp_path / "videos", data))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "no usable clip, such as" in result.stderr and "DICOM: convert it" in result.stderr
    found = reasons(report(data)["unusable"])
    assert found.pop("a") == "a class folder without recordings"
    assert found.pop("a/pipe.mp4") == "neither a file nor a folder"
    assert found.pop("a/scan.dcm") == found.pop("a/IM000001") == "DICOM: convert it to a video first"
    assert set(found) == {"a/notes", "a/table.csv", "a/picture", "a/photo.jfif"}
    assert all(reason.startswith("not a video") for reason in found.values())


def test_junk_is_neither_class_nor_recording_nor_unusable(videos, data):
    write_frames(videos / "a" / "frames", moving_texture(60, 8, 32, 32))
    for name in ("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", ".Trash"):
        (videos / name).mkdir()
        (videos / name / "x.mp4").write_bytes(b"junk")
    for folder in (videos, videos / "a", videos / "a" / "frames"):
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir" / "thumb1.jpg").write_bytes(b"junk")
        for name in ("._recording0.mp4", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"junk")
    manifest = prepare(videos, data)
    assert manifest.class_names == ("a", "b")
    assert set(report(data)["recordings"]) == {"a/frames", *PLAIN}
    assert report(data)["unusable"] == []


def test_released_grids_with_junk_beside_them_are_still_grids(tmp_path):
    for name in ("ulcer/v_0.png", "ulcer/v_1.png", "__MACOSX/x", "ulcer/Thumbs.db", "ulcer/@eaDir/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256)).save(tmp_path / name, format="PNG")
    assert Manifest.read(tmp_path).class_names == ("ulcer",)


NAMES = ["a b", "ü 内視鏡", "-dash", "50%", "%03d", "#1", "it's \"so\"", "new\nline", "back\\slash", "tab\t",
         "a:b", "concat:x", "http:", "*", "$HOME", "~", "é" * 100]


def test_names_of_every_kind_become_clips(tmp_path, data):
    for seed, name in enumerate(NAMES):
        (tmp_path / "videos" / "class é -1").mkdir(parents=True, exist_ok=True)
        write_mp4(tmp_path / "plain.mp4", moving_texture(seed, 4, 32, 32), 25)
        (tmp_path / "plain.mp4").rename(tmp_path / "videos" / "class é -1" / f"{name}.mp4")
    manifest = prepare(tmp_path / "videos", data)
    assert len({clip.name for clip in manifest.clips}) == len(NAMES)
    assert not any(set(clip.name) & set("\n\t\\") for clip in manifest.clips)
    assert all((data / clip.name).is_file() for clip in manifest.clips)


def test_class_folders_whose_names_cannot_be_carried_along_are_named(videos, data, python):
    for name in (b"new\nline", b"back\\slash", b"latin-\xe9"):
        shutil.copytree(videos / "a", videos / os.fsdecode(name))
    (videos / "b" / "notes\nof me.txt").touch()
    result = shell(command(python, videos, data, "--workers", "1"))
    assert result.returncode == 0, result.stderr
    assert Manifest.read(data).class_names == ("a", "b")
    found = reasons(report(data)["unusable"])
    assert set(found) == {"back\\slash", "new\nline", "latin-?", "b/notes\nof me.txt"}
    assert "new\\nline: not taken for a class" in result.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(videos):
    (videos / "a" / "recording0.mp4").chmod(0)
    (videos / "b").chmod(0)
    found = find_sources(videos, None, None)
    assert [source.path for source in found.sources] == ["a/recording1.mp4"]
    unread = {path for path, why in found.unusable if "without read permission" in why}
    assert unread == {"a/recording0.mp4", "b"}
