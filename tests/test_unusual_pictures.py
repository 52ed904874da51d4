"""Grey, transparent, palette, CMYK and turned pictures are the same pixels to every stage that reads some."""

import numpy as np
import pytest
from PIL import Image

from autoregressive.sample.starts import read_start
from dataset.grid import grid_to_frames
from dataset.manifest import Clip, Manifest
from evaluations.clips import ClipSet

ROWS, COLS, SIZE = 2, 3, 16
FACTS = {"rows": ROWS, "cols": COLS, "frame_size": SIZE, "fps": 10.0}
y, x = np.mgrid[: ROWS * SIZE, : COLS * SIZE]
COLOUR = np.stack([40 + 4 * x, 60 + 5 * y, 200 - 2 * x - y], -1).astype(np.uint8)
GREY = COLOUR[..., 1]
ALPHA = (5 * x).astype(np.uint8)
JPEG = {"quality": 100, "subsampling": 0}
TURN_BACK = Image.Exif()
TURN_BACK[0x0112] = 6  # orientation: to be turned clockwise


def faded(pixels, alpha):
    return (pixels * (alpha / 255)[..., None]).round()


def rgb(grey):
    return np.repeat(grey[..., None], 3, -1)


def palette_picture():
    """Four colours, the last of them transparent."""
    picture = Image.fromarray((x // 12).astype(np.uint8))  # "L"
    picture.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250, 90, 90, 90])
    return picture


PALETTE = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]])[x // 12]
# name -> (suffix, picture, how it is written, pixels that are meant, error allowed)
KINDS = {
    "grey": (".png", Image.fromarray(GREY), {}, rgb(GREY), 0),
    "grey and alpha": (".png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), {},
                       faded(rgb(GREY), ALPHA), 0),
    "alpha": (".png", Image.fromarray(np.dstack([COLOUR, ALPHA])), {}, faded(COLOUR, ALPHA), 0),
    "palette": (".png", palette_picture(), {"transparency": 3}, PALETTE, 0),
    "black and white": (".png", Image.fromarray(GREY > 120), {}, rgb(255 * (GREY > 120)), 0),
    "CMYK": (".jpg", Image.fromarray(COLOUR).convert("CMYK"), JPEG, COLOUR, 4),
    "turned": (".jpg", Image.fromarray(COLOUR).transpose(Image.Transpose.ROTATE_90),
               {"exif": TURN_BACK, **JPEG}, COLOUR, 4),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def data_set(folder, kind):
    """One clip of one class whose grid picture is of a kind."""
    suffix, picture, how, *_ = kind
    (folder / "red").mkdir(parents=True)
    picture.save(folder / f"red/clip{suffix}", **how)
    clip = Clip(f"red/clip{suffix}", 0, "red/clip", "train", 0.0)
    manifest = Manifest(("red",), ROWS, COLS, SIZE, 10.0, 1, {"red": "recording"}, (clip,))
    manifest.write(folder)
    return manifest


def assert_shows(frames_T3HW, kind):
    expected = grid_to_frames(kind[3].transpose(2, 0, 1).astype(int), ROWS, COLS)
    assert frames_T3HW.dtype == np.uint8 and frames_T3HW.shape == expected.shape
    assert np.abs(frames_T3HW - expected).max() <= kind[4]


def test_grid_pictures(kind, tmp_path):
    data_set(tmp_path, kind)
    clips = ClipSet.read(tmp_path, "--data-path")
    assert_shows(clips.frames(clips.entries[0]), kind)


def test_frames_in_folders(kind, tmp_path):
    suffix, picture, how, pixels, error = kind
    (tmp_path / "red" / "clip").mkdir(parents=True)
    for t in range(2):
        picture.save(tmp_path / "red" / "clip" / f"{t}{suffix}", **how)
    clips = ClipSet.read(tmp_path, "--data-path")
    frames = clips.frames(clips.entries[0])
    assert frames.shape == (2, 3, *pixels.shape[:2])
    assert np.abs(frames - pixels.transpose(2, 0, 1).astype(int)).max() <= error


def test_start_of_a_clip(kind, tmp_path):
    suffix, picture, how, *_ = kind
    picture.save(tmp_path / f"start{suffix}", **how)
    assert_shows(read_start(tmp_path / f"start{suffix}", FACTS)[0], kind)


def test_numbers_without_a_range_are_refused_by_the_name_of_their_file(tmp_path):
    kind = (".tif", Image.fromarray(GREY.astype(np.float32) * 100), {})
    data_set(tmp_path / "grids", kind)
    kind[1].save(tmp_path / "start.tif")
    clips = ClipSet.read(tmp_path / "grids", "--data-path")
    with pytest.raises(ValueError, match=r"red/clip.tif: not a readable picture"):
        clips.frames(clips.entries[0])
    with pytest.raises(ValueError, match=r"--start-from .*start.tif: not a readable picture"):
        read_start(tmp_path / "start.tif", FACTS)


def test_grid_of_another_size_is_named(tmp_path):
    data_set(tmp_path, KINDS["grey"])
    Image.fromarray(GREY[:-1]).save(tmp_path / "red/clip.png")
    clips = ClipSet.read(tmp_path, "--data-path")
    with pytest.raises(ValueError, match=r"red/clip.png: 31 x 48 pixels"):
        clips.frames(clips.entries[0])
