"""Scores of two sets of features other than the Fréchet distance, each a pure function.

Shapes: n real and m generated features of D dimensions; all computed in float64.
"""

from collections.abc import Sequence

import numpy as np
import torch

from evaluations.failures import NoValue

Array = np.ndarray
CHUNK = 256  # features whose distances are in memory at once
NEIGHBOURS = 3  # k of precision, recall, density and coverage


def kernel_distance(real_nD: Array, generated_mD: Array) -> float:
    """Squared maximum mean discrepancy, kernel (x.y / D + 1)^3, unbiased: KID, and KVD of video features.

    Bińkowski et al. 2018. Can be slightly negative. The same formula as torch-fidelity's, which requires
    equal counts. Raises: `NoValue` for fewer than two features on a side.
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


def distances(a_nD: Array, b_mD: Array) -> Array:
    """(n, m) Euclidean distances."""
    sides = (torch.from_numpy(np.asarray(side, np.float64)) for side in (a_nD, b_mD))
    return torch.cdist(*sides).numpy()


def nearest_neighbours(
    a_nD: Array, b_mD: Array, owners: tuple[Sequence[str], Sequence[str]] | None = None
) -> tuple[Array, Array]:
    """(distance, row) of the nearest row of b for every row of a; infinity if there is none.

    With `owners` of the rows of a and of b, rows of the same owner are ignored.
    """
    nearest, rows = [], []
    for start in range(0, len(a_nD), CHUNK):
        chunk = slice(start, start + CHUNK)
        distances_nm = distances(a_nD[chunk], b_mD)
        if owners:
            distances_nm[np.array(owners[0])[chunk, None] == np.array(owners[1])] = np.inf
        rows.append(distances_nm.argmin(1))
        nearest.append(distances_nm.min(1))
    return np.concatenate(nearest), np.concatenate(rows)


def neighbourhood_scores(real_nD: Array, generated_mD: Array, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A feature's ball reaches to its k-th nearest neighbour in its own set, inclusive. Precision: generated
    features inside a real ball; recall: real features inside a generated ball; density: real balls around a
    generated feature, over k; coverage: real balls that contain a generated feature. Raises: `NoValue` if a
    side has k features or fewer.
    """
    if min(len(real_nD), len(generated_mD)) <= k:
        raise NoValue(f"neighbourhood scores need more than {k} features on each side")
    across_nm = distances(real_nD, generated_mD)

    def radii(features: Array) -> Array:
        return np.partition(distances(features, features), k, axis=1)[:, k]

    in_real_nm = across_nm <= radii(real_nD)[:, None]
    in_generated_nm = across_nm <= radii(generated_mD)
    return {"precision": float(in_real_nm.any(0).mean()), "recall": float(in_generated_nm.any(1).mean()),
            "density": float(in_real_nm.sum(0).mean() / k), "coverage": float(in_real_nm.any(1).mean())}


def inception_score(logits_mK: Array) -> float:
    """exp of the mean KL divergence of a frame's classes from those of all frames, by torch-fidelity.

    Salimans et al. 2016, over all frames at once instead of in ten splits. 1 to K; grows with the number of
    frames; the classes are ImageNet's. Raises: `NoValue` for no frames.
    """
    if not len(logits_mK):
        raise NoValue("the inception score needs frames")
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits_mK = torch.from_numpy(np.array(logits_mK, np.float64))
    return isc_features_to_metric(logits_mK, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
