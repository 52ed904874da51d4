import hashlib
import tracemalloc
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from synthetic import moving_texture
from video_files import corners, encode, quadrants

from dataset.video import is_frame_folder, read_frames, write_frames, write_gif, write_mp4


def pixels_of(path, **options) -> np.ndarray:
    return np.stack([frame.pixels for frame in read_frames(path, **options)])


def times_of(path, **options) -> list[float]:
    return [round(frame.time, 3) for frame in read_frames(path, **options)]


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return moving_texture(0, 24, 64, 96)


@pytest.fixture(scope="module")
def video(tmp_path_factory, clip) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_mp4(path, clip, 10)
    return path


def test_mp4_is_what_browsers_play_and_looks_like_the_frames(video, clip):
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
    data = video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    again = pixels_of(video)
    assert again.shape == clip.shape
    assert np.abs(again.astype(int) - clip).mean() < 3
    assert np.abs((again.astype(int) - clip).mean(axis=(0, 1, 2))).max() < 0.3  # no colour cast


def test_writing_twice_gives_the_same_bytes(tmp_path, clip):
    for write, suffix, times in ((write_mp4, "mp4", 10), (write_gif, "gif", 2)):
        contents = set()
        for _ in range(times):
            write(tmp_path / f"clip.{suffix}", clip, 8.0)
            contents.add(hashlib.sha256((tmp_path / f"clip.{suffix}").read_bytes()).hexdigest())
        assert len(contents) == 1


@pytest.mark.parametrize("fps", [0.5, 8, 29.97, 60.0])
def test_mp4_keeps_fractional_rates(tmp_path, clip, fps):
    write_mp4(tmp_path / "clip.mp4", clip[:6], fps)
    assert times_of(tmp_path / "clip.mp4") == pytest.approx([t / fps for t in range(6)], abs=2e-3)


def test_mp4_of_odd_size_is_padded_with_its_edge(tmp_path, clip):
    write_mp4(tmp_path / "odd.mp4", clip[:2, :63, :95], 10)
    again = pixels_of(tmp_path / "odd.mp4")
    assert again.shape == (2, 64, 96, 3)
    assert np.abs(again[:, 63].astype(int) - again[:, 62]).mean() < 12  # no black line


def test_gif_loops_and_keeps_length_and_colours(tmp_path, clip):
    write_gif(tmp_path / "clip.gif", clip, 12)
    with Image.open(tmp_path / "clip.gif") as picture:
        durations = [picture.seek(t) or picture.info["duration"] for t in range(picture.n_frames)]
        assert picture.info["loop"] == 0
    assert len(durations) == len(clip)
    assert sum(durations) == pytest.approx(1000 * len(clip) / 12, abs=10)
    assert np.abs(pixels_of(tmp_path / "clip.gif").astype(int) - clip).mean() < 8


def test_numbered_frames_are_exact_and_replace_the_folder(tmp_path, clip):
    write_frames(tmp_path / "frames", clip)
    write_frames(tmp_path / "frames", clip[:3])
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal(pixels_of(tmp_path / "frames"), clip[:3])


@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8),
                                    np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 3, 4, 4), np.uint8)])
def test_writers_refuse_what_are_no_frames(tmp_path, frames):
    for write in (write_mp4, write_gif):
        with pytest.raises(ValueError, match="frames must be uint8"):
            write(tmp_path / "clip", frames, 8)
    with pytest.raises(ValueError, match="frames must be uint8"):
        write_frames(tmp_path / "clip", frames)
    assert not list(tmp_path.iterdir())


def test_folder_of_pictures_is_read_in_natural_order(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (1, 2, 10, 9):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"frame{number}.png")
    (folder / "notes.txt").write_text("no picture")
    assert is_frame_folder(folder)
    assert pixels_of(folder)[:, 0, 0, 0].tolist() == [1, 2, 9, 10]
    assert times_of(folder) == [0.0, 0.04, 0.08, 0.12]


def test_broken_picture_ends_a_folder_and_is_named(tmp_path, clip):
    write_frames(tmp_path / "frames", clip[:5])
    (tmp_path / "frames" / "00003.png").write_bytes(b"no picture")
    frames = read_frames(tmp_path / "frames")
    assert len(list(islice(frames, 3))) == 3
    with pytest.raises(ValueError, match=r"00003\.png"):
        next(frames)


