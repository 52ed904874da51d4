"""What a training run survives: signals, a full disk, steps that are not finite, a lost process."""

import contextlib
import dataclasses
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from forked import FORK, kill_when

import common.sharded
import common.training.signals
from autoregressive.train.train_c2i import GPTTask, TrainC2IConfig, run
from common.checkpoints import (
    checkpoint_file,
    checkpoints,
    newest_checkpoint,
    save_checkpoint,
    write_tensors,
)
from common.distributed import Runtime, end_with_launcher
from common.errors import InputError
from common.files import read_jsonl
from common.sharded import ShardWriter
from common.training.signals import StopSignals
from common.weights import PART, load_checkpoint

ROOT = Path(__file__).parent.parent


pytestmark = pytest.mark.usefixtures("tiny_size")


@pytest.fixture
def config(codes, tmp_path):
    return TrainC2IConfig(code_path=codes, results_dir=tmp_path / "run", gpt_model="tiny", max_steps=6,
                          global_batch_size=4, log_every=4, eval_every=0, sample_every=0, ckpt_every=100,
                          lr=1e-2, device="cpu")


def after_step(monkeypatch, action):
    """Let `action(step)` happen at the end of every step."""
    monkeypatch.setattr(GPTTask, "after_step", lambda task, step, averages: action(step))


