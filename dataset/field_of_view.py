"""The endoscope's field of view in a recording, and the square that is cropped from it.

Video of an endoscope shows a round, octagonal or rectangular field on a black border; text, a logo or a
second small picture may stand on the border. Shapes: H x W pixels, h x w of the reduced pictures in which the
field is looked for. Frames are uint8 RGB, 0 to 255.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from common.errors import InputError

MOST_FRAMES = 32  # held in memory, spread over the recording
WORK_SIZE = 256  # longer side of the reduced pictures in pixels
BORDER_LEVEL = 20  # brightness, 0 to 255, that tissue exceeds at times and the border never
BRIGHT_QUANTILE = 0.9  # of a pixel's brightness over time: ignores a few flashes
TEXT_WIDTH = 0.04  # of the shorter side: thinner things are text
COVERAGE = 0.97  # fraction of the square's area inside the field
SMALLEST = 0.3  # of the shorter side: a smaller square counts as not detected


class Crop(NamedTuple):
    """A square of a frame in pixels."""

    x: int
    y: int
    side: int
    found: str  # "field" (detected), "centre" (not detected: middle square) or "given" (by the user)

    def apply(self, pixels_HWC: np.ndarray, size: int, labels: bool = False) -> np.ndarray:
        """The square resized to (size, size, 3), by area averaging where it shrinks, else bicubic.

        Labels (H, W) are resized to (size, size) by nearest neighbour.

        Raises: `InputError` if the square reaches outside the frame.
        """
        square = pixels_HWC[self.y : self.y + self.side, self.x : self.x + self.side]
        if square.shape[:2] != (self.side, self.side):
            height, width = pixels_HWC.shape[:2]
            raise InputError(f"crop {self.x},{self.y},{self.side} reaches outside {width} x {height} pixels")
        method = cv2.INTER_AREA if self.side >= size else cv2.INTER_CUBIC
        return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST_EXACT if labels else method)


def centre_square(height: int, width: int, found: str) -> Crop:
    """The largest square in the middle of a frame."""
    side = min(height, width)
    return Crop((width - side) // 2, (height - side) // 2, side, found)


def find_field_of_view(frames: Iterable[np.ndarray]) -> Crop:
    """The square to crop from every frame of a recording, given all its frames (H, W, 3), of one size.

    16 to 31 evenly spread frames are used (all of a shorter recording). A pixel belongs to the field if the
    0.9 quantile of its brightest channel exceeds BORDER_LEVEL. Morphological opening removes text. The field
    is the convex hull of the largest connected part, because tissue may stay dark.

    The crop is the largest square with 97 % of its area in the field and the middle half of each side inside,
    nearest to the field's centre. In a disc its side is 0.8 of the diameter. If the square is smaller than
    0.3 of the frame's shorter side, the middle square of the frame is returned, with `found` "centre".
    """
    brightness: list[np.ndarray] = []
    step = 1
    for index, frame_HWC in enumerate(frames):
        if index % step == 0:
            brightness.append(_brightness(frame_HWC))
        if len(brightness) == MOST_FRAMES:
            brightness, step = brightness[::2], 2 * step
    height, width = frame_HWC.shape[:2]
    bright_hw = np.quantile(np.stack(brightness), BRIGHT_QUANTILE, axis=0)
    square = _largest_square(_hull(bright_hw > BORDER_LEVEL))
    if square is None or square[2] < SMALLEST * min(bright_hw.shape):
        return centre_square(height, width, "centre")
    scale = max(height, width) / max(bright_hw.shape)
    side = min(int(square[2] * scale), height, width)
    x, y = min(round(square[0] * scale), width - side), min(round(square[1] * scale), height - side)
    return Crop(x, y, side, "field")


def _brightness(frame_HWC: np.ndarray) -> np.ndarray:
    """The brightest channel of a reduced frame: (H, W, 3) -> (h, w) uint8."""
    height, width = frame_HWC.shape[:2]
    scale = min(1.0, WORK_SIZE / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA).max(axis=-1)


def _hull(mask_hw: np.ndarray) -> np.ndarray:
    """Convex hull (0 and 1) of the largest part of an opened mask, eroded by the blurred edge."""
    thickness = max(round(TEXT_WIDTH * min(mask_hw.shape)), 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness))
    opened = cv2.morphologyEx(mask_hw.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    hull = np.zeros_like(opened)
    if count > 1:
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        points = np.argwhere(labels == largest)[:, ::-1].astype(np.int32)
        cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return cv2.erode(hull, np.ones((3, 3), np.uint8))


def _largest_square(mask_hw: np.ndarray) -> tuple[int, int, int] | None:
    """(x, y, side) of the square that `find_field_of_view` describes; None for an empty mask."""
    if not mask_hw.any():
        return None
    sums = cv2.integral(mask_hw)
    rows, cols = np.nonzero(mask_hw)
    centre_y, centre_x = (rows.min() + rows.max() + 1) / 2, (cols.min() + cols.max() + 1) / 2

    def inside(top: int, left: int, height: int, width: int) -> np.ndarray:
        """Mask pixels in the box at (y + top, x + left), for every place (y, x) of the square."""
        strips = sums[height:] - sums[:-height]
        boxes = strips[:, width:] - strips[:, :-width]
        return boxes[top : top + len(sums) - side, left : left + sums.shape[1] - side]

    for side in range(min(mask_hw.shape), 0, -1):
        quarter, middle = side // 4, side - 2 * (side // 4)
        fits = inside(0, 0, side, side) >= COVERAGE * side * side
        fits &= inside(quarter, 0, middle, side) == middle * side
        fits &= inside(0, quarter, side, middle) == middle * side
        ys, xs = np.nonzero(fits)
        if len(ys):
            best = int(((ys + side / 2 - centre_y) ** 2 + (xs + side / 2 - centre_x) ** 2).argmin())
            return int(xs[best]), int(ys[best]), side
    return None
