"""Scores against closed forms, golden values and torch-fidelity."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_full

from evaluations.scores import distances, inception_score, kernel_distance, neighbourhood_scores


def test_kernel_distance_of_four_points_and_of_samples():
    x, y = np.array([[0.0, 0], [1, 0]]), np.array([[0.0, 1], [1, 1]])
    assert kernel_distance(x, y) == pytest.approx(1.1875, rel=1e-12)
    random = np.random.RandomState(0)
    x, y = random.randn(100, 16), random.randn(100, 16) + 0.5
    assert kernel_distance(x, y) == pytest.approx(0.8367082314944, abs=1e-12)
    assert kernel_distance(x, y) == pytest.approx(kernel_mmd(x, y), rel=1e-10)  # torch-fidelity
    assert kernel_distance(y, x) == pytest.approx(kernel_distance(x, y), rel=1e-12)


def test_kernel_distance_has_no_bias_and_takes_unequal_counts():
    random = np.random.RandomState(0)
    values = [kernel_distance(random.randn(20, 4), random.randn(35, 4)) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    with pytest.raises(ValueError, match="two features on each side"):
        kernel_distance(np.zeros((1, 4)), np.zeros((5, 4)))


@pytest.mark.parametrize(("generated", "expected"), [
    (np.arange(10), [1, 1, 1.53333, 1]),
    (np.arange(5), [1, 0.8, 23 / 15, 0.7]),
    (np.full(10, 4.5), [1, 0, 1.33333, 0.4]),
])
def test_neighbourhood_scores_on_a_line(generated, expected):
    real = np.arange(10.0)[:, None]
    found = neighbourhood_scores(real, np.asarray(generated, float)[:, None], k=3)
    for name, value in zip(("precision", "recall", "density", "coverage"), expected, strict=True):
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_precision_and_recall_are_those_of_torch_fidelity():
    random = np.random.RandomState(0)
    real, generated = random.randn(60, 5), 0.7 * random.randn(45, 5) + 0.5
    found = neighbourhood_scores(real, generated, k=3)
    pair = calculate_precision_recall_full(torch.from_numpy(generated), torch.from_numpy(real), 3)
    assert (found["precision"], found["recall"]) == pytest.approx(pair, abs=1e-6)
    assert found["precision"] > found["recall"]  # the generated ones are the narrower set
    with pytest.raises(ValueError, match="more than 3 features"):
        neighbourhood_scores(real[:3], generated)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_blind_to_rotation(seed):
    random = np.random.RandomState(seed)
    real, generated = random.randn(30, 6), random.randn(20, 6) + 0.4
    turn = ortho_group.rvs(6, random_state=random)
    assert kernel_distance(real @ turn, generated @ turn) == pytest.approx(kernel_distance(real, generated))
    assert neighbourhood_scores(real @ turn, generated @ turn) == neighbourhood_scores(real, generated)


def test_distances_are_euclidean():
    a, b = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [3, 0], [0, 4]])
    np.testing.assert_allclose(distances(a, b), [[0, 3, 4], [5, 4, 3]])


def test_inception_score_of_known_probabilities():
    assert inception_score(np.zeros((4, 7))) == pytest.approx(1)
    assert inception_score(50 * np.eye(5)) == pytest.approx(5)
    assert inception_score(np.log([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(1.4449348112, abs=1e-9)
