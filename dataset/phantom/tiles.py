"""Fine texture, drawn once per process as a few tiles that wrap in both directions; clips shuffle them."""

from functools import cache

import cv2
import numpy as np

from dataset.phantom.geometry import COLS, ROWS

TILES = 8
MARGIN = 32  # texels, more than any blur here reaches


def grain(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """(ROWS, COLS) noise of unit variance with grains of about 2 * `sigma` texels."""
    return shuffled(grain_tile(int(rng.integers(TILES)), sigma), rng)


def vessel_tree(rng: np.random.Generator) -> np.ndarray:
    """(ROWS, COLS) vessel trees, 0 to about 1."""
    return shuffled(vessel_tile(int(rng.integers(TILES))), rng)


def shuffled(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tile turned over and shifted at random."""
    tile = tile[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    return np.roll(tile, (rng.integers(ROWS), rng.integers(COLS)), (0, 1))


@cache
def grain_tile(index: int, sigma: float) -> np.ndarray:
    """Blurred white noise."""
    noise = np.random.default_rng([index, 1]).standard_normal((ROWS, COLS), np.float32)
    noise = wrapped_blur(noise, sigma)
    return noise / noise.std()


@cache
def vessel_tile(index: int) -> np.ndarray:
    """Random walks, each bearing thinner ones."""
    rng = np.random.default_rng([index, 2])
    canvas = np.zeros((3 * ROWS, 3 * COLS), np.uint8)
    start = rng.uniform((COLS, ROWS), (2 * COLS, 2 * ROWS), (22, 2))
    heading = rng.uniform(0, 2 * np.pi, len(start))
    for thickness, length, darkness in ((3, 150, 210), (2, 90, 190), (1, 60, 200), (1, 34, 130)):
        turns = rng.normal(0, 0.13, (len(start), length // 2)).cumsum(axis=1) + heading[:, None]
        walks = start[:, None] + 2 * np.stack([np.cos(turns), np.sin(turns)], axis=-1).cumsum(axis=1)
        lines = list(np.rint(walks * 8).astype(np.int32))
        cv2.polylines(canvas, lines, False, darkness, thickness, cv2.LINE_AA, shift=3)
        parent = rng.integers(len(start), size=2 * len(start))
        joint = rng.integers(walks.shape[1] // 5, walks.shape[1], size=len(parent))
        start = walks[parent, joint]
        turn = rng.choice((-1, 1), len(parent)) * rng.uniform(0.4, 1.1, len(parent))
        heading = turns[parent, joint] + turn
    tile = canvas.reshape(3, ROWS, 3, COLS).max(axis=(0, 2)).astype(np.float32) / 255
    return 0.6 * wrapped_blur(tile, 0.8) + 0.6 * wrapped_blur(tile, 2.2)


def wrapped_blur(tile: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur round both seams."""
    wide = cv2.copyMakeBorder(tile, MARGIN, MARGIN, MARGIN, MARGIN, cv2.BORDER_WRAP)
    return cv2.GaussianBlur(wide, (0, 0), sigma)[MARGIN:-MARGIN, MARGIN:-MARGIN]
