"""Work on many items at once: shared among the ranks of a run, and on each among processes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

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
            results = _in_processes(function, mine, workers, bar)
        else:
            results = _in_turn(function, mine, bar)
    parts = [iter(part) for part in runtime.gather(results)]
    return [next(parts[i % runtime.world_size]) for i in range(len(calls))]


def _in_turn(function: Callable[..., Any], calls: Sequence[tuple], bar: tqdm) -> list[Any]:
    results = []
    for call in calls:
        results.append(function(*call))
        bar.update()
    return results


def _in_processes(function: Callable[..., Any], calls: Sequence[tuple], workers: int, bar: tqdm) -> list[Any]:
    """As `_in_turn`; calls that went down with the process of another one are tried again alone."""
    with _pool(workers) as pool:
        futures = [pool.submit(function, *call) for call in calls]
        for _ in as_completed(futures):
            bar.update()
    return [_alone(function, call) if _was_killed(future) else future.result()
            for call, future in zip(calls, futures, strict=True)]


def _alone(function: Callable[..., Any], call: tuple) -> Any:
    with _pool(1) as pool:
        future = pool.submit(function, *call)
    return future.exception() if _was_killed(future) else future.result()


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))  # fork would copy locked threads


def _was_killed(future: Future) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)
