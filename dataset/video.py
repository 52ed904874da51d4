"""Clips as files: recordings read frame by frame, clips written so that browsers play them.

Shapes: T frames, H x W pixels, C = 3 channels. Frames are uint8 RGB, 0 to 255. Times are seconds.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import atomic_path, is_junk
from dataset.pictures import on_black, read_picture

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FOLDER_FPS = 25.0  # a folder of pictures has no clock; this one is assumed
BT709, LIMITED_RANGE = 1, 1  # codes of ITU-T H.273 and libavutil
# libswscale's BILINEAR, FULL_CHR_H_INT, ACCURATE_RND and BITEXACT: without them YUV <-> RGB rounds down
# (colours sink by one or two levels) and depends on the processor
EXACT = 0x2 | 0x2000 | 0x40000 | 0x80000

Item = TypeVar("Item")
Pixels = Callable[[], np.ndarray]  # makes a frame's pixels when they are wanted


class Frame(NamedTuple):
    """One frame of a recording: seconds since its first frame, and pixels (H, W, 3)."""

    time: float
    pixels: np.ndarray


def read_frames(path: Path, fps: float | None = None, stride: int = 1) -> Iterator[Frame]:
    """Frames of a video, a folder of numbered pictures or one picture, upright, in memory one at a time.

    With `fps` the recording is resampled: frame k is the one nearest in time to k / fps, so a variable rate
    comes out even and frames of a slow recording repeat. Otherwise every `stride`-th frame comes. Rotation
    flags and pixel aspect ratios are applied, transparency is laid on black.

    Raises `InputError` naming the file: at once if nothing in it can be read; after the good frames if it is
    damaged further on or changes its size.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
        source = iter([(0.0, partial(read_picture, path))])
    else:
        source = _folder_frames(path) if path.is_dir() else _video_frames(path)
    sampled = _nearest(source, fps) if fps else (item for i, item in enumerate(source) if i % stride == 0)
    shape = None
    for time, make_pixels in sampled:
        pixels = make_pixels()
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise InputError(f"{path}: the frame size changes at {time:.2f} s")
        yield Frame(time, pixels)
    if shape is None:
        raise InputError(f"{path}: holds no frames")


def can_open(path: Path) -> bool:
    """True if a file holds moving pictures that can be read, whatever its name; reads its beginning only."""
    try:
        with open(os.open(path, os.O_RDONLY), "rb") as file, av.open(file) as container:
            still = container.format.name.endswith("_pipe") or container.format.name in ("image2", "tty")
            return not still and any(stream.codec_context.width for stream in container.streams.video)
    except (av.error.FFmpegError, OSError):
        return False


def is_frame_folder(folder: Path) -> bool:
    """True if a folder is one recording: it holds numbered pictures, and no folders or videos."""
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    other = any(entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES for entry in entries)
    return not other and bool(_numbered_pictures(folder))


def _numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder whose names hold a number, in natural order (2 before 10)."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
             and not path.name.startswith(".") and re.search(r"\d", path.stem)]
    return sorted(found, key=lambda path: [int(part) if i % 2 else part
                                           for i, part in enumerate(re.split(r"(\d+)", path.name))])


def _folder_frames(folder: Path) -> Iterator[tuple[float, Pixels]]:
    """(time, pixels) of every numbered picture of a folder."""
    for index, path in enumerate(_numbered_pictures(folder)):
        yield index / FOLDER_FPS, partial(read_picture, path)


def _video_frames(path: Path) -> Iterator[tuple[float, Pixels]]:
    """(time, pixels) of every frame of a video, in order of time.

    Reading ends with an `InputError` at the first damaged frame: the decoder makes up what follows.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file")
    count, first, time = 0, 0.0, 0.0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            interval = float(1 / (stream.average_rate or FOLDER_FPS))
            for frame in _decode(container, stream):
                if frame.is_corrupt and count == 0:
                    continue  # cut out of a longer recording: the first frames lack their reference
                if frame.is_corrupt:
                    raise InputError(f"{path}: damaged after {count} frames")
                stamp = time + interval if frame.time is None else frame.time - first
                if count == 0:
                    first, time = frame.time or 0.0, 0.0
                else:
                    time = stamp if stamp > time else time + interval  # a clock that stands or goes back
                count += 1
                yield time, partial(_video_pixels, frame, stream.sample_aspect_ratio)
    except av.error.FFmpegError as error:
        reason = f"damaged after {count} frames" if count else "not a readable video"
        raise InputError(f"{path}: {reason} ({error.strerror})") from None


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The decoded frames of a stream; VP8 and VP9 with transparency need the decoders that know of it."""
    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ("vp8", "vp9"):
        decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[decoder.name], "r")
    decoder.thread_count = 1  # recordings are worked on side by side
    for packet in container.demux(stream):
        for frame in decoder.decode(packet):
            if frame.time_base is None:
                frame.time_base = stream.time_base
            yield frame


