"""A `python` that starts at once, for tests that run many commands: each would take seconds to import torch.

`ready_python` makes a folder with `bin/python`, which hands its arguments to a server and ends as that says.
For every call the server forks, and the child is the command: with the files, the environment, the working
folder and the signals of the caller. It takes `-m MODULE` and `-c PROGRAM`, after `-u` or not.
"""

import contextlib
import gc
import marshal
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

FORK = get_context("fork")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

CALLER = f"""
import marshal, os, signal, socket, sys
call = marshal.dumps(([os.fsencode(word) for word in sys.argv[2:]], dict(os.environb), os.getcwdb()))
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(call)
    pid = int.from_bytes(server.recv(8), "big")
    for number in {[int(number) for number in PASSED_ON]}:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int.from_bytes(server.recv(8), "big", signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextmanager
def own_objects_kept() -> Iterator[None]:
    """Processes forked within it free nothing of this one's, as decoders whose threads they do not have."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def ready_python(environment: dict[str, str] | None = None) -> Iterator[Path]:
    """A folder like that of a virtual environment, to the Python in which all is imported that is so here.

    With an `environment` to one that is started in it, for what an interpreter reads from it at its start.
    """
    with tempfile.TemporaryDirectory(prefix="ready-") as folder, socket.socket(socket.AF_UNIX) as listener:
        folder = Path(folder)
        (folder / "caller.py").write_text(CALLER)
        (folder / "bin").mkdir()
        words = [sys.executable, "-SEs", folder / "caller.py", folder / "socket"]
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
        python.chmod(0o755)
        shutil.copy(Path(__file__).parents[1] / "requirements.txt", folder / "endogen-requirements.txt")
        listener.bind(str(folder / "socket"))
        listener.listen()
        if environment is None:
            server = FORK.Process(target=serve, args=(listener,))
            with own_objects_kept():
                server.start()
            wait = server.join
        else:
            server = subprocess.Popen([sys.executable, __file__, str(listener.fileno())], env=environment,
                                      pass_fds=[listener.fileno()])
            wait = server.wait
        try:
            yield folder
        finally:
            server.kill()
            wait()


def kill_when(condition: Callable[[], object], function: Callable[[], object]) -> None:
    """Call `function` in a process that is killed as soon as `condition()`, and that must not end before."""
    process = FORK.Process(target=function)
    with own_objects_kept():
        process.start()
    while not condition():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()


def serve(listener: socket.socket) -> None:
    """Fork for every call; end with the process that started this one."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.getppid() == parent:
        if select.select([listener], [], [], 1.0)[0]:
            import torch._dynamo  # noqa: F401  # which every training imports

            FORK.Process(target=answer, args=(listener.accept()[0],)).start()  # joins those that have ended


def answer(caller: socket.socket) -> None:
    """Run one command; a caller that is gone takes it along."""
    size, files, *_ = socket.recv_fds(caller, 8, 3)
    with caller.makefile("rb") as rest:
        words, environment, folder = marshal.loads(rest.read(int.from_bytes(size, "big")))
    command = FORK.Process(target=become, args=(list(map(os.fsdecode, words)), environment, folder, files))
    command.start()
    for file in files:
        os.close(file)
    with contextlib.suppress(BrokenPipeError):
        caller.sendall(command.pid.to_bytes(8, "big"))
        if caller in select.select([command.sentinel, caller], [], [])[0]:
            command.kill()
        command.join()
        caller.sendall(command.exitcode.to_bytes(8, "big", signed=True))


def become(words: list[str], environment: dict[bytes, bytes], folder: bytes, files: list[int]) -> None:
    """What the interpreter does at its start, as far as commands notice; then the module or program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environb.update(environment)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8:strict").partition(":")
    sys.stdin = open(0, encoding=encoding, errors=errors or None, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, errors=errors or None, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=words[0] == "-u" or "PYTHONUNBUFFERED" in os.environ)
    for number in PASSED_ON:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, what, *flags = words[1:] if words[0] == "-u" else words
    sys.argv = [kind, *flags]
    sys.orig_argv = [sys.executable, *words]
    if kind == "-m":
        sys.modules.pop(what, None)  # it is not there yet when an interpreter starts
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
    else:
        raise ValueError(f"not forked: {shlex.join(words)}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    serve(socket.socket(fileno=int(sys.argv[1])))
