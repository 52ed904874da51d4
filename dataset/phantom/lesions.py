"""The eight classes: what each adds to a bare wall. Lengths in tube radii, colours linear (see geometry)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dataset.phantom.geometry import (
    ATLAS_ROWS,
    COLS,
    LESION_THETA,
    LESION_Z,
    ROWS,
    WALL_ROWS,
    blur,
    enlarge,
    linear,
    smooth_noise,
    smoothstep,
    wall_coordinates,
)
from dataset.phantom.instrument import Instrument
from dataset.phantom.paint import EVERYWHERE, Patch, either_side, mottled, polyp_colour, scatter, tint
from dataset.phantom.polyp import Polyp
from dataset.phantom.wall import Wall, clear_view


@dataclass(frozen=True)
class Contents:
    """What a clip shows beside its wall."""

    polyp: Polyp | None = None
    instrument: Instrument | None = None
    bleeds: bool = False  # the wall's lesion field is the depth of blood, and spreads with time


@dataclass(frozen=True)
class Recipe:
    """How the clips of one class are made."""

    build: Callable[[Wall, np.random.Generator], Contents]
    folds: tuple[str, ...]
    gaze: tuple[float, float]


def clear_lumen(wall: Wall, rng: np.random.Generator) -> Contents:
    """Nothing but the tube."""
    return Contents()


def sessile_polyp(wall: Wall, rng: np.random.Generator) -> Contents:
    """One or two broad domes with a nodular, often redder or paler surface."""
    clear_view(wall, margin=0.6)
    lobes = enlarge(smooth_noise(rng, 78, 80, step=2))
    colour = polyp_colour(wall, rng)
    for scale, z, theta in scatter(rng, rng.choice((1, 1, 1, 2))):
        size = rng.uniform(0.50, 0.68) * scale
        patch = Patch.draw(wall, rng, z, theta, size, rough=0.1)
        here = lobes[patch.window]
        dome = np.sqrt(np.maximum(0, 1 - patch.radius**2)) * smoothstep(1.02, 0.8, patch.radius)
        height = size * rng.uniform(0.35, 0.6)
        wall.height[patch.window] -= height * dome * (1 + rng.uniform(0.05, 0.22) * here)
        inside = smoothstep(1.05, 0.85, patch.radius)
        tint(wall, patch.window, 0.75 * inside, mottled(colour, here, (0.15, 0.4, 0.35)))
        groove = np.exp(-(((patch.radius - 1.06) / 0.10) ** 2))  # the shaded angle between polyp and wall
        wall.albedo[(slice(None), *patch.window)] *= 1 - 0.45 * groove
        wall.bump[patch.window] *= 1 - 0.35 * inside
        wall.shine[patch.window] = np.maximum(wall.shine[patch.window], 0.8 * inside)
        wall.lesion[patch.window] = np.maximum(wall.lesion[patch.window], patch.radius < 1)
    return Contents()


def pedunculated_polyp(wall: Wall, rng: np.random.Generator) -> Contents:
    """A round head on a stalk, free to swing; its skin is the disc in the atlas rows of the maps."""
    clear_view(wall, margin=0.6)
    lobes = 0.6 * smooth_noise(rng, 66, 60) + 0.5 * smooth_noise(rng, 170, 150)
    head = slice(WALL_ROWS, ROWS)
    skin = mottled(polyp_colour(wall, rng), lobes[head], (0.3, 0.9, 0.75))
    y, x = np.mgrid[-1 : 1 : ATLAS_ROWS * 1j, -COLS / ATLAS_ROWS : COLS / ATLAS_ROWS : COLS * 1j]
    neck = smoothstep(1.0, 0.6, np.hypot(x, y)).astype(np.float32)  # the foot is like the wall
    tint(wall, (head, slice(None)), 0.75 * neck, skin)
    wall.height[head] = 1.0
    wall.bump[head] = 0.9 * wall.bump[head] + 0.010 * lobes[head]
    wall.shine[head] = 0.9
    return Contents(polyp=Polyp.draw(rng))


def ulcer(wall: Wall, rng: np.random.Generator) -> Contents:
    """One or two ulcers: swollen red rim, ragged base of yellow-white fibrin with specks of old blood."""
    clear_view(wall, margin=0.6)
    rough = enlarge(0.6 * smooth_noise(rng, 85, 90, step=2) + 0.6 * smooth_noise(rng, 36, 36, step=2))
    fibrin = linear(*((255, 246, 224), (255, 238, 188), (246, 246, 238))[rng.integers(3)])
    for scale, z, theta in scatter(rng, rng.choice((1, 1, 2))):
        size = rng.uniform(0.40, 0.60) * scale
        patch = Patch.draw(wall, rng, z, theta, size, rough=0.16)
        here = rough[patch.window]
        radius = patch.radius + 0.2 * here
        rim = np.exp(-(((radius - 1.15) / 0.25) ** 2))
        base = smoothstep(1.06, 0.72, radius)
        wall.height[patch.window] -= size * (0.10 * base + 0.14 * rim)
        halo = np.exp(-((np.maximum(radius - 1.1, 0) / 0.5) ** 2))
        tint(wall, patch.window, 0.9 * halo, linear(142, 24, 26))
        tint(wall, patch.window, 0.92 * base, mottled(fibrin, here, (0.06, 0.12, 0.20)))
        raw = base * smoothstep(0.15, 0.9, here + 0.5 * (radius - 0.6))  # where the fibrin has come off
        tint(wall, patch.window, 0.55 * raw, linear(206, 92, 70))
        specks = base * smoothstep(0.66, 0.9, -here)
        tint(wall, patch.window, 0.55 * specks, linear(136, 52, 34))
        wall.shine[patch.window] = np.maximum(wall.shine[patch.window], 0.7 * base)
        wall.lesion[patch.window] = np.maximum(wall.lesion[patch.window], radius < 1.0)
    return Contents()


def varices(wall: Wall, rng: np.random.Generator) -> Contents:
    """Three to five tortuous, beaded, bluish columns running along the tube, some with red wale marks."""
    z, theta = wall_coordinates(step=2)
    blue = linear(*((104, 88, 136), (122, 84, 120), (96, 98, 142))[rng.integers(3)])
    count = int(rng.integers(3, 6))
    away = np.full((ROWS // 2, COLS // 2), 9, np.float32)  # from the nearest column's middle, in half widths
    for index in range(count):
        course = 2 * np.pi * (index + rng.uniform(-0.2, 0.2)) / count + np.pi
        for period in (1.9, 1.1, 0.6):
            sine = np.sin(2 * np.pi * z / period + rng.uniform(0, 6.3))
            course = course + 0.10 * period * rng.uniform(0.4, 1.2) * sine
        beads = 1 + 0.16 * np.sin(2 * np.pi * z / rng.uniform(0.5, 0.9) + rng.uniform(0, 6.3))
        half_width = rng.uniform(0.20, 0.32) * beads * smoothstep(-0.3, 0.6, z)
        turned = np.abs(theta - course % (2 * np.pi))
        away = np.minimum(away, np.minimum(turned, 2 * np.pi - turned) / half_width)
    column = np.sqrt(np.maximum(0, 1 - np.minimum(away / 1.25, 1) ** 2)) * smoothstep(1.25, 0.7, away)
    wall.height -= enlarge(rng.uniform(0.14, 0.23) * column)
    tint(wall, EVERYWHERE, enlarge(0.78 * smoothstep(1.15, 0.35, away)), blue)
    if rng.integers(2):
        marks = smoothstep(0.55, 0.75, smooth_noise(rng, 85, 70, step=2)) * smoothstep(0.8, 0.4, away)
        tint(wall, EVERYWHERE, enlarge(0.75 * marks), linear(168, 24, 26))
    wall.shine += enlarge(0.6 * smoothstep(1.1, 0.6, away)) * (0.9 - wall.shine)
    wall.lesion[:] = enlarge(away) < 1
    return Contents()


def diverticulum(wall: Wall, rng: np.random.Generator) -> Contents:
    """Two to four round mouths of dark pouches between the folds."""
    clear_view(wall, margin=0.9)
    more = [(rng.uniform(-0.75, 0.6), either_side(rng, 0.42, 1.0)) for _ in range(rng.integers(1, 4))]
    for dz, dtheta in [(0.0, 0.0), *more]:
        size = rng.uniform(0.22, 0.33)
        patch = Patch.draw(wall, rng, LESION_Z + dz, LESION_THETA + dtheta, size, rough=0.06)
        inside = smoothstep(1.0, 0.6, patch.radius)
        lip = np.exp(-(((patch.radius - 1.15) / 0.2) ** 2))
        wall.height[patch.window] += size * (1.1 * inside - 0.06 * lip)
        depth = smoothstep(1.02, 0.5, patch.radius)
        tint(wall, patch.window, 0.95 * depth, linear(30, 8, 6))
        tint(wall, patch.window, 0.10 * lip, linear(232, 176, 150))
        wall.shine[patch.window] *= 1 - 0.9 * smoothstep(1.5, 1.1, patch.radius)
        wall.bump[patch.window] *= 1 - 0.9 * depth
        wall.lesion[patch.window] = np.maximum(wall.lesion[patch.window], patch.radius < 1)
    return Contents()


def bleeding(wall: Wall, rng: np.random.Generator) -> Contents:
    """A spot that bleeds: streams run from it down the wall into a pool, and spread while one looks."""
    clear_view(wall, margin=0.7)
    ragged = 0.55 * smooth_noise(rng, 24, 24, step=2) + 0.45 * smooth_noise(rng, 64, 64, step=2)
    depth = np.zeros_like(ragged)
    down = either_side(rng, 0.6, 1.0)  # where the pool lies, radians from the spot
    z, theta = wall_coordinates(step=2)
    theta = theta - LESION_THETA
    fall = theta / down  # 0 at the spot, 1 at the pool
    for _ in range(rng.integers(1, 4)):
        course = LESION_Z + rng.uniform(-0.5, 0.5) * fall + 0.06 * np.sin(5 * fall + rng.uniform(0, 6.3))
        width = rng.uniform(0.11, 0.19) * (0.7 + 0.6 * np.clip(fall, 0, 1))
        within = smoothstep(-0.12, 0.05, fall) * smoothstep(1.25, 0.95, fall)
        depth = np.maximum(depth, within * (1.05 - 0.5 * np.abs(z - course) / width))
    pool = np.hypot((z - LESION_Z) / rng.uniform(0.7, 1.2), (theta - down) / rng.uniform(0.4, 0.6))
    spot = np.hypot(z - LESION_Z, theta) / rng.uniform(0.18, 0.28)
    depth = np.maximum(depth, np.maximum(1.1 - 0.55 * pool, 1.1 - 0.55 * spot))
    depth = np.clip(depth + 0.22 * ragged, 0, 1)
    wall.lesion[:] = enlarge(depth)
    wet = smoothstep(0.45, 0.7, depth)
    wall.height -= enlarge(0.035 * blur(wet, 1.0))
    wet = enlarge(wet)
    wall.bump *= 1 - 0.55 * wet
    wall.shine += wet * (1 - wall.shine)
    tint(wall, EVERYWHERE, enlarge(0.4 * smoothstep(0.1, 0.5, depth)), linear(190, 60, 50))
    return Contents(bleeds=True)


def instrument(wall: Wall, rng: np.random.Generator) -> Contents:
    """Forceps, a snare or a catheter that enters from the edge of the picture."""
    return Contents(instrument=Instrument.draw(rng))


ANY_FOLDS = ("haustra", "haustra", "circular", "smooth")
RECIPES = {
    recipe.build.__name__: recipe
    for recipe in (
        Recipe(bleeding, ANY_FOLDS, gaze=(0.4, 0.7)),
        Recipe(clear_lumen, ANY_FOLDS, gaze=(0.0, 0.5)),
        Recipe(diverticulum, ("haustra", "haustra", "smooth"), gaze=(0.45, 0.75)),
        Recipe(instrument, ANY_FOLDS, gaze=(0.0, 0.5)),
        Recipe(pedunculated_polyp, ANY_FOLDS, gaze=(0.35, 0.7)),
        Recipe(sessile_polyp, ANY_FOLDS, gaze=(0.4, 0.7)),
        Recipe(ulcer, ANY_FOLDS, gaze=(0.45, 0.75)),
        Recipe(varices, ("smooth",), gaze=(0.0, 0.35)),
    )
}
