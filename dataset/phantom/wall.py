"""The tube's wall: folds, colour, vessels, moisture, as maps over (z, theta) (see geometry)."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.geometry import (
    COLS,
    LESION_THETA,
    LESION_Z,
    ROWS,
    enlarge,
    linear,
    smooth_noise,
    smoothstep,
    wall_coordinates,
)
from dataset.phantom.tiles import grain, vessel_tree

TISSUES = (  # display colours from pale to deep red
    (226, 168, 150), (218, 146, 122), (214, 128, 104), (206, 112, 96), (196, 96, 84),
    (222, 158, 112), (208, 138, 128), (188, 120, 100),
)  # fmt: skip
SMALLEST_RADIUS = 0.42  # the camera keeps nearer to the axis and never meets a fold


@dataclass(frozen=True)
class Folds:
    """A kind of folds; lengths in radii."""

    corners: int  # of the tube's cross-section
    corner_depth: float
    spacing: float
    depth: float
    width: float
    narrowness: tuple[float, float]  # 0 for full rings, 2 for crescents


FOLDS = {
    "haustra": Folds(3, 0.10, spacing=1.05, depth=0.60, width=0.18, narrowness=(0.8, 2.4)),
    "circular": Folds(2, 0.08, spacing=0.55, depth=0.30, width=0.12, narrowness=(0.1, 0.6)),
    "smooth": Folds(4, 0.12, spacing=1.30, depth=0.13, width=0.35, narrowness=(0.3, 0.3)),
}


@dataclass
class Wall:
    """Maps of ROWS x COLS texels, changed in place by the lesion builders before the clip is rendered."""

    height: np.ndarray  # distance of the wall from the axis, radii
    albedo: np.ndarray  # (3, ROWS, COLS) linear reflectance
    shine: np.ndarray  # strength of the wet highlights, 0 to 1
    bump: np.ndarray  # height of the fine relief that breaks the highlights, radii
    lesion: np.ndarray  # lesion field, 0 to 1; what exceeds the clip's threshold is lesion


@dataclass(frozen=True)
class WallStyle:
    """What one patient's wall looks like, drawn once per clip."""

    folds: str  # a key of FOLDS
    tissue: np.ndarray
    vessels: float  # 0 none to 1 dense
    moisture: float  # 0.25 nearly dry to 1 dripping
    residue: float  # covered share of the wall, 0 to about 0.2


def draw_style(rng: np.random.Generator, folds: tuple[str, ...]) -> WallStyle:
    """A random style whose folds are one of `folds`."""
    tissue = 1.15 * linear(*TISSUES[rng.integers(len(TISSUES))]) ** 1.12
    return WallStyle(
        folds=folds[rng.integers(len(folds))],
        tissue=tissue * rng.uniform(0.88, 1.12, 3).astype(np.float32),
        vessels=float(rng.uniform(0.15, 1)),
        moisture=float(rng.uniform(0.25, 0.85)),
        residue=float(max(0, rng.uniform(-0.25, 0.2))),
    )


def build_wall(style: WallStyle, rng: np.random.Generator) -> Wall:
    """A wall without lesion in the given style."""
    blotches = smooth_noise(rng, 10, 9, step=2) + 0.5 * smooth_noise(rng, 42, 40, step=2)
    pores, droplets, wrinkles = (grain(rng, sigma) for sigma in (1.5, 2.4, 4.5))
    patchy = np.clip(smooth_noise(rng, 8, 7, step=2) + 0.8, 0.15, 1) * (0.15 + 0.85 * style.vessels)
    vessels = vessel_tree(rng)
    vessels *= enlarge(patchy)
    blood = enlarge(0.22 * blotches)  # swallows green and blue, and little of the red
    cv2.scaleAdd(pores, 0.07, blood, blood)
    cv2.scaleAdd(wrinkles, 0.06, blood, blood)
    albedo = np.empty((3, ROWS, COLS), np.float32)
    absorption = zip(albedo, (-0.25, -0.9, -0.8), (-0.35, -1.2, -0.9), style.tissue, strict=True)
    for plane, in_tissue, in_vessel, tone in absorption:
        cv2.addWeighted(blood, in_tissue, vessels, in_vessel, 0, plane)
        cv2.exp(plane, plane)
        plane *= tone
    height = enlarge(folds(FOLDS[style.folds], rng) + 0.03 * blotches)
    cv2.scaleAdd(wrinkles, 0.003, height, height)
    coarse = 0.6 + 0.5 * style.moisture
    bump = cv2.addWeighted(pores, 0.0055 * coarse, droplets, 0.009 * coarse, 0)
    cv2.scaleAdd(wrinkles, 0.006 * coarse, bump, bump)
    wet = smoothstep(-0.3, 0.8, smooth_noise(rng, 30, 24, step=2) + 0.5 * blotches)
    shine = enlarge(style.moisture * wet)
    gloss = smoothstep(-0.3, 0.5, droplets)
    gloss *= 0.9
    gloss += 0.1
    shine *= gloss
    wall = Wall(
        height=np.maximum(height, SMALLEST_RADIUS, out=height),
        albedo=albedo,
        shine=shine,
        bump=bump,
        lesion=np.zeros((ROWS, COLS), np.float32),
    )
    if style.residue > 0:
        add_residue(wall, style.residue, enlarge(blotches), pores)
    return wall


