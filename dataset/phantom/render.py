"""One frame's light: what each ray meets, how that is lit from the lens, and the tool before it.

Colours are planes, (3, H, W), linear. Light falls off with the square of the distance, glints where the
finest relief faces the lens, and reddens with depth, where it has met tissue more than once.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.geometry import COLS_PER_RADIAN, ROWS_PER_UNIT, WALL_ROWS, clamp, linear, smoothstep
from dataset.phantom.instrument import Instrument, draw_wire, shade_rod, shade_wire, trace_rod
from dataset.phantom.paths import Paths
from dataset.phantom.trace import Tube, meet_polyp, pick, sample, trace

DEEP = (-0.22, -0.40, -0.42)  # log of the red, green and blue kept per radius of distance
BLOOD = linear(140, 8, 8)
RELIEF_SCALE = 85  # of slopes of the fine relief, -1.5 to 1.5, to bytes
POLYP_SLOPE = 0.9  # relief of the polyp's skin relative to the wall's
NEAREST = 0.06  # square of the distance at which the light stops growing, radii squared


@dataclass(frozen=True)
class Maps:
    """Wall maps as the renderer samples them."""

    shape: np.ndarray  # (ROWS / 2, COLS / 2, 4) float32: slopes along z and theta, share of light, lesion
    relief: np.ndarray  # (ROWS, COLS, 4) uint8: 128 + RELIEF_SCALE * slopes of the fine relief, twice
    skin: np.ndarray  # (ROWS, COLS, 4) uint8: square root of red, green, blue; shine


@dataclass(frozen=True)
class Lit:
    """What the light falls on, planes of (H, W)."""

    depth: np.ndarray
    facing: np.ndarray  # cosine between normal and view
    glint: np.ndarray  # wet highlight, 0 to 1
    skin: np.ndarray  # (3, H, W)
    shade: np.ndarray
    lesion: np.ndarray  # bool


def gather(
    tube: Tube, maps: Maps, depth: np.ndarray, pyramid: list[Paths], threshold: float, bleeds: bool
) -> Lit:
    """Trace the surface from the coarsest picture's depth on, and look up what its colour depends on."""
    depth, paths = trace(tube, depth, pyramid), pyramid[-1]
    on_polyp = meet_polyp(tube.polyp, paths, depth) if tube.polyp else None
    points, rays = paths.at(depth), paths.heading(depth)
    axis_distance, col = cv2.cartToPolar(points[0], points[1])
    col *= COLS_PER_RADIAN
    row = points[2] * np.float32(ROWS_PER_UNIT)
    clamp(row, 0, WALL_ROWS - 1)
    where = np.flatnonzero(on_polyp) if tube.polyp else np.empty(0)
    if where.size:
        met = pick(points, where)[:, 0]
        for plane, texels in zip((col, row), tube.polyp.skin(met), strict=True):
            np.put(plane, where, texels)
    *slopes, shade, field = planes(sample(maps.shape, 0.5 * col - 0.25, 0.5 * row - 0.25))
    fine = planes(sample(maps.relief, col, row)[..., :2]) * np.float32(1 / RELIEF_SCALE)
    fine -= 128 / RELIEF_SCALE
    facing, rough = wall_facing(points, axis_distance, slopes, fine, rays)
    if where.size:
        cosines = polyp_facing(tube.polyp.normal(met), pick(rays, where)[:, 0], pick(fine, where)[:, 0])
        for plane, cosine in zip((facing, rough), cosines, strict=True):
            np.put(plane, where, cosine)
    *roots, shine = planes(sample(maps.skin, col, row))
    skin = np.empty((3, *depth.shape), np.float32)
    for plane, root in zip(skin, roots, strict=True):
        cv2.multiply(root, root, plane, 1 / 255**2, cv2.CV_32F)
    if bleeds:
        cover_with_blood(skin, field, threshold)
    return Lit(
        depth=depth,
        facing=cv2.max(facing, 0.03),
        glint=smoothstep(0.985, 0.996, rough) * (shine * np.float32(1 / 255)),
        skin=skin,
        shade=shade,
        lesion=field > threshold if on_polyp is None else on_polyp,
    )


