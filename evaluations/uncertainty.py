"""How far a score can be trusted: standard error, value without the bias of few samples, a fair floor.

Clips of one recording, or of one seed, are not independent of each other, so whole groups are left out or
kept together. A percentile bootstrap is not used: repeated samples make a Fréchet distance larger, so that
its interval misses the score itself.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from evaluations.failures import NoValue

Array = np.ndarray
PARTS = (1.0, 3 / 4, 3 / 5, 1 / 2)  # of all samples: evenly spaced in 1 / n
REPEATS = 2  # random subsets of each size below the whole


def deal_groups(recordings: Sequence[str], limit: int) -> list[Array]:
    """Places of the clips in at most `limit` groups of whole recordings, of about the same size.

    The largest recordings are dealt first, each to the group that is smallest by then, ties in the order of a
    hash of their names.
    """
    names, places = np.unique(np.asarray(recordings), return_inverse=True)
    sizes = np.bincount(places)
    order = sorted(range(len(names)), key=lambda i: (-sizes[i], hashlib.sha256(names[i].encode()).digest()))
    totals, owner = np.zeros(min(limit, len(names)), int), np.zeros(len(names), int)
    for i in order:
        owner[i] = totals.argmin()
        totals[owner[i]] += sizes[i]
    return [np.flatnonzero(owner[places] == group) for group in range(len(totals))]


def jackknife_variance(values: Sequence[float] | Array) -> Array:
    """Variance of scores from their values with one group left out each, group first (Kott 2001)."""
    values = np.asarray(values, np.float64)
    return (len(values) - 1) / len(values) * ((values - values.mean(0)) ** 2).sum(0)


def jackknife_error(
    statistic: Callable[[Array, Array], Array | float], real: Sequence[Array], generated: Sequence[Array]
) -> Array | None:
    """Standard errors of the values of `statistic(real places, generated places)`, given both sides' groups.

    A side with a single group adds nothing: what another recording would change cannot be known from one.
    None if both have a single one.
    """
    sides = [list(real), list(generated)]
    variances = []
    for side, groups in enumerate(sides):
        if len(groups) < 2:
            continue
        values = []
        for left_out in range(len(groups)):
            kept = [np.concatenate(parts) for parts in sides]
            kept[side] = np.concatenate([part for i, part in enumerate(groups) if i != left_out])
            values.append(statistic(np.sort(kept[0]), np.sort(kept[1])))
        variances.append(jackknife_variance(values))
    return np.sqrt(sum(variances)) if variances else None


def extrapolate(statistic: Callable[[Array, Array], float], real: Array, generated: Array) -> float:
    """The value of `statistic(real places, generated places)` for endless samples (Chong and Forsyth 2020).

    It is taken on random subsets of n clips of both sides, n from half to all of the smaller side, and a
    straight line over 1 / n is continued to 0. The line holds where n is well above the number of dimensions.
    Raises: `NoValue` for fewer than three clips on a side.
    """
    random = np.random.RandomState(0)
    largest = min(len(real), len(generated))
    if largest < 3:
        raise NoValue("too few clips to extrapolate from")
    inverse, values = [], []
    for part in PARTS:
        n = max(round(part * largest), 2)
        for _ in range(REPEATS if n < max(len(real), len(generated)) else 1):
            chosen = [np.sort(random.choice(side, n, replace=False)) for side in (real, generated)]
            inverse.append(1 / n)
            values.append(statistic(*chosen))
    return float(np.polyfit(inverse, values, 1)[1])


def spread(places: Array, n: int) -> Array:
    """n of `places`, evenly spread from the first to the last."""
    return places[np.linspace(0, len(places) - 1, n).round().astype(int)]


def disjoint_halves(recordings: Sequence[str]) -> tuple[Array, Array, str]:
    """Places of two halves of real clips that share no recording, and "recording".

    The clips of a single recording are cut in the middle, by their order, and the third value is "time".
    """
    groups = deal_groups(recordings, 2)
    if len(groups) == 2:
        return *groups, "recording"
    places = np.arange(len(recordings))
    return *np.array_split(places, 2), "time"
