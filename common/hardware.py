"""What this machine's processor and memory can bear."""

import faulthandler
import os
from functools import cache
from pathlib import Path

import torch


@cache
def avoid_broken_amx() -> None:
    """Keep oneDNN off AMX where using it kills the process; call before the first product.

    Some hypervisors announce AMX and leave out the description of its tiles (CPUID leaf 1Dh); oneDNN then
    makes a kernel that ends in SIGILL. A forked child tries one product. ONEDNN_MAX_CPU_ISA, if set, is left
    as it is.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if "ONEDNN_MAX_CPU_ISA" in os.environ or not cpuinfo.exists():
        return
    if "amx_tile" not in cpuinfo.read_text(encoding="ascii"):
        return
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        torch.set_num_threads(1)  # the pool of threads did not come along
        torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
        os._exit(0)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"


@cache
def has(feature: str) -> bool:
    """True if the processor has `feature`, as Linux names it (amx_tile, avx512f), and oneDNN may use it."""
    avoid_broken_amx()
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and feature in cpuinfo.read_text(encoding="ascii").split() and not (
        feature.startswith("amx") and "ONEDNN_MAX_CPU_ISA" in os.environ)


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
