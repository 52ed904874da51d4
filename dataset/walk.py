"""Folders as people have them: links that lead back up, hidden files, what systems leave behind.

Paths are relative to where a walk began, with forward slashes; "" is that folder itself.
"""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.files import is_junk

LINK_UP = "a link to a folder that holds it, not followed"


class Folder(NamedTuple):
    """One folder of a walk."""

    path: str
    folders: list[str]
    """Names, sorted; those removed before the walk goes on are not entered."""
    files: list[str]
    """Names, sorted."""
    others: list[tuple[str, str]]
    """(name, why it is neither)."""


def walk(root: Path) -> Iterator[Folder]:
    """`root` and every folder below it once, those behind links last; hidden files and junk are passed over.

    A folder that cannot be read is among the others of the one that holds it. Raises: `OSError` if `root` is.
    """
    entered, waiting = set(), deque([""])
    while waiting:
        path = waiting.popleft()
        place = Path(root, path)
        state = place.stat()
        if (state.st_dev, state.st_ino) in entered:
            continue
        entered.add((state.st_dev, state.st_ino))
        kinds = {name: _kind(place / name) for name in sorted(os.listdir(place)) if not is_junk(name)}
        folder = Folder(path, [name for name, kind in kinds.items() if kind == "folder"],
                        [name for name, kind in kinds.items() if kind == "file"],
                        [(name, kind) for name, kind in kinds.items() if kind not in ("folder", "file")])
        yield folder
        linked = [name for name in folder.folders if (place / name).is_symlink()]
        waiting.extendleft(join(path, name) for name in reversed(folder.folders) if name not in linked)
        waiting.extend(join(path, name) for name in linked)


def _kind(place: Path) -> str:
    """"folder", "file", or why an entry is neither."""
    try:
        place.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if os.path.isdir(place):
        if place.is_symlink() and place.parent.resolve().is_relative_to(place.resolve()):
            return LINK_UP
        return "folder" if os.access(place, os.R_OK | os.X_OK) else "a folder that may not be read"
    if os.path.isfile(place):
        return "file" if os.access(place, os.R_OK) else "a file that may not be read"
    return "neither a file nor a folder" if os.path.exists(place) else "a link that leads nowhere"


def join(path: str, name: str) -> str:
    """`path`/`name`, or one alone where the other is ""."""
    return "/".join(part for part in (path, name) if part)
