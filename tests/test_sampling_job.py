"""Sampling as a job: what is left after it was killed or the disk was full, and what a rerun makes of it."""

import dataclasses
import re
import subprocess
import time

import pytest
from forked import kill_when
from PIL import Image

from autoregressive.sample import sample_c2i
from autoregressive.sample.clip_files import write_clip
from autoregressive.sample.sample_c2i import run
from common.files import read_json

CLIPS = 4


FULL_DISK = "import resource, runpy, sys; limit = int(sys.argv.pop(1))\n" \
            "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n" \
            "runpy.run_module('autoregressive.sample.sample_c2i', run_name='__main__', alter_sys=True)"


def flags(config, folder):
    return ["--gpt-ckpt", str(config.gpt_ckpt), "--save-folder", str(folder), "--top-k", "0",
            "--device", "cpu", "--batch-size", "2", "--clips-per-class", str(CLIPS // 2)]


def grids(folder):
    pictures = (folder / "grids").rglob("[!.]*.png")
    return {str(path.relative_to(folder)): path.read_bytes() for path in pictures}


@pytest.fixture
def config(sample_config):
    return dataclasses.replace(sample_config, clips_per_class=CLIPS // 2, batch_size=2)


@pytest.fixture
def whole(config, runtime):
    """The grid pictures that an undisturbed run makes."""
    run(config, runtime)
    return grids(config.save_folder)


def test_killed_job_leaves_whole_clips_only_and_goes_on(config, whole, runtime, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    config = dataclasses.replace(config, save_folder=folder)

    def write_slowly(*arguments):
        write_clip(*arguments)
        (tmp_path / "wrote").touch()
        time.sleep(1)

    with monkeypatch.context() as patch:
        patch.setattr(sample_c2i, "write_clip", write_slowly)
        kill_when((tmp_path / "wrote").exists, lambda: run(config, runtime))
    left = grids(folder)
    assert 0 < len(left) < CLIPS and left.items() <= whole.items()
    (folder / "videos" / ".000001.1.tmp.mp4").touch()  # as if killed while it wrote
    run(config, runtime)
    assert grids(folder) == whole
    assert len(read_json(folder / "samples.json")["clips"]) == CLIPS
    assert not [path for path in folder.rglob(".*")]


def test_full_disk_ends_with_one_line_and_no_broken_file(
    config, whole, tmp_path, runtime, python, command_env
):
    folder = tmp_path / "full"
    largest = "2000"  # bytes that a file may have, less than a picture of noise needs
    done = subprocess.run([python, "-c", FULL_DISK, largest, *flags(config, folder)], env=command_env,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert not grids(folder) and not [path for path in folder.rglob(".*")]
    for path in folder.rglob("*.png"):
        Image.open(path).load()
    run(dataclasses.replace(config, save_folder=folder), runtime)
    assert grids(folder) == whole


def test_wrong_flag_ends_with_one_line_and_status_2(config, tmp_path, python, command_env):
    for wrong, name in ((["--top-p", "2"], "--top-p 2.0"), (["--decode-window", "0"], "--decode-window 0"),
                        (["--batch-size", "many"], "--batch-size")):
        command = [python, "-m", "autoregressive.sample.sample_c2i", *flags(config, tmp_path / "none")]
        done = subprocess.run([*command, *wrong], env=command_env, capture_output=True, text=True)
        assert done.returncode == 2 and re.fullmatch(r"error: .*\n", done.stderr) and name in done.stderr
