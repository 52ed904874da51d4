"""Some of many, evenly spread."""

import numpy as np


def evenly(total: int, most: int) -> list[int]:
    """At most `most` of the places 0 to total - 1, evenly spread from the first to the last."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(int).tolist()
