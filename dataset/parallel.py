"""Parallel calls: shared among the ranks of a run, and on each rank among processes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from common.distributed import Runtime
from common.hardware import own_cores
from common.progress import progress


def map_everywhere(
    function: Callable[..., Any], calls: Sequence[tuple], runtime: Runtime, workers: int | None, title: str
) -> list[Any]:
    """`function(*call)` for every call, in order, on every rank; also a barrier.

    `workers` is the number of processes per rank, by default the machine's cores shared among its ranks. The
    result of a call that kills its process is a `BrokenProcessPool`; exceptions of `function` are raised.
    """
    mine = runtime.share(calls)
    workers = min(workers or own_cores(), len(mine))
    with progress(None, len(mine), title, "recording", runtime.is_main) as bar:
        if workers > 1:
            results = _in_processes(function, mine, workers, bar.update)
        else:
            results = []
            for call in mine:
                results.append(function(*call))
                bar.update()
    parts = [iter(part) for part in runtime.gather(results)]
    return [next(parts[i % runtime.world_size]) for i in range(len(calls))]


def _in_processes(
    function: Callable[..., Any], calls: Sequence[tuple], workers: int, finished: Callable[[], object]
) -> list[Any]:
    """The results; calls that a dead process took with it are repeated alone."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:  # fork would copy locked threads
        futures = [pool.submit(function, *call) for call in calls]
        for _ in as_completed(futures):
            finished()
    results = []
    for call, future in zip(calls, futures, strict=True):
        killed = isinstance(future.exception(), BrokenProcessPool)
        if killed and len(calls) > 1:
            results += _in_processes(function, [call], 1, lambda: None)
        else:
            results.append(future.exception() if killed else future.result())
    return results
