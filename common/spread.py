"""Some of many, evenly spread."""

from collections.abc import Sequence

import numpy as np

from common.errors import InputError


def evenly(total: int, most: int) -> list[int]:
    """At most `most` of the places 0 to total - 1, evenly spread from the first to the last."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(int).tolist()


def choose(splits: Sequence[str], labels: Sequence[int], split: str, most: int | None, flag: str
           ) -> list[int]:
    """Places of the clips of a split, or "all", or class by class of at most `most` of each, evenly spread.

    Raises: `InputError` naming `flag`, whose clips they are, if there are none.
    """
    places = [i for i, own in enumerate(splits) if split in ("all", own)]
    if not places:
        raise InputError(f"--split {split}: {flag} has no such clips")
    if most is None:
        return places
    classes = [[i for i in places if labels[i] == label] for label in sorted({labels[i] for i in places})]
    return [own[i] for own in classes for i in evenly(len(own), most)]
