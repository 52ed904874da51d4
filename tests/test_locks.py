"""One job at a time in a folder: the second is told who is there, and nothing of the first is touched."""

import dataclasses
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from autoregressive.sample.sample_c2i import run as sample
from autoregressive.train.train_c2i import TrainC2IConfig
from autoregressive.train.train_c2i import run as train
from common.distributed import Runtime
from common.locks import NAME, locked
from dataset.prepare import PrepareConfig
from dataset.prepare import run as prepare
from dataset.video import write_mp4
from tokenizer.extract_codes import ExtractCodesConfig
from tokenizer.extract_codes import run as extract
from tokenizer.reconstruct import ReconstructConfig
from tokenizer.reconstruct import run as reconstruct

HOLD = ("import sys, os, time; from pathlib import Path; from common.distributed import Runtime\n"
        "from common.locks import locked\n"
        "with locked(Path(sys.argv[1]), Runtime()):\n"
        "    {}print('held', flush=True); time.sleep(100)")


def hold(folder, env, first=""):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(first), str(folder)], env=env,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_second_job_is_told_who_is_there_and_a_killed_one_lets_go(tmp_path, runtime, command_env):
    folder = tmp_path / "new" / "run"
    holder = hold(folder, command_env)
    who = rf"{folder}: another job is at work there, process {holder.pid} on {socket.gethostname()} since "
    with pytest.raises(ValueError, match=who + r"\d+-\d+-\d+ .* \(-c .*run\)"), locked(folder, runtime):
        pytest.fail("two at once")
    holder.kill()
    holder.wait()
    with locked(folder, runtime):
        assert str(os.getpid()) in (folder / NAME).read_text()
    assert not list(folder.iterdir())


def test_folder_that_was_made_for_the_lock_only_goes_with_it(tmp_path, runtime):
    with locked(tmp_path / "a" / "b", runtime):
        pass
    assert not list(tmp_path.iterdir())


def test_processes_that_read_data_do_not_keep_the_lock(tmp_path, runtime, command_env):
    fork = "child = os.fork()\n    if not child: time.sleep(100)\n    print(child, flush=True); "
    holder = subprocess.Popen([sys.executable, "-c", HOLD.format(fork), str(tmp_path)], env=command_env,
                              stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        holder.stdout.readline()
        holder.kill()
        holder.wait()
        with locked(tmp_path, runtime, wait=True):  # the child lets go when it begins to run
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_lock_goes_with_an_error_and_what_was_written_stays(tmp_path, runtime):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b", runtime):
        (tmp_path / "a" / "c").touch()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "c"]


def test_who_waits_comes_next(tmp_path, runtime, capfd):
    order = []

    def second():
        with locked(tmp_path, runtime, wait=True):
            order.append("second")

    with locked(tmp_path, runtime):
        other = threading.Thread(target=second)
        other.start()
        while "waiting for it" not in capfd.readouterr().err:
            time.sleep(0.01)
        order.append("first")
    other.join()
    assert order == ["first", "second"] and not list(tmp_path.iterdir())


def test_file_system_without_locks_is_said_and_work_goes_on(tmp_path, runtime, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, runtime):
        assert not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}: no locks") and said.count("\n") == 1


def test_only_the_main_process_of_a_job_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(Runtime, "gather", lambda runtime, value: [None, value])  # the main one is well
    with locked(tmp_path / "run", Runtime(1, 2)):
        assert not (tmp_path / "run").exists()


@pytest.fixture
def stages(grids, codes, tokenizer_run, sample_config, tmp_path, tiny_size):
    """Name of a stage -> its folder, and a call that runs it there."""
    videos = tmp_path / "videos" / "polyp" / "a.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    videos.parent.mkdir(parents=True)
    write_mp4(videos, frames, 10)
    at = {name: tmp_path / name for name in ("prepare", "train", "extract", "sample", "reconstruct")}
    configs = {
        "prepare": (prepare, PrepareConfig(tmp_path / "videos", at["prepare"], rows=2, cols=2)),
        "train": (train, TrainC2IConfig(code_path=codes, results_dir=at["train"], gpt_model="tiny",
                                        max_steps=1, sample_every=0, device="cpu")),
        "extract": (extract, ExtractCodesConfig(data_path=grids, code_path=at["extract"],
                                                vq_ckpt=tokenizer_run, device="cpu")),
        "sample": (sample, dataclasses.replace(sample_config, save_folder=at["sample"])),
        "reconstruct": (reconstruct, ReconstructConfig(data_path=grids, vq_ckpt=tokenizer_run,
                                                       save_path=at["reconstruct"], device="cpu"))}
    return {name: (at[name], *configs[name]) for name in at}


@pytest.mark.parametrize("name", ["prepare", "train", "extract", "sample", "reconstruct"])
def test_stage_leaves_the_folder_of_another_job_alone(stages, runtime, name):
    folder, run, config = stages[name]
    half = [folder / "checkpoints" / ".0000001.1.tmp.pt", folder / "polyp" / ".a_000000.1.tmp.png"]
    for path in half:
        path.parent.mkdir(parents=True)
        path.touch()
    with locked(folder, runtime):
        before = sorted(folder.rglob("*"))
        with pytest.raises(ValueError, match="another job is at work there"):
            run(config, runtime)
        assert sorted(folder.rglob("*")) == before
    assert not (folder / NAME).exists()


def test_dry_run_writes_nothing_and_does_not_mind_the_lock(stages, runtime):
    folder, run, config = stages["train"]
    config = dataclasses.replace(config, dry_run=True)
    run(config, runtime)
    assert not folder.exists()
    with locked(folder, runtime):
        run(config, runtime)
