"""Checkpoints of runs whose tensors are sharded (FSDP), by torch.distributed.checkpoint, as safetensors.

A checkpoint is a folder `<step>.shards`: safetensors files into which every process wrote what it holds, and
`facts.pt` with everything else, in which a marker {STORED: key, "shape": shape} stands for each tensor. So
nothing in it is read by an unrestricted unpickler. Reading needs no process group: each process reads what it
will hold.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.checkpoints import keep_newest, write_tensors
from common.distributed import Runtime
from common.errors import InputError
from common.files import remove, remove_unfinished
from common.weights import BROKEN, FACTS, SHARDS, STORED, load_checkpoint

PATIENCE = 60  # seconds that a process which fails waits for its last checkpoint
FILE_BYTES = 1 << 28  # of tensors of all processes together, in one file of each


class ShardWriter:
    """Writes sharded checkpoints into `folder` in the background; all processes call it together.

    As a context manager it waits for the last one.
    """

    def __init__(self, folder: Path, keep: int, runtime: Runtime):
        self.folder, self.keep, self.runtime = Path(folder), keep, runtime
        self.group = runtime.new_group()  # its messages must not mix with those of the steps
        self.pending: Future | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self.pending:  # the other processes may be elsewhere, and the first error is the one to report
            with suppress(Exception):
                self.pending.result(PATIENCE)

    def save(self, step: int, checkpoint: dict[str, Any]) -> Path:
        """Start to write `folder/<step>.shards`, which appears when all processes are done.

        Waits for the previous save. The tensors are copied before this returns. Raises: `OSError` if the
        previous save or the start of this one failed; older checkpoints are unchanged.
        """
        from torch.distributed import checkpoint as dcp

        self.finish()
        path = self.folder / f"{step:07d}{SHARDS}"
        temporary = path.with_name(f".{path.stem}.tmp{SHARDS}")
        tensors: dict[str, Tensor] = {}
        facts = take_tensors(checkpoint, tensors)
        with self.runtime.together():
            if self.runtime.is_main:
                remove_unfinished(self.folder)
                temporary.mkdir(parents=True)
                write_tensors(temporary / FACTS, facts)
        storage = dcp.HuggingFaceStorageWriter(str(temporary), file_numbers(tensors), save_distributed=True)
        writing = dcp.async_save(tensors, storage_writer=storage, process_group=self.group,
                                 no_dist=self.group is None)
        self.pending = Future()
        writing.add_done_callback(partial(self._publish, self.pending, temporary, path))
        return path

    def _publish(self, pending: Future, temporary: Path, path: Path, written: Future) -> None:
        try:
            written.result()
            if self.runtime.is_main:
                remove(path)
                os.replace(temporary, path)
                keep_newest(self.folder, self.keep)
        except BaseException as error:
            remove(temporary)
            pending.set_exception(OSError(
                f"{self.folder}: no checkpoint written ({first_failure(error)}), the older are intact"))
        else:
            pending.set_result(path)

    def finish(self) -> None:
        """Wait for the current save, if any. Raises: `OSError` if it failed on any process."""
        pending, self.pending = self.pending, None
        if pending:
            with self.runtime.together():
                pending.result()


def file_numbers(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The file, counted from 1, that a process writes its part of each tensor to.

    There are several because safetensors holds a whole file in memory before writing it.
    """
    ends = accumulate(x.numel() * x.element_size() for x in tensors.values())
    return {key: 1 + end // FILE_BYTES for key, end in zip(tensors, ends, strict=True)}


def is_sharded(path: Path) -> bool:
    """True for a folder of `ShardWriter`; the older layout has no `FACTS` file."""
    return (Path(path) / FACTS).is_file()


def first_failure(error: BaseException) -> BaseException:
    """The error of the first process that could not write."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def take_tensors(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """Nested dictionaries with a marker in place of each tensor; the tensors are added to `tensors`."""
    if isinstance(value, dict):
        return {key: take_tensors(item, tensors, f"{place}/{key}") for key, item in value.items()}
    if isinstance(value, Tensor):
        tensors[place] = value.detach()
        return {STORED: place, "shape": list(value.shape)}
    return value


def replaced(value: Any, change: Callable[[str, tuple[int, ...]], Any]) -> Any:
    """Nested dictionaries with `change(key, shape)` in place of each marker."""
    if not isinstance(value, dict):
        return value
    if STORED in value:
        return change(value[STORED], tuple(value["shape"]))
    return {name: replaced(item, change) for name, item in value.items()}


def open_sharded(path: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """A sharded checkpoint with its markers, what is stored of each tensor, and the reader of the tensors.

    Raises: `InputError` naming the folder if any part of a tensor is missing or broken.
    """
    from torch.distributed import checkpoint as dcp

    facts, storage = load_checkpoint(path / FACTS), dcp.HuggingFaceStorageReader(str(path))
    try:
        stored = storage.read_metadata().state_dict_metadata
    except BROKEN as error:
        raise InputError(f"{path}: not a readable checkpoint ({str(error)[:120]})") from None

    def check(key: str, shape: tuple[int, ...]) -> None:
        chunks = stored[key].chunks if key in stored else []
        if sum(prod(chunk.sizes) for chunk in chunks) != prod(shape):
            raise InputError(f"{path}: not a readable checkpoint (a part of {key} is missing)")

    replaced(facts, check)
    return facts, stored, storage


def read_sharded(path: Path, like: Callable[[str], Tensor | None] = lambda _: None) -> dict[str, Any]:
    """A sharded checkpoint; each tensor is sharded as the example that `like` has for its key, or whole.

    Raises: `InputError` naming the folder if any part of a tensor is missing or broken.
    """
    from torch.distributed import checkpoint as dcp

    facts, stored, storage = open_sharded(path)
    tensors = {}

    def room(key: str, shape: tuple[int, ...]) -> Tensor:
        example, dtype = like(key), stored[key].properties.dtype
        tensors[key] = (torch.empty(shape, dtype=dtype) if example is None
                        else torch.empty_like(example, dtype=dtype))
        return tensors[key]

    filled = replaced(facts, room)
    try:
        with warnings.catch_warnings():  # that no process group takes part
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(tensors, storage_reader=storage, no_dist=True)
    except (dcp.CheckpointException, *BROKEN) as error:
        raise InputError(f"{path}: not a readable checkpoint ({str(first_failure(error))[:120]})") from None
    return filled
