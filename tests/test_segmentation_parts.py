"""Masks, scores, losses, networks and intervals of the comparison of segmentation."""


import numpy as np
import pytest
import torch
from ellipses import ellipse
from PIL import ExifTags, Image
from scipy.stats import t as student

from common.errors import InputError
from common.networks import Lite0
from dataset.pictures import read_picture
from evaluations import segmenter
from evaluations.arms import Job, differing, kept, summarise, table, with_interval
from evaluations.segmentation_data import read_labels
from evaluations.segmentation_scores import (
    hausdorff_95,
    mean_dice,
    outlined,
    over_classes,
    overlap,
    score_all,
)
from evaluations.segmenter import IGNORED, Segmenter, SegmenterConfig

TINY = {"encoder": "test_resnet", "encoder_weights": "none"}


def rectangle(top, left, height, width, label=True):
    mask = np.zeros((20, 20), np.uint8 if label is not True else bool)
    mask[top : top + height, left : left + width] = label
    return mask


def test_overlap_and_distance_of_shifted_rectangles():
    a, b = rectangle(2, 2, 8, 4), rectangle(2, 4, 8, 4)
    assert overlap(a, b) == (0.5, pytest.approx(1 / 3)) and overlap(a, a) == (1, 1)
    assert hausdorff_95(a, b) == 2 == hausdorff_95(b, a) and hausdorff_95(a, a) == 0
    assert hausdorff_95(rectangle(3, 3, 1, 1), rectangle(6, 7, 1, 1)) == 5
    # of 20 + 1 distances one, that of the far pixel, is 10 and does not count
    assert hausdorff_95(a, a | rectangle(2, 15, 1, 1)) == 0


def test_empty_masks():
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert overlap(empty, empty) == (1, 1) and hausdorff_95(empty, empty) == 0
    assert overlap(empty, full) == (0, 0) and hausdorff_95(empty, full) == hausdorff_95(full, empty) == 5


def test_scores_are_means_over_the_classes_that_are_there():
    true = rectangle(0, 0, 4, 4, 1) + rectangle(8, 8, 4, 4, 3)
    predicted = rectangle(0, 0, 4, 4, 1) + rectangle(8, 10, 4, 4, 3)
    assert over_classes(overlap, true, predicted).tolist() == [0.75, pytest.approx((1 + 1 / 3) / 2)]
    scores = score_all(np.stack([true, true * 0]), np.stack([predicted, true * 0]))
    assert scores == {"dice": [0.75, 1.0], "iou": [0.66667, 1.0], "hd95": [1.0, 0.0]}
    assert mean_dice(np.stack([true, true * 0]), np.stack([predicted, true * 0])) == 0.875


def test_outline_is_drawn_on_the_edge_and_not_inside():
    pixels, mask = np.zeros((3, 20, 20), np.uint8), rectangle(5, 5, 10, 10, 1)
    picture = outlined(pixels, (mask, (255, 0, 9)))
    assert picture.shape == (128, 128, 3)
    assert picture[64, 32].tolist() == [255, 0, 9] and not picture[64, 64].any() and not picture[64, 20].any()


@pytest.mark.parametrize(("values", "classes", "wanted", "grey"), [
    ([0, 1], 1, [0, 1], False), ([0, 255], 1, [0, 1], False), ([3, 127, 128, 250], 1, [0, 0, 1, 1], True),
    ([0, 0], 1, [0, 0], False), ([0, 1, 3], 3, [0, 1, 3], False)])
def test_masks_of_any_kind_become_labels(tmp_path, values, classes, wanted, grey):
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "mask.png")
    labels, was_grey = read_labels(tmp_path / "mask.png", classes)
    assert labels.tolist() == [wanted] and was_grey is grey
    with Image.open(tmp_path / "mask.png") as image:
        image.convert("RGB").save(tmp_path / "rgb.png")
    assert read_labels(tmp_path / "rgb.png", classes)[0].tolist() == [wanted]


@pytest.mark.parametrize(("values", "classes", "words"), [
    ([0, 2], 1, r"from 0 to 2, but .*0 and 255 \(--classes 1"), ([0, 255], 2, r"0 to 2 \(--classes 2"),
    ([[0, 0, 0], [9, 0, 0]], 1, "has colours")])
def test_masks_of_other_values_are_refused(tmp_path, values, classes, words):
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=rf"mask.png.*{words}"):
        read_labels(tmp_path / "mask.png", classes)
    (tmp_path / "mask.png").write_bytes(b"none")
    with pytest.raises(InputError, match="not a readable picture"):
        read_labels(tmp_path / "mask.png", classes)


