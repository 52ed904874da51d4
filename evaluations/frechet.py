"""Fréchet distance of two sets of features, the value of FVD and FID.

Two Gaussians are fitted and compared (Dowson and Landau 1982; Heusel et al. 2017 for FID, Unterthiner et al.
2018 for FVD):  |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2).  With A = F F^T and B = G G^T the last
trace is the sum of the singular values of F^T G. That needs no square root of a non-symmetric matrix, and is
exact for covariances of deficient rank. Shapes: n and m features of D dimensions; all in float64.
"""

from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from evaluations.failures import NoValue

Array = np.ndarray


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of squared deviations) of features; moments of two sets can be added."""

    count: int
    mean_D: Array
    scatter_DD: Array

    @classmethod
    def of(cls, features_nD: Array) -> "Moments":
        """Moments of some features.

        Raises: `NoValue` if there are none, `InputError` if they are not a matrix or not finite.
        """
        mean_D, centred_nD = _centred(features_nD)
        return cls(len(centred_nD), mean_D, centred_nD.T @ centred_nD)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the union (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        shift_D = other.mean_D - self.mean_D
        between_DD = np.outer(shift_D, shift_D) * (self.count * other.count / count)
        mean_D = self.mean_D + shift_D * (other.count / count)
        return Moments(count, mean_D, self.scatter_DD + other.scatter_DD + between_DD)

    def factor(self, ddof: int) -> Array:
        """F (D, rank) with F F^T the covariance; directions with variance at rounding level are dropped."""
        _require_more(self.count, ddof)
        values_D, vectors_DD = np.linalg.eigh(self.scatter_DD / (self.count - ddof))
        significant_D = values_D > max(values_D[-1], 0) * len(values_D) * np.finfo(np.float64).eps
        return vectors_DD[:, significant_D] * np.sqrt(values_D[significant_D])


def gaussian_of_few(features_nD: Array, ddof: int) -> tuple[Array, Array]:
    """Mean, and a factor (D, n) of the covariance, found without eigenvectors. Raises: as `Moments`."""
    mean_D, centred_nD = _centred(features_nD)
    _require_more(len(centred_nD), ddof)
    return mean_D, centred_nD.T / np.sqrt(len(centred_nD) - ddof)


def _centred(features_nD: Array) -> tuple[Array, Array]:
    features_nD = np.asarray(features_nD, np.float64)
    if features_nD.ndim != 2 or 0 in features_nD.shape:
        kind = NoValue if len(features_nD) == 0 else InputError
        raise kind(f"features must be (n, D) and not empty, not {features_nD.shape}")
    if not np.isfinite(features_nD).all():
        raise InputError("features hold values that are not finite")
    mean_D = features_nD.mean(0)
    return mean_D, features_nD - mean_D


def _require_more(count: int, ddof: int) -> None:
    if count <= ddof:
        raise NoValue(f"a covariance needs more than {ddof} features, there is {count}")


def gaussian_distance(
    mean_a_D: Array, factor_a_Dr: Array, mean_b_D: Array, factor_b_Ds: Array
) -> float:
    """Fréchet distance of two Gaussians, each given by its mean and a factor F of its covariance F F^T."""
    cross = 0.0
    if factor_a_Dr.size and factor_b_Ds.size:
        cross = np.linalg.svd(factor_a_Dr.T @ factor_b_Ds, compute_uv=False).sum()
    difference_D = mean_a_D - mean_b_D
    value = difference_D @ difference_D + (factor_a_Dr**2).sum() + (factor_b_Ds**2).sum() - 2 * cross
    return max(float(value), 0.0)


def frechet_distance(features_a_nD: Array, features_b_mD: Array, ddof: int = 1) -> float:
    """Fréchet distance of two sets of features, not negative.

    `ddof` 1 divides the scatter by n - 1 (`numpy.cov`, FID, the released EndoGen script), 0 by n
    (StyleGAN-V). Raises: `NoValue` for `ddof` rows or fewer, `InputError` for features that are not two
    finite matrices of the same width.
    """
    a, b = Moments.of(features_a_nD), Moments.of(features_b_mD)
    if a.mean_D.shape != b.mean_D.shape:
        raise InputError(f"features of {len(a.mean_D)} and of {len(b.mean_D)} dimensions cannot be compared")
    return gaussian_distance(a.mean_D, a.factor(ddof), b.mean_D, b.factor(ddof))
