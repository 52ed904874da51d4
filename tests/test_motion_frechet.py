"""Histograms of the paths of points: known motion counts where it should, and more of it is further away."""

import cv2
import numpy as np
import pytest
import torch
from eval_data import make_clips

from evaluations import evaluate
from evaluations.frechet import gaussian_distance, gaussian_of_few
from evaluations.motion_frechet import PointPaths, histogram

FRAMES, SIZE = 11, 64  # 10 velocities in 3 windows


def shifted(dx, dy, seed=0):
    """uint8 (T, 3, H, W): a smooth texture that moves by (dx, dy) pixels a frame."""
    coarse = np.random.RandomState(seed).randint(0, 256, (24, 24, 3)).astype(np.uint8)
    texture = cv2.resize(coarse, (192, 192), interpolation=cv2.INTER_CUBIC)
    frames = [texture[64 - t * dy : 128 - t * dy, 64 - t * dx : 128 - t * dx] for t in range(FRAMES)]
    return np.stack(frames).transpose(0, 3, 1, 2)


def features(*clips):
    return PointPaths().features(torch.from_numpy(np.stack(clips)))[:, 0].numpy()


@pytest.mark.parametrize(("dx", "dy", "direction"), [
    (1, 0, 0), (1, 1, 1), (0, 1, 2), (-1, 1, 3), (-1, 0, 4), (-1, -1, 5), (0, -1, 6), (1, -1, 7)])
def test_shift_counts_in_its_direction_with_its_strength(dx, dy, direction):
    found = features(shifted(dx, dy))[0].reshape(2, 3, 4, 4, 8)
    velocity, acceleration = found[:, :, 1:3, 1:3]  # from where no point leaves the frame
    one = np.log2(1 + 4 * np.hypot(dx, dy)) / 8  # 1 of 64 pixels is 4 of 256
    wanted = np.broadcast_to(25 * one * np.array([4, 4, 2])[:, None, None], (3, 2, 2))
    np.testing.assert_allclose(velocity[..., direction], wanted, rtol=0.05)
    assert np.delete(velocity, direction, -1).max() < 0.1
    assert acceleration.sum() < 0.1 * velocity.sum()


def test_histogram_is_the_sum_over_cells_of_space_and_time():
    vectors = np.zeros((5, 20, 20, 2))
    vectors[4, 7, 19] = 0, -3  # the second window, second row and last column of cells, upwards
    vectors[0, 0, 0] = 1000, 0  # no faster than 255
    found = histogram(vectors).reshape(2, 4, 4, 8)
    assert found[1, 1, 3, 6] == pytest.approx(2 / 8) and found[0, 0, 0, 0] == pytest.approx(1)
    assert np.count_nonzero(found) == 2


def test_equal_sets_have_no_distance_and_faster_ones_a_growing_one():
    def moving(speed, seeds):
        return features(*(shifted(*(speed * np.array(step)), seed=seed)
                          for seed in seeds for step in ((1, 0), (0, 1))))

    def distance(a, b):
        return gaussian_distance(*gaussian_of_few(a, 1), *gaussian_of_few(b, 1))

    slow = moving(1, range(4))
    assert distance(slow, slow) < 1e-6 * distance(slow, np.zeros_like(slow))
    distances = [distance(slow, moving(speed, range(4, 8))) for speed in (1, 2, 4)]
    assert distances[1] > 3 * distances[0] and distances[2] > 1.5 * distances[1]


@pytest.mark.parametrize("frame", [np.full((3, SIZE, SIZE), 90, np.uint8), shifted(0, 0)[0]])
def test_still_clip_has_no_motion(frame):
    assert features(np.stack([frame] * FRAMES)).max() < 1e-3


def test_evaluation_has_floor_and_error_bars(tmp_path, runtime):
    real = make_clips(tmp_path / "real", (8, 8))
    generated = make_clips(tmp_path / "generated", (6, 6), seed=500, recordings=6, val=0)
    scores = evaluate.run(evaluate.EvaluateConfig(
        data_path=real, sample_path=generated, output=tmp_path / "out", device="cpu", groups=2,
        metrics=("motion_frechet",)), runtime)["sections"]["motion_frechet"]["scores"]
    names = ("motion", "velocity", "acceleration")
    combined, *parts = (scores[f"{name}_frechet"]["pooled"] for name in names)
    assert combined["value"] > max(part["value"] for part in parts) > 0
    assert combined["stderr"] > 0 and combined["floor"]["value"] > 0
