"""One frame's light: what each ray meets, how that is lit from the lens, and the tool before it.

Colours are planes, (3, H, W), linear. Light falls off with the square of the distance, glints where the
finest relief faces the lens, and reddens with depth, where it has met tissue more than once.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.geometry import LESION_Z, linear, smoothstep
from dataset.phantom.instrument import Instrument, draw_wire, shade_rod, shade_wire, trace_rod
from dataset.phantom.trace import Surface, Tube, meet_polyp, sample, trace

DEEP = (-0.22, -0.40, -0.42)  # log of the red, green and blue kept per radius of distance
BLOOD = linear(140, 8, 8)
POLYP_SLOPE = 0.9  # relief of the polyp's skin relative to the wall's
NEAREST = 0.06  # square of the distance at which the light stops growing, radii squared


@dataclass(frozen=True)
class Maps:
    """Wall maps as the renderer samples them."""

    slopes: np.ndarray  # (ROWS, COLS, 4) float32: of height, then of fine relief, along z and along theta
    skin: np.ndarray  # (ROWS, COLS, 4) uint8: square root of red, green, blue; shine
    shade: np.ndarray  # (ROWS / 2, COLS / 2) uint8: share of the light that reaches the texel
    lesion: np.ndarray  # (ROWS / 2, COLS / 2) uint8: lesion field


@dataclass(frozen=True)
class Lit:
    """What the light falls on, planes of (H, W)."""

    depth: np.ndarray
    facing: np.ndarray  # cosine between normal and view
    glint: np.ndarray  # wet highlight, 0 to 1
    skin: np.ndarray  # (3, H, W)
    shade: np.ndarray
    lesion: np.ndarray  # bool


def gather(tube: Tube, maps: Maps, origin: np.ndarray, pyramid: list, threshold: float, bleeds: bool) -> Lit:
    """Trace the surface and look up what its colour depends on."""
    depth = trace(tube, origin, pyramid)
    on_polyp = meet_polyp(tube, origin, pyramid[-1], depth) if tube.polyp else None
    rays = pyramid[-1]
    surface = tube.surface(origin, rays, depth)
    ahead = (surface.z - LESION_Z) * rays[2]
    bent = (cv2.scaleAdd(ahead, -2 * bend, ray) for bend, ray in zip(tube.bend, rays[:2], strict=True))
    rays = (*bent, rays[2])  # in the straightened tube
    col, row = surface.texels()
    seen = on_polyp is not None and on_polyp.any()
    if seen:
        skin_texels = tube.polyp.skin(surface.x[on_polyp], surface.y[on_polyp], surface.z[on_polyp])
        col[on_polyp], row[on_polyp] = (texels.ravel() for texels in skin_texels)
    slopes = cv2.split(sample(maps.slopes, col, row))
    facing, rough = wall_facing(surface, slopes, rays)
    if seen:
        facing[on_polyp], rough[on_polyp] = polyp_facing(tube, surface, slopes, rays, on_polyp)
    *roots, shine = cv2.split(sample(maps.skin, col, row))
    skin = np.empty((3, *depth.shape), np.float32)
    for plane, root in zip(skin, roots, strict=True):
        cv2.multiply(root, root, plane, 1 / 255**2, cv2.CV_32F)
    col, row = 0.5 * col - 0.25, 0.5 * row - 0.25
    field = sample(maps.lesion, col, row) * np.float32(1 / 255)
    if bleeds:
        cover_with_blood(skin, field, threshold)
    return Lit(
        depth=depth,
        facing=cv2.max(facing, 0.03),
        glint=smoothstep(0.985, 0.996, rough) * (shine * np.float32(1 / 255)),
        skin=skin,
        shade=sample(maps.shade, col, row) * np.float32(1 / 255),
        lesion=field > threshold if on_polyp is None else on_polyp,
    )


def wall_facing(surface: Surface, slopes: tuple, rays: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Cosine between view and wall normal, without and with the fine relief."""
    inverse = cv2.max(surface.axis_distance, 0.05)
    np.reciprocal(inverse, out=inverse)
    cosine, sine = surface.x * inverse, surface.y * inverse
    outward = rays[0] * cosine
    outward += rays[1] * sine
    cosine *= rays[1]
    sine *= rays[0]
    around = np.subtract(cosine, sine, out=cosine)
    around *= inverse
    inverse *= inverse
    results = []
    for slope_z, slope_theta in (slopes[:2], (slopes[0] + slopes[2], slopes[1] + slopes[3])):
        across = outward - around * slope_theta
        across -= np.multiply(rays[2], slope_z, out=sine)
        steep = slope_theta * slope_theta
        steep *= inverse
        steep += np.multiply(slope_z, slope_z, out=sine)
        steep += 1
        across /= cv2.sqrt(steep, steep)
        results.append(across)
    return results[0], results[1]


def polyp_facing(tube: Tube, surface: Surface, slopes: tuple, rays: tuple, where: np.ndarray) -> tuple:
    """The same for the points of the polyp, a vector each."""
    ray_x, ray_y, ray_z = (plane[where] for plane in rays)
    x, y, z = tube.polyp.normal(surface.x[where], surface.y[where], surface.z[where])
    facing = -(x * ray_x + y * ray_y + z * ray_z)
    fine_z, fine_theta = POLYP_SLOPE * slopes[2][where], POLYP_SLOPE * slopes[3][where]
    steep = 0.5 * (fine_z * fine_z + fine_theta * fine_theta)
    tilt = fine_z * ray_z + fine_theta * ray_y
    return facing, facing * (1 - steep) + tilt * np.sqrt(np.maximum(0, 1 - facing * facing))


def cover_with_blood(skin: np.ndarray, field: np.ndarray, threshold: float) -> None:
    """Colour `skin` (3, H, W), in place, where blood is deeper than the threshold: bright where thin."""
    thick = smoothstep(threshold - 0.03, threshold + 0.30, field)
    cover = 0.35 * smoothstep(threshold - 0.05, threshold + 0.02, field) + 0.65 * thick
    skin += cover * (BLOOD.reshape(3, 1, 1) * (1.8 - 0.9 * thick) - skin)


def expose(depth: np.ndarray, target: float) -> float:
    """Gain of an automatic exposure that keeps the mean displayed brightness near `target`."""
    distance = depth * depth
    distance += NEAREST
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
