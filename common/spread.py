"""Some of many, evenly spread."""

from collections.abc import Sequence

import numpy as np


def evenly(total: int, most: int) -> list[int]:
    """At most `most` of the places 0 to total - 1, evenly spread from the first to the last."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(int).tolist()


def evenly_by_class(labels: Sequence[int], most: int | None) -> list[int]:
    """The places of all labels, or class by class of at most `most` of each, evenly spread."""
    if most is None:
        return list(range(len(labels)))
    own = [np.flatnonzero(np.equal(labels, label)) for label in np.unique(labels)]
    return [int(places[i]) for places in own for i in evenly(len(places), most)]
