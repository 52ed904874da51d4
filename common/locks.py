"""Locks of folders: one job at a time, of one or several processes, writes to a folder."""

import errno
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from common.distributed import Runtime
from common.errors import InputError

NAME = ".lock"  # a file in the locked folder, which exists only while the lock is held
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what some network file systems say

_held: set[TextIO] = set()


@contextmanager
def locked(folder: Path, runtime: Runtime, wait: bool = False) -> Iterator[None]:
    """Keep other jobs out of `folder`, which is made if it is missing. All processes of a job call it.

    The main process holds the lock; the system releases it when that process ends, however it ends. With
    `wait` a second job waits instead of failing. A folder that was made here and stayed empty is removed.

    Raises: `InputError` that says who holds the lock.
    """
    folder, file = Path(folder), None
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with runtime.together():
        if runtime.is_main:
            file = take(folder, wait)
    try:
        yield
    finally:
        if file:
            Path(file.name).unlink(missing_ok=True)
            _held.remove(file)
            file.close()
        if runtime.is_main:
            with suppress(OSError):  # they are not empty
                for path in missing:
                    path.rmdir()


def take(folder: Path, wait: bool) -> TextIO | None:
    """The open file that holds the lock of `folder`; None, and a warning, where there are no locks."""
    path = folder / NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            busy = f"{folder}: another job is at work there, {file.read() or 'just begun'}"
            if not wait:
                file.close()
                raise InputError(busy) from None
            print(f"{busy}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS:
                raise
            print(f"warning: {folder}: no locks on this file system, let no other job write there",
                  file=sys.stderr, flush=True)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its holder has removed it in between
    _held.add(file)
    file.truncate(0)
    command = shlex.join([Path(sys.argv[0]).stem, *sys.argv[1:]])
    holder = (f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S} "
              f"({command[:200]})")
    with suppress(OSError):  # a full disk: the lock holds without these words
        os.write(file.fileno(), holder.encode(errors="backslashreplace"))
    return file


def _let_go_in_child() -> None:
    """Release locks in forked processes (data loaders), which may outlive their parent."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go_in_child)