def _video_pixels(frame: av.VideoFrame, aspect: Fraction | None) -> np.ndarray:
    """A decoded frame as it is meant to be seen: square pixels, no transparency, upright."""
    width = round(frame.width * aspect) if aspect and 0.25 <= aspect <= 4 else frame.width
    transparent = any(component.is_alpha for component in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if transparent else "rgb24", width=width, height=frame.height,
                              interpolation=EXACT)
    if transparent:
        pixels = on_black(pixels)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _nearest(source: Iterator[tuple[float, Item]], fps: float) -> Iterator[tuple[float, Item]]:
    """Resample (time, item) pairs that start at time 0: pair k is nearest to k / fps, the later on a tie."""
    k, previous = 0, None
    for current in source:
        while previous is not None and k / fps < (previous[0] + current[0]) / 2 - 1e-9:
            yield previous
            k += 1
        previous = current
    while previous is not None and k / fps <= previous[0] + 1e-9:
        yield previous
        k += 1


def write_mp4(path: Path, frames_THWC: np.ndarray, fps: float, preset: str = "medium") -> None:
    """Write frames as H.264 (yuv420p, BT.709, index first): plays in browsers, same bytes on every run.

    An odd height or width is padded to an even one by repeating the last row or column. `preset` is x264's:
    "veryfast" takes half the time of "medium" and loses 0.4 dB.
    """
    frames_THWC = _checked(frames_THWC)
    height, width = frames_THWC.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", "mp4", options=flags) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        # The macroblock tree of x264's AVX-512 code does not give the same bytes twice.
        stream.options = {"crf": "17", "preset": preset, "x264-params": "mbtree=0"}
        codec = stream.codec_context
        codec.thread_count = 1  # more threads cut the picture differently, and the bytes with it
        codec.color_range, codec.colorspace = LIMITED_RANGE, BT709
        codec.color_primaries, codec.color_trc = BT709, BT709
        for pixels in np.pad(frames_THWC, padding, mode="edge"):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE,
                                   interpolation=EXACT)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_gif(path: Path, frames_THWC: np.ndarray, fps: float) -> None:
    """Write frames as a GIF that loops for ever, with one palette of 256 colours made from all of them.

    GIF counts time in 1/100 s and browsers slow down below 2 of them, so rates above 50 fps play at 50;
    others keep their length to 1/100 s.
    """
    frames_THWC = _checked(frames_THWC)
    interval = max(100 / fps, 2)
    ends = [round(interval * (t + 1)) for t in range(len(frames_THWC))]
    durations = [10 * (end - start) for start, end in pairwise([0, *ends])]
    palette = Image.fromarray(np.concatenate(frames_THWC)).quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [Image.fromarray(pixels).quantize(palette=palette) for pixels in frames_THWC]
    with atomic_path(path) as temporary:
        pictures[0].save(temporary, format="GIF", save_all=True, append_images=pictures[1:],
                         duration=durations, loop=0, optimize=False)


def write_frames(folder: Path, frames_THWC: np.ndarray) -> None:
    """Write frames as 00000.png, 00001.png, ... into `folder`, which is replaced as a whole."""
    frames_THWC = _checked(frames_THWC)
    with atomic_path(folder, folder=True) as temporary:
        for t, pixels in enumerate(frames_THWC):
            Image.fromarray(pixels).save(temporary / f"{t:05d}.png")


def _checked(frames_THWC: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """The frames as one array, or a `ValueError` that says what they are instead."""
    frames_THWC = np.asarray(frames_THWC)
    shape = frames_THWC.shape
    if frames_THWC.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames_THWC.dtype} {shape}")
    return frames_THWC
