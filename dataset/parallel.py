"""Work on many items at once: shared among the ranks of a run, and on each among processes."""

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
    """`function(*call)` for every call, in order, known to every rank in the end; also a barrier.

    `workers` processes per rank, by default the machine's cores shared among its ranks. A call that kills its
    process gives a `BrokenProcessPool` in place of its result; any exception of `function` goes on.
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
    """The results; calls that went down with the process of another one are tried again alone."""
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
