"""What this machine can do. What does not work here is tested once and reported once, with the reason.

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

CONTROL_GROUPS = Path("/sys/fs/cgroup")
TRIAL = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); x @ x"
TRIAL_SECONDS = 60.0  # far more than it takes, also from a slow disk
SOUND_AMX = "ENDOGEN_SOUND_AMX"  # tells child processes that the trial went well

# Errors that mean a missing feature, by class name: the classes are in private modules of torch, and in
# Triton, which need not be installed.
ABSENT = {"ImportError", "FileNotFoundError", "PermissionError", "SubprocessError", "NotImplementedError",
          "TritonError", "TritonMissing", "TritonUnavailableError", "GPUTooOldForTriton",
          "InvalidCxxCompiler", "CppCompileError"}
ABSENT_WORDS = ("compiler|active drivers|is not active|Cannot find|libcuda|kernel image|PassManager|"
                "not supported|only support")


def cpu_features() -> list[str]:
    """What the processor can do, by Linux's names; empty where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "").split()


@cache
def avoid_broken_amx() -> None:
    """Disable AMX in oneDNN where it kills the process; call before the first matrix product.

    Some hypervisors announce AMX without the description of its tiles (CPUID leaf 1Dh); the kernel that
    oneDNN then generates ends in SIGILL. Where AMX is announced, a subprocess tries one product, which takes
    2 s; environment variables pass the result on to child processes. ONEDNN_MAX_CPU_ISA is kept if set.
    """
    if {"ONEDNN_MAX_CPU_ISA", SOUND_AMX} & os.environ.keys() or "amx_tile" not in cpu_features():
        return
    if trial_ends_well():
        os.environ[SOUND_AMX] = "1"
    else:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"


def trial_ends_well() -> bool:
    """True if a subprocess can multiply two matrices in time, without a signal or an error."""
    try:
        return subprocess.run([sys.executable, "-c", TRIAL], timeout=TRIAL_SECONDS, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def cpu_has_bf16() -> bool:
    """True if the processor multiplies bfloat16 itself (AMX, AVX-512)."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_features())


def control_groups(name: str) -> list[list[str]]:
    """The words of the file `name` of this process's control group (Linux, v2), and of those around it."""
    own = Path("/proc/self/cgroup")
    found = re.search(r"^0::/(.*)", own.read_text(encoding="utf-8"), re.MULTILINE) if own.exists() else None
    folder = CONTROL_GROUPS / (found[1] if found else "")
    files = [place / name for place in (folder, *folder.parents) if place.is_relative_to(CONTROL_GROUPS)]
    return [file.read_text(encoding="utf-8").split() for file in files if file.exists()]


def own_cores() -> int:
    """CPU cores per process that torchrun has started on this machine, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([cores, *(int(quota) // int(period) for quota, period in control_groups("cpu.max")
                          if quota != "max")])
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def free_memory() -> int:
    """Bytes of available memory; half of all memory where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        free = 1024 * int(meminfo.read_text(encoding="ascii").partition("MemAvailable:")[2].split()[0])
        groups = zip(control_groups("memory.max"), control_groups("memory.stat"), strict=False)
        return min([free, *(max(0, int(limit) - int(state[state.index("anon") + 1]))  # caches make room
                            for [limit], state in groups if limit != "max")])
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
    except Exception as error:  # Triton raises many types; `say_absent` raises what is no missing feature
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
    """Warn that `what` does not work here and why; raise `error` if its cause is not a missing feature.

    A GPU whose memory is full for a moment must not disable the kernels for the rest of the process.
    """
    cause: BaseException | None = error
    while cause and not is_absence(cause):
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    if cause is None:
        raise error
    warn_absent(what, cause)


def warn_absent(what: str, cause: BaseException) -> None:
    """Warn that `what` does not work here, with the first error of a command that failed, else the cause."""
    printed = getattr(cause, "stderr", None) or ""
    lines = (printed.decode(errors="replace") if isinstance(printed, bytes) else printed).splitlines()
    reason = next((line for line in lines if "error" in line), f"{type(cause).__name__}: {cause}")
    warn_once(f"{what} cannot work on this machine, going on without ({reason.splitlines()[0][:200]})")


@cache
def warn_once(line: str) -> None:
    """Print a warning on the first process of this machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {line}", file=sys.stderr, flush=True)


def is_absence(error: BaseException) -> bool:
    """True if an error means that something is missing or unsupported on this machine."""
    return bool({kind.__name__ for kind in type(error).__mro__} & ABSENT) or (
        type(error) is RuntimeError and re.search(ABSENT_WORDS, str(error)) is not None)
