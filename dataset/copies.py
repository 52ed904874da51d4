"""Recordings that are the same, byte for byte."""

import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from common.files import file_hash
from dataset.pictures import IMAGE_SUFFIXES

BEGINNING = 1 << 16  # bytes


def same_content(paths: Sequence[Path]) -> list[list[Path]]:
    """Groups of recordings with the same content, each in the order of `paths`.

    Videos are compared by their bytes, folders by the bytes of their pictures; names do not count. Only
    recordings whose files agree in size and in their beginnings are read whole.
    """
    groups = [list(paths)]
    for measure in (os.path.getsize, _beginning, file_hash):
        groups = [same for group in groups for same in _agreeing(group, measure)]
    return groups


def _agreeing(paths: list[Path], measure: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Groups of two or more whose files have the same measures; unreadable recordings are left out."""
    groups: dict[Hashable, list[Path]] = {}
    for path in paths:
        try:
            files = [path]
            if path.is_dir():
                files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
            measures = sorted(map(measure, files))
        except OSError:
            continue
        if any(measures):  # empty files are broken, not copies
            groups.setdefault(tuple(measures), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _beginning(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.sha256(opened.read(BEGINNING)).digest()
