"""When the frames of a recording were taken, where something is missing between them, and sampling by time.

A segment is a part of a recording in which nothing is missing. Times are seconds since the first frame.
"""

from collections import deque
from collections.abc import Iterator
from itertools import groupby, islice
from statistics import median
from typing import TypeVar

# A recorder with a variable rate holds a still picture for some seconds; what is longer was not recorded.
LONGEST_STEP = 5.0  # seconds
LONGEST_STEPS = 10  # times the usual step, for recordings of few frames per minute
REMEMBERED = 25  # steps that tell what is usual

Item = TypeVar("Item")


class Clock:
    """Reads the time stamps of frames: `time` and `segment` are those of the last one."""

    def __init__(self, interval: float) -> None:
        """`interval` is the mean time between two frames."""
        self.time, self.segment = 0.0, 0
        self._interval = interval
        self._first: float | None = None
        self._steps: deque[float] = deque(maxlen=REMEMBERED)

    def read(self, stamp: float | None, missing: bool) -> None:
        """The next frame: its time stamp in any seconds, and whether frames before it are missing."""
        if self._first is None:
            self._first = stamp or 0.0
            return
        step = self._interval if stamp is None else stamp - self._first - self.time
        usual = median(self._steps) if self._steps else self._interval
        if step < -LONGEST_STEP:  # another clock
            self._first = stamp - self.time - usual
            self.time += usual
            self.segment += 1
        elif stamp is None or step <= 0:  # a clock that stands or goes back a little
            self.time += self._interval
            self.segment += missing
        else:
            gap = step > max(LONGEST_STEP, LONGEST_STEPS * usual)
            if not gap:
                self._steps.append(step)
            self.time = stamp - self._first
            self.segment += missing or gap


def sampled(
    source: Iterator[tuple[int, float, Item]], fps: float | None, stride: int
) -> Iterator[tuple[int, float, Item]]:
    """(segment, time, item)s at `fps`, or else every `stride`-th, beginning anew in every segment."""
    for segment, piece in groupby(source, key=lambda entry: entry[0]):
        pairs = ((time, item) for _, time, item in piece)
        for time, item in _nearest(pairs, fps) if fps else islice(pairs, 0, None, stride):
            yield segment, time, item


def _nearest(source: Iterator[tuple[float, Item]], fps: float) -> Iterator[tuple[float, Item]]:
    """Resample (time, item) pairs: pair k is nearest to the first time + k / fps, the later on a tie."""
    k, start, previous = 0, 0.0, None
    for current in source:
        if previous is None:
            start = current[0]
        while previous is not None and start + k / fps < (previous[0] + current[0]) / 2 - 1e-9:
            yield previous
            k += 1
        previous = current
    while previous is not None and start + k / fps <= previous[0] + 1e-9:
        yield previous
        k += 1
