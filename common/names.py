"""Checks of names that are read from files and become paths."""

import re
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path

from common.errors import InputError

LONGEST = 255  # bytes of a name in the usual file systems
# What separates folders, control characters, line ends, and what no file system can store.
UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Hidden names are the program's own, "." and ".." among them; Windows takes "C:" for a drive.
UNSAFE_START = re.compile(r"\A(?:\.|[A-Za-z]:|\s*\Z)")
RULE = (f"a name is UTF-8 of 1 to {LONGEST} bytes, has no slash, backslash or control character, and begins "
        "neither with a dot nor with a drive")


def is_name(name: object) -> bool:
    """True for a safe name of a file or folder: no separator, no "..", no drive."""
    return (isinstance(name, str) and not UNSAFE.search(name) and not UNSAFE_START.search(name)
            and len(name.encode()) <= LONGEST)


def is_path(path: object) -> bool:
    """True for a relative path with forward slashes, each part of it a name."""
    return isinstance(path, str) and all(map(is_name, path.split("/")))


def as_name(text: str) -> str:
    """`text` with "-" for every forbidden character; it may still be too long."""
    return UNSAFE_START.sub("-", UNSAFE.sub("-", text))


def check_names(names: Iterable[object], origin: object, allowed: Callable[[object], bool] = is_name) -> None:
    """`InputError` naming `origin` and the first of `names` that is not `allowed`."""
    for name in names:
        if not allowed(name):
            raise InputError(f"{origin}: {name!r:.80} cannot name a file or folder: {RULE}")


def check_paths(paths: Iterable[object], origin: object) -> None:
    """`InputError` naming `origin` and the first of `paths` that fails `is_path`."""
    check_names(paths, origin, is_path)


def check_classes(names: object, origin: object) -> None:
    """`InputError` naming `origin` unless `names` are distinct names of folders."""
    if not isinstance(names, list | tuple):
        raise InputError(f"{origin}: its class names are {names!r:.80}")
    check_names(names, origin)
    if len(set(names)) != len(names):
        raise InputError(f"{origin}: a class name occurs twice")


def told_apart(names: Iterable[str]) -> list[str]:
    """The names, those that have come before with a number: a, a (2), a (3)."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name} ({number})" for number in count(2))
        unique.append(next(new for new in chain([name], numbered) if new not in unique))
    return unique


def without_names(fact: object) -> object:
    """Facts for comparison: without paths, and without names beside a hash, because files may be moved."""
    if not isinstance(fact, dict):
        return fact
    dropped = ("path", "name", "hub") if "hash" in fact else ("path",)
    return {key: without_names(value) for key, value in fact.items() if key not in dropped}


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`; `InputError` if the name or a link leads out of `folder`."""
    check_paths([name], folder)
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise InputError(f"{path}: a link leads out of {folder}, give a folder without such links")
    return path
