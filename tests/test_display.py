from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image
from synthetic import moving_texture
from video_files import change_packets, corners, encode, quadrants

from dataset.display import EXACT, upright
from dataset.video import read_frames

ONE = 65536
# (a, b, c, d) of a display matrix -> the corners as ffmpeg shows them, clockwise from the upper left
SHOWN = {
    (ONE, 0, 0, ONE): ["red", "green", "blue", "white"],
    (-ONE, 0, 0, ONE): ["green", "red", "white", "blue"],
    (ONE, 0, 0, -ONE): ["white", "blue", "green", "red"],
    (-ONE, 0, 0, -ONE): ["blue", "white", "red", "green"],
    (0, ONE, -ONE, 0): ["white", "red", "green", "blue"],
    (0, -ONE, ONE, 0): ["green", "blue", "white", "red"],
    (0, ONE, ONE, 0): ["red", "white", "blue", "green"],
    (0, -ONE, -ONE, 0): ["blue", "green", "red", "white"],
}


def pixels_of(path):
    return [frame.pixels for frame in read_frames(path)]


def turned(matrix) -> list[int]:
    a, b, c, d = matrix
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize("matrix", SHOWN)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_every_display_matrix_turns_and_mirrors_as_ffmpeg_does(tmp_path, matrix, codec):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    encode(tmp_path / "x.mp4", codec, "yuv420p", [quadrants()] * 6, matrix=turned(matrix), **options)
    pixels = pixels_of(tmp_path / "x.mp4")[0]
    assert corners(pixels) == SHOWN[matrix]
    assert pixels.shape == ((96, 64, 3) if matrix[0] == 0 else (64, 96, 3))


@pytest.mark.parametrize(("degrees", "turns"), [(10, 0), (80, 1), (100, 1), (170, 2), (-80, 3)])
def test_other_angles_count_as_the_nearest_right_one(degrees, turns):
    cosine, sine = (round(ONE * function(np.radians(degrees))) for function in (np.cos, np.sin))
    clockwise = upright(quadrants(), (cosine, sine, -sine, cosine))
    assert np.array_equal(clockwise, np.rot90(quadrants(), -turns))


def test_jpegs_of_a_video_are_turned_by_their_exif_data(tmp_path):
    exif, jpeg = Image.Exif(), BytesIO()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(quadrants()).save(jpeg, "JPEG", exif=exif)
    encode(tmp_path / "plain.avi", "mjpeg", "yuvj420p", [quadrants()] * 2)
    change_packets(tmp_path / "plain.avi", tmp_path / "x.avi", lambda number, data: jpeg.getvalue())
    assert corners(pixels_of(tmp_path / "x.avi")[1]) == ["white", "red", "green", "blue"]


def moving_edge(moment: int) -> np.ndarray:
    picture = np.full((96, 128, 3), 40, np.uint8)
    picture[:, 10 + 3 * moment : 40 + 3 * moment] = 220
    return picture


def combing(pixels) -> float:
    """How much lines differ from the mean of their neighbours."""
    green = pixels[..., 1].astype(int)
    return np.abs(2 * green[1:-1] - green[:-2] - green[2:]).mean()


@pytest.mark.parametrize(("name", "codec", "options"), [
    ("x.mpg", "mpeg2video", {"flags": "+ildct+ilme"}), ("x.mp4", "libx264", {"x264-params": "interlaced=1"}),
])
def test_fields_become_whole_pictures_and_keep_number_and_times(tmp_path, name, codec, options):
    frames = [moving_edge(2 * t) for t in range(12)]
    for t, picture in enumerate(frames):
        picture[1::2] = moving_edge(2 * t + 1)[1::2]
    assert combing(frames[5]) > 10
    encode(tmp_path / name, codec, "yuv420p", frames, **options)
    read = list(read_frames(tmp_path / name))
    assert [round(frame.time, 3) for frame in read] == [round(t / 10, 3) for t in range(12)]
    for t, frame in enumerate(read):  # these encoders take the lower field for the first
        assert combing(frame.pixels) < 2
        assert np.abs(frame.pixels[2:-2].astype(int) - moving_edge(2 * t + 1)[2:-2]).mean() < 1


@pytest.mark.parametrize("count", [1, 2])
def test_short_interlaced_recordings_are_read_whole(tmp_path, count):
    options = {"x264-params": "interlaced=1"}
    encode(tmp_path / "x.mp4", "libx264", "yuv420p", [moving_edge(t) for t in range(count)], **options)
    assert len(pixels_of(tmp_path / "x.mp4")) == count


def test_progressive_frames_are_what_the_decoder_gives(tmp_path):
    encode(tmp_path / "x.mp4", "libx264", "yuv420p", moving_texture(0, 8, 64, 96))
    with av.open(str(tmp_path / "x.mp4")) as container:
        plain = [frame.to_ndarray(format="rgb24", interpolation=EXACT) for frame in container.decode(video=0)]
    assert np.array_equal(pixels_of(tmp_path / "x.mp4"), plain)


RED_AND_BLUE = {"bt709": (1, 0.2126, 0.0722), "bt470bg": (5, 0.299, 0.114), "bt2020": (9, 0.2627, 0.0593)}


def write_lossless(path, planes, pixel_format, code=2, colour_range=0):
    """One frame of given numbers."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, planes, strict=True):
        plane.update(np.ascontiguousarray(values))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.colorspace = frame.colorspace = code
        stream.codec_context.color_range = frame.color_range = colour_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("matrix", RED_AND_BLUE)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("pixel_format", "bits"), [("yuv444p", 8), ("yuv444p10le", 10)])
def test_colours_follow_the_matrix_and_the_range_of_the_file(tmp_path, matrix, full, pixel_format, bits):
    code, kr, kb = RED_AND_BLUE[matrix]
    wanted = np.array([200, 40, 60])
    red, green, blue = wanted / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    parts = np.array([luma, (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))])
    step = 1 << (bits - 8)
    if full:
        values = parts * ((1 << bits) - 1) + [0, 128 * step, 128 * step]
    else:
        values = (parts * [219, 224, 224] + [16, 128, 128]) * step
    kind = np.uint16 if bits > 8 else np.uint8
    planes = [np.full((32, 64), value, kind) for value in values.round()]
    write_lossless(tmp_path / "x.mkv", planes, pixel_format, code, 2 if full else 1)
    assert np.abs(pixels_of(tmp_path / "x.mkv")[0][16, 16] - wanted).max() <= 1


@pytest.mark.parametrize(("pixel_format", "white"), [("gray", 255), ("gray10le", 1023), ("gray16le", 65535)])
def test_grey_videos_of_any_depth_are_linear(tmp_path, pixel_format, white):
    ramp = np.tile(np.linspace(0, white, 64).round(), (16, 1))
    write_lossless(tmp_path / "x.mkv", [ramp.astype(np.uint8 if white == 255 else np.uint16)], pixel_format)
    (pixels,) = pixels_of(tmp_path / "x.mkv")
    assert np.abs(pixels[8] - (ramp[8] * (255 / white))[:, None]).max() < 1.5
