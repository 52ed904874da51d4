"""Conversion of decoded frames for display: deinterlaced, square pixels, no transparency, upright."""

from collections import deque
from fractions import Fraction

import av
import numpy as np

from dataset.pictures import on_black
from dataset.timing import Timed

# libswscale's BILINEAR, FULL_CHR_H_INT, ACCURATE_RND and BITEXACT: without them YUV <-> RGB rounds down
# (colours sink by one or two levels) and depends on the processor
EXACT = 0x2 | 0x2000 | 0x40000 | 0x80000
Matrix = tuple[float, float, float, float]
Frames = Timed[av.VideoFrame]
DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX


def display_matrix(frame: av.VideoFrame) -> Matrix | None:
    """(a, b, c, d) of the frame's display matrix, None if it has none.

    The pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y), moved into the picture.
    """
    try:
        for data in frame.side_data:
            if data.type == DISPLAY_MATRIX:
                a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
                return a, b, c, d
    except ValueError:  # PyAV does not know the type of other side data, but still gives the angle
        turn = np.exp(1j * np.radians(frame.rotation))
        return turn.real, -turn.imag, turn.imag, turn.real
    return None


def upright(pixels_HWC: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Pixels turned and mirrored by a display matrix; angles are rounded to multiples of 90 degrees."""
    if matrix:
        a, b, c, d = matrix
        if abs(a) + abs(d) < abs(b) + abs(c):  # x and y change places
            pixels_HWC, a, d = pixels_HWC.transpose(1, 0, 2), c, b
        pixels_HWC = pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels_HWC)


def display_pixels(frame: av.VideoFrame, aspect: Fraction | None, matrix: Matrix | None) -> np.ndarray:
    """The pixels (H, W, 3) of a frame whose pixels are `aspect` times as wide as high."""
    width = round(frame.width * aspect) if aspect and 0.25 <= aspect <= 4 else frame.width
    transparent = any(component.is_alpha for component in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if transparent else "rgb24", width=width, height=frame.height,
                              interpolation=EXACT)
    return upright(on_black(pixels) if transparent else pixels, matrix)


def deinterlaced(stamped: Frames) -> Frames:
    """The same frames, interlaced ones deinterlaced at the moment of their first field.

    The lines of the other field are interpolated within a segment. Progressive frames are unchanged.
    """
    graph, kind, stamps = None, None, deque()
    for segment, time, frame in stamped:
        own = (segment, frame.width, frame.height, frame.format.name)
        if graph and own != kind:
            yield from _filtered(graph, None, stamps)
            graph = None
        if graph is None and frame.interlaced_frame:
            graph, kind = _deinterlacer(frame), own
        if graph is None:
            yield segment, time, frame
            continue
        stamps.append((segment, time))
        yield from _filtered(graph, frame, stamps)
    if graph:
        yield from _filtered(graph, None, stamps)


def _filtered(graph: av.filter.Graph, frame: av.VideoFrame | None, stamps: deque) -> Frames:
    """The frames that a graph gives after one more frame, or at the end if it is None."""
    graph.push(frame)
    while True:
        try:
            whole = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield *stamps.popleft(), whole


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name,
                         time_base=frame.time_base),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph
