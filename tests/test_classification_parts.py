"""Scores, intervals and networks of the comparison of classifiers."""

import numpy as np
import pytest
import timm
import torch
from scipy.stats import t as student

from common.errors import InputError
from common.networks import Lite0
from evaluations.class_scores import class_scores, class_summary, confusion_matrix
from evaluations.classification_report import deal_by_class, make_rows, table
from evaluations.frame_classifier import FrameClassifier
from evaluations.probe import ClassifierTask
from evaluations.uncertainty import half_widths


def test_scores_of_a_constant_predictor_have_closed_forms():
    labels = np.repeat([0, 1], [6, 2])
    scores = class_scores(confusion_matrix(labels, np.zeros(8, int), 2))
    assert scores == pytest.approx({"accuracy": 6 / 8, "balanced_accuracy": 1 / 2, "macro_f1": 12 / 14 / 2})
    scores = class_scores(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))  # the third class has no clips
    assert scores == pytest.approx({"accuracy": 5 / 6, "balanced_accuracy": (3 / 4 + 1) / 2,
                                    "macro_f1": (6 / 7 + 4 / 5) / 2})


def test_summary_says_what_a_class_was_taken_for():
    summary = class_summary(["a", "b", "c"], np.array([0, 0, 1]), np.array([0, 2, 1]))
    assert summary["by_class"] == {"a": {"clips": 2, "accuracy": 0.5, "taken_for": [1, 0, 1]},
                                   "b": {"clips": 1, "accuracy": 1.0, "taken_for": [0, 1, 0]}}


def test_interval_of_a_mean_is_that_of_student():
    values = np.random.RandomState(0).randn(12)

    def mean(clips, seeds):
        return np.array([values[clips].mean() + seeds.mean()])

    clips, one = list(np.arange(12)[:, None]), [np.array([0])]
    expected = student.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert half_widths(mean, clips, one)[0] == pytest.approx(expected)
    assert half_widths(mean, [np.arange(12)], one) is None
    seeds = list(np.arange(3)[:, None])  # their means 0, 1, 2 vary alone
    expected = student.ppf(0.975, 2) * 1 / np.sqrt(3)
    assert half_widths(mean, [np.arange(12)], seeds)[0] == pytest.approx(expected)
    assert half_widths(mean, clips, seeds)[0] > np.hypot(1 / np.sqrt(3), values.std() / np.sqrt(12)) * 1.96


def test_no_group_of_recordings_holds_a_whole_class():
    labels = np.repeat([0, 1, 2], [60, 3, 2])
    recordings = [f"{label}/{i}" for i, label in enumerate(labels)]
    groups = deal_by_class(labels, recordings)
    assert len(groups) == 20 and sorted(np.concatenate(groups)) == list(range(65))
    assert all(set(np.delete(labels, group)) == {0, 1, 2} for group in groups)
    assert max(map(len, groups)) <= 4


def test_class_of_one_recording_leaves_no_interval_and_scores_stay_within_their_range():
    labels = np.repeat([0, 1], [6, 2])
    predicted = {("real", None): np.array([[0] * 6 + [1, 0]]), ("synthetic", None): labels[None]}
    parts = [*"abcdef", "g", "h"]
    rows = make_rows(labels, parts, predicted, ("x", "y"))
    value, low, high = rows[0]["scores"]["balanced_accuracy"]
    assert value == 0.75 and 0 <= low < value < high <= 1
    assert rows[1]["difference"]["balanced_accuracy"][2] > 0.5
    rows = make_rows(labels, [*"abcdef", "g", "g"], predicted, ("x", "y"))
    assert rows[0]["scores"]["balanced_accuracy"] == [0.75, None, None]
    assert table(rows)[1][2] == "87.5 [-, -]"


def test_intervals_with_synthetic_clips_go_by_generator():
    labels = np.repeat([0, 1], 6)
    good, bad = labels, np.where(np.arange(12) % 3 == 0, 1 - labels, labels)
    predicted = {("real", None): np.array([bad] * 4), ("synthetic", None): np.array([good, bad] * 2)}

    def width(arm, generators):
        row = make_rows(labels, list("abcdefghijkl"), predicted, ("x", "y"), generators)[arm]
        _, low, high = (row["difference"] or row["scores"])["accuracy"]
        return high - low

    assert width(0, 2) == width(0, 1)
    assert width(1, 2) > 2 * width(1, 1)


def test_logits_of_a_clip_are_the_mean_over_its_frames():
    torch.manual_seed(0)
    model = FrameClassifier("test_efficientnet", 3, size=32).eval()
    clips = torch.rand(2, 4, 3, 16, 16) * 2 - 1  # smaller than the network's frames
    with torch.no_grad():
        alone = torch.stack([model(clips[:, [t]]) for t in range(4)])
        torch.testing.assert_close(model(clips), alone.mean(0), rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-4


def test_weights_come_from_a_file_or_a_package_without_their_classifier(tmp_path):
    trained = timm.create_model("test_resnet", num_classes=7)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    model = FrameClassifier("test_resnet", 3)
    model.load(str(tmp_path / "weights.pth"))
    assert torch.equal(model.network.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)
    with pytest.raises(InputError, match=r"--weights .*weights.pth: .* do not fit the model"):
        FrameClassifier("test_efficientnet", 3).load(str(tmp_path / "weights.pth"))
    lite = FrameClassifier("tf_efficientnet_lite0", 3)
    lite.load("package")
    assert torch.equal(lite.network.conv_stem.weight, Lite0().network.conv_stem.weight)


def test_single_frames_are_frames_of_the_clip():
    seen = []

    def model(clips_BT3HW):
        seen.append(clips_BT3HW)
        return torch.zeros(len(clips_BT3HW), 2)

    clips = torch.arange(4, dtype=torch.uint8)[None, :, None, None, None].expand(64, 4, 3, 8, 8)
    task = ClassifierTask(torch.nn.Identity(), {}, [], [], torch.device("cpu"), strong=False,
                          single_frames=True)
    task.loss(model, [clips, torch.zeros(64, dtype=torch.long)], torch.arange(64))
    assert seen[0].shape == (64, 1, 3, 8, 8)
    assert {round((value + 1) * 127.5) for value in seen[0].unique().tolist()} == {0, 1, 2, 3}
