"""The class check separates right from swapped classes, and refuses clips that cannot be compared."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from common.files import write_json
from dataset.manifest import Manifest
from evaluations.class_consistency import ClassConsistencyConfig, clip_statistics, nearest_class, run
from evaluations.temporal import motion


def make_samples(grids, folder, swap=False):
    """The held-out real clips under the guise of samples; with `swap` under the wrong class."""
    manifest = Manifest.read(grids)
    clips = []
    for clip in manifest.select("val"):
        target = folder / "grids" / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(grids / clip.name, target)
        clips.append(replace(clip, label=1 - clip.label) if swap else clip)
    replace(manifest, clips=tuple(clips)).write(folder / "grids")
    records = [{"class": manifest.class_names[clip.label]} for clip in clips]
    write_json(folder / "samples.json", {"clips": records})
    return folder


@pytest.mark.parametrize(("swap", "accuracy"), [(False, 1.0), (True, 0.0)])
def test_clips_of_the_right_class_are_told_from_swapped_ones(grids, tmp_path, runtime, swap, accuracy):
    samples = make_samples(grids, tmp_path, swap)
    result = run(ClassConsistencyConfig(data_path=grids, sample_path=samples), runtime)
    assert result["generated"]["accuracy"] == accuracy and result["real val"]["accuracy"] == 1
    assert result["generated"]["motion"] == pytest.approx(result["real val"]["motion"])
    written = json.loads((samples / "class_consistency.json").read_text())
    assert written.pop("inputs")["samples"] == str(samples) and written == result


def test_samples_of_other_classes_are_refused(grids, tmp_path, runtime):
    samples = make_samples(grids, tmp_path)
    replace(Manifest.read(samples / "grids"), class_names=("x", "y")).write(samples / "grids")
    with pytest.raises(ValueError, match="its class_names is not that of the real clips"):
        run(ClassConsistencyConfig(data_path=grids, sample_path=samples), runtime)


def test_motion_is_the_mean_change_between_frames():
    frames = np.zeros((3, 3, 4, 4), np.uint8)
    frames[1] = 10
    assert motion(frames) == 10
    assert motion(frames[:1].repeat(3, 0)) == motion(frames[:1]) == 0


def test_statistics_see_colour_and_detail_but_not_order():
    random = np.random.RandomState(0)
    rough = random.randint(0, 255, (4, 3, 32, 32)).astype(np.uint8)
    smooth = np.full_like(rough, 127)
    assert not np.allclose(clip_statistics(rough), clip_statistics(smooth))
    np.testing.assert_allclose(clip_statistics(rough), clip_statistics(rough[::-1]))


def test_nearest_mean_weighs_each_statistic_by_its_spread():
    loud = np.array([[0.0, -100], [0, 100], [1, -100], [1, 100]])
    clips = np.array([[0.1, 90], [0.9, -90]])
    assert nearest_class(loud, np.array([0, 0, 1, 1]), clips).tolist() == [0, 1]
