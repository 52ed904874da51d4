"""Features of a set of clips: computed in a stream, cached, the same on any number of processes.

The clips are cut into blocks of fixed size. One process computes a block, in batches within the block, and
writes it atomically. An interrupted run continues with the missing blocks, and the result depends neither on
the number of processes nor on the order. Threads read and compute several batches in parallel.
Shapes: n clips, R feature vectors of each, D dimensions.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import torch

from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, read_json, remove_unfinished
from common.locks import locked
from common.progress import progress
from common.spread import evenly
from evaluations.cache import block_path, is_unchanged, is_whole, join_blocks
from evaluations.clips import ClipSet, Entry
from evaluations.extractor import Extractor
from evaluations.protocols import PROTOCOLS, Protocol

BLOCK = 32  # clips
CPU_BATCHES = 4  # computed in parallel on a CPU at most, each with a share of the threads
GPU_READERS = 4  # threads that read for a GPU, which computes one batch after the other
CACHE_VERSION = 2  # raised when reading or checking changes: older caches are not used


@dataclass(frozen=True)
class Features:
    """Features of some clips, read from the cache when they are needed."""

    entries: tuple[Entry, ...]
    stored_NRD: np.ndarray
    """float32; a memory map of the cache, of these clips and maybe others."""
    places: np.ndarray
    """Row of `stored_NRD` of each clip."""
    facts: dict[str, Any]
    """Extractor, weights, preprocessing, window, and geometry of the clips."""
    bad: tuple[tuple[str, str], ...] = ()
    """(clip, reason) of the skipped ones."""

    def __len__(self) -> int:
        return len(self.entries)

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Features":
        """The clips at some places of this set."""
        entries = tuple(self.entries[i] for i in chosen)
        return replace(self, entries=entries, places=self.places[np.asarray(chosen, int)])

    def where(self, condition: Callable[[Entry], bool]) -> "Features":
        """The clips that fulfil a condition."""
        return self.take([i for i, entry in enumerate(self.entries) if condition(entry)])

    def of_class(self, class_name: str) -> "Features":
        """The clips of one class."""
        return self.where(lambda entry: entry.class_name == class_name)

    def shape(self, columns: slice = slice(None)) -> tuple[int, int]:
        """(n * R, D) of `vectors`."""
        return len(self) * self.stored_NRD.shape[1], self.stored_NRD[:1, :1, columns].shape[-1]

    def vectors(self, columns: slice = slice(None), most: int | None = None) -> np.ndarray:
        """All feature vectors (n * R, D), clip after clip, or `most` of them evenly spread."""
        per_clip = self.stored_NRD.shape[1]
        total = len(self) * per_clip
        rows = np.array(evenly(total, total if most is None else most), int)
        return self.stored_NRD[self.places[rows // per_clip], rows % per_clip, columns]

    def chunks(self, columns: slice = slice(None), clips: int = 64) -> Iterator[np.ndarray]:
        """All feature vectors, those of `clips` clips at a time."""
        for start in range(0, len(self), clips):
            yield self.take(range(start, min(start + clips, len(self)))).vectors(columns)

    @property
    def recordings(self) -> list[str]:
        """Recording of every clip."""
        return [entry.recording for entry in self.entries]


def require_comparable(a: Features, b: Features) -> None:
    """`InputError` if two sets of features differ in extractor, weights, window or geometry of the clips."""
    for name in a.facts:
        if a.facts[name] != b.facts.get(name):
            raise InputError(f"features cannot be compared: {name} is {a.facts[name]} for one side and "
                             f"{b.facts.get(name)} for the other")


@dataclass(frozen=True)
class Extraction:
    """How features are computed; the same for every set of clips of a comparison."""

    extractor: Extractor
    device: torch.device
    cache: Path
    """Folder of feature files, whose names are a hash of all that the features depend on."""
    batch_size: int
    skip_bad: bool = False
    protocol: Protocol = PROTOCOLS["held-out"]
    """Says which frames of a clip are used."""

    def run(self, clips: ClipSet, runtime: Runtime, title: str) -> Features:
        """Features of `clips`, from the cache or computed by all processes together; the same on each.

        Raises: `InputError` naming a clip that is unreadable, has another geometry than the first one, or is
        too short; with `skip_bad` such clips are left out and listed. Features that are not finite are always
        an error: the fault is not in the clip.
        """
        folder = self.cache / f"{self.extractor.name}-{self._key(clips)}"
        if not runtime.agree(lambda: is_unchanged(folder)):
            with locked(folder, runtime, wait=True):  # evaluations may share a cache
                self._fill(clips, folder, runtime, title)
        return self._load(clips, folder)

    def _fill(self, clips: ClipSet, folder: Path, runtime: Runtime, title: str) -> None:
        """Compute the missing features, unless another job has just done so; damaged ones are deleted."""
        if runtime.agree(lambda: is_unchanged(folder)):
            return
        with runtime.together():  # after it all blocks exist
            if runtime.is_main and (folder / "features.json").exists():
                print(f"{folder}: damaged, computed again", flush=True)
                (folder / "features.json").unlink()
            self._compute_blocks(clips, folder, runtime, title)
        with runtime.together():
            if runtime.is_main:
                starts = range(0, len(clips.entries), BLOCK)
                join_blocks([block_path(folder, start) for start in starts], folder)
                remove_unfinished(folder)

    def _key(self, clips: ClipSet) -> str:
        """Hash of everything that the features depend on."""
        files = [(entry.name, clips.files(entry)) for entry in clips.entries]
        grid = clips.grid and [clips.grid.rows, clips.grid.cols]
        if grid and clips.grid.masks:
            grid.append(clips.grid.masks.place)
        key = json.dumps([CACHE_VERSION, self._facts(), self.batch_size, grid, files])
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def _facts(self) -> dict[str, Any]:
        extractor = self.extractor
        return {"extractor": extractor.name, "weights": extractor.weights,
                "preprocessing": extractor.preprocessing, "window": self.protocol.window_name}

    def _compute_blocks(self, clips: ClipSet, folder: Path, runtime: Runtime, title: str) -> None:
        """This process's share of the missing blocks."""
        shape = self._geometry(clips)
        starts = range(0, len(clips.entries), BLOCK)
        todo = [start for start in runtime.share(starts) if not is_whole(block_path(folder, start))]
        threads = torch.get_num_threads()
        parallel = max(n for n in range(1, CPU_BATCHES + 1) if threads % n == 0)
        readers, computing = (parallel, parallel) if self.device.type == "cpu" else (GPU_READERS, 1)
        compute_slots = Semaphore(computing)
        pool = ThreadPoolExecutor(readers, "features", torch.set_num_threads, (threads // parallel,))

        def submit(start: int) -> list[Future]:
            block = clips.entries[start : start + BLOCK]
            batches = (block[first : first + self.batch_size]
                       for first in range(0, len(block), self.batch_size))
            return [pool.submit(self._batch, clips, batch, shape, compute_slots) for batch in batches]

        ahead = pairwise(chain(map(submit, todo), [[]]))  # submits the next block before waiting for this one
        pairs = progress(zip(todo, ahead, strict=True), len(todo), title, "block", runtime.is_main)
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                for start, (futures, _) in pairs:
                    good, bad, parts = zip(*(future.result() for future in futures), strict=True)
                    values = [part for part in parts if len(part)] or parts[:1]  # R and D of no clips are 0
                    facts = {"good": list(chain(*good)), "bad": list(chain(*bad)),
                             "geometry": [self._frame_count(clips, shape[0]), *shape[1:]]}
                    with atomic_path(block_path(folder, start)) as temporary:
                        np.savez(temporary, values=np.concatenate(values), facts=json.dumps(facts))
        finally:
            pool.shutdown(cancel_futures=True)

    def _geometry(self, clips: ClipSet) -> tuple[int, int, int]:
        """(frames, height, width) of the first readable clip, which all others must have."""
        problem = ""
        for entry in clips.entries:
            try:
                frames, _, height, width = clips.frames(entry).shape
                break
            except InputError as error:
                problem = problem or str(error)
                if not self.skip_bad:
                    raise
        else:
            raise InputError(f"{clips.folder}: no clip can be read; the first error: {problem}")
        used = self._frame_count(clips, frames)
        if used < self.extractor.min_frames:
            raise InputError(f"{clips.folder}: clips of {used} frames, but {self.extractor.name} needs at "
                             f"least {self.extractor.min_frames}")
        return frames, height, width

    def _frame_count(self, clips: ClipSet, frames: int) -> int:
        """Frames that are used of a clip of `frames` frames."""
        return len(range(*self.protocol.window(clips.entries[0], frames).indices(frames)))

    @torch.inference_mode()
    def _batch(
        self, clips: ClipSet, entries: Sequence[Entry], shape: tuple[int, int, int], compute_slots: Semaphore
    ) -> tuple[list[str], list[tuple[str, str]], np.ndarray]:
        """Names of the usable clips, (name, reason) of the others, and features (B, R, D)."""
        good, bad, frames = [], [], []
        for entry in entries:
            try:
                frames.append(self._frames(clips, entry, shape))
                good.append(entry.name)
            except InputError as error:
                if not self.skip_bad:
                    raise InputError(f"{error}; --skip-bad leaves such clips out") from None
                bad.append((entry.name, str(error)))
        if not frames:
            return good, bad, np.zeros((0, 0, 0), np.float32)
        with compute_slots:
            features_BRD = self.extractor.features(torch.from_numpy(np.stack(frames)).to(self.device))
            values_BRD = features_BRD.float().cpu().numpy()
        for name, values_RD in zip(good, values_BRD, strict=True):
            if not np.isfinite(values_RD).all():
                raise InputError(f"{clips.folder / name}: its {self.extractor.name} features are not finite; "
                                 "check the weight file")
        return good, bad, values_BRD

    def _frames(self, clips: ClipSet, entry: Entry, shape: tuple[int, int, int]) -> np.ndarray:
        """The frames of a clip that are used.

        Raises: `InputError` if the clip is unreadable, or has another geometry than `shape`.
        """
        frames = clips.frames(entry)
        if (len(frames), *frames.shape[2:]) != shape:
            found, wanted = ("{} frames of {} x {} px".format(*size)
                             for size in ((len(frames), *frames.shape[2:]), shape))
            raise InputError(f"{entry.name}: {found}, the first clip has {wanted}")
        return frames[self.protocol.window(entry, len(frames))]

    def _load(self, clips: ClipSet, folder: Path) -> Features:
        record = read_json(folder / "features.json")
        if record["bad"] and not self.skip_bad:
            raise InputError(f"{record['bad'][0][1]}; --skip-bad leaves such clips out")
        by_name = {entry.name: entry for entry in clips.entries}
        geometry = dict(zip(("frames", "height", "width"), record["geometry"], strict=True))
        entries = tuple(by_name[name] for name in record["good"])
        stored_NRD = np.load(folder / "features.npy", mmap_mode="r")
        bad = tuple((name, reason) for name, reason in record["bad"])
        return Features(entries, stored_NRD, np.arange(len(entries)), {**self._facts(), **geometry}, bad)
