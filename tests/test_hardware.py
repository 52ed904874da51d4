"""What is asked of the processor: a fault that kills a child is stepped around, a sound one is used."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from common import hardware
from common.hardware import (
    SOUND_AMX,
    avoid_broken_amx,
    compiler_works,
    free_memory,
    own_cores,
    warn_once,
    working_kernels,
)


@pytest.fixture
def amx(monkeypatch):
    """A processor that says it has AMX, and nothing known of it yet."""
    monkeypatch.setattr(Path, "read_text", lambda path, **options: "flags: avx2 amx_tile")
    for name in ("ONEDNN_MAX_CPU_ISA", SOUND_AMX):
        monkeypatch.setenv(name, "")  # put back at the end, whatever it was
        monkeypatch.delenv(name)


@pytest.mark.parametrize("trial", ["import os, signal; os.kill(os.getpid(), signal.SIGILL)", "1 / 0",
                                   "import time; time.sleep(60)"])
def test_amx_is_left_alone_where_it_kills_fails_or_hangs(monkeypatch, amx, trial):
    monkeypatch.setattr(hardware, "TRIAL", trial)
    monkeypatch.setattr(hardware, "TRIAL_SECONDS", 0.5)
    avoid_broken_amx.__wrapped__()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_FP16" and SOUND_AMX not in os.environ


def test_sound_amx_is_used_and_tried_once_for_all_child_processes(monkeypatch, amx):
    monkeypatch.setattr(hardware, "TRIAL", "pass")
    avoid_broken_amx.__wrapped__()
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ
    monkeypatch.setattr(hardware, "trial_ends_well", lambda: pytest.fail("known already"))
    avoid_broken_amx.__wrapped__()


def test_trial_multiplies():
    done = subprocess.run([sys.executable, "-c", f"{hardware.TRIAL}; print((x @ x)[0, 0].item())"],
                          capture_output=True, text=True)
    assert done.stdout == "64.0\n"


def test_users_choice_of_instructions_stays(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(hardware, "trial_ends_well", lambda: pytest.fail("nothing to try"))
    avoid_broken_amx.__wrapped__()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_free_memory_is_that_of_this_machine():
    assert 1 << 20 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_limits_of_a_container_count(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "CONTROL_GROUPS", tmp_path)
    cores, free = own_cores(), free_memory()
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 500\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert own_cores() == cores and free_memory() > free // 2
    (tmp_path / "memory.max").write_text("10000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert own_cores() == 1 and free_memory() == 7000


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    alone = own_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert alone >= 1 and own_cores() == 1


class Calls:
    """A function that raises the errors of a list one after the other, and then no more."""

    def __init__(self, *errors):
        self.errors, self.count = list(errors), 0

    def __call__(self, *_, **__):
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def fresh():
    """Nothing is known of the machine, before and after."""
    for function in (working_kernels, warn_once):
        function.cache_clear()
    yield
    for function in (working_kernels, warn_once):
        function.cache_clear()


def kernels_that(monkeypatch, check):
    monkeypatch.setattr(hardware, "import_module", lambda name: SimpleNamespace(check=check))


@pytest.mark.parametrize("error", [
    ModuleNotFoundError("No module named 'triton'"), RuntimeError("Failed to find C compiler."),
    subprocess.CalledProcessError(1, "gcc"), FileNotFoundError(2, "no such file", "ptxas"),
    RuntimeError("0 active drivers ([]). There should only be one."),
    RuntimeError("Triton Error [CUDA]: no kernel image is available for execution on the device")])
def test_kernels_that_are_not_here_are_off_and_it_is_said_once_why(monkeypatch, capsys, fresh, error):
    check = Calls(error)
    kernels_that(monkeypatch, check)
    assert [working_kernels("some.kernels", torch.device("cpu")) for _ in range(2)] == [None, None]
    said = capsys.readouterr().err
    assert check.count == 1 and said.count("\n") == 1 and "some.kernels" in said and str(error)[:20] in said


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ZeroDivisionError("a fault"),
    RuntimeError("Triton Error [CUDA]: out of memory"), RuntimeError("CUDA error: launch failure")])
def test_passing_trouble_goes_on_and_does_not_switch_kernels_off(monkeypatch, capsys, fresh, error):
    kernels_that(monkeypatch, Calls(error))
    with pytest.raises(type(error), match=r"memory|fault|failure"):
        working_kernels("some.kernels", torch.device("cpu"))
    assert working_kernels("some.kernels", torch.device("cpu")) and capsys.readouterr().err == ""


def test_missing_compiler_is_told_from_passing_trouble(monkeypatch, capsys, fresh):
    def compile_raises(inner):
        error = InductorError(inner, None)
        monkeypatch.setattr(torch, "compile", lambda _: Calls(error))

    compile_raises(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(InductorError, match="out of memory"):
        compiler_works(torch.device("cpu"))
    compile_raises(InvalidCxxCompiler())
    assert not compiler_works(torch.device("cpu")) and not compiler_works(torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torch.compile cannot work" in said and "No working C++ compiler" in said
