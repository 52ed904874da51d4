"""Measurements in processes of their own, so that the peak memory of each is its own."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any


def run_child(module: str, config: Any, child: str) -> dict[str, Any] | None:
    """Run `python -m module` with the flags of `config` and --child; the JSON of its last line.

    None if it fails, for lack of memory say, which is printed.
    """
    command = [sys.executable, "-m", module]
    for name, value in {**asdict(config), "child": child}.items():
        if value is not None:
            values = map(str, value) if isinstance(value, tuple) else [str(value)]
            command += [f"--{name.replace('_', '-')}", *values]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{child}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def resident() -> int:
    """Most bytes of memory that this process has held, since `forget_peak` if that was called."""
    return _status("VmHWM")


def forget_peak() -> int:
    """From now on `resident` counts; the bytes of memory held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])
