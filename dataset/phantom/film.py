"""The camera's own faults: stop, vignette, softness, film curve, sensor noise."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.geometry import smoothstep

VIEWS = ("round", "octagon", "octagon", "barrel", "full")
NOISE_SHIFTS = (
    61,
    67,
)  # the noise picture is this much larger than a frame; each frame shows another part of it


@dataclass(frozen=True)
class Optics:
    """The camera's make: what it does to every frame."""

    view: str
    brightness: float
    lamp: np.ndarray  # (3,) colour of the light
    softness: float  # blur, share of the picture's width
    noise: float  # standard deviation of the sensor noise, 0 to 255
    vignette: float  # share of light lost in the middle of the picture's edge

    @classmethod
    def draw(cls, rng: np.random.Generator, view: str = "any") -> "Optics":
        """Random optics, of a given view or of any."""
        warmth, drawn = rng.uniform(-1, 1), VIEWS[rng.integers(len(VIEWS))]
        return cls(
            view=drawn if view == "any" else view,
            brightness=float(rng.uniform(1.5, 2.1)),
            lamp=np.array([1 + 0.05 * warmth, 1, 1 - 0.12 * warmth], np.float32),
            softness=float(rng.uniform(0.003, 0.0055)),
            noise=float(rng.uniform(1.0, 3.0)),
            vignette=float(rng.uniform(0.05, 0.22)),
        )


@dataclass(frozen=True)
class Film:
    """What turns light on the sensor into pictures of one size."""

    stop: np.ndarray  # (H, W, 3) 1 inside the field of view, 0 outside
    inside: np.ndarray  # (H, W) bool
    clear: np.ndarray  # (H, W) share of light that the vignette leaves
    blur: float  # pixels
    noise: np.ndarray  # (H + 61, W + 67, 3), of 2

    @classmethod
    def draw(cls, optics: Optics, size: int, rng: np.random.Generator) -> "Film":
        edge = np.abs((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1)
        x, y = np.meshgrid(edge, edge)
        shape = (2, size + NOISE_SHIFTS[0], size + NOISE_SHIFTS[1], 3)
        first, second = rng.integers(256, size=shape, dtype=np.uint8)
        scale = optics.noise * 6**0.5 / 256 / 127.5
        noise = cv2.addWeighted(first, scale, second, scale, -255 * scale, dtype=cv2.CV_32F)  # near Gaussian
        stop = field_of_view(optics.view, x, y)
        return cls(
            cv2.merge([stop, stop, stop]),
            stop > 0.5,
            1 - optics.vignette * (x * x + y * y) / 2,
            optics.softness * size,
            noise,
        )

    def develop(self, light: np.ndarray, frame: int) -> np.ndarray:
        """Linear light (3, H, W) -> uint8 picture (H, W, 3): blur, saturation, gamma and contrast, noise."""
        picture = np.empty((*light.shape[1:], 3), np.float32)
        for channel, plane in enumerate(light):
            np.multiply(plane, -self.clear, out=picture[..., channel])
        light = cv2.GaussianBlur(picture, (0, 0), self.blur)
        cv2.exp(light, light)
        picture = cv2.sqrt(np.subtract(1, light, out=light))
        picture += light
        row, col = frame * 17 % NOISE_SHIFTS[0], frame * 29 % NOISE_SHIFTS[1]
        picture += self.noise[row : row + light.shape[0], col : col + light.shape[1]]
        picture *= self.stop
        return cv2.convertScaleAbs(np.maximum(picture, 0, out=picture), alpha=127.5)


def field_of_view(view: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of light that passes the stop at |x|, |y| from the centre; 1 is the picture's edge."""
    if view == "full":
        return np.ones_like(x)
    outside = {
        "round": np.hypot(x, y) - 0.985,
        "octagon": np.maximum(np.maximum(x, y) - 0.985, (x + y - 1.48) / np.sqrt(2)),
        "barrel": (x**5 + y**5) ** 0.2 - 0.985,
    }[view]
    return smoothstep(0.012, -0.012, outside)
