"""Several processes of a job: an error of any is said once, with its rank; all take the same checkpoint."""

import os
import re
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from common.checkpoints import checkpoint_file, newest_checkpoint, save_checkpoint
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.locks import locked


@dataclass
class Config:
    folder: Path = Path("folder")


def run_group(run, folder):
    """`run` as that of a command on two forked processes -> their exit statuses, outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs, errors = ([tempfile.TemporaryFile("w+") for _ in range(2)] for _ in range(2))  # noqa: SIM115

    def work(rank):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                       "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.dup2(outs[rank].fileno(), 1)
        os.dup2(errors[rank].fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["command", "--folder", str(folder)]
        run_command(Config, run)

    group = [get_context("fork").Process(target=work, args=(rank,)) for rank in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(60)
    texts = []
    for file in (*outs, *errors):
        file.seek(0)
        texts.append(file.read())
        file.close()
    return [process.exitcode for process in group], "".join(texts[:2]), "".join(texts[2:])


def fail_on_one(config, runtime):
    if runtime.rank == 1:
        raise OSError(28, "disk full", "x.png")
    time.sleep(1)
    raise SystemExit(2)


def fail_alike(config, runtime):
    time.sleep(runtime.rank / 2)
    raise InputError("--folder: wrong")


def fail_on_one_together(config, runtime):
    with runtime.together():
        if runtime.rank == 1:
            raise InputError("--folder: wrong")


def fail_differently_together(config, runtime):
    with runtime.together():
        raise OSError(f"{runtime.rank} is full")


@pytest.mark.parametrize(("run", "said"), [
    (fail_on_one, r"error: process 1: \[Errno 28\] disk full: 'x\.png'\n"),
    (fail_alike, r"error: process 0: --folder: wrong\n"),
    (fail_on_one_together, r"error: process 1: --folder: wrong\n"),
    (fail_differently_together, r"error: process 0: 0 is full; process 1: 1 is full\n")])
def test_error_of_any_process_is_said_once_with_its_rank(tmp_path, run, said):
    status, out, error = run_group(run, tmp_path)
    assert status == [2, 2] and out == "" and re.fullmatch(said, error), error


def hold(config, runtime):
    with locked(config.folder / "run", runtime):
        runtime.gather(None)
        print(len(list(config.folder.rglob(".lock"))))
        runtime.gather(None)


def test_job_of_several_processes_is_refused_as_one_and_holds_as_one(tmp_path, runtime):
    status, out, error = run_group(hold, tmp_path)
    assert (status, out, error) == ([0, 0], "1\n1\n", "") and not list(tmp_path.iterdir())
    with locked(tmp_path / "run", runtime):
        status, out, error = run_group(hold, tmp_path)
    assert status == [2, 2] and out == ""
    assert error.count("\n") == 1 and "another job is at work there" in error


def read(config, runtime):
    file = checkpoint_file(config.folder, runtime)
    checkpoint, warnings = newest_checkpoint(config.folder / "checkpoints", runtime)
    print(file.stem, checkpoint["step"], len(warnings))


def test_all_processes_take_the_checkpoint_that_the_main_one_finds(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step, {"step": step, "model": torch.ones(99)}, keep=2)
    (tmp_path / "checkpoints" / "0000002.pt").write_bytes(b"damaged")
    status, out, error = run_group(read, tmp_path)
    assert (status, out) == ([0, 0], "0000001 1 1\n0000001 1 1\n") and error.count("\n") == 1
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["0000001.pt", "0000002.pt.damaged"]


def test_float32_on_a_gpu_is_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert Runtime().device("cuda").type == "cuda" and not torch.backends.cudnn.allow_tf32
