"""Hugging Face Hub: files named hf://..., pinned to a commit, checked and cached; uploads in one commit.

`hf://owner/name[@revision][/file]` is a file of a model, `hf://datasets/owner/name[@revision]` a data set. As
a `Path` the name has one slash. The library caches files (HF_HOME), stays offline with HF_HUB_OFFLINE=1, logs
in with HF_TOKEN or `hf auth login`, and asks the server HF_ENDPOINT.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"  # in the repository of a model
TOKENIZER = "tokenizer.safetensors"  # beside the weights of a GPT
# A model's file in the cache of the library.
CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)\Z")
NO_ACCESS = "no such repository, or no access to it: log in with hf auth login, or set HF_TOKEN"


def is_hub(path: Path | str) -> bool:
    """True for a name hf://..., also as a `Path`."""
    return Path(path).parts[:1] == ("hf:",)


def hub_name(path: Path | str) -> str:
    """`hf://...` of a name that was a `Path`."""
    return "hf://" + "/".join(Path(path).parts[1:])


def readable(path: Path) -> str:
    """A path as text; of a name on the Hub with both slashes."""
    return hub_name(path) if is_hub(path) else str(path)


def check_repository(name: str, flag: str) -> None:
    """`InputError` that names the flag unless `name` is owner/name."""
    if parse(f"hf://{name}", flag).to_uri() != f"hf://models/{name}":
        raise InputError(f"{flag} {name}: must be owner/name")


def parse(name: str, origin: str = "") -> Any:
    """The library's `HfUri` of a name; `InputError` if it is none."""
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        return parse_hf_uri(name)
    except HfUriError as error:
        raise InputError(f"{origin} {name}: {error.msg}".strip()) from None


@contextmanager
def one_reason(name: str) -> Iterator[None]:
    """Errors of the library, the network and the server as an `InputError` that begins with `name`."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, RevisionResolutionError

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError, EntryNotFoundError,
            RevisionResolutionError) as error:
        raise InputError(f"{name}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What a user should know of an error of the library."""
    import httpx2
    from huggingface_hub import errors
    from huggingface_hub.constants import is_offline_mode

    known = {errors.GatedRepoError: "its owner must grant access: ask for it on its page, then log in",
             errors.RepositoryNotFoundError: NO_ACCESS, errors.RevisionNotFoundError: "no such revision",
             errors.RemoteEntryNotFoundError: "the repository holds no such file"}
    for kind, words in known.items():
        if isinstance(error, kind):
            return words
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return (NO_ACCESS if status in (401, 403) else "the server refuses") + f" (status {status})"
    if is_offline_mode() and isinstance(error, errors.EntryNotFoundError | errors.RevisionResolutionError):
        return "not in the cache, and HF_HUB_OFFLINE is set"
    if isinstance(error, httpx2.TransportError):
        return f"the server cannot be reached ({error or type(error).__name__})"
    if error.__cause__:  # the library wraps what happened in general advice
        return reason(error.__cause__)
    return " ".join(str(error).replace("Please retry with `force_download=True`.", "").split())[:300]


def pin(path: Path, kind: str, runtime: Runtime) -> tuple[Any, str]:
    """(name of a repository of this kind, its commit now), the same on all processes."""
    from huggingface_hub import HfApi

    name = hub_name(path)
    uri = parse(name)
    if uri.type != kind:
        raise InputError(f"{name}: is a {uri.type}, here a {kind} is needed")

    def resolve() -> str:
        with one_reason(name):
            return HfApi().resolve_revision(uri.id, revision=uri.revision, repo_type=kind).resolved

    return uri, runtime.agree(resolve)


def local_file(path: Path, runtime: Runtime = Runtime()) -> Path:
    """`path` itself, or hf://owner/name[@revision][/file] in the cache; file is model.safetensors by default.

    All processes call it. Raises: `InputError` naming what was asked for, and nothing half-written stays.
    """
    if not is_hub(path):
        return path
    from huggingface_hub import hf_hub_download

    uri, commit = pin(path, "model", runtime)
    with runtime.together(), one_reason(hub_name(path)):
        file = Path(hf_hub_download(uri.id, uri.path_in_repo or WEIGHTS, revision=commit))
        if runtime.local_rank == 0:
            check_hash(file)
    return file


def local_folder(path: Path, patterns: list[str], runtime: Runtime) -> tuple[Path, str]:
    """(folder in the cache, owner/name@commit) of the files of hf://datasets/... that match `patterns`.

    Their hashes are still to be checked.
    """
    from huggingface_hub import snapshot_download

    uri, commit = pin(path, "dataset", runtime)
    with runtime.together(), one_reason(hub_name(path)):
        folder = snapshot_download(uri.id, repo_type="dataset", revision=commit, allow_patterns=patterns)
    return Path(folder), f"{uri.id}@{commit}"


def check_hash(file: Path) -> None:
    """Compare a file of the cache with its hash on the Hub; `OSError`, and it is removed, if they differ.

    The library checks the size alone. Its links point to files that have the hash as name: SHA-256, or git's
    SHA-1 of small files.
    """
    if not file.is_symlink():
        return
    blob = file.parent / os.readlink(file)
    if len(blob.name) == 64:
        found = file_hash(file)
    else:
        found = hashlib.sha1(b"blob %d\0" % file.stat().st_size + file.read_bytes()).hexdigest()
    if found != blob.name:
        file.unlink()
        blob.unlink()
        raise OSError(f"{file.name} has the hash {found[:16]}..., not {blob.name[:16]}... as on the Hub; "
                      "fetch it again")


def pinned(file: Path) -> str | None:
    """hf://owner/name@commit/file of a model's file in the cache; None for other files."""
    found = CACHED.search(file.as_posix())
    return found and "hf://{}/{}@{}/{}".format(*found.groups())


def hub_facts(given: Path | None, file: Path) -> dict[str, Any]:
    """{"hub": what was asked for, and the commit and file that this was}, or nothing for local files."""
    asked = {"asked": hub_name(given)} if given and is_hub(given) else {}
    return {"hub": {**asked, "file": pinned(file)}} if pinned(file) else {}


def beside(file: Path, name: str) -> list[Path]:
    """The file `name` in the same folder and commit as a file of the cache; nothing for local files."""
    where = pinned(file)
    return [Path(where).with_name(name)] if where else []


def push(folder: Path, repository: str, kind: str, private: bool, replaced: Iterable[str] = ()) -> str:
    """Upload the files of `folder` in one commit -> its address. Makes the repository if it is missing.

    The commit deletes files there that `folder` lacks and one of the patterns `replaced` fits.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    files = {path.name: path for path in sorted(folder.iterdir())}
    with one_reason(repository):
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        there = api.list_repo_files(repository, repo_type=kind)
        changes = [*(CommitOperationAdd(name, path) for name, path in files.items()),
                   *(CommitOperationDelete(name) for name in there
                     if name not in files and any(fnmatch(name, pattern) for pattern in replaced))]
        return api.create_commit(repository, changes, commit_message="Upload from EndoGen",
                                 repo_type=kind).commit_url


def write_card(folder: Path, template: Path, head: dict[str, Any], **values: Any) -> None:
    """Write README.md into `folder`: `head` as YAML, which the Hub reads, and the jinja `template`."""
    from huggingface_hub.repocard_data import CardData
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    body = environment.from_string(template.read_text(encoding="utf-8")).render(**values)
    (folder / CARD).write_text(f"---\n{CardData(**head).to_yaml()}\n---\n\n{body}", encoding="utf-8")
