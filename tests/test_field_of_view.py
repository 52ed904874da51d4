import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import moving_texture

from dataset.field_of_view import Crop, centre_square, find_field_of_view

HEIGHT, WIDTH = 240, 320


def recording(mask_HW: np.ndarray, frames: int = 8) -> np.ndarray:
    """Moving tissue where the mask is, a nearly black border with sensor noise elsewhere."""
    tissue = moving_texture(0, frames, *mask_HW.shape)
    border = np.random.default_rng(0).integers(0, 8, tissue.shape, dtype=np.uint8)
    return np.where(mask_HW[..., None], tissue, border)


def disc(x=160, y=120, radius=100, height=HEIGHT, width=WIDTH) -> np.ndarray:
    return cv2.circle(np.zeros((height, width), np.uint8), (x, y), radius, 1, -1).astype(bool)


def inside(crop: Crop, mask_HW: np.ndarray) -> float:
    return mask_HW[crop.y : crop.y + crop.side, crop.x : crop.x + crop.side].mean()


@pytest.mark.parametrize(("x", "y", "radius"), [(160, 120, 100), (215, 130, 100), (100, 110, 60)])
def test_square_in_a_round_field_loses_only_corners(x, y, radius):
    mask = disc(x, y, radius)
    crop = find_field_of_view(recording(mask))
    assert crop.found == "field"
    assert inside(crop, mask) > 0.96
    assert 1.45 * radius < crop.side < 1.65 * radius
    assert abs(crop.x + crop.side / 2 - x) < 6
    assert abs(crop.y + crop.side / 2 - y) < 6
    middles = [(crop.y, x), (crop.y + crop.side - 1, x), (y, crop.x), (y, crop.x + crop.side - 1)]
    assert all(mask[place] for place in middles)


def test_writing_logo_and_second_picture_on_the_border_do_not_count():
    frames = recording(disc())
    plain = find_field_of_view(frames)
    for frame in frames:
        cv2.putText(frame, "26/10/2025", (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
        cv2.putText(frame, "www.clinic.org", (190, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 200, 0), 1)
        cv2.rectangle(frame, (5, 190), (45, 230), (150, 110, 90), -1)
    marked = find_field_of_view(frames)
    assert marked.found == "field"
    assert max(abs(a - b) for a, b in zip(plain[:3], marked[:3], strict=True)) <= 8


def test_octagon_and_rectangle_are_filled_to_their_sides():
    points = [(80, 20), (240, 20), (290, 70), (290, 170), (240, 220), (80, 220), (30, 170), (30, 70)]
    mask = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [np.array(points)], 1).astype(bool)
    crop = find_field_of_view(recording(mask))
    assert 185 < crop.side <= 201
    assert inside(crop, mask) > 0.97
    rectangle = np.zeros((HEIGHT, WIDTH), bool)
    rectangle[30:190, 100:] = True
    crop = find_field_of_view(recording(rectangle))
    assert 150 < crop.side <= 160
    assert inside(crop, rectangle) == 1


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (100, 100), (61, 47)])
def test_full_frame_gives_the_middle_square(shape):
    crop = find_field_of_view(recording(np.ones(shape, bool)))
    assert crop == centre_square(*shape, "field")


def test_dark_lumen_does_not_split_or_shrink_the_field():
    frames = recording(np.ones((HEIGHT, WIDTH), bool))
    for frame in frames:
        cv2.circle(frame, (150, 110), 70, (3, 2, 2), -1)
    assert find_field_of_view(frames) == centre_square(HEIGHT, WIDTH, "field")


def test_what_is_dark_at_times_belongs_to_the_field():
    frames = recording(np.ones((HEIGHT, WIDTH), bool), frames=24)
    frames[:12, :, 160:] = 0
    frames[12:, :, :160] = 0
    assert find_field_of_view(frames) == centre_square(HEIGHT, WIDTH, "field")


def test_a_flash_does_not_widen_the_field():
    frames = recording(disc(), frames=24)
    plain = find_field_of_view(frames)
    frames[7] = 255
    assert find_field_of_view(frames) == plain


@pytest.mark.parametrize("level", [0, 12])
def test_dark_recording_falls_back_to_the_middle_square_and_says_so(level):
    frames = np.full((6, HEIGHT, WIDTH, 3), level, np.uint8)
    frames[:, 100:120, 100:130] = 90
    assert find_field_of_view(frames) == centre_square(HEIGHT, WIDTH, "centre")


def test_large_frames_are_measured_to_a_few_pixels():
    mask = disc(960, 540, 500, 1080, 1920)
    crop = find_field_of_view(recording(mask, frames=2))
    assert inside(crop, mask) > 0.96
    assert 740 < crop.side < 820


@given(height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(1, 70),
       level=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_any_recording_gives_a_square_inside_its_frames(height, width, count, level):
    frame = np.full((height, width, 3), level, np.uint8)
    crop = find_field_of_view(frame for _ in range(count))
    assert crop.side >= 1
    assert crop.x >= 0
    assert crop.y >= 0
    assert crop.apply(frame, 8).shape == (8, 8, 3)


def test_shrinking_averages_areas():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(Crop(0, 0, 64, "given").apply(stripes, 16).astype(int) - 100).max() <= 1


def test_crop_outside_the_frame_is_refused():
    with pytest.raises(ValueError, match="crop 30,0,64 reaches outside 80 x 64"):
        Crop(30, 0, 64, "given").apply(np.zeros((64, 80, 3), np.uint8), 16)