def folds(kind: Folds, rng: np.random.Generator) -> np.ndarray:
    """(ROWS / 2, COLS / 2) radius of the folded tube."""
    z, theta = wall_coordinates(step=2)
    corners = kind.corners * theta + 0.3 * z + rng.uniform(0, 2 * np.pi)
    height = 1 + kind.corner_depth * rng.uniform(0.4, 1) * np.cos(corners)
    spacing, depth = kind.spacing * rng.uniform(0.8, 1.5), kind.depth * rng.uniform(0.65, 1.1)
    where, centre = rng.uniform(0, spacing), rng.uniform(0, 2 * np.pi)
    while where < z[-1, 0]:
        phases = rng.uniform(0, 2 * np.pi, 4).astype(np.float32)
        arc = np.exp(rng.uniform(*kind.narrowness) * (np.cos(theta - centre) - 1))
        arc *= 1 + 0.35 * np.sin(2 * theta + phases[0]) + 0.15 * np.sin(5 * theta + phases[1])
        ridge = where + 0.2 * np.sin(theta + phases[2]) + 0.05 * np.sin(3 * theta + phases[3])
        width = kind.width * rng.uniform(0.75, 1.3)
        near = slice(*np.searchsorted(z[:, 0], (where - 0.25 - 3.5 * width, where + 0.25 + 3.5 * width)))
        x = (z[near] - ridge) / width
        x = np.maximum(x, 1.5 * x)  # steeper behind than in front, as folds hang
        x *= -x
        np.maximum(x, -80, out=x)  # its exponential stays a normal number, which is much faster
        height[near] -= depth * rng.uniform(0.5, 1.1) * arc * cv2.exp(x)
        where += spacing * rng.uniform(0.7, 1.35)
        centre += 2 * np.pi / 3 + rng.normal(0, 0.5)  # each third of the wall in turn
    return height


def add_residue(wall: Wall, share: float, blotches: np.ndarray, pores: np.ndarray) -> None:
    """Patches of yellow-green mucus and stool, thin at their rims."""
    threshold = np.quantile(blotches[::8, ::8], 1 - share)
    cover = 0.6 * smoothstep(threshold - 0.1, threshold + 0.7, blotches + 0.12 * pores)
    uneven = 1 + 0.15 * pores
    for plane, tone in zip(wall.albedo, linear(190, 150, 50), strict=True):
        plane += cover * (tone * uneven - plane)
    wall.shine += 0.5 * cover * (1 - wall.shine)


def clear_view(wall: Wall, margin: float) -> None:
    """Press the folds flat at the lesion site and on the camera's side of it, so that none hides it."""
    z, theta = wall_coordinates()
    along = smoothstep(LESION_Z - 2.2, LESION_Z - 1.2, z) * smoothstep(LESION_Z + 0.8, LESION_Z + 0.35, z)
    around = smoothstep(margin + 0.7, margin, np.abs(theta - LESION_THETA))
    rows, cols = (slice(*np.flatnonzero(weight)[[0, -1]]) for weight in (along, around))
    height = wall.height[rows, cols]
    height += 0.9 * along[rows] * around[:, cols] * (0.98 - height)
