"""Shell entry points: from videos to samples in one command, and what they say if something is missing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import read_json

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script_env():
    """Scripts use the environment that runs this test."""
    return {**os.environ, "ENDOGEN_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}


def bash(script, *arguments, env, cwd, check=True):
    command = ["bash", str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=cwd, check=check, capture_output=True, text=True)


@pytest.mark.slow
def test_pipeline_goes_from_nothing_to_samples_and_continues_with_given_videos(script_env, ready, tmp_path):
    tiny = {"ROWS": "2", "COLS": "2", "FRAME_SIZE": "16",
            "PHANTOM_RECORDINGS": "2", "CLIP_STRIDE": "22", "VQ_STEPS": "2", "GPT_STEPS": "2",
            "BALANCE_STEPS": "2",
            "ROW_STEPS": "2", "LAST_STEPS": "2", "GPT_BATCH": "4", "CLIPS_PER_CLASS": "1"}
    one_core = {"LOCAL_WORLD_SIZE": "99"}  # so that no other processes are started, which costs more
    env = {**script_env, **tiny, **one_core, "ENDOGEN_VENV": str(ready)}
    stopped = subprocess.Popen(["bash", ROOT / "scripts" / "run_pipeline.sh", "out"], cwd=tmp_path,
                               env={**env, "VQ_STEPS": "1000000"}, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    while "step 50 " not in stopped.stdout.readline():
        assert stopped.poll() is None
    os.killpg(stopped.pid, signal.SIGTERM)
    assert "run the same command again" in stopped.communicate()[0] and stopped.returncode == 130
    assert not (tmp_path / "out" / "codes").exists()
    done = bash("scripts/run_pipeline.sh", "out/videos", "out", env=env, cwd=tmp_path)
    assert done.stdout.endswith("\nopen out/samples/index.html\n")
    assert (tmp_path / "out" / "videos" / "PHANTOM.txt").exists()
    samples = read_json(tmp_path / "out" / "samples" / "samples.json")
    assert [clip["class"] for clip in samples["clips"]] == samples["dataset"]["class_names"]
    assert len(samples["clips"]) == 8 and done.stdout.count("accuracy") > 8
    for run, flag in (("tokenizer", "vq_ckpt"), ("gpt_first", "gpt_ckpt")):
        start = read_json(tmp_path / "out" / run / "config.json")["training"][flag]
        assert start.endswith(f"endogen_phantom_{flag.removesuffix('_ckpt')}.safetensors")


def test_demo_names_a_model_that_is_not_there_in_one_line(script_env, ready, tmp_path):
    if (ROOT / "pretrained_models" / "surgvisdom_model_0065324.pt").exists():
        pytest.skip("it is there")
    env = {**script_env, "ENDOGEN_VENV": str(ready)}
    done = bash("sample_c2i_512_demo.sh", "--model", "surgvisdom", env=env, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "download_models.sh surgvisdom" in done.stderr and "pretrained_models" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_page_empties_no_folder_that_it_did_not_make(script_env, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    env = {**script_env, "ENDOGEN_APP_VENV": str(tmp_path)}
    done = bash("scripts/app.sh", env=env, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_requirements_are_pinned():
    lines = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert lines and all(line.split(";")[0].count("==") == 1 for line in lines)
