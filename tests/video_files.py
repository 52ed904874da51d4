"""Video files of any kind for tests, and files that lack a part."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def encode(
    path: Path, codec: str, pixel_format: str, pictures: Sequence[np.ndarray], source_format: str = "rgb24",
    stamps: Sequence[int] | None = None, aspect: Fraction | None = None, matrix: Sequence[int] | None = None,
    **options: str,
) -> None:
    """Write pictures with any codec, 10 a second; `stamps` are milliseconds, `options` the codec's."""
    if codec == "libx264":
        options.setdefault("x264-params", "mbtree=0")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pixel_format
        stream.codec_context.thread_count = 1  # the same bytes in every run, as in write_mp4
        if matrix:
            stream.set_display_matrix(matrix)
        if stamps:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source_format)
            if stamps:
                frame.pts, frame.time_base = stamps[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def change_packets(path: Path, changed: Path, change: Callable[[int, bytes], bytes | None]) -> None:
    """Copy a video with `change(number, data)` for the data of every packet; None leaves the packet out."""
    with av.open(str(path)) as source, av.open(str(changed), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        packets = (packet for packet in source.demux(stream) if packet.size)
        for number, packet in enumerate(packets):
            data = change(number, bytes(packet))
            if data is not None:
                copy = av.Packet(data)
                copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, copied
                target.mux(copy)


def quadrants(height: int = 64, width: int = 96) -> np.ndarray:
    """A picture whose corners are red, green, blue and white, clockwise from the upper left."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (250, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 250, 0)
    picture[height // 2 :, width // 2 :] = (0, 0, 250)
    picture[height // 2 :, : width // 2] = (250, 250, 250)
    return picture


def corners(pixels: np.ndarray) -> list[str]:
    """The colours of the corners, clockwise from the upper left."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white", (0, 0, 0): "black"}
    places = [(4, 4), (4, -5), (-5, -5), (-5, 4)]
    return [names[tuple(int(value > 128) for value in pixels[place])] for place in places]
