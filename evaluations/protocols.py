"""Conventions: which clips and which of their frames are compared, and how a covariance is normalised."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from evaluations.clips import ANY_SPLIT, Entry

STYLEGANV_CLIPS, STYLEGANV_FRAMES = 2048, 16  # fvd2048_16f
Places = np.ndarray


@dataclass(frozen=True)
class Protocol:
    """One convention."""

    name: str
    reference: str
    """Split of the real clips that is the reference: "val", "train" or "all"."""
    ddof: int
    """The covariance of n features is their scatter over n - ddof."""
    summary: str
    """In words, for the results."""

    def pick(self, real: Sequence[Entry], generated: Sequence[Entry]) -> tuple[Places, Places]:
        """Places of the clips of one class, or of all, that are compared."""
        if self.name == "endogen":
            n = min(len(real), len(generated))
            return first_by_name(real, n), first_by_name(generated, n)
        if self.name == "stylegan-v":
            return at_most(len(real), STYLEGANV_CLIPS), at_most(len(generated), STYLEGANV_CLIPS)
        return np.arange(len(real)), np.arange(len(generated))

    def window(self, entry: Entry, frames: int) -> slice:
        """The frames of a clip that are looked at."""
        if self.name != "stylegan-v":
            return slice(0, frames)
        if frames < STYLEGANV_FRAMES:
            raise InputError(f"--protocol stylegan-v: needs {STYLEGANV_FRAMES} frames, clips have {frames}")
        digest = hashlib.sha256(entry.name.encode()).digest()
        start = int.from_bytes(digest[:8], "big") % (frames - STYLEGANV_FRAMES + 1)
        return slice(start, start + STYLEGANV_FRAMES)

    @property
    def window_name(self) -> str:
        """`window` in words."""
        if self.name == "stylegan-v":
            return f"{STYLEGANV_FRAMES} consecutive frames from a place that the clip's name decides"
        return "all frames"


def first_by_name(entries: Sequence[Entry], n: int) -> Places:
    """Places of the first n in the order of their names, in that order."""
    return np.array(sorted(range(len(entries)), key=lambda i: entries[i].name)[:n], int)


def at_most(count: int, limit: int) -> Places:
    """All of `count` places, or `limit` of them picked at random with a fixed seed, in ascending order."""
    return np.sort(np.random.RandomState(0).permutation(count)[:limit])


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("held-out", "val", 1,
             "held-out real clips against all generated ones, covariance over n - 1"),
    Protocol("endogen", "train", 1,
             "the released EndoGen script: training clips as reference; of each class the first N by name, N "
             "the smaller count; covariance over n - 1"),
    Protocol("stylegan-v", ANY_SPLIT, 0,
             "fvd2048_16f: all real clips as reference, at most 2048 clips of each side, 16 consecutive "
             "frames, covariance over n"),
)}
