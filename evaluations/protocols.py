"""Conventions of comparison: which clips, which of their frames, and how covariance is normalised."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from evaluations.clips import ANY_SPLIT, Entry

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
    """One line for the results."""
    equal_counts: bool = False
    """Of each class compare the first N clips by name, N the smaller count of both sides."""
    most_clips: int | None = None
    """Compare at most so many clips of each side, drawn with a fixed seed."""
    clip_frames: int | None = None
    """Look at so many consecutive frames; the start depends on the clip's name. None: all frames."""

    def pick(self, real: Sequence[Entry], generated: Sequence[Entry]) -> tuple[Places, Places]:
        """Ascending places of the clips that are compared; both sides are sorted by name."""
        if self.equal_counts:
            return _equal_counts(real, generated)
        orders = (np.random.RandomState(0).permutation(len(side)) for side in (real, generated))
        first, second = (np.sort(order[: self.most_clips]) for order in orders)
        return first, second

    def window(self, entry: Entry, frames: int) -> slice:
        """The frames to look at of a clip of `frames` frames."""
        if self.clip_frames is None:
            return slice(0, frames)
        if frames < self.clip_frames:
            raise InputError(f"--protocol {self.name}: needs {self.clip_frames} frames, clips have {frames}")
        digest = hashlib.sha256(entry.name.encode()).digest()
        start = int.from_bytes(digest[:8], "big") % (frames - self.clip_frames + 1)
        return slice(start, start + self.clip_frames)

    @property
    def window_name(self) -> str:
        """`window` in words."""
        if self.clip_frames is None:
            return "all frames"
        return f"{self.clip_frames} consecutive frames from a place that the clip's name decides"


def _equal_counts(real: Sequence[Entry], generated: Sequence[Entry]) -> tuple[Places, Places]:
    """Places of the first N clips of each class, N the smaller count of both sides."""
    picked: tuple[list[int], list[int]] = ([], [])
    for class_name in {entry.class_name for entry in real}:
        own = [[i for i, entry in enumerate(side) if entry.class_name == class_name]
               for side in (real, generated)]
        for places, candidates in zip(picked, own, strict=True):
            places += candidates[: min(map(len, own))]
    return np.array(sorted(picked[0]), int), np.array(sorted(picked[1]), int)


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("held-out", "val", 1,
             "held-out real clips against all generated ones, covariance over n - 1"),
    Protocol("endogen", "train", 1,
             "the released EndoGen script: training clips as reference; of each class the first N by name, N "
             "the smaller count; covariance over n - 1", equal_counts=True),
    Protocol("stylegan-v", ANY_SPLIT, 0,
             "fvd2048_16f: all real clips as reference, at most 2048 clips of each side, 16 consecutive "
             "frames, covariance over n", most_clips=2048, clip_frames=16),
)}
