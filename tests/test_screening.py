import numpy as np
import pytest
from synthetic import moving_texture

from dataset.screening import Thresholds, frame_stats, luminance, reason_to_reject


def judge(frames, **thresholds) -> str | None:
    lumas = [luminance(frame) for frame in frames]
    stats = [frame_stats(luma, lumas[i - 1] if i else None) for i, luma in enumerate(lumas)]
    return reason_to_reject(np.array(stats), Thresholds(**thresholds))


@pytest.fixture
def clip() -> np.ndarray:
    return moving_texture(0, 16, 48, 48)


def test_ordinary_clip_is_kept(clip):
    assert judge(clip) is None


@pytest.mark.parametrize("place", [0, 7, 15])
def test_one_black_frame_spoils_a_clip(clip, place):
    clip[place] = 4
    assert judge(clip) == "black"


def test_dim_but_visible_clip_is_kept(clip):
    assert judge(clip // 5) is None


@pytest.mark.parametrize("place", [0, 7, 15])
def test_overexposed_frame_is_a_flash(clip, place):
    clip[place, :30] = 255
    assert judge(clip, flash_jump=255) == "flash"


def test_jump_of_brightness_is_a_flash(clip):
    clip[9] = clip[9] // 2 + 120
    assert judge(clip, flash_overexposed=1) == "flash"


def test_slow_change_of_brightness_is_kept(clip):
    ramp = np.linspace(0.3, 1.2, 16)[:, None, None, None]
    assert judge((clip * ramp).clip(0, 240).astype(np.uint8)) is None


def test_frozen_from_the_middle_on_is_rejected_but_a_short_stop_is_kept(clip):
    stopped = clip.copy()
    stopped[8:] = clip[7]
    assert judge(stopped) == "frozen"
    short = clip.copy()
    short[12:] = clip[11]
    assert judge(short) is None
    assert judge(short, frozen_pairs=0.2) == "frozen"


def test_every_rule_can_be_switched_off(clip):
    clip[3] = 0
    clip[5] = 255
    clip[8:] = clip[7]
    off = {"black_luminance": 0, "flash_overexposed": 1, "flash_jump": 255, "frozen_difference": 0}
    assert judge(clip, **off) is None
    for name in off:
        reason = name.split("_")[0]
        assert judge(clip, **{key: value for key, value in off.items() if key != name}) == reason


def test_single_frame_clip_is_not_frozen(clip):
    assert judge(clip[:1]) is None


@pytest.mark.parametrize(("name", "value"), [("black_luminance", -1), ("flash_overexposed", 1.5),
                                             ("flash_jump", 256), ("frozen_pairs", float("nan"))])
def test_threshold_out_of_range_is_refused_by_its_flag(name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}"):
        Thresholds(**{name: value})
