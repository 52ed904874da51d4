"""Which device a command takes, and that nothing but the kernels is made for one kind of accelerator."""

import dataclasses
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import backend_registration

from autoregressive.sample.sample_c2i import SampleC2IConfig
from autoregressive.sample.sample_c2i import run as sample
from common import devices
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_jsonl, write_json
from common.training.config import TrainingConfig
from common.training.optimizers import take_step


@pytest.fixture
def machine(monkeypatch):
    """A machine with two devices of each of some kinds; the calls of their modules are recorded."""
    calls = []

    def equip(*kinds):
        for kind in ("cuda", "xpu", "mps"):
            there = kind in kinds
            monkeypatch.setattr(torch.backends.mps if kind == "mps" else getattr(torch, kind), "is_available",
                                cache(lambda there=there: there))
            for name, value in {"set_device": None, "device_count": 2, "mem_get_info": (5, 9),
                                "max_memory_allocated": 7, "reset_peak_memory_stats": None,
                                "recommended_max_memory": 11, "driver_allocated_memory": 4}.items():
                if hasattr(getattr(torch, kind), name):
                    monkeypatch.setattr(getattr(torch, kind), name, lambda *a, k=kind, n=name, v=value: (
                        calls.append((k, n, *a)), v)[1])
        return calls

    return equip


@pytest.mark.parametrize(("there", "processes", "taken"), [
    (("cuda", "xpu", "mps"), 1, "cuda:1"), (("xpu", "mps"), 1, "xpu:1"), (("mps",), 1, "mps"), ((), 1, "cpu"),
    (("mps",), 2, "cpu"), (("xpu",), 2, "xpu:1")])
def test_auto_takes_the_first_kind_that_is_there(machine, there, processes, taken):
    calls = machine(*there)
    assert Runtime(local_rank=1, world_size=processes).device() == torch.device(taken)
    kind = taken.partition(":")[0]
    assert [call for call in calls if call[1] == "set_device"] == [(kind, "set_device", 1)] * (":" in taken)


@pytest.mark.parametrize(("name", "runtime", "problem"), [
    ("xpu", Runtime(), "--device xpu: this machine has no usable XPU device"),
    ("tpu", Runtime(), "--device tpu: must be auto, cuda, xpu, mps or cpu"),
    ("mps", Runtime(world_size=2), "--device mps: is for one process, there are 2"),
    ("cuda", Runtime(local_rank=2, world_size=3), "--device cuda: this machine has 2, none is left for")])
def test_device_that_is_not_there_is_refused(machine, name, runtime, problem):
    machine("cuda", "mps")
    with pytest.raises(InputError, match=f"^{problem}"):
        runtime.device(name)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_absent_device_ends_a_command_with_one_line(machine, monkeypatch, capsys, tmp_path, gpt_file, kind):
    machine()
    flags = {"--device": kind, "--gpt-ckpt": str(gpt_file), "--save-folder": str(tmp_path / "clips")}
    monkeypatch.setattr(sys, "argv", ["sample", *(word for pair in flags.items() for word in pair)])
    with pytest.raises(SystemExit) as stop:
        run_command(SampleC2IConfig, sample)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith(f"error: --device {kind}: this")


def test_memory_is_asked_of_the_devices_own_module(machine):
    calls, xpu, mps = machine("xpu", "mps"), torch.device("xpu", 1), torch.device("mps")
    assert (devices.free_memory(xpu), devices.peak_memory(xpu)) == (5, 7)
    assert (devices.free_memory(mps), devices.peak_memory(mps)) == (7, 4)
    devices.forget_peak(mps)
    devices.forget_peak(torch.device("cpu"))
    assert "reset_peak_memory_stats" not in {name for _, name, *_ in calls}
    devices.forget_peak(xpu)
    assert calls[-1] == ("xpu", "reset_peak_memory_stats", xpu)


@pytest.mark.parametrize(("there", "xccl", "backend"), [
    (("cuda",), False, "cpu:gloo,cuda:nccl"), (("xpu",), True, "cpu:gloo,xpu:xccl"),
    (("xpu",), False, "gloo"), (("mps",), False, "gloo"), ((), False, "gloo")])
