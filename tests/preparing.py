"""What the tests of dataset.prepare share."""

import json
import os
import subprocess
from pathlib import Path

from common.distributed import Runtime
from dataset.manifest import Manifest
from dataset.prepare import PrepareConfig, run

SMALL = {"rows": 2, "cols": 2, "frame_size": 16}
FLAGS = ["--rows", "2", "--cols", "2", "--frame-size", "16"]


def prepare(videos: Path, data: Path, **options) -> Manifest:
    return run(PrepareConfig(videos, data, **{**SMALL, "workers": 1, **options}), Runtime())


def command(python: str, videos: Path, data: Path, *flags: str) -> list[str]:
    return [python, "-m", "dataset.prepare", "--video-path", str(videos), "--data-path", str(data),
            *FLAGS, *flags]


def shell(words: list[str], **variables: str) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(words, capture_output=True, text=True, cwd=root, timeout=120, env=environment,
                          check=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report(data: Path) -> dict:
    return json.loads((data / "report.json").read_text())
