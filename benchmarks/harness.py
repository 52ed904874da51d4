"""What the benchmarks share: a process for each measurement, variants that take turns, one table.

A benchmark is a `BenchmarkConfig` with its flags. Cases that are compared form a group. They take turns
(A B A B), so that other work on the machine slows all of them. Each measurement is a process of its own, so
that its peak memory is its own. Run a benchmark on an otherwise idle machine, after `source scripts/env.sh`;
on a busy one only processor time on one thread means something.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
import tyro

from common import devices
from common.distributed import Runtime


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Flags of every benchmark."""

    rounds: int = 3
    """Processes per case."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""
    threads: int = 2
    """Threads on the CPU."""
    child: str = ""
    """Set by the program itself: the case that this process measures."""
    folder: Path = Path()
    """Set by the program itself: folder of the files that the processes share."""

    def cases(self) -> list[Sequence[str]]:
        """Groups of cases; each is compared with the first of its group."""
        raise NotImplementedError

    def prepare(self, folder: Path) -> None:
        """Write the files that the processes share."""

    def measure(self, case: str) -> dict[str, float]:
        """What `timed` gives, and more values, of one case in this process."""
        raise NotImplementedError


def timed(function: Callable[[], object], device: torch.device, untimed: int = 0, calls: int = 1
          ) -> dict[str, float]:
    """Median seconds of a call, mean processor seconds of all threads, and peak memory in MB.

    The memory is what all calls, also the untimed ones, take beyond what is held before; on a GPU it is all
    that PyTorch has allocated there.
    """
    before, times = forget_peak(device), []
    for call in range(untimed + calls):
        if call == untimed:
            processor = process_time()
        started = perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(perf_counter() - started)
    processor = process_time() - processor
    peak = memory("VmHWM") - before if device.type == "cpu" else devices.peak_memory(device)
    return {"s": median(times[untimed:]), "processor_s": processor / calls, "peak_mb": peak / 1e6}


def forget_peak(device: torch.device) -> int:
    """Peak memory counts from now on -> bytes of main memory held now."""
    devices.forget_peak(device)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Bytes of main memory of this process: VmRSS, held now; VmHWM, most held since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def run_child(config: BenchmarkConfig, case: str) -> dict[str, float] | None:
    """Measure a case in a process of its own; if that fails, print why and return None."""
    command = [sys.executable, "-m", sys.modules[type(config).__module__].__spec__.name]
    for name, value in asdict(replace(config, child=case)).items():
        if value is not None:
            values = map(str, value) if isinstance(value, tuple) else [str(value)]
            command += [f"--{name.replace('_', '-')}", *values]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{case}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(config: BenchmarkConfig) -> None:
    """Measure all cases in turn; print a table and a JSON line."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        config = replace(config, folder=Path(folder))
        config.prepare(config.folder)
        for group in config.cases():
            measured = [(case, run_child(config, case)) for _ in range(config.rounds) for case in group]
            rows += summary({case: [values for name, values in measured if name == case and values]
                             for case in group})
    flags = {name: str(value) if isinstance(value, Path) else value
             for name, value in asdict(config).items() if name not in ("child", "folder")}
    print(f"torch {torch.__version__}, {Runtime().device(config.device).type},",
          ", ".join(f"{name} {value}" for name, value in flags.items()))
    for row in rows:
        print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in row.items()))
    print(json.dumps({"config": flags, "rows": rows}))


def summary(results: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each measured case: medians, the largest peak, and ratios to the first case."""
    rows: list[dict[str, Any]] = []
    for case, measured in results.items():
        if measured:
            medians = {name: median(values[name] for values in measured) for name in measured[0]}
            row = {"case": case, **medians, "peak_mb": max(values["peak_mb"] for values in measured)}
            first = rows[0] if rows else row
            rows.append({**row, "speed": first["s"] / row["s"],
                         "processor_speed": first["processor_s"] / row["processor_s"],
                         "memory": row["peak_mb"] / first["peak_mb"]})
    return rows


def main(config_class: type[BenchmarkConfig]) -> None:
    """The command: measure all cases, or as a child one of them."""
    config = tyro.cli(config_class)
    if not config.child:
        benchmark(config)
        return
    torch.set_num_threads(config.threads)
    print(json.dumps(config.measure(config.child)))
