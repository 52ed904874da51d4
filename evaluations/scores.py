"""Scores of two sets of features beside the Fréchet distance, each a pure function.

Shapes: n real and m generated features of D dimensions; all computed in float64.
"""

from collections.abc import Sequence

import numpy as np

from evaluations.failures import NoValue

Array = np.ndarray
CHUNK = 256  # features whose distances are in memory at once
NEIGHBOURS = 3  # of the balls that precision, recall, density and coverage are about


def kernel_distance(real_nD: Array, generated_mD: Array) -> float:
    """Squared maximum mean discrepancy, kernel (x.y / D + 1)^3, unbiased: KID, and KVD of video features.

    Bińkowski et al. 2018. Can be slightly negative; the counts may differ. torch-fidelity's formula, which
    takes equal counts only. Raises: `NoValue` for fewer than two features on a side.
    """
    x_nD, y_mD = np.asarray(real_nD, np.float64), np.asarray(generated_mD, np.float64)
    if min(len(x_nD), len(y_mD)) < 2:
        raise NoValue("the kernel distance needs two features on each side")

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / x_nD.shape[1] + 1) ** 3

    def mean_of_pairs(a: Array) -> float:
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(mean_of_pairs(x_nD) + mean_of_pairs(y_mD) - 2 * kernel(x_nD, y_mD).mean())


def squared_distances(a_nD: Array, b_mD: Array) -> Array:
    """(n, m) squared Euclidean distances."""
    a_nD, b_mD = np.asarray(a_nD, np.float64), np.asarray(b_mD, np.float64)
    sums = (a_nD**2).sum(1)[:, None] + (b_mD**2).sum(1) - 2 * a_nD @ b_mD.T
    return np.maximum(sums, 0)


def nearest_neighbours(
    a_nD: Array, b_mD: Array, owners: tuple[Sequence[str], Sequence[str]] | None = None
) -> tuple[Array, Array]:
    """(distance, place) of the nearest row of b for every row of a; infinity where there is none.

    `owners` of the rows of a and of b: rows of the same owner do not count.
    """
    a_nD, b_mD = np.asarray(a_nD, np.float64), np.asarray(b_mD, np.float64)
    distances, places = [], []
    for start in range(0, len(a_nD), CHUNK):
        rows = slice(start, start + CHUNK)
        squares_nm = squared_distances(a_nD[rows], b_mD)
        if owners:
            squares_nm[np.array(owners[0])[rows, None] == np.array(owners[1])] = np.inf
        places.append(squares_nm.argmin(1))
        distances.append(np.sqrt(squares_nm.min(1)))
    return np.concatenate(distances), np.concatenate(places)


def neighbourhood_scores(real_nD: Array, generated_mD: Array, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A feature's ball reaches to its k-th nearest neighbour of its own set, border included. Precision:
    generated features in some real ball; recall: real ones in some generated ball; density: real balls that
    a generated feature is in, over k; coverage: real balls that hold a generated feature. Raises:
    `NoValue` if a side has no k neighbours.
    """
    if min(len(real_nD), len(generated_mD)) <= k:
        raise NoValue(f"neighbourhood scores need more than {k} features on each side")
    across_nm = squared_distances(real_nD, generated_mD)

    def radii(features: Array) -> Array:
        return np.partition(squared_distances(features, features), k, axis=1)[:, k]

    in_real_nm = across_nm <= radii(real_nD)[:, None]
    in_generated_nm = across_nm <= radii(generated_mD)
    return {"precision": float(in_real_nm.any(0).mean()), "recall": float(in_generated_nm.any(1).mean()),
            "density": float(in_real_nm.sum(0).mean() / k), "coverage": float(in_real_nm.any(1).mean())}


def inception_score(logits_mK: Array) -> float:
    """exp of the mean KL divergence of a frame's classes from those of all frames, by torch-fidelity.

    Salimans et al. 2016, over all frames at once instead of in ten splits. 1 to K; grows with the number of
    frames and knows only ImageNet's classes. Raises: `NoValue` for no frames.
    """
    if not len(logits_mK):
        raise NoValue("the inception score needs frames")
    import torch
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits_mK = torch.from_numpy(np.array(logits_mK, np.float64))
    return isc_features_to_metric(logits_mK, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
