"""Classifier two-sample test (C2ST, Lopez-Paz and Oquab 2017): can generated clips be told from real ones?

Shapes: n and m clips, R feature vectors of each, D dimensions.
"""

from collections.abc import Callable, Sequence

import numpy as np

from common.spread import evenly
from evaluations.failures import NoValue
from evaluations.features import Features
from evaluations.measures import Measure
from evaluations.uncertainty import deal_groups

FOLDS = 5
LEAST = 10  # clips of a side
RIDGE = 0.1  # of the mean eigenvalue of the kernel

Describe = Callable[[np.ndarray], np.ndarray]
"""Features of clips (n, R, D) -> one vector of each."""


def mean_and_change(x_nRD: np.ndarray) -> np.ndarray:
    """Mean over the frames of a clip, and mean absolute change from frame to frame, (n, 2D)."""
    change_nRD = np.abs(np.diff(x_nRD, axis=1)) if x_nRD.shape[1] > 1 else np.zeros_like(x_nRD)
    return np.concatenate([x_nRD.mean(1), change_nRD.mean(1)], 1)


def c2st(describe: Describe) -> Measure:
    """The measure "c2st": accuracy of a classifier of what `describe` makes of the features, 0.5 at best."""
    def accuracy(real: Features, generated: Features) -> list[float]:
        n = min(len(real), len(generated))
        sides = [side.take(evenly(len(side), n)) for side in (real, generated)]
        vectors = [describe(side.stored_NRD[side.places]) for side in sides]
        return [cross_validated_accuracy(*vectors, *(side.recordings for side in sides))]

    return Measure(("c2st",), "near 0.5", accuracy)


def cross_validated_accuracy(a_nD: np.ndarray, b_mD: np.ndarray, groups_a: Sequence[str],
                             groups_b: Sequence[str]) -> float:
    """Accuracy, mean of both sides, of a linear classifier on folds that it was not fitted to.

    The classifier is Fisher's, with a ridge, of standardised features. Clips of one group (recording, seed),
    of whichever side, are in one fold; a clip on the boundary counts one half. Raises: `NoValue` for fewer
    than `LEAST` clips or fewer than two groups on a side.
    """
    if min(len(a_nD), len(b_mD)) < LEAST or min(len(set(groups_a)), len(set(groups_b))) < 2:
        raise NoValue(f"the two-sample test needs {LEAST} clips of two recordings or seeds on each side")
    x_ND = np.concatenate([a_nD, b_mD]).astype(np.float64)
    sign_N = np.repeat([1.0, -1.0], [len(a_nD), len(b_mD)])
    score_N = np.zeros(len(x_ND))
    for test in _folds(groups_a, groups_b):
        train = np.setdiff1d(np.arange(len(x_ND)), test)
        score_N[test] = _fisher(x_ND[train], sign_N[train], x_ND[test])
    right_N = np.where(score_N == 0, 0.5, score_N * sign_N > 0)
    return float((right_N[sign_N > 0].mean() + right_N[sign_N < 0].mean()) / 2)


def _folds(groups_a: Sequence[str], groups_b: Sequence[str]) -> list[np.ndarray]:
    """Places in both samples, one after the other. The sides are dealt apart, so that each fold has clips of
    both, unless they share groups, as clips and their reconstructions do."""
    if set(groups_a) & set(groups_b):
        return deal_groups([*groups_a, *groups_b], FOLDS)
    count = min(FOLDS, len(set(groups_a)), len(set(groups_b)))
    return [np.concatenate([a, b + len(groups_a)])
            for a, b in zip(deal_groups(groups_a, count), deal_groups(groups_b, count), strict=True)]


def _fisher(x_nD: np.ndarray, sign_n: np.ndarray, test_mD: np.ndarray) -> np.ndarray:
    """Distance of test clips from the middle between the means of two classes, along Fisher's direction."""
    spread_D = x_nD.std(0)
    scale_D = np.where(spread_D > 0, 1 / np.where(spread_D > 0, spread_D, 1), 0)
    scaled_nD = (x_nD - x_nD.mean(0)) * scale_D
    kernel_nn = scaled_nD @ scaled_nD.T  # the dual form: clips may be fewer than dimensions
    ridge = RIDGE * np.trace(kernel_nn) / len(kernel_nn) + 1e-12
    weight_n = np.linalg.solve(kernel_nn + ridge * np.eye(len(kernel_nn)), sign_n - sign_n.mean())
    middle_D = (x_nD[sign_n > 0].mean(0) + x_nD[sign_n < 0].mean(0)) / 2
    return ((test_mD - middle_D) * scale_D) @ (scaled_nD.T @ weight_n)