def assert_same_weights(one, two):
    states = [load_checkpoint(checkpoint_file(folder))["model"] for folder in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_after_its_step_and_the_next_one_goes_on(config, runtime, tmp_path, monkeypatch,
                                                                    capsys, number):
    run(dataclasses.replace(config, results_dir=tmp_path / "whole"), runtime)
    with monkeypatch.context() as patch:
        after_step(patch, lambda step: signal.raise_signal(number) if step == 2 else None)
        run(config, runtime)
    assert "stopped by a signal at step 3 of 6; run the same command again" in capsys.readouterr().out
    assert [path.stem for path in checkpoints(config.results_dir / "checkpoints")] == ["0000003"]
    run(config, runtime)
    assert_same_weights(config.results_dir, tmp_path / "whole")
    logs = [[record["loss"] for record in read_jsonl(folder / "log.jsonl")]
            for folder in (config.results_dir, tmp_path / "whole")]
    assert logs[0] == logs[1]  # the mean over steps 1 to 4, though the run was stopped at 3


@pytest.fixture
def interruptible():
    """A shell's background job, as these tests may be, is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_later_signal_acts_at_once_and_an_echo_does_not(monkeypatch, interruptible):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            assert stop.name == "SIGINT"
        monkeypatch.setattr(common.training.signals, "REPEAT_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@contextlib.contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_ends_the_run_with_the_old_checkpoint_intact(config, runtime):
    run(dataclasses.replace(config, max_steps=3), runtime)
    folder = config.results_dir / "checkpoints"
    with full_disk(20_000), pytest.raises(OSError, match=r"no checkpoint written \(.*File too large\)"):
        run(config, runtime)
    assert [path.name for path in folder.iterdir()] == ["0000003.pt"]
    run(config, runtime)
    assert newest_checkpoint(folder)[0]["step"] == 6


def test_full_disk_leaves_a_sharded_checkpoint_intact(tmp_path, runtime):
    with ShardWriter(tmp_path, 2, runtime) as writer:
        writer.save(1, {"step": 1, "model": {"a": torch.ones(9999)}})
    writer = ShardWriter(tmp_path, 2, runtime)
    with full_disk(20_000), pytest.raises(OSError, match="no checkpoint written"):
        writer.save(2, {"step": 2, "model": {"a": torch.ones(9999)}})
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["0000001.shards"]
    assert newest_checkpoint(tmp_path)[0]["step"] == 1


def test_validation_that_fails_costs_no_step(config, runtime, monkeypatch):
    monkeypatch.setattr(GPTTask, "validate", lambda task, model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(dataclasses.replace(config, eval_every=3, ckpt_every=3), runtime)
    assert newest_checkpoint(config.results_dir / "checkpoints")[0]["step"] == 3


def test_process_that_fails_waits_for_nobody_and_says_why(tmp_path, runtime, monkeypatch):
    """The other processes never come to the end of the save: they are in another collective."""
    monkeypatch.setattr(common.sharded, "PATIENCE", 0.1)
    monkeypatch.setattr(Runtime, "together", lambda _: 1 / 0)
    with pytest.raises(MemoryError, match="mine"), ShardWriter(tmp_path, 2, runtime) as writer:
        writer.pending = Future()
        raise MemoryError("mine")


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next(tmp_path, runtime):
    save_checkpoint(tmp_path, 1, {"step": 1}, 2)
    (tmp_path / ".0000002.99.tmp.pt").write_bytes(b"half")
    (tmp_path / ".0000002.tmp.shards").mkdir()
    assert [path.stem for path in checkpoints(tmp_path)] == ["0000001"]
    with ShardWriter(tmp_path, 2, runtime) as writer:
        writer.save(2, {"step": 2, "model": {"a": torch.ones(2)}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000001.pt", "0000002.shards"]


def bad_steps(monkeypatch, bad):
    """Let the loss not be finite at the steps in `bad`."""
    steps, loss = iter(range(100)), GPTTask.loss

    def spoilt(task, *arguments):
        value, scalars = loss(task, *arguments)
        return value * float("nan") if next(steps) in bad else value, scalars

    monkeypatch.setattr(GPTTask, "loss", spoilt)


def test_step_that_is_not_finite_is_skipped_and_counted(config, runtime, tmp_path, monkeypatch):
    weights = []
    bad_steps(monkeypatch, bad={2})
    monkeypatch.setattr(GPTTask, "after_step", lambda task, step, averages: weights.append(
        torch.cat([p.flatten() for p in task.model.parameters()])))
    run(dataclasses.replace(config, log_every=1), runtime)
    moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
    assert moved == [True, False, True, True, True] and weights[-1].isfinite().all()
    records = read_jsonl(config.results_dir / "log.jsonl")
    assert ["loss" in record for record in records] == [True, True, False, True, True, True]
    assert [record.get("skipped", 0) for record in records] == [0, 0, 1, 1, 1, 1]
    assert load_checkpoint(checkpoint_file(config.results_dir))["skipped"] == 1


def test_run_that_diverges_ends_with_the_weights_from_before(config, runtime, monkeypatch):
    bad_steps(monkeypatch, bad=range(3, 100))
    config = dataclasses.replace(config, log_every=1, ckpt_every=2, max_steps=50, max_skipped_steps=4)
    with pytest.raises(ValueError, match=r"--lr 0.01: .* in the last 4 steps, up to step 7"):
        run(config, runtime)
    state = load_checkpoint(checkpoint_file(config.results_dir))
    assert state["step"] == 6 and all(value.isfinite().all() for value in state["model"].values())


def wait_for(text, output, child, seconds=100):
    deadline = time.monotonic() + seconds
    while text not in output.read_text():
        assert child.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def children(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_lost_process_ends_all_torchrun_starts_them_again_and_a_signal_ends_them_well(
    codes, tmp_path, python
):
    flags = {"code-path": codes, "results-dir": tmp_path / "run", "gpt-model": "GPT-XS", "device": "cpu",
             "global-batch-size": 2, "max-steps": 10_000, "ckpt-every": 2, "eval-every": 0, "sample-every": 0}
    command = ["bash", ROOT / "scripts" / "train_c2i_ddp.sh", "--standalone", "--nproc-per-node", "2",
               "--max-restarts", "1", "--monitor-interval", "0.1", "--"]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    env = {**os.environ, "ENDOGEN_VENV": sys.prefix, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python}
    output = tmp_path / "output"
    with open(output, "w") as file:
        script = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for("saved", output, script)
        torchrun = next(pid for pid in children(script.pid) if children(pid))
        os.kill(children(torchrun)[1], signal.SIGKILL)
        wait_for("continuing at step", output, script)
        lost = "process 0 lost contact with another one", "failed (exitcode: -9) local_rank: 1"
        assert any(words in output.read_text() for words in lost)  # whichever of the two notices it first
    finally:
        script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 0, output.read_text()
    assert "stopped by a signal at step" in output.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent was killed")
def test_process_ends_with_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")

    def launcher():
        FORK.Process(target=worker).start()
        time.sleep(60)

    def worker():
        end_with_launcher()
        (tmp_path / "pid").write_text(f"{os.getpid()}\n")
        time.sleep(60)

    note = tmp_path / "pid"
    kill_when(lambda: note.exists() and note.read_text().endswith("\n"), launcher)
    status = Path(f"/proc/{int(note.read_text())}/status")
    with contextlib.suppress(FileNotFoundError):
        while "State:\tZ" not in status.read_text():
            time.sleep(0.01)


def test_sharded_checkpoint_is_of_the_moment_of_the_save(tmp_path, runtime):
    weight = torch.arange(3.0)
    with ShardWriter(tmp_path, 2, runtime) as writer:
        moments = {"state": {0: {"step": torch.tensor(4.0)}}}
        writer.save(1, {"step": 1, "model": {"a": weight}, "optimizer": moments})
        weight += 1  # the next step, while the files are written
    loaded = newest_checkpoint(tmp_path)[0]
    assert loaded["step"] == 1 and loaded["optimizer"]["state"][0]["step"] == 4
    assert loaded["model"]["a"].tolist() == [0, 1, 2]


def test_nothing_in_a_sharded_checkpoint_runs_code(tmp_path, runtime):
    with ShardWriter(tmp_path, 2, runtime) as writer:
        path = writer.save(1, {"step": 1, "model": {"a": torch.ones(2)}})
    hostile = Hostile(tmp_path / "ran")
    (path / ".metadata").write_bytes(pickle.dumps(hostile))  # what other forms of such checkpoints hold
    assert load_checkpoint(path)["step"] == 1
    (path / "facts.pt").write_bytes(pickle.dumps(hostile))
    with pytest.raises(InputError, match=r"facts\.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_older_layout_of_sharded_checkpoints_is_read(tmp_path):
    folder = tmp_path / "0000001.shards"
    folder.mkdir()
    for rank in range(2):
        part = {"step": 1, "model": {"a": {PART: torch.full((2, 3), rank)}}}
        write_tensors(folder / f"{rank}-of-2.pt", part)
    assert load_checkpoint(folder)["model"]["a"][:, 0].tolist() == [0, 0, 1, 1]
    (folder / "1-of-2.pt").unlink()
    with pytest.raises(InputError, match=r"not a readable checkpoint \(1 parts\)"):
        load_checkpoint(folder)