def test_variable_rate_is_resampled_by_time(tmp_path, clip):
    stamps = [0, 40, 80, 120, 160, 1000, 1400, 1440]
    encode(tmp_path / "variable.mkv", "libx264", "yuv420p", clip[:8], "rgb24", stamps)
    assert times_of(tmp_path / "variable.mkv") == [stamp / 1000 for stamp in stamps]
    assert times_of(tmp_path / "variable.mkv", fps=5) == [0.0, 0.16, 0.16, 1.0, 1.0, 1.0, 1.4, 1.4]


def test_resampling_and_stride_pick_the_frames_they_should(video):
    assert times_of(video, fps=5) == [round(0.2 * k, 3) for k in range(12)]
    assert times_of(video, fps=20)[:5] == [0.0, 0.1, 0.1, 0.2, 0.2]
    assert times_of(video, stride=7) == [0.0, 0.7, 1.4, 2.1]


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [
    ("clip.webm", "libvpx-vp9", "yuva420p"), ("clip.mov", "qtrle", "argb"),
])
def test_transparent_parts_of_videos_are_black(tmp_path, name, codec, pixel_format):
    rgba = np.concatenate([quadrants(), np.full((64, 96, 1), 255, np.uint8)], axis=-1)
    rgba[:, :48, 3] = 0
    argb = np.roll(rgba, 1, axis=-1)
    encode(tmp_path / name, codec, pixel_format, [argb] * 2, "argb")
    assert corners(pixels_of(tmp_path / name)[0]) == ["black", "green", "blue", "black"]


def test_transparent_parts_of_gifs_and_pictures_are_black(tmp_path):
    rgba = Image.fromarray(quadrants()).convert("RGBA")
    rgba.paste((250, 250, 250, 0), (0, 0, 48, 64))
    (tmp_path / "frames").mkdir()
    rgba.save(tmp_path / "frames" / "1.png")
    rgba.save(tmp_path / "clip.gif", save_all=True, append_images=[rgba.rotate(180)], duration=100)
    for path in (tmp_path / "frames", tmp_path / "clip.gif"):
        assert corners(pixels_of(path)[0]) == ["black", "green", "blue", "black"]


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [
    ("clip.avi", "mjpeg", "yuvj420p"), ("clip.mkv", "ffv1", "yuv444p"), ("clip.mov", "mpeg4", "yuv420p"),
    ("clip.webm", "libvpx", "yuv420p"),
])
def test_odd_sizes_and_other_containers_are_read_whole(tmp_path, clip, name, codec, pixel_format):
    encode(tmp_path / name, codec, pixel_format, clip[:4, :63, :95], "rgb24")
    again = pixels_of(tmp_path / name)
    assert again.shape == (4, 63, 95, 3)
    assert np.abs(again.astype(int) - clip[:4, :63, :95]).mean() < 8


def test_oblong_pixels_become_square(tmp_path, clip):
    encode(tmp_path / "pal.mkv", "libx264", "yuv420p", clip[:2], "rgb24", aspect=Fraction(4, 3))
    assert pixels_of(tmp_path / "pal.mkv").shape == (2, 64, 128, 3)


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("write", "reason"), [
    (lambda path: path.write_bytes(b""), "empty file"),
    (lambda path: path.write_text("no video\n" * 99), "not a readable video"),
    (lambda path: path.write_bytes(bytes(range(256)) * 40), "not a readable video"),
    (lambda path: path.mkdir(), "holds no frames"),
    (sound_only, "no video stream"),
])
def test_what_is_no_video_is_named_with_its_reason(tmp_path, write, reason):
    write(tmp_path / "bad.mp4")
    with pytest.raises(ValueError, match=rf"bad\.mp4: .*{reason}"):
        list(read_frames(tmp_path / "bad.mp4"))


def test_memory_does_not_grow_with_the_length(tmp_path):
    long = np.tile(moving_texture(1, 20, 64, 96), (10, 1, 1, 1))
    write_mp4(tmp_path / "long.mp4", long, 25)
    tracemalloc.start()
    count = sum(1 for _ in read_frames(tmp_path / "long.mp4", fps=25))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200
    assert peak < 12 * long[0].nbytes
