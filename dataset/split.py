"""Split of clips into training and validation by recording, never by frame."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Where a clip comes from."""

    name: str
    recording: str
    file: str  # pieces of different files share no frame; files follow each other in the order of their names
    start: int  # first sampled frame of the file
    end: int  # one past the last
    time: float = 0.0  # of the first frame, in seconds from the beginning of the file


def split_class(
    pieces: Sequence[Piece], val_fraction: float, only_train: Collection[str] = ()
) -> tuple[list[str | None], str]:
    """Split one class; returns "train", "val" or None (left out) per clip, and "recording" or "time".

    Of several recordings whole ones are "val": first the one whose number of clips is nearest to
    `val_fraction` of all clips, then, in the order of a hash of their names, each that brings the sum nearer
    to it. At least one stays in "train", and so do those in `only_train`.

    The clips of a single recording are split by time: the last are "val", and clips that share a frame with
    them are left out. A single clip is "train".
    """
    owners = [piece.recording for piece in pieces]
    if len(set(owners)) == 1 and owners[0] not in only_train:
        return _split_by_time(pieces, val_fraction), "time"
    held_out = _held_out(owners, val_fraction, only_train)
    return ["val" if owner in held_out else "train" for owner in owners], "recording"


def _held_out(owners: list[str], val_fraction: float, only_train: Collection[str]) -> set[str]:
    target = val_fraction * len(owners)
    sizes = Counter(owners)
    order = sorted(sizes.keys() - set(only_train),
                   key=lambda recording: hashlib.sha256(recording.encode()).digest())
    if target == 0 or not order:
        return set()
    chosen = {min(order, key=lambda recording: abs(sizes[recording] - target))}
    for recording in order:
        total = sum(sizes[name] for name in chosen)
        nearer = abs(total + sizes[recording] - target) < abs(total - target)
        if nearer and recording not in chosen and len(chosen) < len(sizes) - 1:
            chosen.add(recording)
    return chosen


def _split_by_time(pieces: Sequence[Piece], val_fraction: float) -> list[str | None]:
    """The last `val_fraction` of one recording's clips to "val", those that overlap it left out."""
    if len(pieces) < 2 or val_fraction == 0:
        return ["train"] * len(pieces)
    order = sorted(pieces, key=lambda piece: (piece.file, piece.start))
    held_out = order[-max(round(val_fraction * len(pieces)), 1):]
    first, held_out = held_out[0], set(held_out)
    splits: list[str | None] = []
    for piece in pieces:
        overlaps = piece.file == first.file and piece.end > first.start
        splits.append("val" if piece in held_out else None if overlaps else "train")
    return splits if "train" in splits else ["train"] * len(pieces)
