import cv2
import numpy as np
import pytest
from PIL import Image

from common.distributed import Runtime
from dataset.phantom import CLASS_NAMES, render_clip
from dataset.phantom.camera import project, ray_directions
from dataset.phantom.clip import build_scene
from dataset.phantom.film import field_of_view
from dataset.phantom.paths import Paths
from dataset.phantom.trace import FARTHEST, meet_polyp, picture_sizes, trace, trace_first
from dataset.phantom.write import PhantomConfig, run
from dataset.video import read_frames

LABELS = range(len(CLASS_NAMES))
CLEAR = CLASS_NAMES.index("clear_lumen")


def small_config(folder, **changes) -> PhantomConfig:
    settings = {"clips_per_class": 1, "frames": 2, "size": 32, "seed": 3, "workers": 1, **changes}
    return PhantomConfig(folder / "videos", **settings)


def written(folder) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_noise(frames_THWC) -> np.ndarray:
    """The frames blurred by a few pixels; each frame has sensor noise of its own."""
    return np.stack([cv2.blur(frame, (3, 3)) for frame in frames_THWC]).astype(int)


def test_eight_classes_in_alphabetical_order():
    assert len(CLASS_NAMES) == 8
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)


@pytest.mark.parametrize("label", LABELS)
def test_same_arguments_give_the_same_bits(label):
    first = render_clip(label, 5, frames=2, size=40)
    render_clip(CLEAR, 6, frames=1, size=40)  # what was rendered in between leaves no trace
    second = render_clip(label, 5, frames=2, size=40)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_frames_and_masks_have_the_promised_shapes():
    frames_THWC, masks_THW = render_clip(0, 1, frames=3, size=50)
    assert (frames_THWC.shape, frames_THWC.dtype) == ((3, 50, 50, 3), np.uint8)
    assert (masks_THW.shape, masks_THW.dtype) == ((3, 50, 50), bool)


def test_seeds_and_classes_look_different():
    looks = [(label, 5) for label in LABELS] + [(CLEAR, 6), (CLEAR, 7)]
    pictures = [render_clip(label, seed, frames=1, size=48)[0][0].astype(int) for label, seed in looks]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(gaps) > 8


@pytest.mark.parametrize("label", LABELS)
def test_lesion_stays_in_sight_for_a_long_recording(label):
    _, masks_THW = render_clip(label, 11, frames=20, size=48, fps=1.0)
    share = masks_THW.mean(axis=(1, 2))
    if label == CLEAR:
        assert not masks_THW.any()
    else:
        assert (share > 0.005).mean() >= 0.9
        assert share.max() < 0.6


def test_mask_covers_what_the_lesion_changes():
    label = CLASS_NAMES.index("ulcer")  # its base is whiter than any wall around it: blue against red
    frames_THWC, masks_THW = render_clip(label, 4, frames=4, size=96)
    lit = frames_THWC.max(axis=-1) > 60
    whiteness = frames_THWC[..., 2] / np.maximum(frames_THWC[..., 0], 1)
    assert np.median(whiteness[masks_THW & lit]) > np.median(whiteness[~masks_THW & lit]) + 0.1


@pytest.mark.parametrize("label", LABELS)
def test_size_changes_the_resolution_and_not_the_scene(label):
    large, large_mask = (array[0] for array in render_clip(label, 8, frames=1, size=128))
    small, small_mask = (array[0] for array in render_clip(label, 8, frames=1, size=64))
    reduced = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - reduced).mean() < 6  # of 255: noise, aliasing of the finest relief
    reduced_mask = cv2.resize(large_mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) > 0.5
    assert (small_mask != reduced_mask).mean() < 0.02


@pytest.mark.parametrize("label", LABELS)
def test_more_frames_follow_the_same_motion_further(label):
    short, short_masks = render_clip(label, 2, frames=2, size=40)
    long, long_masks = render_clip(label, 2, frames=4, size=40)
    assert np.array_equal(short, long[:2])
    assert np.array_equal(short_masks, long_masks[:2])


def test_frame_rate_samples_the_same_motion():
    slow = without_noise(render_clip(CLEAR, 2, frames=3, size=40, fps=4.0)[0])
    fast = without_noise(render_clip(CLEAR, 2, frames=5, size=40, fps=8.0)[0])
    assert np.abs(slow - fast[::2]).mean() < 0.6
    assert np.abs(slow - fast[:3]).mean() > 1.5


@pytest.mark.parametrize("label", LABELS)
def test_consecutive_frames_move_and_belong_together(label):
    frames_THWC, _ = render_clip(label, 9, frames=9, size=64, fps=8.0)
    smooth = without_noise(frames_THWC)
    steps = np.abs(np.diff(smooth, axis=0)).mean(axis=(1, 2, 3))  # of 255
    assert steps.min() > 1
    assert steps.max() < 12
    assert np.abs(smooth[8] - smooth[0]).mean() > 1.5 * steps.mean()  # a motion, not a tremor


