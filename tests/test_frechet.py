"""Fréchet distance: closed forms, published golden values, and what must hold of any distance."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from evaluations.frechet import Moments, frechet_distance, gaussian_distance, gaussian_of_few


def gaussians(mean_a, covariance_a, mean_b, covariance_b):
    factors = [np.linalg.cholesky(np.asarray(c, float)) for c in (covariance_a, covariance_b)]
    return gaussian_distance(np.asarray(mean_a, float), factors[0], np.asarray(mean_b, float), factors[1])


def test_gaussians_with_known_distance():
    eye, zero = np.eye(400), np.zeros(400)
    assert gaussians(zero, eye, zero + 0.5, eye) == pytest.approx(100, rel=1e-12)
    assert gaussians(zero, eye, zero, 4 * eye) == pytest.approx(400, rel=1e-12)
    assert gaussians([1, 2, 3], np.diag([1, 4, 9]), [0, 0, 0], np.diag([4, 1, 16])) == pytest.approx(17)
    distance = gaussians([0, 0], [[2, 1], [1, 2]], [0, 0], np.diag([1, 3]))
    assert distance == pytest.approx(0.5166852264521, abs=1e-12)


def test_samples_with_known_distance():
    random = np.random.RandomState(0)
    x, y = random.randn(64, 8), 2 * random.randn(64, 8) + 1
    assert frechet_distance(x, y) == pytest.approx(15.167730080949, abs=1e-10)
    assert frechet_distance(x, y, ddof=0) == pytest.approx(15.040794652104, abs=1e-10)
    x, y = random.randn(40, 400), random.randn(40, 400)  # fewer samples than dimensions
    assert frechet_distance(x, y) == pytest.approx(607.0531470530, abs=1e-8)


def test_distance_is_that_of_torch_fidelity():
    random = np.random.RandomState(0)
    sides = random.randn(70, 9), 2 * random.randn(50, 9) @ random.randn(9, 9) + 1
    statistics = [fid_features_to_statistics(torch.from_numpy(side)) for side in sides]
    metric = fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(*sides) == pytest.approx(metric["frechet_inception_distance"], rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30), st.integers(2, 12))
def test_distance_is_symmetric_zero_on_itself_and_blind_to_rotation(seed, n, m, dimensions):
    random = np.random.RandomState(seed)
    x, y = random.randn(n, dimensions), 3 * random.randn(m, dimensions) + 1
    distance = frechet_distance(x, y)
    assert frechet_distance(x, x) < 1e-9
    assert frechet_distance(y, x) == pytest.approx(distance, rel=1e-9)
    turn = ortho_group.rvs(dimensions, random_state=random)
    assert frechet_distance(x @ turn + 5, y @ turn + 5) == pytest.approx(distance, rel=1e-8, abs=1e-8)


def test_features_that_do_not_vary_have_the_distance_of_their_means():
    assert frechet_distance(np.zeros((5, 3)), np.full((7, 3), 2.0)) == pytest.approx(12)


def test_moments_of_parts_add_up_to_those_of_the_whole():
    features = np.random.RandomState(0).randn(50, 6) + 1000
    whole, stream = Moments.of(features), reduce(add, map(Moments.of, np.split(features, [1, 20, 33])))
    assert stream.count == 50
    np.testing.assert_allclose(stream.mean_D, whole.mean_D, rtol=1e-12)
    np.testing.assert_allclose(stream.scatter_DD, whole.scatter_DD, atol=1e-8)


def test_features_fewer_than_dimensions_have_the_same_distance_either_way():
    a, b = np.random.RandomState(0).randn(2, 7, 20)
    few = gaussian_distance(*gaussian_of_few(a, 1), *gaussian_of_few(b + 1, 1))
    assert few == pytest.approx(frechet_distance(a, b + 1), rel=1e-9)


@pytest.mark.parametrize(("a", "b", "message"), [
    (np.zeros(4), np.zeros((2, 4)), r"must be \(n, D\)"),
    (np.zeros((0, 4)), np.zeros((2, 4)), "not empty"),
    (np.full((2, 4), np.nan), np.zeros((2, 4)), "not finite"),
    (np.zeros((2, 3)), np.zeros((2, 4)), "of 3 and of 4 dimensions"),
    (np.zeros((1, 4)), np.zeros((2, 4)), "more than 1 features"),
])
def test_unusable_features_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