def planes(image: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (C, H, W). `cv2.split` writes past the caches, which makes it and what follows slower."""
    return np.moveaxis(image, -1, 0).copy()


def wall_facing(
    points: np.ndarray, axis_distance: np.ndarray, slopes: list, fine: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine between view and wall normal, without and with the fine relief."""
    inverse = cv2.max(axis_distance, 0.05)
    np.reciprocal(inverse, out=inverse)
    cosine, sine = points[0] * inverse, points[1] * inverse
    outward = rays[0] * cosine
    outward += rays[1] * sine
    cosine *= rays[1]
    sine *= rays[0]
    around = np.subtract(cosine, sine, out=cosine)
    around *= inverse
    inverse *= inverse
    results = []
    for slope_z, slope_theta in (slopes, (slopes[0] + fine[0], slopes[1] + fine[1])):
        across = outward - around * slope_theta
        across -= np.multiply(rays[2], slope_z, out=sine)
        steep = slope_theta * slope_theta
        steep *= inverse
        steep += np.multiply(slope_z, slope_z, out=sine)
        steep += 1
        across /= cv2.sqrt(steep, steep)
        results.append(across)
    return results[0], results[1]


def polyp_facing(normal: np.ndarray, rays: np.ndarray, fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for N points of the polyp, from their normals (3, N)."""
    facing, fine = -np.einsum("ij,ij->j", normal, rays), POLYP_SLOPE * fine
    steep = 0.5 * np.einsum("ij,ij->j", fine, fine)
    tilt = fine[0] * rays[2] + fine[1] * rays[1]
    return facing, facing * (1 - steep) + tilt * np.sqrt(np.maximum(0, 1 - facing * facing))


def cover_with_blood(skin: np.ndarray, field: np.ndarray, threshold: float) -> None:
    """Colour `skin` (3, H, W), in place, where blood is deeper than the threshold: bright where thin."""
    thick = smoothstep(threshold - 0.03, threshold + 0.30, field)
    cover = 0.35 * smoothstep(threshold - 0.05, threshold + 0.02, field) + 0.65 * thick
    skin += cover * (BLOOD.reshape(3, 1, 1) * (1.8 - 0.9 * thick) - skin)


def expose(depth: np.ndarray, target: float) -> float:
    """Gain of an automatic exposure that keeps the mean displayed brightness near `target`."""
    distance = depth[::2, ::2] ** 2 + NEAREST
    return float((target / np.mean(1 / cv2.sqrt(distance, distance))) ** 2)


def shade_frame(lit: Lit, gain: float, lamp: np.ndarray) -> np.ndarray:
    """(3, H, W) linear light that reaches the sensor under a lamp of colour (3,)."""
    falloff = lit.depth * lit.depth
    falloff += NEAREST
    np.divide(gain, falloff, out=falloff)
    direct = 0.64 * lit.facing
    direct += 0.36
    direct *= falloff
    bounced = lit.depth + 0.4
    bounced *= bounced
    np.divide(0.10 * gain, bounced, out=bounced)
    glint = cv2.min(falloff, 1)
    glint *= cv2.min(falloff, 2)
    glint *= lit.glint
    light = np.empty_like(lit.skin)
    for plane, skin, deep, tone in zip(light, lit.skin, DEEP, lamp, strict=True):
        cv2.sqrt(skin, plane)
        plane *= bounced
        plane += direct
        plane *= lit.shade
        plane *= skin
        cv2.scaleAdd(glint, 5.0, plane, plane)
        plane *= tone * cv2.exp(deep * lit.depth)
    return light


def add_instrument(
    light: np.ndarray,
    depth: np.ndarray,
    tool: Instrument,
    time: float,
    rays: np.ndarray,
    half_angle: float,
    gain: float,
) -> np.ndarray:
    """Draw the tool, with the shadow it throws, over `light` (3, H, W), in place; returns its (H, W) mask."""
    size = rays.shape[1]
    cover = np.zeros((size, size), np.float32)
    parts = []
    for rod in tool.rods(time):
        layer = trace_rod(rod, rays, half_angle)
        layer.cover[:] *= smoothstep(
            -0.03, 0.03, depth[layer.window] - layer.depth
        )  # tissue may stand before it
        parts.append((layer, shade_rod(rod, layer, gain)))
        cover[layer.window] = np.maximum(cover[layer.window], layer.cover)
    wire = tool.wire(time)
    loop = None if wire is None else draw_wire(wire, size, half_angle)
    if loop is not None:
        cover = np.maximum(cover, loop)
    light *= 1 - 0.45 * cv2.GaussianBlur(cover, (0, 0), 0.03 * size)
    if loop is not None:
        light += loop * (shade_wire(wire, gain).reshape(3, 1, 1) - light)
    for layer, colour in reversed(parts):  # they come from the lens outwards
        behind = light[(slice(None), *layer.window)]
        behind += layer.cover * (colour - behind)
    return cover > 0.5
