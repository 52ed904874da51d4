"""Folders as people have them: links that lead back up, unreadable parts, class folders deep in an archive.

Paths are relative to the folder that a walk is given, with forward slashes; "" is that folder itself.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from posixpath import join
from typing import NamedTuple

from common.errors import InputError
from common.files import is_junk
from common.presets import Preset
from dataset.pictures import IMAGE_SUFFIXES

LINK_UP = "a link to one of its parent folders, not followed"

Note = tuple[str, str]  # path, and what to know of it


class Folder(NamedTuple):
    """One folder of a walk; its entries are sorted by name."""

    path: str
    folders: list[str]  # names; the caller may remove some, which are then not entered
    files: list[str]  # names
    others: list[Note]  # (name, why it is neither)


def walk(root: Path, start: str = "") -> Iterator[Folder]:
    """`root`/`start` and every folder below it once, linked ones last, without hidden files and junk.

    A folder that cannot be read is among the others of its parent. Raises: `OSError` if the first one cannot.
    """
    entered, waiting = set(), deque([start])
    while waiting:
        path = waiting.popleft()
        place = Path(root, path)
        state = place.stat()
        if (state.st_dev, state.st_ino) in entered:
            continue
        entered.add((state.st_dev, state.st_ino))
        kinds = {name: _kind(place / name) for name in sorted(os.listdir(place)) if not is_junk(name)}
        folders, files = ([name for name in kinds if kinds[name] == kind] for kind in ("folder", "file"))
        others = [(name, kind) for name, kind in kinds.items() if kind not in ("folder", "file")]
        yield Folder(path, folders, files, others)
        linked = [name for name in folders if (place / name).is_symlink()]
        waiting.extendleft(join(path, name) for name in reversed(folders) if name not in linked)
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
        return "folder" if os.access(place, os.R_OK | os.X_OK) else "a folder without read permission"
    if os.path.isfile(place):
        return "file" if os.access(place, os.R_OK) else "a file without read permission"
    return "neither a file nor a folder" if os.path.exists(place) else "a broken link"


def pictures_by_name(folder: Path) -> dict[str, Path]:
    """Relative name without suffix -> picture file, of the folder and all below it.

    Raises: `InputError` if two have one name.
    """
    found: dict[str, Path] = {}
    for place in walk(folder):
        for file in place.files:
            name = PurePosixPath(place.path, file)
            if name.suffix.lower() in IMAGE_SUFFIXES:
                other = found.setdefault(str(name.with_suffix("")), folder / name)
                if other != folder / name:
                    raise InputError(f"{folder / name}: {other.name} has the same name")
    return found


def find_class_folders(folder: Path, preset: Preset) -> tuple[str, list[Note]]:
    """Where at or below `folder` all class folders of a preset are, and notes of the folders left out.

    If several places hold them, those in a folder called `preset.within` go first.

    Raises: `InputError` if no place, or more than one, holds them all.
    """
    names = set(preset.class_names)
    found: dict[str, list[str]] = {}  # folder -> its folders
    for place in walk(folder):
        found[place.path] = list(place.folders)
        if place.path == "" and names.issubset(place.folders):
            break
        place.folders[:] = [name for name in place.folders if name not in names]
    counts = {path: len(names.intersection(inner)) for path, inner in found.items()}
    best = [path for path, count in counts.items() if count == max(counts.values())]
    best = [path for path in best if preset.within in (folder.resolve() / path).parts] or best
    missing = sorted(names.difference(found[best[0]]))
    if missing:
        raise InputError(f"--video-path {folder / best[0]}: has no class folder {missing[0]}, "
                         "which --preset asks for")
    if len(best) > 1:
        raise InputError(f"--video-path {folder}: the class folders of --preset are in {best[0]} and in "
                         f"{best[1]}, give one of the two")
    return best[0], _left_out(found, best[0], names)


def _left_out(found: dict[str, list[str]], chosen: str, names: set[str]) -> list[Note]:
    """Folders beside the chosen one, beside those that lead to it, and elsewhere with the name of a class."""
    way = {"", chosen, *map(str, PurePosixPath(chosen).parents)}
    notes = [(chosen, "--preset found its class folders here")] if chosen else []
    for path, inner in found.items():
        for name in inner:
            own = (path == chosen and name in names) or join(path, name) in way
            if not own and (path in way or name in names):
                notes.append((join(path, name), "left out by --preset"))
    return notes


def note_deep_classes(paths: Sequence[str]) -> list[Note]:
    """A note if no recording lies right in its class folder: folders further down may be the classes."""
    if not paths or any(path.count("/") < 2 for path in paths):
        return []
    classes, deeper = (", ".join(sorted({path.split("/")[place] for path in paths})[:3]) for place in (0, -2))
    return [(classes, f"taken for classes, but all recordings lie further down, as in {deeper}; if those are "
                      "the classes, give the folder that holds them as --video-path, or a --preset")]
