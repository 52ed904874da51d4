"""The folder whose folders are the classes, which in an unpacked archive lies below the one that is given."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from common.errors import InputError
from common.presets import Preset
from dataset.walk import join, walk

Note = tuple[str, str]  # path and what to know of it


def find_class_folders(folder: Path, preset: Preset) -> tuple[str, list[Note]]:
    """Where at or below `folder` all class folders of a preset are, and what else lies beside the way there.

    Folders of the same names elsewhere do not count if `preset.within` tells them apart.

    Raises: `InputError` if they are nowhere together, or in several places.
    """
    names = set(preset.class_names)
    found: dict[str, list[str]] = {}  # folder -> its folders
    for place in walk(folder):
        found[place.path] = list(place.folders)
        if place.path == "" and names.issubset(place.folders):
            break
        place.folders[:] = [name for name in place.folders if name not in names]
    most = max(len(names.intersection(inner)) for inner in found.values())
    best = [path for path, inner in found.items() if len(names.intersection(inner)) == most]
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
    notes = [(chosen, "here --preset finds its class folders")] if chosen else []
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
