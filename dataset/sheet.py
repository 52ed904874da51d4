"""Contact sheets: frames of clips, one titled row per clip, and clips that move side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.files import atomic_path
from common.spread import evenly

TITLE_SIZE = 14  # pixels of the letters; a title line is 1.5 times as high
GAP = 2  # pixels between frames
MOST_FRAMES = 8  # per clip
PAPER, INK = (255, 255, 255), (0, 0, 0)


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """One titled row per clip, of at most 8 frames evenly spread from its first to its last.

    A row is (title, frames); frames are uint8 RGB, (T, H, W, 3) or a list of (H, W, 3), and may differ in
    size between rows. Raises: `ValueError` if there are no rows or a row has no frames.
    """
    if not rows or any(len(frames) == 0 for _, frames in rows):
        raise ValueError("a contact sheet needs clips with frames")
    font = ImageFont.load_default(TITLE_SIZE)
    line = TITLE_SIZE * 3 // 2
    strips = [_strip(frames) for _, frames in rows]
    width = max(max(strip.width, int(font.getlength(title)) + GAP)
                for strip, (title, _) in zip(strips, rows, strict=True))
    sheet = Image.new("RGB", (width, sum(line + strip.height + GAP for strip in strips)), PAPER)
    pen, top = ImageDraw.Draw(sheet), 0
    for strip, (title, _) in zip(strips, rows, strict=True):
        pen.text((GAP, top), title, fill=INK, font=font)
        sheet.paste(strip, (0, top + line))
        top += line + strip.height + GAP
    return sheet


def moving_sheet(clips: Sequence[tuple[str, np.ndarray]]) -> list[Image.Image]:
    """The frames of a film of all clips side by side, about as many across as down, a title above each.

    A clip is (title, frames), uint8 RGB (T, H, W, 3), of one shape. Raises: `ValueError` if there are none.
    """
    if not clips:
        raise ValueError("a sheet needs clips")
    font, line = ImageFont.load_default(TITLE_SIZE), TITLE_SIZE * 3 // 2
    count, height, width = clips[0][1].shape[:3]
    across = math.ceil(math.sqrt(len(clips) * (height + line) / width))
    down = math.ceil(len(clips) / across)
    paper = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + line)), PAPER)
    pen = ImageDraw.Draw(paper)
    corners = [(i % across * (width + GAP), i // across * (height + line)) for i in range(len(clips))]
    for (left, top), (title, _) in zip(corners, clips, strict=True):
        while font.getlength(title) > width:
            title = title[:-1]
        pen.text((left, top), title, fill=INK, font=font)
    film = [paper.copy() for _ in range(count)]
    for (left, top), (_, frames_THWC) in zip(corners, clips, strict=True):
        for picture, frame_HWC in zip(film, frames_THWC, strict=True):
            picture.paste(Image.fromarray(frame_HWC), (left, top + line))
    return film


def save_film(path: Path, clips: Sequence[tuple[str, np.ndarray]], fps: float) -> None:
    """Write `moving_sheet` of clips as an animated webp, atomically."""
    first, *rest = moving_sheet(clips)
    with atomic_path(path) as temporary:
        first.save(temporary, "webp", save_all=True, append_images=rest, loop=0, quality=80,
                   duration=round(1000 / fps))


def _strip(frames: Sequence[np.ndarray]) -> Image.Image:
    gap = ((0, 0), (0, GAP), (0, 0))
    padded = [np.pad(frames[i], gap, constant_values=PAPER[0]) for i in evenly(len(frames), MOST_FRAMES)]
    return Image.fromarray(np.concatenate(padded, axis=1)[:, :-GAP])
