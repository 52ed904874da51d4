"""Several processes of a job: an error of any is said once, with its rank; all take the same checkpoint."""

import re
import socket
import subprocess
import sys

import pytest
import torch

from common.checkpoints import save_checkpoint
from common.distributed import Runtime
from common.locks import locked

PROGRAM = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from common.checkpoints import checkpoint_file, newest_checkpoint
from common.command import run_command
from common.errors import InputError
from common.locks import locked

@dataclass
class Config:
    folder: Path = Path("folder")

def run(config, runtime):
    {body}

run_command(Config, run)
"""


def run_group(body, folder, python, env):
    """`body` as the run of a command on two processes -> their exit statuses, outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [python, "-c", PROGRAM.format(body=body), "--folder", str(folder)]
    group = [subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]
    outputs = [process.communicate(timeout=60) for process in group]
    out, error = ("".join(parts) for parts in zip(*outputs, strict=True))
    return [process.returncode for process in group], out, error


@pytest.mark.parametrize(("body", "said"), [
    ("""
    if runtime.rank == 1:
        raise OSError(28, "disk full", "x.png")
    time.sleep(1)
    raise SystemExit(2)""", r"error: process 1: \[Errno 28\] disk full: 'x\.png'\n"),
    ("""
    time.sleep(runtime.rank / 2)
    raise InputError("--folder: wrong")""", r"error: process 0: --folder: wrong\n"),
    ("""
    with runtime.together():
        if runtime.rank == 1:
            raise InputError("--folder: wrong")""", r"error: process 1: --folder: wrong\n"),
    ("""
    with runtime.together():
        raise OSError(f"{runtime.rank} is full")""", r"error: process 0: 0 is full; process 1: 1 is full\n"),
])
def test_error_of_any_process_is_said_once_with_its_rank(tmp_path, python, command_env, body, said):
    status, out, error = run_group(body, tmp_path, python, command_env)
    assert status == [2, 2] and out == "" and re.fullmatch(said, error), error


def test_job_of_several_processes_is_refused_as_one_and_holds_as_one(tmp_path, python, command_env, runtime):
    body = """
    with locked(config.folder / "run", runtime):
        runtime.gather(None)
        print(len(list(config.folder.rglob(".lock"))))
        runtime.gather(None)"""
    status, out, error = run_group(body, tmp_path, python, command_env)
    assert (status, out, error) == ([0, 0], "1\n1\n", "") and not list(tmp_path.iterdir())
    with locked(tmp_path / "run", runtime):
        status, out, error = run_group(body, tmp_path, python, command_env)
    assert status == [2, 2] and out == ""
    assert error.count("\n") == 1 and "another job is at work there" in error


def test_all_processes_take_the_checkpoint_that_the_main_one_finds(tmp_path, python, command_env):
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step, {"step": step, "model": torch.ones(99)}, keep=2)
    (tmp_path / "checkpoints" / "0000002.pt").write_bytes(b"damaged")
    body = """
    read = checkpoint_file(config.folder, runtime).stem
    checkpoint, warnings = newest_checkpoint(config.folder / "checkpoints", runtime)
    print(read, checkpoint["step"], len(warnings))"""
    status, out, error = run_group(body, tmp_path, python, command_env)
    assert (status, out) == ([0, 0], "0000001 1 1\n0000001 1 1\n") and error.count("\n") == 1
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["0000001.pt", "0000002.pt.damaged"]


def test_float32_on_a_gpu_is_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert Runtime().device("cuda").type == "cuda" and not torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_what_is_left_of_the_group_cannot_fail_a_finished_command(tmp_path, command_env):
    status, out, _ = run_group("""
    import atexit, os
    atexit.register(os.abort)
    print("done", runtime.rank)""", tmp_path, sys.executable, command_env)
    assert status == [0, 0] and sorted(out.splitlines()) == ["done 0", "done 1"]
