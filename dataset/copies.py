"""Recordings that are the same, byte for byte."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

from dataset.video import IMAGE_SUFFIXES

END = 1 << 16  # bytes of a file's beginning and end that are looked at before all of it


def same_content(paths: Sequence[Path]) -> list[list[Path]]:
    """The recordings that occur more than once, put together in the order of `paths`.

    Videos are the same if their bytes are, folders if their pictures are, whatever they are called. Only
    those are read whole that agree in their sizes and then in both ends of every file.
    """
    groups = [list(paths)]
    for measure in (_sizes, partial(_digests, whole=False), partial(_digests, whole=True)):
        groups = [same for group in groups for same in _agreeing(group, measure)]
    return groups


def _agreeing(paths: list[Path], measure: Callable[[Path], Hashable]) -> list[list[Path]]:
    """The groups of two or more with the same measure; files that cannot be read agree with none."""
    groups: dict[Hashable, list[Path]] = {}
    for path in paths:
        try:
            groups.setdefault(measure(path), []).append(path)
        except OSError:
            continue
    return [group for group in groups.values() if len(group) > 1]


def _files(path: Path) -> list[Path]:
    """The video itself, or the pictures of a folder."""
    if not path.is_dir():
        return [path]
    return [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]


def _sizes(path: Path) -> Hashable:
    sizes = sorted(file.stat().st_size for file in _files(path))
    return tuple(sizes) if any(sizes) else path  # empty files are broken, not copies


def _digests(path: Path, whole: bool) -> Hashable:
    return tuple(sorted(_digest(file, whole) for file in _files(path)))


def _digest(file: Path, whole: bool) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        if whole:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
        else:
            digest.update(opened.read(END))
            opened.seek(max(file.stat().st_size - END, 0))
            digest.update(opened.read(END))
    return digest.digest()
