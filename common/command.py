"""The command line of a stage: one dataclass is the flags; a wrong value is one line and exit status 2."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from common.distributed import SHARES_DIFFER, Runtime, lost_contact
from common.errors import InputError

Config = TypeVar("Config")


def run_command(config_class: type[Config], run: Callable[[Config, Runtime], object],
                timeout: timedelta = SHARES_DIFFER) -> None:
    """Parse `sys.argv` into `config_class` and call `run(config, runtime)` on every process.

    A process that waits for another one longer than `timeout`, or sees it gone, ends with one line and
    status 1.

    `InputError` and `OSError` are what the user can mend: they end the program with one line and status 2;
    of several processes that meet the same one a single one says it.
    Anything else is a fault of the program and keeps its traceback, as these do with ENDOGEN_TRACEBACK=1 set.
    """
    speaks = os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
    try:
        with one_line(lambda error: str(error) if speaks else ""):  # a wrong flag is so on all processes
            config = parse(config_class)
        with Runtime.start(timeout) as runtime, one_line(runtime.says):
            run(config, runtime)
    except RuntimeError as error:
        if not lost_contact(error) or os.environ.get("ENDOGEN_TRACEBACK"):
            raise
        reason = str(error).splitlines()[0][:120]
        print(f"error: process {os.environ['RANK']} lost contact with another one ({reason}); "
              "run the same command again to continue", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


@contextmanager
def one_line(says: Callable[[Exception], str]) -> Iterator[None]:
    """End the program with status 2 for what the user can mend, and with what `says` makes of it, if any."""
    try:
        yield
    except (InputError, OSError) as error:
        if os.environ.get("ENDOGEN_TRACEBACK"):
            raise
        if text := says(error):
            print("error:", " ".join(text.split()), file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def parse(config_class: type[Config]) -> Config:
    """`sys.argv` as a `config_class`; what tyro draws as a box becomes one `InputError`."""
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(config_class, config=(tyro.conf.OmitArgPrefixes,))  # nested ones are flags too
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        boxed = [line.strip("│| ") for line in stderr.getvalue().splitlines() if line[:1] in ("│", "|")]
        rules = [i for i, line in enumerate(boxed) if line[:2] in ("──", "--") and not line[2:].strip("─-")]
        words = " ".join(boxed[: rules[0]] if rules else boxed)
        raise InputError(re.sub(r"\s+", " ", words) + " (see --help)") from None


def require_at_least(config: object, **least: float) -> None:
    """`InputError` naming the first flag of `config` whose value is below its least."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least {value}")
