"""Atomic writes, and JSON files whose errors name the file."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import Any

from common.errors import InputError

# Files of file managers, network shares and archives, in lower case.
JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "#snapshot", "__macosx",
        "lost+found", "$recycle.bin", "system volume information")


def is_junk(name: str) -> bool:
    """True for names of hidden files, and of files that operating systems create."""
    return name.startswith(".") or name.lower() in JUNK


@contextmanager
def atomic_path(path: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path`, renamed to `path` on success and removed on failure.

    It keeps the suffix, by which image and video writers choose the format. With `folder=True` it is an empty
    folder that replaces an existing one, unless that holds folders or other kinds of files (`InputError`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    thread = get_native_id()  # no other on this machine has its number, also of another process
    temporary = path.with_name(f".{path.stem}.{thread}.tmp{path.suffix}")
    try:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        yield temporary
        settle(temporary)
        if folder and path.exists():
            refuse_other_files(path, temporary)
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def settle(path: Path) -> None:
    """fsync a file, or the files of a folder.

    Else a rename may reach the disk before the content, and a power loss leaves an empty file under the final
    name. Takes 0.3 ms per file on a data centre disk.
    """
    for file in path.iterdir() if path.is_dir() else [path]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refuse_other_files(old: Path, new: Path) -> None:
    """`InputError` if `old` holds a folder, or a visible file with a suffix that no file in `new` has."""
    suffixes = {file.suffix for file in new.iterdir()}
    for entry in old.iterdir():
        if entry.is_dir() or (entry.suffix not in suffixes and not entry.name.startswith(".")):
            raise InputError(f"{entry}: would be lost with the folder that is replaced, move it elsewhere")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete temporary files that killed runs have left; `folder` must be locked."""
    for path in list(Path(folder).rglob(".*.tmp*")):
        remove(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or broken one is an `InputError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


def append_jsonl(path: Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def write_jsonl(path: Path, records: list[dict]) -> None:
    """Write `records`, one per line, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict]:
    """The records of a jsonl file, none if it does not exist; of a damaged one those that can be read.

    A warning reports damage: a kill truncates the last line, a power loss leaves NULs or half a line.
    """
    if not Path(path).exists():
        return []
    content = Path(path).read_bytes()
    pieces = [piece for piece in re.split(rb"[\0\n]+", content) if piece.strip()]
    records = [last_record(piece) for piece in pieces]
    if b"\0" in content or any(start or record is None for start, record in records):
        print(f"warning: {path}: damaged, {sum(r is not None for _, r in records)} records can be read",
              file=sys.stderr, flush=True)
    return [record for _, record in records if record is not None]


def last_record(line: bytes) -> tuple[int, dict | None]:
    """(start, record) of the record that a line ends with; None if there is none."""
    for brace in re.finditer(rb"\{", line):
        try:
            return brace.start(), json.loads(line[brace.start():].decode())
        except ValueError:  # not UTF-8, or not JSON
            continue
    return 0, None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder in the order of their names, in hex."""
    digest = hashlib.sha256()
    for part in sorted(Path(path).iterdir()) if Path(path).is_dir() else [path]:
        with open(part, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def state_hash(files: Mapping[str, Path]) -> str:
    """A short hash of names, sizes and times of files, which changes when one of them does."""
    states = [(name, state.st_size, state.st_mtime_ns)
              for name, file in files.items() for state in [file.stat()]]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]
