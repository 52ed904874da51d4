"""How lesions are laid on the wall: places, outlines, colours. Lengths in tube radii, colours linear."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dataset.phantom.geometry import (
    COLS,
    COLS_PER_RADIAN,
    LESION_THETA,
    LESION_Z,
    ROWS_PER_UNIT,
    WALL_ROWS,
    linear,
)
from dataset.phantom.wall import Wall

EVERYWHERE = (slice(None), slice(None))
POLYP_TONES = (linear(206, 84, 72), linear(222, 168, 150), linear(190, 70, 70), linear(226, 150, 96))


@dataclass(frozen=True)
class Patch:
    """A window of the wall maps around one lesion, which has an irregular outline; 2.2 lesions wide."""

    window: tuple[slice, slice]
    radius: np.ndarray  # 0 at the centre, 1 on the outline

    @classmethod
    def draw(
        cls, wall: Wall, rng: np.random.Generator, z: float, theta: float, size: float, rough: float
    ) -> "Patch":
        """A patch of radius `size` at (z, theta); its outline deviates by about `rough` of that."""
        row, col = z * ROWS_PER_UNIT, theta * COLS_PER_RADIAN
        girth = float(np.clip(wall.height[int(row), int(col)], 0.6, 1.2))
        rows = window(row, 2.2 * size * ROWS_PER_UNIT, WALL_ROWS)
        cols = window(col, 2.2 * size * COLS_PER_RADIAN / girth, COLS)
        along = (np.arange(rows.start, rows.stop, dtype=np.float32) - row)[:, None] / ROWS_PER_UNIT
        around = (np.arange(cols.start, cols.stop, dtype=np.float32) - col)[None] * (girth / COLS_PER_RADIAN)
        angle = np.arctan2(along, around)
        radius = np.hypot(along, around * rng.uniform(0.75, 1.0)) * (1 / size)
        for waves in range(2, 7):
            depth = rough * rng.uniform(-1, 1) / waves**0.5
            radius *= 1 + depth * np.cos(waves * angle + rng.uniform(0, 6.3))
        return cls((rows, cols), radius)


def window(centre: float, reach: float, end: int) -> slice:
    """The texels within `reach` of `centre`, inside 0 to `end`."""
    return slice(max(0, int(centre - reach)), min(end, int(centre + reach) + 1))


def scatter(rng: np.random.Generator, count: int) -> Iterator[tuple[float, float, float]]:
    """(relative size, z, theta) of `count` lesions: one at the lesion site, smaller ones around it."""
    yield 1.0, LESION_Z, LESION_THETA
    for _ in range(count - 1):
        yield 0.58, LESION_Z + rng.uniform(-0.45, 0.55), LESION_THETA + either_side(rng, 0.55, 0.95)


def either_side(rng: np.random.Generator, low: float, high: float) -> float:
    """Between `low` and `high`, or between their negatives."""
    return float(rng.choice((-1, 1))) * rng.uniform(low, high)


def tint(wall: Wall, window: tuple[slice, slice], weight: np.ndarray, colour: np.ndarray) -> None:
    """Mix `colour`, (3,) or (3, h, w), into a window of the albedo, by `weight` 0 to 1."""
    for plane, tone in zip(wall.albedo, colour, strict=True):
        change = tone - plane[window]
        change *= weight
        plane[window] += change


def mottled(colour: np.ndarray, noise: np.ndarray, strength: tuple[float, float, float]) -> np.ndarray:
    """(3, h, w): a colour that follows noise (h, w), channel by channel."""
    return colour.reshape(3, 1, 1) * (1 + np.array(strength, np.float32).reshape(3, 1, 1) * noise)


def polyp_colour(wall: Wall, rng: np.random.Generator) -> np.ndarray:
    """Redder, paler or yellower than the wall it grows on."""
    tissue = wall.albedo[:, WALL_ROWS // 2 : WALL_ROWS : 8, ::8].mean(axis=(1, 2))
    return (0.35 * tissue + 0.65 * POLYP_TONES[rng.integers(len(POLYP_TONES))]).astype(np.float32)
