"""Sampling as a job: what is left after it was killed or the disk was full, and what a rerun makes of it."""

import dataclasses
import re
import resource
import subprocess
import sys

import pytest
from PIL import Image

from autoregressive.sample.sample_c2i import run
from common.files import read_json

CLIPS = 6


def command(config, folder):
    return [sys.executable, "-m", "autoregressive.sample.sample_c2i", "--gpt-ckpt", str(config.gpt_ckpt),
            "--save-folder", str(folder), "--top-k", "0", "--device", "cpu", "--batch-size", "2",
            "--clips-per-class", str(CLIPS // 2)]


def grids(folder):
    pictures = (folder / "grids").rglob("[!.]*.png")
    return {str(path.relative_to(folder)): path.read_bytes() for path in pictures}


@pytest.fixture
def whole(sample_config, runtime):
    """The grid pictures that an undisturbed run makes."""
    run(dataclasses.replace(sample_config, clips_per_class=CLIPS // 2), runtime)
    return grids(sample_config.save_folder)


def test_killed_job_leaves_whole_clips_only_and_goes_on(sample_config, whole, tmp_path, command_env):
    folder = tmp_path / "killed"
    slow = "import time, autoregressive.sample.sample_c2i as s; write = s.write_clip\n" \
           "s.write_clip = lambda *a: (write(*a), print('wrote', flush=True), time.sleep(1))\n" \
           "from common.command import run_command; run_command(s.SampleC2IConfig, s.run)"
    flags = command(sample_config, folder)[3:]
    with subprocess.Popen([sys.executable, "-c", slow, *flags], env=command_env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job:
        while "wrote" not in job.stdout.readline():
            assert job.poll() is None
        job.kill()
    left = grids(folder)
    assert 0 < len(left) < CLIPS and left.items() <= whole.items()
    (folder / "videos" / ".000001.1.tmp.mp4").touch()  # as if killed while it wrote
    done = subprocess.run(command(sample_config, folder), env=command_env, capture_output=True, text=True)
    assert done.returncode == 0 and grids(folder) == whole
    assert len(read_json(folder / "samples.json")["clips"]) == CLIPS
    assert not [path for path in folder.rglob(".*")]


def test_full_disk_ends_with_one_line_and_no_broken_file(sample_config, whole, tmp_path, command_env):
    folder = tmp_path / "full"
    largest = 2000  # bytes that a file may have, less than a picture of noise needs
    done = subprocess.run(
        command(sample_config, folder), env=command_env, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert not grids(folder) and not [path for path in folder.rglob(".*")]
    for path in folder.rglob("*.png"):
        Image.open(path).load()
    assert subprocess.run(command(sample_config, folder), env=command_env).returncode == 0
    assert grids(folder) == whole


def test_wrong_flag_ends_with_one_line_and_status_2(sample_config, tmp_path, command_env):
    for flags, name in ((["--top-p", "2"], "--top-p 2.0"), (["--decode-window", "0"], "--decode-window 0"),
                        (["--batch-size", "many"], "--batch-size")):
        done = subprocess.run([*command(sample_config, tmp_path / "none"), *flags], env=command_env,
                              capture_output=True, text=True)
        assert done.returncode == 2 and re.fullmatch(r"error: .*\n", done.stderr) and name in done.stderr
