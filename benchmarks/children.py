"""Measurements in processes of their own, so that the peak memory of each is its own."""

import json
import resource
import subprocess
import sys
from dataclasses import asdict
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
    """Most bytes of memory that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