@pytest.mark.parametrize("label", LABELS)
def test_few_steps_find_the_wall_that_many_small_ones_find(label):
    scene = build_scene(label, 4)
    tube = scene.tube(0.0)
    (view,) = scene.views(np.zeros(1))
    first, *pyramid = (Paths.of(ray_directions(n, scene.camera.half_angle), *view) for n in picture_sizes(64))
    slow, room = np.full((64, 64), 0.02, np.float32), np.empty_like(pyramid[-1].way)
    for _ in range(600):
        slow += np.clip(0.2 * tube.wall_gap(pyramid[-1], slow, room), -0.02, 0.05)
    (depth,) = trace_first(scene.narrowest(), [first])
    ratio = trace(tube, depth, pyramid) / np.minimum(slow, FARTHEST)
    assert (ratio > 1.03).mean() < 0.006  # hardly a ray has gone through a fold
    assert (ratio < 0.9).mean() < 0.08  # few have stopped on their way


def test_polyp_out_of_sight_is_not_met():
    scene = build_scene(CLASS_NAMES.index("pedunculated_polyp"), 1)
    polyp, (view,) = scene.contents.polyp.at(0.0), scene.views(np.zeros(1))
    rays = ray_directions(48, scene.camera.half_angle)
    ahead, behind = (Paths.of(sign * rays, *view) for sign in (1, -1))
    near, far = np.full((48, 48), 0.01, np.float32), np.full((48, 48), FARTHEST, np.float32)
    assert meet_polyp(polyp, ahead, far.copy()).any()
    for behind_the_wall_or_the_lens, depth in ((ahead, near), (behind, far)):
        met = depth.copy()
        assert not meet_polyp(polyp, behind_the_wall_or_the_lens, met).any()
        assert np.array_equal(met, depth)


def test_projection_inverts_the_lens():
    rays = ray_directions(9, 0.9).reshape(3, -1).T
    edge = (np.arange(9) + 0.5) * 2 / 9 - 1
    places = np.stack(np.meshgrid(edge, edge), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(project(3.0 * rays, 0.9), places, atol=1e-4)


@pytest.mark.parametrize("view", ["round", "octagon", "barrel", "full"])
def test_view_is_that_of_one_endoscope_for_all_seeds(view):
    frames = np.concatenate([render_clip(CLEAR, seed, frames=1, size=40, view=view)[0] for seed in range(4)])
    edge = (np.arange(40) + 0.5) * 2 / 40 - 1
    inside = field_of_view(view, *np.abs(np.meshgrid(edge, edge)))
    assert not frames[:, inside == 0].any()
    assert (frames[:, inside == 1].max(axis=-1) > 0).mean() > 0.99


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match="label 8"):
        render_clip(8, 0)


def test_command_writes_what_prepare_reads(tmp_path):
    config = small_config(tmp_path, masks=True)
    assert run(config, Runtime()) == 8
    assert sorted(path.name for path in config.video_path.iterdir() if path.is_dir()) == list(CLASS_NAMES)
    assert "NO CLINICAL DATA" in (config.video_path / "PHANTOM.txt").read_text()
    for label, name in enumerate(CLASS_NAMES):
        frames_THWC, masks_THW = render_clip(label, 3, frames=2, size=32)
        video = config.video_path / name / f"{name}_000003.mp4"
        read = np.stack([frame.pixels for frame in read_frames(video)])
        assert read.shape == frames_THWC.shape
        assert np.abs(read.astype(int) - frames_THWC).mean() < 12
        folder = tmp_path / "videos_masks" / name / f"{name}_000003"
        saved = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
        assert np.array_equal(saved, masks_THW)


def test_rerun_writes_only_what_is_missing(tmp_path):
    config = small_config(tmp_path)
    run(config, Runtime())
    before = written(tmp_path)
    (config.video_path / "ulcer" / "ulcer_000003.mp4").unlink()
    assert run(config, Runtime()) == 1
    assert written(tmp_path) == before
    assert run(small_config(tmp_path, clips_per_class=2), Runtime()) == 8


def test_number_of_processes_does_not_change_the_recordings(tmp_path):
    run(small_config(tmp_path / "one", workers=1), Runtime())
    run(small_config(tmp_path / "two", workers=2), Runtime())
    assert written(tmp_path / "one") == written(tmp_path / "two")


def test_folder_of_other_settings_is_refused(tmp_path):
    run(small_config(tmp_path), Runtime())
    with pytest.raises(ValueError, match="--frames"):
        run(small_config(tmp_path, frames=3), Runtime())
    with pytest.raises(ValueError, match="--view"):
        run(small_config(tmp_path, view="round"), Runtime())


@pytest.mark.parametrize("changes", [{"frames": 0}, {"fps": float("nan")}, {"size": 8}, {"seed": -1}])
def test_wrong_flag_is_named(tmp_path, changes):
    with pytest.raises(ValueError, match=f"--{next(iter(changes))}"):
        small_config(tmp_path, **changes)
