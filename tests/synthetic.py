"""Small made-up recordings for tests: a coloured texture per class that drifts under a camera."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset.video import write_mp4


def moving_texture(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """(frames, height, width, 3) uint8: a smooth random texture of a random colour that drifts.

    No frame is black, overexposed or equal to the one before.
    """
    random = np.random.default_rng(seed)
    size = max(height, width) + 2 * frames
    coarse = random.uniform(0, 1, (size // 8 + 2, size // 8 + 2, 1)).astype(np.float32)
    texture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)[..., None].clip(0, 1)
    picture = (60 + texture * random.uniform(60, 150, 3)).astype(np.uint8)
    return np.stack([picture[2 * t : 2 * t + height, t : t + width] for t in range(frames)])


def write_class_videos(
    folder: Path, classes: Sequence[str] = ("a", "b"), recordings: int = 2, frames: int = 40, size: int = 64,
    fps: float = 25.0,
) -> list[Path]:
    """Write `folder`/<class>/recording<i>.mp4, `size` pixels square; returns the paths."""
    paths = []
    for label, class_name in enumerate(classes):
        for index in range(recordings):
            path = Path(folder) / class_name / f"recording{index}.mp4"
            write_mp4(path, moving_texture(100 * label + index, frames, size, size), fps)
            paths.append(path)
    return paths
