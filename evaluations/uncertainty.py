"""Uncertainty of a score: its standard error, its value without small-sample bias, real-against-real halves.

Clips of one recording, or of one seed, are not independent, so whole groups are left out or stay together.
A percentile bootstrap is not used for distances: repeated samples increase a Fréchet distance, so that the
interval often excludes the score itself. With few groups it is too narrow even for means.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

from evaluations.failures import NoValue

Array = np.ndarray
Statistic = Callable[[Array, Array], Array]
GROUPS = 20  # of recordings, left out in turn for intervals
LEVEL = 0.95  # of the intervals
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


def deal_seeds(seeds: Sequence[int], generators: int) -> list[Array]:
    """Places of the seeds in groups that share one of several `generators`, which the seeds take in turn.

    Of a single generator every seed is a group: how much generators differ is unknown then.
    """
    owners = np.asarray(seeds) % generators if generators > 1 else np.arange(len(seeds))
    return [np.flatnonzero(owners == owner) for owner in np.unique(owners)]


def generators_note(count: int) -> str:
    """What intervals hold with synthetic data of `count` generators."""
    if count == 1:
        return "synthetic data are of one generator: intervals lack the spread between generators"
    return (f"the seeds take the synthetic data of {count} generators in turn, and intervals go by "
            "generator: of few they are rough")


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


def half_widths(statistic: Statistic, recordings: list[Array], seeds: list[Array]) -> Array | None:
    """Half of the 95 % interval of each value of `statistic(places of clips, places of seeds)`.

    The variances between recordings and between seeds (jackknife) add up; the quantile is Student's with the
    degrees of freedom of Welch and Satterthwaite. None for a single group of recordings and a single seed.
    """
    sides = [(recordings, [np.concatenate(seeds)]), ([np.concatenate(recordings)], seeds)]
    found = [(jackknife_error(statistic, *side), max(map(len, side)) - 1) for side in sides]
    parts = [(error**2, degrees) for error, degrees in found if error is not None]
    if not parts:
        return None
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / degrees for variance, degrees in parts)
    degrees = total**2 / np.where(spread > 0, spread, 1)
    return student.ppf((1 + LEVEL) / 2, np.maximum(degrees, 1)) * np.sqrt(total)


def seed_half_widths(statistic: Statistic, recordings: list[Array], seeds: Sequence[int], generators: int = 1
                     ) -> Array | None:
    """`half_widths` by seed or by generator, whichever is wider: two generators may happen to agree."""
    halves = [half_widths(statistic, recordings, deal_seeds(seeds, count)) for count in {1, generators}]
    return None if halves[0] is None else np.maximum.reduce(halves)


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
