"""Download released weights into pretrained_models/:  python -m common.download NAME

A file gets its name only when its size is the announced one and it can be read as a checkpoint. Interrupted
downloads continue. `downloaded.json` keeps size and SHA-256 of the first download; later ones must be equal.
"""

import hashlib
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any
from zipfile import is_zipfile

import tyro

from common.checkpoints import zip_damage
from common.command import require_at_least, run_command, say_next
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash, read_json, write_json
from common.locks import locked
from common.progress import progress
from common.registry import MODELS_FOLDER, registry
from common.weights import load_checkpoint

PIECE = 1 << 20  # bytes read at once
RECORD = "downloaded.json"


@dataclass(frozen=True)
class DownloadConfig:
    """Download a registered model and its tokenizer."""

    model: Annotated[str, tyro.conf.Positional]
    """Name of a model, or of a file, in pretrained_models/registry.json."""
    source: tuple[str, ...] = ()
    """Folders or addresses of mirrors, tried first."""
    folder: Path = field(default=MODELS_FOLDER)
    """Target folder."""
    tries: int = 5
    """Attempts at each address; each continues the previous one."""
    timeout: float = 30.0
    """Seconds without data after which an attempt fails."""

    def __post_init__(self) -> None:
        require_at_least(self, tries=1, timeout=0)


def files_of(name: str) -> list[str]:
    """The files that a model consists of, tokenizer first."""
    entries = registry()
    models = {entry["name"]: file for file, entry in entries.items() if "name" in entry and "url" in entry}
    file = models.get(name, name)
    if "url" not in entries.get(file, {}):
        raise InputError(f"{name}: unknown, choose from {', '.join(models)}")
    return [*filter(None, [entries[file].get("tokenizer")]), file]


def fetch(file: str, entry: dict[str, Any], config: DownloadConfig) -> None:
    """Download one file from the first source that has it; `InputError` with the reasons if none has."""
    target = config.folder / file
    config.folder.mkdir(parents=True, exist_ok=True)
    known, reasons = recorded(config.folder), []
    for place in [*(f"{source.rstrip('/')}/{file}" for source in config.source), entry["url"]]:
        part = part_of(target, place)
        for attempt in range(config.tries):
            try:
                if "://" in place:
                    download(place, part, config.timeout)
                else:
                    shutil.copyfile(place, part)
                facts = check(part, known.get(file))
                part.replace(target)
                for other in config.folder.glob(f".partial-{'?' * 8}-{file}"):  # from other places
                    other.unlink()
                write_json(config.folder / RECORD, {**known, file: facts})
                return
            except (OSError, HTTPException, ValueError) as error:
                reasons.append(f"{place}: {str(error) or type(error).__name__}")
                hopeless = isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)
                if hopeless or "://" not in place:
                    break
                time.sleep(min(attempt, 3))
    raise InputError(f"{file}: download failed ({'; '.join(dict.fromkeys(reasons))})")


def part_of(target: Path, place: str) -> Path:
    """The beginning of `target` that came from `place`; another place may have another file of that name."""
    return target.with_name(f".partial-{hashlib.sha256(place.encode()).hexdigest()[:8]}-{target.name}")


def download(url: str, part: Path, timeout: float) -> None:
    """Download `url` to `part`, continuing what is there if the server supports it.

    Raises: `ConnectionError` if the connection ends early; what was received stays for the next attempt.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what is there: all of it, or of something else
            return
        raise
    with response:
        start = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(part, "r+b" if start else "wb") as file, progress(None, total, part.name, "B", True) as bar:
            file.seek(start)
            while piece := response.read(PIECE):
                file.write(piece)
                bar.update(len(piece))
            end = file.tell()
    if total is not None and end < total:
        raise ConnectionError(f"broke off after {end} of {total} bytes")


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> `file_facts` of the first download into a folder."""
    return read_json(folder / RECORD) if (folder / RECORD).exists() else {}


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def check(part: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    """`file_facts` of a download; deletes it and raises `InputError` if it is wrong or unreadable."""
    facts = file_facts(part)
    try:
        if known and facts != known:
            raise InputError(f"SHA-256 {facts['sha256'][:16]}..., of the first download it was "
                             f"{known['sha256'][:16]}... ({RECORD})")
        if not known and is_zipfile(part) and (problem := zip_damage(part, thorough=True)):
            raise InputError(problem)
        load_checkpoint(part)
    except InputError:
        part.unlink()
        raise
    return facts


def run(config: DownloadConfig, runtime: Runtime) -> None:
    """Fetch what is missing, on the main process."""
    files = files_of(config.model)
    with locked(config.folder, runtime, wait=True), runtime.together():
        for file in files if runtime.is_main else []:
            path, known = config.folder / file, recorded(config.folder).get(file)
            if path.exists():
                if known and file_facts(path) != known:
                    raise InputError(f"{path}: has changed since its download; delete it to fetch it again")
                print(f"{path}: there already")
                continue
            fetch(file, registry()[file], config)
            print(path)
    if runtime.is_main:
        say_next("bash", "sample_c2i_512_demo.sh")


if __name__ == "__main__":
    run_command(DownloadConfig, run)