def test_mask_is_turned_as_its_picture_is(tmp_path):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for name in ("picture.png", "mask.png"):
        Image.fromarray(np.array([[0, 255], [0, 0], [0, 0]], np.uint8)).save(tmp_path / name, exif=turned)
    labels, _ = read_labels(tmp_path / "mask.png", 1)
    np.testing.assert_array_equal(labels * 255, read_picture(tmp_path / "picture.png")[..., 0])
    assert labels.shape == (2, 3)


def test_teacher_labels_only_what_it_is_sure_of():
    probability = torch.tensor([0.01, 0.049, 0.051, 0.5, 0.949, 0.951])
    logits = torch.stack([(1 - probability).log(), probability.log()])[None, :, None]
    assert segmenter.teacher_labels(logits).flatten().tolist() == [0, 0, IGNORED, IGNORED, IGNORED, 1]


def test_ignored_pixels_do_not_change_the_loss():
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    labels[:, :4] = IGNORED
    other = logits.clone()
    other[:, :, :4] += torch.randn(2, 3, 4, 8)
    losses = [segmenter.segmentation_loss(own, labels) for own in (logits, other, other.roll(1, 2))]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[2] != losses[0]
    all_ignored = segmenter.segmentation_loss(logits, torch.full_like(labels, IGNORED))
    assert all_ignored.isfinite()
    sure = torch.nn.functional.one_hot(labels.clamp(max=2), 3).movedim(-1, 1) * 50.0
    assert segmenter.segmentation_loss(sure, labels) < 0.01


def test_weak_view_moves_picture_and_mask_alike():
    random = torch.Generator().manual_seed(0)
    masks = torch.stack([torch.from_numpy(ellipse(seed)[1]) for seed in range(8)])
    pixels, labels = segmenter.weak_view(masks[:, None].expand(-1, 3, -1, -1).float(), masks.long(), random)
    assert labels.dtype == torch.long and (labels != masks).flatten(1).any(1).all()
    assert ((pixels[:, 0] > 0.5) == (labels == 1)).float().mean() > 0.98


def test_strong_view_changes_colours_and_moves_nothing():
    pixels = torch.zeros(16, 3, 32, 32)
    pixels[:, :, :, 16:] = 0.8
    views = segmenter.strong_view(pixels, torch.Generator().manual_seed(0))
    assert views.min() >= 0 and views.max() <= 1 and len({round(float(own.mean()), 4) for own in views}) == 16
    right, left = (views[:, :, rows, cols].flatten(1).quantile(0.5, 1)
                   for rows, cols in ((slice(None), slice(20, 32)), (slice(None), slice(12))))
    assert (right > left + 0.2).all()
    assert torch.equal(views, segmenter.strong_view(pixels, torch.Generator().manual_seed(0)))


def test_teacher_follows_the_student():
    teacher, student = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    student.weight.data.fill_(3)
    student.num_batches_tracked.fill_(7)
    segmenter.follow(teacher, student, 8)
    assert teacher.weight.item() == 2 and teacher.num_batches_tracked == 7
    segmenter.follow(teacher, student, 10_000)
    assert teacher.weight.item() == pytest.approx(2 + 0.01)


def test_batches_take_every_picture_before_they_repeat_one():
    places = segmenter.batches(6, 4, 6, seed=1)
    assert places.shape == (6, 4)
    assert all(sorted(own) == list(range(6)) for own in places.reshape(-1, 6).tolist())


def test_best_constant_map_is_chosen():
    labels = torch.zeros(4, 6, 6, dtype=torch.uint8)
    labels[:, :2], labels[:2, 2:4] = 2, 1
    wanted = labels[0].numpy()
    chosen = segmenter.constant_labels(labels, 2, lambda own: float((own == wanted).mean()))
    np.testing.assert_array_equal(chosen, wanted)


def test_encoder_weights_of_the_package_a_file_or_none(tmp_path):
    model = Segmenter(SegmenterConfig())
    lite0 = Lite0().network
    torch.testing.assert_close(model.network.encoder.model.blocks[1][0].conv_pw.weight,
                               lite0.blocks[1][0].conv_pw.weight)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    assert model.mean.flatten().tolist() == [0.5] * 3
    tiny = Segmenter(SegmenterConfig(**TINY))
    torch.save({**tiny.network.encoder.model.state_dict(), "fc.weight": torch.ones(2)}, tmp_path / "w.pt")
    again = Segmenter(SegmenterConfig(encoder="test_resnet", encoder_weights=str(tmp_path / "w.pt")))
    torch.testing.assert_close(*(own.network.encoder.state_dict() for own in (again, tiny)))
    with pytest.raises(InputError, match="--encoder-weights lite0"):
        Segmenter(SegmenterConfig(encoder="test_resnet"))


@pytest.mark.parametrize("flags", [{"encoder": "resnet_1"}, {"size": 40}, {"steps": 0}, {"classes": 0}])
def test_wrong_flags_are_named(flags):
    with pytest.raises(InputError, match=f"--{next(iter(flags))} "):
        SegmenterConfig(**flags)


