"""The recordings in a folder of class folders, each once, and the files that are none."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from posixpath import join
from typing import NamedTuple

from common.errors import InputError
from common.names import RULE, as_name, is_name
from dataset.copies import same_content
from dataset.folders import LINK_UP, Note, walk
from dataset.opening import VIDEO_SUFFIXES, can_open, is_dicom
from dataset.pictures import IMAGE_SUFFIXES
from dataset.video import is_frame_folder

NO_VIDEO = "not a video, and not in a folder that holds numbered pictures only"
LONGEST_STEM = 120  # bytes; file systems allow 255 for a name


class Source(NamedTuple):
    """A video file, a folder of numbered pictures, or a still picture."""

    class_name: str
    path: str  # below the folder of class folders, with forward slashes
    stem: str  # what the names of its grid pictures begin with: no other source of its class has the same
    recording: str  # <class>/<recording>: the same for all pieces of a recording


@dataclass
class Found:
    """What there is in a folder of class folders; the paths of notes are below that folder."""

    sources: list[Source] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)  # recordings with a file that another class has a copy of
    unusable: list[Note] = field(default_factory=list)
    copies: list[Note] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def find_sources(
    folder: Path, class_names: Sequence[str] | None, pattern: str | None, stills: bool = False
) -> Found:
    """All recordings below `folder`/<class>, each file once, and what else is there.

    `class_names` limits the classes. `pattern` is a regular expression for the path below the class folder
    without its suffix; its first group names the recording that a file is a piece of. With `stills` every
    picture is a recording. Hidden files and junk are ignored.

    A file that several links lead to belongs to the class whose folder really holds it, else to the first.
    Of copies in one class the first is taken; copies in several classes are `shared`.

    Raises: `InputError` if there is no class folder or the pattern is wrong; `OSError` if one is missing.
    """
    found = Found()
    classes = class_names or _class_folders(folder, found)
    paths = [path for class_name in classes for path in recordings_of(folder, class_name, stills, found)]
    paths, shared = _each_content_once(folder, _each_file_once(folder, paths, found), found)
    for class_name in classes:
        below = [path.partition("/")[2] for path in paths if _class_of(path) == class_name]
        for path, stem in _distinct_stems(below).items():
            recording = f"{class_name}/{_recording(path, stem, pattern)}"
            found.sources.append(Source(class_name, f"{class_name}/{path}", stem, recording))
        found.unusable += [] if below else [(class_name, "a class folder without recordings")]
    found.shared = {source.recording for source in found.sources if source.path in shared}
    return found


def _class_folders(folder: Path, found: Found) -> list[str]:
    top = next(walk(folder))
    names = [name for name in top.folders if is_name(name)]
    unsafe = [(name, f"not taken for a class: {RULE}") for name in top.folders if name not in names]
    _report([*top.others, *unsafe], "", found)
    if not names:
        first = "".join(f" ({name}: {reason})" for name, reason in unsafe[:1])
        raise InputError(f"--video-path {folder}: holds no class folders{first}")
    return names


def _report(others: Iterable[Note], path: str, found: Found) -> None:
    for name, reason in others:
        shown = join(path, name).encode(errors="replace").decode()
        (found.notes if reason == LINK_UP else found.unusable).append((shown, reason))


def recordings_of(folder: Path, class_name: str, stills: bool, found: Found) -> list[str]:
    paths = []
    for place in walk(folder, class_name):
        if place.path != class_name and not stills and is_frame_folder(folder / place.path):
            paths.append(place.path)
            place.folders.clear()
            continue
        _report(place.others, place.path, found)
        for path in (join(place.path, name) for name in place.files):
            reason = _reason_against(folder / path, stills)
            if reason:
                found.unusable.append((path, reason))
            else:
                paths.append(path)
    return sorted(paths)


def _reason_against(file: Path, stills: bool) -> str | None:
    """Why a file cannot be a recording, by its suffix or, if that is unknown, its beginning; else None."""
    suffix = file.suffix.lower()
    try:
        if is_dicom(file):
            return "DICOM: convert it to a video first"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if suffix in VIDEO_SUFFIXES or (stills and suffix in IMAGE_SUFFIXES):
        return None
    if suffix not in IMAGE_SUFFIXES and can_open(file):
        return None
    return "neither a video nor a picture" if stills else NO_VIDEO


def _each_file_once(folder: Path, paths: list[str], found: Found) -> list[str]:
    """`paths` without further links to the same file or folder of pictures."""
    same = defaultdict(list)
    for path in paths:
        state = (folder / path).stat()
        same[(state.st_dev, state.st_ino, state.st_size)].append(path)
    owners = {}
    for group in same.values():
        owner = min(group, key=lambda path: _is_linked(folder, path)) if len(group) > 1 else group[0]
        owners |= dict.fromkeys(group, owner)
        for path in group:
            other = "" if _class_of(path) == _class_of(owner) else " in another class"
            found.copies += [(path, f"the same file as {owner}{other}, left out")] if path != owner else []
    return [path for path in paths if owners[path] == path]


def _is_linked(folder: Path, path: str) -> tuple[bool, bool]:
    """Whether `folder` reaches the file through a link; whether the class folder does."""
    real, class_folder = (folder / path).resolve(), folder / _class_of(path)
    below = (folder / path).relative_to(class_folder)
    return real != folder.resolve() / path, real != class_folder.resolve() / below


def _each_content_once(folder: Path, paths: list[str], found: Found) -> tuple[list[str], set[str]]:
    """`paths` without copies in the same class, and those that another class has a copy of."""
    dropped, shared = set(), set()
    for group in same_content([folder / path for path in paths]):
        firsts: dict[str, str] = {}  # class -> its first one
        for path in (place.relative_to(folder).as_posix() for place in group):
            first = firsts.setdefault(_class_of(path), path)
            if path != first:
                dropped.add(path)
                found.copies.append((path, f"a copy of {first}, left out"))
        original, *others = firsts.values()
        shared.update(firsts.values() if others else ())
        found.copies += [(path, f"a copy of {original} in another class: both are used, for training only; "
                                "delete the one in the wrong class") for path in others]
    return [path for path in paths if path not in dropped], shared


def _class_of(path: str) -> str:
    return path.partition("/")[0]


def without_suffix(path: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.with_suffix("") if pure.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES else pure)


def _distinct_stems(paths: list[str]) -> dict[str, str]:
    """Path -> its safe name without suffix, with a hash where names are equal or too long."""
    stems = {path: as_name(without_suffix(path)) for path in paths}
    counts = Counter(stem.casefold() for stem in stems.values())
    for path, stem in stems.items():
        if counts[stem.casefold()] > 1 or len(stem.encode()) > LONGEST_STEM:
            short = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
            stems[path] = f"{short}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    return stems


def _recording(path: str, stem: str, pattern: str | None) -> str:
    """Name of the recording that the file at `path` is, or is a piece of."""
    if pattern is None:
        return stem
    try:
        match = re.search(pattern, without_suffix(path))
        return match.group(1) if match and match.group(1) else stem
    except (re.error, IndexError) as error:
        raise InputError(f"--recording-pattern {pattern}: {error}; it needs one (group)") from None
