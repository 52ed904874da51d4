"""A tool in front of the lens: forceps, snare or catheter, in camera coordinates (right, down, forward)."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.camera import Oscillation, project, unit
from dataset.phantom.geometry import linear, smoothstep

KINDS = ("forceps", "snare", "catheter")
SHEATHS = (
    linear(96, 140, 170),
    linear(205, 205, 208),
    linear(72, 104, 92),
    linear(196, 170, 90),
    linear(62, 62, 68),
)
METAL = linear(196, 196, 204)
MIRRORED = linear(96, 50, 42).reshape(3, 1, 1)  # the red tube, seen in the tool's flanks
NEAREST = (
    0.5  # square of the distance at which the light on the tool stops growing: the lens exposes for the wall
)


@dataclass(frozen=True)
class Rod:
    """A round rod between two points, tapering from one radius to the other."""

    start: np.ndarray
    end: np.ndarray
    radius: tuple[float, float]
    colour: np.ndarray
    stripes: float = 0.0  # bands per tube radius along the rod


@dataclass(frozen=True)
class Layer:
    """A rod seen through the lens, planes that fill `window` of the picture."""

    window: tuple[slice, slice]
    cover: np.ndarray  # 0 to 1
    depth: np.ndarray  # along the ray
    facing: np.ndarray  # cosine between normal and view
    band: np.ndarray  # 0 to 1, position within a stripe


@dataclass(frozen=True)
class Instrument:
    """One tool; lengths in tube radii, angles in radians."""

    kind: str
    entry: float  # direction in the picture from which it comes
    reach: float  # how far ahead of the lens its tip is
    aim: np.ndarray  # (2,) sideways place of the tip
    radius: float
    colour: np.ndarray
    stripes: float
    push: Oscillation
    wander: tuple[Oscillation, Oscillation]
    opening: Oscillation

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Instrument":
        entry = rng.uniform(0, 2 * np.pi)
        return cls(
            kind=KINDS[rng.integers(len(KINDS))],
            entry=float(entry),
            reach=float(rng.uniform(0.38, 0.6)),
            aim=rng.uniform(-0.10, 0.10, 2) + 0.06 * np.array([np.cos(entry), np.sin(entry)]),
            radius=float(rng.uniform(0.034, 0.05)),
            colour=SHEATHS[rng.integers(len(SHEATHS))],
            stripes=float(rng.choice((0, 0, 9))),
            push=Oscillation.draw(rng, 0.13, 3, 7),
            wander=(Oscillation.draw(rng, 0.06, 3, 6), Oscillation.draw(rng, 0.06, 3, 6)),
            opening=Oscillation.draw(rng, 0.35, 3, 6),
        )

    def rods(self, time: float) -> list[Rod]:
        """The tool's solid parts at a time, from the lens outwards."""
        edge = np.array([np.cos(self.entry), np.sin(self.entry)])
        start = np.array([*(0.24 * edge), 0.02])
        side = self.aim + [wander(time) for wander in self.wander]
        tip = np.array([*side, self.reach + self.push(time)])
        if self.kind != "forceps":
            return [Rod(start, tip, (self.radius, self.radius), self.colour, self.stripes)]
        ahead = unit(tip - start)
        across = unit(np.cross(ahead, [edge[0], edge[1], 0.3]))
        spread = 0.6 + self.opening(time)
        jaws = [unit(ahead + sign * spread * across) for sign in (-1, 1)]
        joint = tip - 0.05 * ahead
        return [
            Rod(start, joint, (self.radius, self.radius), self.colour, self.stripes),
            Rod(joint, tip, (0.8 * self.radius, 0.75 * self.radius), METAL),
            *(Rod(tip, tip + 0.19 * jaw, (0.7 * self.radius, 0.4 * self.radius), METAL) for jaw in jaws),
        ]

    def wire(self, time: float) -> np.ndarray | None:
        """(N, 3) points of the snare's loop, or None for the other tools."""
        if self.kind != "snare":
            return None
        rod = self.rods(time)[0]
        ahead = unit(rod.end - rod.start)
        across = unit(np.cross(ahead, [0.0, 0.0, 1.0]) + 0.3 * ahead)
        phase = np.linspace(0, 2 * np.pi, 48)[:, None]
        out = (1 - np.cos(phase)) / 2
        width = 0.19 + 0.15 * self.opening(time)
        return rod.end + 0.5 * out * ahead + width * np.sin(phase) * np.sqrt(out) * across


