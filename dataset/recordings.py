"""The recordings in a folder of class folders, and the files in it that are none."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.errors import InputError
from common.names import RULE, as_name, is_name
from dataset.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_frame_folder

NO_VIDEO = "not a video, nor in a folder of numbered pictures alone"
LONGEST_STEM = 120  # bytes; file systems allow 255 for a name


class Source(NamedTuple):
    """A video file, a folder of numbered pictures, or a still picture."""

    class_name: str
    path: str
    """Relative to the folder of class folders, with forward slashes."""
    stem: str
    """What the names of its grid pictures begin with: no other source of its class has the same."""
    recording: str
    """<class>/<recording>: the same for all pieces of a recording."""


def find_sources(
    folder: Path, class_names: Sequence[str] | None, pattern: str | None, stills: bool = False
) -> tuple[list[Source], list[tuple[str, str]]]:
    """All recordings below `folder`/<class>, and (path, reason) of what else is there.

    `class_names` limits the classes, all of which must be there. `pattern` is a regular expression searched
    in the path below the class folder without its suffix; its first group names the recording that a file is
    a piece of. With `stills` every picture is a recording of its own. Hidden files are passed over.

    Raises: `InputError` if a folder is missing, there is no class folder, or the pattern is wrong.
    """
    if not folder.is_dir():
        raise InputError(f"--video-path {folder}: no such folder")
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    missing = [name for name in class_names or () if name not in found]
    if missing:
        raise InputError(f"--video-path {folder}: has no class folder {missing[0]}, which --preset asks for")
    if not found:
        raise InputError(f"--video-path {folder}: holds no class folders")
    sources, others = [], []
    for class_name in class_names or found:
        shown = class_name.encode(errors="replace").decode()
        if not is_name(class_name):
            others.append((shown, f"not taken for a class: {RULE}"))
            continue
        paths, strangers = _walk(folder / class_name, stills)
        for path, stem in _distinct_stems(paths).items():
            recording = f"{class_name}/{_recording(path, stem, pattern)}"
            sources.append(Source(class_name, f"{class_name}/{path}", stem, recording))
        others += [(f"{shown}/{path}", reason) for path, reason in strangers]
        others += [] if paths else [(shown, "a class folder without recordings")]
    return sources, others


def _walk(class_folder: Path, stills: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Relative paths of the recordings in a class folder, and (path, reason) of the other files, sorted."""
    recordings, others = [], []
    for parent, folders, files in os.walk(class_folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(parent).relative_to(class_folder)
        if relative.parts and not stills and is_frame_folder(Path(parent)):
            recordings.append(relative.as_posix())
            continue
        for name in (name for name in files if not name.startswith(".")):
            path, reason = (relative / name).as_posix(), _reason_against(Path(parent, name), stills)
            if reason:
                others.append((path.encode(errors="replace").decode(), reason))
            else:
                recordings.append(path)
    return sorted(recordings), sorted(others)


def _reason_against(file: Path, stills: bool) -> str | None:
    """Why a file cannot be a recording, as far as its name tells."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    known = VIDEO_SUFFIXES + IMAGE_SUFFIXES if stills else VIDEO_SUFFIXES
    if file.suffix.lower() not in known:
        return "neither a video nor a picture" if stills else NO_VIDEO
    return None if file.exists() else "a link that leads nowhere"


def _without_suffix(path: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.with_suffix("") if pure.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES else pure)


def _distinct_stems(paths: list[str]) -> dict[str, str]:
    """Path -> name: the path without suffix, "-" for "/", with a hash where two agree or it is very long."""
    stems = {path: as_name(_without_suffix(path)) for path in paths}
    counts = Counter(stem.casefold() for stem in stems.values())
    for path, stem in stems.items():
        if counts[stem.casefold()] > 1 or len(stem.encode()) > LONGEST_STEM:
            short = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
            stems[path] = f"{short}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    return stems


def _recording(path: str, stem: str, pattern: str | None) -> str:
    """The recording that the file at `path` is, or is a piece of."""
    if pattern is None:
        return stem
    try:
        match = re.search(pattern, _without_suffix(path))
        return match.group(1) if match and match.group(1) else stem
    except (re.error, IndexError) as error:
        raise InputError(f"--recording-pattern {pattern}: {error}; it needs one (group)") from None