def test_unknown_architecture_is_named():
    with pytest.raises(InputError, match="--architecture Vnet"):
        Segmenter(SegmenterConfig(architecture="Vnet", **TINY))


def test_interval_goes_by_groups_and_seeds():
    random = np.random.RandomState(0)

    def width(values, groups, generators=1):
        found = with_interval(values, groups, range(len(values)), generators)
        assert found["low"] + found["high"] == pytest.approx(2 * found["mean"])
        return found["high"] - found["low"]

    values = random.randn(1, 400).repeat(3, 0)
    assert width(values, [str(i) for i in range(400)]) == pytest.approx(4.19 * values.std() / 20, rel=0.3)
    by_tens = np.arange(20).repeat(10)
    same_in_group = random.randn(20)[by_tens][None]
    expected = 2 * student.ppf(0.975, 19) * same_in_group[0, ::10].std(ddof=1) / 20**0.5
    assert width(same_in_group, by_tens.astype(str)) == pytest.approx(expected)
    seeds = np.array([[0.0], [1.0]]) + np.zeros((2, 5))
    assert width(seeds, list("abcde")) == pytest.approx(2 * student.ppf(0.975, 1) * 0.5)
    assert width(np.full((2, 3), 0.25), list("aab")) == 0
    shared = seeds[[0, 1, 0, 1]]  # two generators in turn: four seeds know no more than two
    assert width(shared, list("abcde"), 2) == pytest.approx(width(seeds, list("abcde")))
    assert width(shared, list("abcde"), 1) < width(shared, list("abcde"), 2) / 3


def test_interval_of_few_groups_holds_the_mean_as_often_as_it_says():
    random = np.random.RandomState(0)
    groups = [str(i % 5) for i in range(20)]
    found = [with_interval((random.randn(5)[np.arange(20) % 5] + random.randn(20))[None], groups,
                           [0]) for _ in range(300)]
    assert 0.9 < np.mean([own["low"] < 0 < own["high"] for own in found]) < 0.99


def test_one_group_has_no_interval():
    results = {Job(arm, 4, seed): {"added": 0, "dice": [0.5, 0.7]}
               for arm in ("real", "more") for seed in (0, 1)}
    rows = summarise(results, ["a", "a"], ["dice"])
    assert rows[1]["dice"]["difference"] == {"mean": 0, "low": None, "high": None}
    assert table(rows, ["dice"])[1:] == [["real", "4", "0", "2", "0.600 [-, -]", "-"],
                                         ["more", "4", "0", "2", "0.600 [-, -]", "+0.000 [-, -]"]]


def test_differences_are_paired():
    noise = np.random.RandomState(0).rand(2, 6)
    results = {Job(arm, 4, seed): {"added": more, "dice": (noise[seed] + shift).tolist()}
               for arm, more, shift in (("real", 0, 0), ("more", 16, 0.125)) for seed in range(2)}
    real, more = summarise(results, list("aabbcc"), ["dice"])
    assert (more["arm"], more["labels"], more["added"], more["seeds"]) == ("more", 4, 16, 2)
    assert "difference" not in real["dice"]
    assert real["dice"]["low"] < real["dice"]["mean"] < real["dice"]["high"]
    assert more["dice"]["difference"] == pytest.approx({"mean": 0.125, "low": 0.125, "high": 0.125})
    cells = table([real, more], ["dice"])
    assert cells[0][-1] == "dice - real" and cells[1][-1] == "-" and cells[2][-1] == "+0.125 [+0.125, +0.125]"


def test_seeds_of_one_generator_are_one_observation():
    results = {Job(arm, 4, seed): {"added": 0, "dice": [0.1 * (seed % 2) * (arm == "more")] * 4}
               for arm in ("real", "more") for seed in range(4)}

    def width(**generators):
        found = summarise(results, list("abcd"), ["dice"], generators)[1]["dice"]["difference"]
        return found["high"] - found["low"]

    assert width(more=2) == pytest.approx(2 * student.ppf(0.975, 1) * 0.05)
    assert width(more=1) == width(real=2) < width(more=2) / 3


def test_kept_results_are_of_the_same_settings(tmp_path):
    path, made = tmp_path / "job.json", []
    for _ in range(2):
        assert kept(path, {"steps": 3, "labels": (1, 2)}, lambda: made.append(1) or {"a": 1}) == {"a": 1}
    assert made == [1]
    with pytest.raises(InputError, match=r"job.json: was made with steps 3, now it is 4"):
        kept(path, {"steps": 4, "labels": (1, 2)}, dict)
    with pytest.raises(InputError) as raised:
        kept(path, {"steps": 3, "labels": list(range(9999))}, dict)
    assert len(str(raised.value)) < 500
    assert differing({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2) and differing({"a": 1}, {"a": 1}) is None