def rod_window(rod: Rod, size: int, half_angle: float) -> tuple[slice, slice]:
    """Rows and columns of a (size, size) picture that can show the rod."""
    points = np.linspace(rod.start, rod.end, 9)
    points[:, 2] = np.maximum(points[:, 2], 0)
    spread = 1.3 * max(rod.radius) / np.linalg.norm(points, axis=1, keepdims=True) / half_angle + 0.03
    places = project(points, half_angle)
    low = np.floor(((places - spread).min(axis=0) + 1) * size / 2).astype(int)
    high = np.ceil(((places + spread).max(axis=0) + 1) * size / 2).astype(int)
    (left, top), (right, bottom) = np.clip(low, 0, size - 1), np.clip(high, 1, size)
    return slice(int(top), int(max(bottom, top + 1))), slice(int(left), int(max(right, left + 1)))


def trace_rod(rod: Rod, rays: np.ndarray, half_angle: float) -> Layer:
    """Where rays from the lens, (3, size, size), come closest to the rod; its edge is a pixel wide."""
    size = rays.shape[1]
    window = rod_window(rod, size, half_angle)
    rays = rays[(slice(None), *window)]
    start = rod.start.astype(np.float32)
    axis = rod.end.astype(np.float32) - start
    length = float(np.linalg.norm(axis))
    axis = axis / length
    cosine, along_start = (
        sum(ray * part for ray, part in zip(rays, way, strict=True)) for way in (axis, start)
    )
    share = (along_start * cosine - float(start @ axis)) / (1 - cosine * cosine + 1e-5)
    share = np.minimum(np.maximum(share, 0), length)
    ahead = np.maximum(along_start + share * cosine, 1e-3)
    apart = sum(
        (ray * ahead - begin - share * part) ** 2 for ray, begin, part in zip(rays, start, axis, strict=True)
    )
    distance = np.sqrt(apart)
    radius = rod.radius[0] + (rod.radius[1] - rod.radius[0]) * (share / length)
    facing = np.sqrt(1 - np.minimum(distance / radius, 1) ** 2)
    pixel = ahead * (2 * half_angle / size)
    cover = np.minimum(np.maximum((radius - distance) / pixel + 0.5, 0), 1)
    return Layer(window, cover, ahead - radius * facing, facing, share * rod.stripes % 1)


def shade_rod(rod: Rod, layer: Layer, gain: float) -> np.ndarray:
    """(3, h, w) linear light from the rod: matt body, one line of highlight, darker towards its edges."""
    body = 0.04 + 0.40 * layer.facing**2
    if rod.stripes:
        body *= 1 - 0.6 * smoothstep(0.46, 0.54, layer.band)
    light = rod.colour.reshape(3, 1, 1) * body + 0.5 * smoothstep(0.975, 0.999, layer.facing)
    light += MIRRORED * (1 - layer.facing)
    return light * (gain / (layer.depth**2 + NEAREST))


def shade_wire(wire: np.ndarray, gain: float) -> np.ndarray:
    """(3,) linear light from the snare's wire."""
    return 0.5 * METAL * (gain / (float(np.mean(wire[:, 2])) ** 2 + NEAREST))


def draw_wire(wire: np.ndarray, size: int, half_angle: float) -> np.ndarray:
    """(size, size) cover 0 to 1 of a thin wire, (N, 3) points, drawn four times as large for smooth edges."""
    points = (project(wire, half_angle) + 1) * (size / 2) - 0.5
    canvas = np.zeros((4 * size, 4 * size), np.uint8)
    corners = np.rint((points * 4 + 1.5) * 16).astype(np.int32)
    cv2.polylines(canvas, [corners], False, 255, max(1, round(4 * size * 0.012)), cv2.LINE_AA, shift=4)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
