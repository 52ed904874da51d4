"""The command line of a stage: a dataclass defines the flags; a wrong value is one line and exit status 2."""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
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

    `InputError` and `OSError`, which the user can correct, end the program with one line and status 2; of
    several processes with the same error one prints it. A process that loses contact with another one, or
    waits for it longer than `timeout`, ends with one line and status 1. Any other error is a fault of the
    program and keeps its traceback; so do all with ENDOGEN_TRACEBACK=1.
    """
    speaks = os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
    understand_names()
    try:
        with one_line(lambda error: str(error) if speaks else ""):  # a wrong flag is so on all processes
            config = parse(config_class)
        with writable_caches(), Runtime.start(timeout) as runtime, one_line(runtime.says):
            run(config, runtime)
        if runtime.world_size > 1:
            sys.stdout.flush()
            os._exit(0)  # threads of the group that caches keep now and then abort Python's own exit
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


def understand_names() -> None:
    """File names are UTF-8 in any locale; characters that the terminal cannot show are printed as escapes.

    In a locale with another encoding the process restarts in Python's UTF-8 mode, so that names in data sets
    and checkpoints can be read on other machines.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr does so anyway
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def writable_caches() -> Iterator[None]:
    """Put caches of libraries into a temporary folder if the home folder is read-only (containers)."""
    if os.access(os.path.expanduser("~"), os.W_OK):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="endogen-", ignore_cleanup_errors=True) as folder:
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TRITON_HOME"):
            os.environ.setdefault(name, folder)
        yield


@contextmanager
def one_line(says: Callable[[Exception], str]) -> Iterator[None]:
    """End the program with status 2 on `InputError` and `OSError`, and print the text from `says`."""
    try:
        yield
    except (InputError, OSError) as error:
        if os.environ.get("ENDOGEN_TRACEBACK"):
            raise
        if text := says(error):
            print("error:", " ".join(text.split()), file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def parse(config_class: type[Config]) -> Config:
    """`sys.argv` as a `config_class`; tyro's error box becomes one `InputError`.

    A word that begins with a single dash is the value of the flag before it: the only such flag is -h.
    """
    import tyro

    words: list[str] = []
    for word in sys.argv[1:]:
        if re.match(r"-(?!h$)[^\W\d]", word) and words and re.fullmatch(r"--[\w-]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(config_class, args=words, config=(tyro.conf.OmitArgPrefixes,))  # nested ones too
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = [line.strip("│| ") for line in stderr.getvalue().splitlines()]
        rules = [i for i, line in enumerate(lines) if line[:1] in ("╭", "╰") or not line.strip("─-")]
        reason = " ".join(lines[rules[0] + 1 : rules[1]])  # between the title and what else there is to say
        raise InputError(re.sub(r"\s+", " ", reason) + " (see --help)") from None


def say_next(*words: object) -> None:
    """The last line of a long command: the next one, ready to paste; what is to be chosen is in capitals."""
    print("next:", shlex.join(map(str, words)), flush=True)


def require_at_least(config: object, **least: float) -> None:
    """`InputError` naming the first flag of `config` whose value is below its least."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least {value}")
