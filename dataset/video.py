"""Reading recordings frame by frame, and writing clips that browsers play.

Shapes: T frames, H x W pixels, C = 3 channels. Frames are uint8 RGB, 0 to 255. Times are seconds.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import atomic_path, is_junk
from dataset.decoder import GoodFrames
from dataset.display import EXACT, deinterlaced, display_matrix, display_pixels
from dataset.opening import may_be_video, open_video
from dataset.pictures import IMAGE_SUFFIXES, read_picture
from dataset.timing import Timed, sampled, timed

FOLDER_FPS = 25.0  # assumed rate of a folder of pictures, and of a video that states none
BT709, LIMITED_RANGE = 1, 1  # codes of ITU-T H.273 and libavutil

Pixels = Callable[[], np.ndarray]  # converts a frame's pixels on demand


class Frame(NamedTuple):
    """One frame of a recording."""

    time: float  # seconds since the first frame
    pixels: np.ndarray  # (H, W, 3)
    segment: int  # grows where frames are missing, by damage or because the recorder paused
    labels: np.ndarray | None = None  # (H, W) uint8, if masks were given


class DamagedRecording(InputError):
    """Some frames of a recording could not be read; all others were."""

    def __init__(self, message: str, lost: int) -> None:
        super().__init__(message)
        self.lost = lost


class WrongMasks(InputError):
    """The masks of a recording are not those of its frames, or no masks."""


def read_frames(
    path: Path, fps: float | None = None, stride: int = 1, masks: Iterator[Pixels] | None = None
) -> Iterator[Frame]:
    """Frames of a video, a folder of numbered pictures or one picture, upright, in memory one at a time.

    With `fps` every segment is resampled: frame k is the one nearest in time to k / fps, so frames of a slow
    recording repeat. Otherwise every `stride`-th frame is taken. Display matrices and pixel aspect ratios are
    applied, interlaced frames deinterlaced, transparent parts black. `masks` gives the labels of every frame.

    Raises: `InputError` naming the file if nothing in it can be read, or, after the frames before, if a
    picture is broken or the frame size changes; `DamagedRecording` after all good frames of a damaged video;
    `WrongMasks`.
    """
    path = Path(path)
    damage: list[DamagedRecording] = []
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        pictures = numbered_pictures(path) if path.is_dir() else [path]
        source = ((0, index / FOLDER_FPS, partial(read_picture, file)) for index, file in enumerate(pictures))
    else:
        source = _video_frames(path, damage)
    if masks is not None:
        source = _with_masks(source, path, masks, damage)
    shape = None
    for segment, time, make_pixels in sampled(source, fps, stride):
        pixels, labels = make_pixels() if masks is not None else (make_pixels(), None)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise InputError(f"{path}: the frame size changes at {time:.2f} s")
        yield Frame(time, pixels, segment, labels)
    if damage:
        raise damage[0]
    if shape is None:
        raise InputError(f"{path}: holds no frames")


def is_frame_folder(folder: Path) -> bool:
    """True if a folder is one recording: it holds numbered pictures, and no folders or videos."""
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    others = any(entry.is_dir() or may_be_video(entry) for entry in entries)
    return not others and bool(numbered_pictures(folder))


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder whose names hold a number, in natural order (2 before 10)."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
             and not is_junk(path.name) and re.search(r"\d", path.stem)]
    return sorted(found, key=lambda path: [int(part) if i % 2 else part
                                           for i, part in enumerate(re.split(r"(\d+)", path.name))])


def _with_masks(
    source: Timed[Pixels], path: Path, masks: Iterator[Pixels], damage: list[DamagedRecording]
) -> Timed[Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """Every frame with the mask of the same number."""
    def both(make_pixels: Pixels, make_labels: Pixels) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = make_pixels(), make_labels()
        if pixels.shape[:2] != labels.shape:
            sides = ["{1} x {0}".format(*array.shape) for array in (labels, pixels)]
            raise WrongMasks(f"{path}: its mask has {sides[0]} pixels, the frame {sides[1]}; a mask is of "
                             "the whole frame, before the crop")
        return pixels, labels

    for count, (frame, make_labels) in enumerate(zip_longest(source, masks)):
        if frame is None or make_labels is None:
            fewer, more = ("frames", "masks") if frame is None else ("masks", "frames")
            lost = " (it is damaged)" if damage else ""
            raise WrongMasks(f"{path}: {count} {fewer}{lost}, but more {more}; every frame needs its mask")
        yield *frame[:2], partial(both, frame[2], make_labels)
    if damage:
        raise WrongMasks(f"{path}: damaged, so that it is not known which masks are of which frames")


def _video_frames(path: Path, damage: list[DamagedRecording]) -> Timed[Pixels]:
    """(segment, time, pixels) of every good frame of a video in order of time; adds lost ones to `damage`."""
    with open_video(path) as (container, stream):
        good = GoodFrames(container, stream)
        interval = float(1 / (stream.average_rate or FOLDER_FPS))
        for segment, time, frame in deinterlaced(timed(good, interval)):
            matrix = display_matrix(frame) or good.matrix
            yield segment, time, partial(display_pixels, frame, stream.sample_aspect_ratio, matrix)
        if good.lost and not good.count:
            raise InputError(f"{path}: not a readable video (all of its frames are damaged)")
        if good.lost:
            reason = f"damaged after {good.intact} frames, {good.lost} lost"
            damage.append(DamagedRecording(f"{path}: {reason}", good.lost))


def write_mp4(path: Path, frames_THWC: np.ndarray, fps: float, preset: str = "medium") -> None:
    """Write frames as H.264 (yuv420p, BT.709, index first), the same bytes on every run.

    An odd height or width is padded to an even one by repeating the last row or column. `preset` is x264's:
    "veryfast" takes half the time of "medium" and loses 0.4 dB.
    """
    frames_THWC = _checked(frames_THWC)
    height, width = frames_THWC.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    with (atomic_path(path) as temporary,  # "file:", else a folder "http:x" would be an address
          av.open(f"file:{temporary}", "w", "mp4", options=flags) as container):
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
    """Write frames as a GIF that loops for ever, with one palette of 256 colours for all of them.

    GIF counts time in 1/100 s, and browsers slow down frames shorter than 2/100 s: rates above 50 fps play at
    50, others keep their length to 1/100 s.
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
    """The frames as one array; `ValueError` unless they are uint8 (T, H, W, 3)."""
    frames_THWC = np.asarray(frames_THWC)
    shape = frames_THWC.shape
    if frames_THWC.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames_THWC.dtype} {shape}")
    return frames_THWC