def test_process_group_has_the_backend_of_the_device(machine, monkeypatch, there, xccl, backend):
    import torch.distributed as dist

    machine(*there)
    begun = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_xccl_available", lambda: xccl)
    store = SimpleNamespace(set_timeout=lambda timeout: None)
    monkeypatch.setattr(dist, "rendezvous", lambda address, timeout: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: begun.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with Runtime.start():
        assert begun == [backend]


@pytest.mark.parametrize(("there", "precision", "compiled"), [
    (("cuda",), "bf16", True), (("xpu",), "bf16", False), (("mps",), "none", False), ((), "none", False)])
def test_defaults_of_training_are_those_of_the_device(machine, there, precision, compiled, monkeypatch):
    machine(*there)
    monkeypatch.setattr("common.training.config.cpu_has_bf16", lambda: False)
    config = TrainingConfig(results_dir=Path("run"))
    settled = config.settled(devices.best_kind(), gpt=True)
    assert (settled.mixed_precision, settled.compile) == (precision, compiled)


def test_gpt_trains_in_bf16_where_the_cpu_has_it_and_a_run_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("common.training.config.cpu_has_bf16", lambda: True)
    config = TrainingConfig(results_dir=tmp_path)
    assert config.settled("cpu", gpt=True).mixed_precision == "bf16"
    assert config.settled("cpu", gpt=False).mixed_precision == "none"
    write_json(tmp_path / "config.json", {"training": {"mixed_precision": "none"}})
    assert config.settled("cpu", gpt=True).mixed_precision == "none"
    given = dataclasses.replace(config, mixed_precision="bf16")
    assert given.settled("cpu", gpt=True) is given
    write_json(tmp_path / "config.json", {"model_type": "another program's"})
    with pytest.raises(InputError, match=r"--results-dir .*not of a run"):
        config.settled("cpu", gpt=True)


@pytest.mark.parametrize(("kind", "finite", "stepped"), [
    ("mps", True, True), ("mps", False, False), ("cuda", True, True), ("cuda", False, True)])
def test_step_that_is_not_finite_is_left_out_by_us_where_adamw_does_not_look(kind, finite, stepped):
    class Skip(int):
        device = SimpleNamespace(type=kind)
        float = int.__float__

    done = []
    adamw = SimpleNamespace(step=lambda: done.append("step"), zero_grad=lambda **_: done.append("clear"))
    take_step([adamw], Skip(not finite))
    assert done == ["step"] * stepped + ["clear"] and adamw.found_inf == (not finite)


@pytest.mark.slow
def test_commands_run_on_any_device_and_make_what_a_cpu_makes(grids, tokenizer_run, gpt_file, tmp_path,
                                                              command_env):
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch takes no device written in Python")
    program = Path(__file__).with_name("fake_device.py")
    places = os.pathsep.join([str(program.parent), *filter(None, [command_env.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-W", "ignore", program, grids, tokenizer_run, gpt_file, tmp_path],
                          env={**command_env, "PYTHONPATH": places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cpu, fake = tmp_path / "cpu", tmp_path / "fake"
    for pattern in ("rebuilt/*/*.png", "samples/grids/*/*.png"):
        names = sorted(path.relative_to(cpu) for path in cpu.glob(pattern))
        assert names
        for name in names:
            sides = (np.asarray(Image.open(folder / name), int) for folder in (cpu, fake))
            np.testing.assert_allclose(*sides, atol=1)  # grey levels: a CPU decodes one picture at a time
    codes = [path.relative_to(cpu) for path in cpu.glob("codes/*.npy")]
    assert codes and all(np.array_equal(np.load(cpu / name), np.load(fake / name)) for name in codes)
    for run in ("vq", "gpt"):
        logs = [[(r["loss"], r["grad_norm"]) for r in read_jsonl(folder / run / "log.jsonl") if "loss" in r]
                for folder in (cpu, fake)]
        assert len(logs[0]) == 2
        np.testing.assert_allclose(*logs, rtol=1e-4)
