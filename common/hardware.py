"""What this machine can do, and what does not work here: found out once, said once with the reason.

torch is imported only where it is needed, as in `common.distributed`.
"""

import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TRIAL = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); x @ x"
TRIAL_SECONDS = 60.0  # far more than it takes, also from a slow disk
SOUND_AMX = "ENDOGEN_SOUND_AMX"  # tells child processes that the trial went well

# What says that something is not here, by the names of its classes: these live in private modules of torch,
# and in Triton, which need not be installed.
ABSENT = {"ImportError", "FileNotFoundError", "PermissionError", "SubprocessError", "NotImplementedError",
          "TritonError", "TritonMissing", "TritonUnavailableError", "GPUTooOldForTriton",
          "InvalidCxxCompiler", "CppCompileError"}
ABSENT_WORDS = ("compiler|active drivers|is not active|Cannot find|libcuda|kernel image|PassManager|"
                "not supported|only support")


@cache
def avoid_broken_amx() -> None:
    """Keep oneDNN off AMX where using it kills the process; call before the first product.

    Some hypervisors announce AMX and leave out the description of its tiles (CPUID leaf 1Dh); oneDNN then
    makes a kernel that ends in SIGILL. Where AMX is announced another process tries one product, which takes
    2 s, most of it to import torch; the environment tells child processes how that ended. What hangs or
    fails does not work. ONEDNN_MAX_CPU_ISA, if set, is left as it is.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if {"ONEDNN_MAX_CPU_ISA", SOUND_AMX} & os.environ.keys() or not cpuinfo.exists():
        return
    if "amx_tile" not in cpuinfo.read_text(encoding="ascii"):
        return
    if trial_ends_well():
        os.environ[SOUND_AMX] = "1"
    else:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"


def trial_ends_well() -> bool:
    """True if a process that multiplies two matrices ends, in time and without a signal or an error."""
    try:
        return subprocess.run([sys.executable, "-c", TRIAL], timeout=TRIAL_SECONDS, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def own_cores() -> int:
    """Cores for each of the processes that torchrun has started on this machine, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def free_memory() -> int:
    """Bytes that programs can still take; half of the memory where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return 1024 * int(meminfo.read_text(encoding="ascii").partition("MemAvailable:")[2].split()[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def kernels_for(name: str, x: "Tensor") -> ModuleType | None:
    """The module `name` if its Triton kernels work on the device of `x` and in its dtype.

    Such a module needs Triton to be imported, and has `check`, which runs all kernels once.
    """
    return working_kernels(name, x.device) if x.is_cuda and x.dtype.itemsize < 8 else None


@cache
def working_kernels(name: str, device: "torch.device") -> ModuleType | None:
    """The module `name`, or None if its kernels do not work on `device`."""
    try:
        module = import_module(name)
        module.check(device)
    except Exception as error:  # Triton raises whatever it likes; what says nothing of this machine goes on
        say_absent(f"the kernels of {name}", error)
        return None
    return module


def compiler_works(device: "torch.device") -> bool:
    """True if `torch.compile` can make code for `device` here, which takes a C++ compiler, or Triton."""
    import torch

    try:
        torch.compile(torch.cos)(torch.zeros(8, device=device))
    except Exception as error:  # as above
        say_absent("torch.compile", error)
        return False
    return True


def say_absent(what: str, error: Exception) -> None:
    """Say that `what` does not work here and why; raise `error` if it says nothing of this machine.

    A GPU whose memory is full for a moment, above all, must not cost the process its fast ways.
    """
    cause: BaseException | None = error
    while cause and not is_absence(cause):
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    if cause is None:
        raise error
    reason = f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
    warn_once(f"{what} cannot work on this machine, going on without ({reason})")


@cache
def warn_once(line: str) -> None:
    """Print a warning, on one process of those that torchrun started here."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {line}", file=sys.stderr, flush=True)


def is_absence(error: BaseException) -> bool:
    """True if an error means that something is missing or unsupported here, now and later."""
    if {kind.__name__ for kind in type(error).__mro__} & ABSENT:
        return True
    return type(error) is RuntimeError and re.search(ABSENT_WORDS, str(error)) is not None
