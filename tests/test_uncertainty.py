"""Standard errors, extrapolation and halves, on data with known answers."""

import numpy as np
import pytest

from evaluations.frechet import frechet_distance
from evaluations.uncertainty import deal_groups, disjoint_halves, extrapolate, jackknife_error


def test_groups_are_whole_recordings_of_even_size():
    recordings = ["a"] * 6 + ["b"] * 2 + ["c"] * 3 + ["d"]
    groups = deal_groups(recordings, 2)
    assert sorted(np.concatenate(groups)) == list(range(12)) and [len(group) for group in groups] == [6, 6]
    for name in "abcd":
        assert sum(any(recordings[i] == name for i in group) for group in groups) == 1
    assert len(deal_groups(recordings, 10)) == 4


def test_jackknife_error_of_a_mean_is_the_standard_error():
    x, y = np.random.RandomState(0).randn(30), np.random.RandomState(1).randn(40)
    each = [[np.array([i]) for i in range(len(side))] for side in (x, y)]
    error = jackknife_error(lambda a, b: x[a].mean() - y[b].mean(), *each)
    assert error == pytest.approx(np.sqrt(x.var(ddof=1) / 30 + y.var(ddof=1) / 40), rel=1e-10)


def test_jackknife_leaves_whole_groups_out_and_knows_when_it_knows_nothing():
    x = np.repeat(np.random.RandomState(0).randn(8), 50)  # 50 equal clips of each recording
    groups = [np.arange(50 * g, 50 * g + 50) for g in range(8)]
    error = jackknife_error(lambda a, b: x[a].mean(), groups, [np.arange(5)])
    assert error == pytest.approx(x[::50].std(ddof=1) / np.sqrt(8), rel=1e-10)
    assert jackknife_error(lambda a, b: 1.0, [np.arange(5)], [np.arange(5)]) is None


def test_jackknife_error_of_a_frechet_distance_is_its_spread_over_repeats():
    def draw(seed):
        random = np.random.RandomState(seed)
        return random.randn(100, 4), random.randn(100, 4) * 1.2 + 0.5

    spread_of_values = np.std([frechet_distance(*draw(seed)) for seed in range(60)])
    groups = deal_groups([str(i) for i in range(100)], 10)
    errors = []
    for seed in range(8):
        a, b = draw(seed)
        errors.append(jackknife_error(lambda i, j, a=a, b=b: frechet_distance(a[i], b[j]), groups, groups))
    assert 0.6 < np.mean(errors) / spread_of_values < 1.6


def test_extrapolation_takes_away_most_of_the_bias():
    random = np.random.RandomState(0)
    a, b = random.randn(400, 20), random.randn(400, 20)  # the same distribution: the true distance is 0
    plain = frechet_distance(a, b)
    extrapolated = extrapolate(lambda i, j: frechet_distance(a[i], b[j]), 400, 400)
    assert plain > 0.4 and abs(extrapolated) < plain / 4


def test_extrapolation_of_a_line_in_one_over_n_is_exact():
    value = extrapolate(lambda i, j: 3 + 7 / len(i), 90, 60)
    assert value == pytest.approx(3, rel=1e-9)
    with pytest.raises(ValueError, match="too few clips"):
        extrapolate(lambda i, j: 1.0, 2, 9)


def test_halves_share_no_recording_unless_there_is_only_one():
    recordings = np.array(["a", "b", "a", "c", "c", "c"])
    left, right, how = disjoint_halves(recordings)
    assert how == "recording" and not set(recordings[left]) & set(recordings[right])
    left, right, how = disjoint_halves(["a"] * 5)
    assert how == "time" and (left.tolist(), right.tolist()) == ([0, 1, 2], [3, 4])
    assert disjoint_halves(["a"])[1].size == 0
