"""Times of the frames of a recording, gaps between them, and sampling by time.

A segment is a part of a recording without gaps. Times are seconds since the first frame.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice, pairwise
from statistics import median
from typing import TypeVar

# A recorder with a variable rate may hold a still picture for some seconds; a longer step is a gap.
LONGEST_STEP = 5.0  # seconds
LONGEST_STEPS = 10  # times the usual step, for recordings of few frames per minute
REMEMBERED = 25  # steps, whose median is the usual step

Item = TypeVar("Item")
Timed = Iterator[tuple[int, float, Item]]  # segment, time in seconds, item


def timed(source: Iterable[tuple[float | None, bool, Item]], interval: float) -> Timed[Item]:
    """(segment, time, item) of every (time stamp in seconds, frames before it are missing, item).

    `interval` is the mean time between two frames.
    """
    segment, time, first = 0, 0.0, None
    steps: deque[float] = deque(maxlen=REMEMBERED)
    for stamp, missing, item in source:
        usual = median(steps) if steps else interval
        step = interval if stamp is None or first is None else stamp - first - time
        if first is None:
            first = stamp or 0.0
        elif step < -LONGEST_STEP:  # the clock was reset
            first = stamp - time - usual
            time += usual
            segment += 1
        elif stamp is None or step <= 0:  # no time stamp, or one that stands still or jitters
            time += interval
            segment += missing
        else:
            gap = step > max(LONGEST_STEP, LONGEST_STEPS * usual)
            if not gap:
                steps.append(step)
            time = stamp - first
            segment += missing or gap
        yield segment, time, item


def sampled(source: Timed[Item], fps: float | None, stride: int) -> Timed[Item]:
    """(segment, time, item)s at `fps`, or else every `stride`-th, beginning anew in every segment."""
    for _, piece in groupby(source, key=lambda entry: entry[0]):
        if fps:
            yield from _nearest(piece, fps)
        else:
            yield from islice(piece, 0, None, stride)


def _nearest(source: Timed[Item], fps: float) -> Timed[Item]:
    """Resample one segment: the k-th entry is nearest to the first time + k / fps, the later on a tie."""
    k, start = 0, None
    for current, following in pairwise(chain(source, [None])):
        time = current[1]
        start = time if start is None else start
        end = (time + following[1]) / 2 - 1e-9 if following else time + 1e-9
        while start + k / fps < end:
            yield current
            k += 1
