import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from preparing import SMALL, command, prepare, report, shell, tree
from ranks import run_ranks
from synthetic import moving_texture, write_class_videos

from dataset.manifest import Manifest
from dataset.prepare import PrepareConfig, run
from dataset.video import write_mp4

KILLED_AT_THE_SEVENTH_PICTURE = """
import os, signal
from PIL import Image
save, count = Image.Image.save, []
def save_or_die(self, *arguments, **options):
    save(self, *arguments, **options)
    count.append(1)
    if len(count) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
Image.Image.save = save_or_die
from dataset.prepare import PrepareConfig, run, run_command
run_command(PrepareConfig, run)
"""


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


def test_rerun_makes_only_what_is_missing_and_ends_with_the_same_bytes(videos, data):
    prepare(videos, data)
    before = tree(data)
    pictures = sorted(data.glob("*/*.png"))
    times = {path: path.stat().st_mtime_ns for path in pictures}
    pictures[2].unlink()
    next((data / ".prepare").iterdir()).unlink()
    (data / "dataset.json").unlink()
    (data / "polyps" / ".recording0_000000.77.tmp.png").write_bytes(b"left behind by a kill")
    prepare(videos, data)
    assert tree(data) == before
    assert [path for path in pictures if path.stat().st_mtime_ns != times[path]] == [pictures[2]]


def test_killed_run_continues_and_ends_with_the_same_bytes(videos, data, tmp_path, python):
    words = command(python, videos, data, "--workers", "1")
    result = shell([python, "-c", KILLED_AT_THE_SEVENTH_PICTURE, *words[3:]])
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(list(data.glob("*/[!.]*.png"))) == 6
    with pytest.raises(ValueError, match="run it again"):
        Manifest.read(data)
    prepare(videos, data)
    prepare(videos, tmp_path / "undisturbed")
    assert tree(data) == tree(tmp_path / "undisturbed")


def test_changed_settings_leave_nothing_of_the_old_clips(videos, data, tmp_path):
    prepare(videos, data, clip_stride=2)
    prepare(videos, data, clip_stride=3, crop="none")
    (videos / "polyps" / "recording1.mp4").unlink()
    write_mp4(videos / "polyps" / "recording2.mp4", moving_texture(77, 9, 32, 32), 25)
    prepare(videos, data, clip_stride=3, crop="none")
    prepare(videos, tmp_path / "fresh", clip_stride=3, crop="none")
    assert tree(data) == tree(tmp_path / "fresh")


def test_prepare_does_not_wait_for_torch():
    result = shell([sys.executable, "-c", "import sys, dataset.prepare; sys.exit('torch' in sys.modules)"])
    assert result.returncode == 0


def test_workers_and_ranks_do_not_change_a_byte(videos, data, tmp_path, capfd):
    (videos / "polyps" / "text.mp4").write_text("this is no video")
    prepare(videos, data)
    prepare(videos, tmp_path / "workers", workers=2)
    assert tree(tmp_path / "workers") == tree(data)
    capfd.readouterr()
    shared = PrepareConfig(videos, tmp_path / "ranks", **SMALL, workers=1)
    assert run_ranks(partial(run, shared), 2) == [0, 0]
    assert capfd.readouterr().out.count("18 clips") == 1  # one report, from one rank
    assert tree(tmp_path / "ranks") == tree(data)


def test_exit_status_says_whether_anything_usable_came_out(videos, data, tmp_path, python):
    (videos / "polyps" / "text.mp4").write_text("this is no video")
    result = shell(command(python, videos, data, "--workers", "1"))
    assert (result.returncode, result.stderr) == (0, "")
    assert "polyps/text.mp4: not a readable video" in result.stdout
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "text.mp4").write_text("this is no video")
    result = shell(command(python, tmp_path / "bad", tmp_path / "none"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "no usable clip" in result.stderr
    assert report(tmp_path / "none")["unusable"][0]["file"] == "a/text.mp4"
    assert not (tmp_path / "none" / "dataset.json").exists()
