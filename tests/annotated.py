"""Recordings with masks for tests: textures with moving squares, and the labels of the squares."""

from pathlib import Path

import numpy as np
from PIL import Image
from synthetic import moving_texture

from dataset.video import write_frames


def annotated_frames(seed: int, count: int, size: int, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, size, size, 3) and labels (T, size, size): squares of labels 1 and up, which move."""
    frames, masks = moving_texture(seed, count, size, size), np.zeros((count, size, size), np.uint8)
    side = size // 4
    for label in range(1, labels):
        for t in range(count):
            x, y = (5 * label + 2 * t) % (size - side), (7 * label + t) % (size - side)
            masks[t, y : y + side, x : x + side] = label
            frames[t, y : y + side, x : x + side, label % 3] = 200
    return frames, masks


def write_masks(folder: Path, masks_THW: np.ndarray, palette: bytes | None = None) -> None:
    """Numbered PNG files of one channel."""
    folder.mkdir(parents=True)
    for t, mask_HW in enumerate(masks_THW):
        picture = Image.fromarray(mask_HW)
        if palette:
            picture.putpalette(palette)
        picture.save(folder / f"{t}.png")


def write_annotated(
    folder: Path, recordings: int = 3, count: int = 6, size: int = 16, labels: int = 3
) -> None:
    """`folder`/videos/<class>/<recording>/0.png ..., and the same in `folder`/masks, of two classes."""
    for class_index, class_name in enumerate(("a", "b")):
        for index in range(recordings):
            frames, masks = annotated_frames(10 * class_index + index, count, size, labels)
            write_frames(folder / "videos" / class_name / f"rec{index}", frames)
            write_masks(folder / "masks" / class_name / f"rec{index}", masks)
