"""`render_clip`: one clip of one class, from a seed."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.camera import Camera, Oscillation, ray_directions
from dataset.phantom.film import Film, Optics
from dataset.phantom.geometry import (
    COLS_PER_RADIAN,
    LESION_Z,
    ROWS_PER_UNIT,
    WALL_ROWS,
    blur,
    smoothstep,
    wall_coordinates,
)
from dataset.phantom.lesions import RECIPES, Contents
from dataset.phantom.paths import Paths
from dataset.phantom.render import RELIEF_SCALE, Maps, add_instrument, expose, gather, shade_frame
from dataset.phantom.trace import SHAPE_STEP, Tube, picture_sizes, trace_first
from dataset.phantom.wall import Wall, build_wall, draw_style

CLASS_NAMES: tuple[str, ...] = tuple(sorted(RECIPES))


@dataclass(frozen=True)
class Scene:
    """Everything a clip's frames have in common."""

    maps: Maps
    height: np.ndarray
    contents: Contents
    camera: Camera
    optics: Optics
    bend: np.ndarray
    drift: tuple[Oscillation, Oscillation]
    wave: tuple[float, float, float]  # peristalsis: amplitude, wave number per radius, radians per second
    target: np.ndarray

    def views(self, times: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The camera's position (3,) and rotation (3, 3), and the tube's curvature (2,), at each time."""
        bends = np.stack([bend + drift(times) for bend, drift in zip(self.bend, self.drift, strict=True)])
        positions, rotations = self.camera.pose(times, self.target, bends)
        return list(zip(positions.T, rotations.swapaxes(0, 1), bends.T.astype(np.float32), strict=True))

    def tube(self, time: float) -> Tube:
        """The wall at a time."""
        amplitude, number, speed = self.wave
        z = wall_coordinates(SHAPE_STEP)[0][: len(self.height)]
        girth = 1 + amplitude * np.sin(number * z - speed * time)
        return Tube(self.height * girth, self.contents.polyp and self.contents.polyp.at(time))

    def narrowest(self) -> Tube:
        """The wall as narrow as the waves of peristalsis make it anywhere: at no time is it nearer."""
        return Tube(self.height * (1 - np.float32(self.wave[0])), None)

    def threshold(self, time: float) -> float:
        """What exceeds it in the lesion map is lesion; falls while blood spreads, for about 20 seconds."""
        return 0.5 if not self.contents.bleeds else 0.40 + 0.18 * float(np.exp(-time / 6))


def build_scene(label: int, seed: int, view: str = "any") -> Scene:
    """Draw a scene of class `label`, seen through an endoscope of a given view (see film) or of any."""
    recipe = RECIPES[CLASS_NAMES[label]]
    rng = np.random.default_rng([seed, label])
    wall = build_wall(draw_style(rng, recipe.folds), rng)
    contents = recipe.build(wall, rng)
    shape = wall.height[:WALL_ROWS:SHAPE_STEP, ::SHAPE_STEP]
    angle, curvature = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.19)
    return Scene(
        maps=pack(wall),
        height=cv2.copyMakeBorder(shape, 0, 0, 0, 1, cv2.BORDER_WRAP),
        contents=contents,
        camera=Camera.draw(rng, recipe.gaze),
        optics=Optics.draw(rng, view),
        bend=curvature * np.array([np.cos(angle), np.sin(angle)]),
        drift=(Oscillation.draw(rng, 0.012, 4, 8), Oscillation.draw(rng, 0.012, 4, 8)),
        wave=(float(rng.uniform(0.01, 0.035)), float(rng.uniform(1.5, 3)), float(rng.uniform(0.6, 1.6))),
        target=np.array([-0.8, 0.0, LESION_Z]),
    )


def pack(wall: Wall) -> Maps:
    """Wall maps -> the slopes, shade and colours that the renderer samples."""
    height, lesion = halve(wall.height), halve(wall.lesion)
    hollow = height - cv2.resize(blur(height[::2, ::2], 3.5), height.shape[::-1])
    shade = 0.64 - 0.52 * smoothstep(0.0, 0.32, hollow) + 0.36 * smoothstep(0.02, -0.2, hollow)  # crests glow
    relief = [cv2.convertScaleAbs(slope, alpha=RELIEF_SCALE, beta=128) for slope in slopes(wall.bump)]
    skin = [*(cv2.sqrt(plane) for plane in wall.albedo), wall.shine]
    images = (
        [*map(halve, slopes(wall.height)), shade, lesion],
        2 * relief,
        [cv2.convertScaleAbs(plane, alpha=255) for plane in skin],
    )
    return Maps(*(cv2.merge(image).copy() for image in images))  # `merge` writes past the caches


def slopes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of a wall map along z and along theta."""
    wide = cv2.copyMakeBorder(image, 0, 0, 1, 1, cv2.BORDER_WRAP)
    along = cv2.Sobel(wide, cv2.CV_32F, 0, 1, scale=ROWS_PER_UNIT / 8)
    around = cv2.Sobel(wide, cv2.CV_32F, 1, 0, scale=COLS_PER_RADIAN / 8)
    return along[:, 1:-1], around[:, 1:-1]


def halve(image: np.ndarray) -> np.ndarray:
    """A wall map of half as many rows and columns."""
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def render_clip(
    label: int, seed: int, frames: int = 16, size: int = 128, fps: float = 8.0, view: str = "any"
) -> tuple[np.ndarray, np.ndarray]:
    """Render class CLASS_NAMES[label]: frames (T, size, size, 3) uint8 RGB, masks (T, size, size) bool.

    A pure function. `size` changes only the resolution, `frames` only how long the same motion is followed,
    `fps` how finely. `view` is the shape of the picture: "round", "octagon", "barrel" or "full" always,
    or "any". The masks show the lesion, are empty for clear_lumen and show the tool for instrument.
    """
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"label {label}: must be 0 to {len(CLASS_NAMES) - 1}")
    scene = build_scene(label, seed, view)
    first, *pyramid = (ray_directions(pixels, scene.camera.half_angle) for pixels in picture_sizes(size))
    film = Film.draw(scene.optics, size, np.random.default_rng([seed, label, size]))
    pictures = np.empty((frames, size, size, 3), np.uint8)
    masks = np.empty((frames, size, size), bool)
    views = scene.views(np.arange(frames) / fps)
    depths = trace_first(scene.narrowest(), [Paths.of(first, *view) for view in views])
    for index, (view, depth) in enumerate(zip(views, depths, strict=True)):
        paths = [Paths.of(rays, *view) for rays in pyramid]
        light, mask = render_light(scene, index / fps, depth, paths, pyramid[-1])
        pictures[index] = film.develop(light, index)
        masks[index] = mask & film.inside
    return pictures, masks


def render_light(
    scene: Scene, time: float, depth: np.ndarray, paths: list[Paths], rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear light on the sensor at a time, (3, H, W), and the lesion mask, (H, W) bool."""
    tube = scene.tube(time)
    lit = gather(tube, scene.maps, depth, paths, scene.threshold(time), scene.contents.bleeds)
    gain = expose(lit.depth, scene.optics.brightness)
    light = shade_frame(lit, gain, scene.optics.lamp)
    tool = scene.contents.instrument
    if tool is None:
        return light, lit.lesion
    mask = add_instrument(light, lit.depth, tool, time, rays, scene.camera.half_angle, gain)
    return light, mask
