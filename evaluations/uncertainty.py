"""Uncertainty of a score: its standard error, its value without small-sample bias, real-against-real halves.

Clips of one recording, or of one seed, are not independent, so whole groups are left out or stay together.
A percentile bootstrap is not used for distances: repeated samples increase a Fréchet distance, so that the
interval often excludes the score itself. `resampled_interval` is for means.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from evaluations.failures import NoValue

Array = np.ndarray
PARTS = (1.0, 3 / 4, 3 / 5, 1 / 2)  # of all samples: evenly spaced in 1 / n
REPEATS = 2  # random subsets of each size


def deal_groups(recordings: Sequence[str], limit: int) -> list[Array]:
    """Places of the clips in at most `limit` groups of whole recordings, of about the same size.

    The largest recordings are dealt first, each to the smallest group so far, ties in the order of a hash of
    their names.
    """
    names, places = np.unique(np.asarray(recordings), return_inverse=True)
    sizes = np.bincount(places)
    order = sorted(range(len(names)), key=lambda i: (-sizes[i], hashlib.sha256(names[i].encode()).digest()))
    totals, owner = np.zeros(min(limit, len(names)), int), np.zeros(len(names), int)
    for i in order:
        owner[i] = totals.argmin()
        totals[owner[i]] += sizes[i]
    return [np.flatnonzero(owner[places] == group) for group in range(len(totals))]


def jackknife_error(
    statistic: Callable[[Array, Array], Array | float], real: Sequence[Array], generated: Sequence[Array]
) -> Array | None:
    """Standard errors of the values of `statistic(real places, generated places)`, given both sides' groups.

    Delete-a-group jackknife (Kott 2001). A side with a single group contributes nothing, as its variance
    between recordings is unknown. None if both sides have a single group.
    """
    sides, variances = (real, generated), []
    for side, groups in enumerate(sides):
        if len(groups) < 2:
            continue
        values = []
        for left_out in range(len(groups)):
            places = [np.sort(np.concatenate(parts)) for parts in sides]
            places[side] = np.setdiff1d(places[side], groups[left_out])
            values.append(statistic(*places))
        variances.append((len(groups) - 1) * np.var(values, 0))
    return np.sqrt(sum(variances)) if variances else None


def extrapolate(statistic: Callable[[Array, Array], float], n_real: int, n_generated: int) -> float:
    """The value of `statistic(real places, generated places)` for infinite samples (Chong and Forsyth 2020).

    It is computed on random subsets of n clips of both sides, n from half to all of the smaller side, and a
    straight line over 1 / n is extrapolated to 0. The line fits if n is well above the number of dimensions.
    Raises: `NoValue` for fewer than three clips on a side.
    """
    random = np.random.RandomState(0)
    smaller, larger = sorted((n_real, n_generated))
    if smaller < 3:
        raise NoValue("too few clips to extrapolate from")
    inverse, values = [], []
    for part in PARTS:
        n = max(round(part * smaller), 2)
        for _ in range(REPEATS if n < larger else 1):
            inverse.append(1 / n)
            values.append(statistic(*(np.sort(random.choice(count, n, replace=False))
                                      for count in (n_real, n_generated))))
    return float(np.polyfit(inverse, values, 1)[1])


def disjoint_halves(recordings: Sequence[str]) -> tuple[Array, Array, str]:
    """Places of two halves of the real clips that share no recording, and "recording".

    Clips of a single recording are cut in the middle, by their order, and the third value is "time".
    """
    groups = deal_groups(recordings, 2)
    if len(groups) == 2:
        return *groups, "recording"
    return *np.array_split(np.arange(len(recordings)), 2), "time"


def resampled_interval(values_SP: Array, groups: Sequence[str], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of `values_SP`, S trainings (seeds) by P test samples of some groups.

    Percentile bootstrap that draws seeds and whole groups together, both with replacement. With few seeds it
    is too narrow.
    """
    random = np.random.RandomState(0)
    seeds, owners = len(values_SP), np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes_G = np.bincount(owners)
    sums_SG = np.stack([np.bincount(owners, own_P) for own_P in values_SP])
    seeds_BS = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    groups_BG = random.multinomial(len(sizes_G), np.full(len(sizes_G), 1 / len(sizes_G)), draws)
    means_B = ((seeds_BS @ sums_SG) * groups_BG).sum(1) / (seeds * (groups_BG @ sizes_G))
    return tuple(map(float, np.quantile(means_B, [0.025, 0.975])))
