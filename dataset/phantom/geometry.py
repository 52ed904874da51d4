"""The tube's own coordinates, in which everything in a phantom is placed, and noise on them.

Lengths are in tube radii (one radius is about 25 mm of colon). A wall point is (z, theta): z along the tube,
theta around it, radians. Wall maps are arrays of ROWS x COLS texels; theta wraps, z ends. Below the wall's
rows lie ATLAS_ROWS more; a disc in their middle is the skin of a free-standing polyp, from the pole of its
head at the centre to its stalk at the rim. Colours are linear reflectances, RGB, 0 to 1.
"""

import cv2
import numpy as np

Z_END = 6.0  # the tube begins at z = 0
WALL_ROWS, ATLAS_ROWS, COLS = 480, 96, 512
ROWS = WALL_ROWS + ATLAS_ROWS
ROWS_PER_UNIT = WALL_ROWS / Z_END
COLS_PER_RADIAN = COLS / (2 * np.pi)
LESION_Z, LESION_THETA = (
    2.2,
    np.pi,
)  # far from both ends and from the seam at theta 0: patches need no wrapping


def linear(red: float, green: float, blue: float) -> np.ndarray:
    """Linear reflectance of a display colour given in 0 to 255."""
    return ((np.array([red, green, blue], np.float32) / 255) ** 2.2).astype(np.float32)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between (rising or, with low > high, falling)."""
    x = value - low
    x *= 1 / (high - low)
    clamp(x, 0, 1)
    result = -2 * x
    result += 3
    result *= x
    result *= x
    return result


def clamp(value: np.ndarray, low: float, high: float) -> None:
    """Limit an array, in place."""
    cv2.min(cv2.max(value, low, value), high, value)


def wall_coordinates(step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """z of every `step`-th row, (., 1), and theta of every `step`-th column, (1, .)."""
    z = np.arange(0, ROWS, step, dtype=np.float32) / ROWS_PER_UNIT
    return z[:, None], np.arange(0, COLS, step, dtype=np.float32)[None] / COLS_PER_RADIAN


def smooth_noise(rng: np.random.Generator, cells_z: int, cells_theta: int, step: int = 1) -> np.ndarray:
    """(ROWS, COLS) / step noise, about -1 to 1, of cells_z x cells_theta bumps; wraps in theta."""
    cells = rng.uniform(-1, 1, (cells_z, cells_theta)).astype(np.float32)
    cells = np.concatenate([cells[:, -2:], cells, cells[:, :2]], axis=1)
    columns_per_cell = COLS / step / cells_theta
    size = round(columns_per_cell * (cells_theta + 4)), ROWS // step
    start = round(2 * columns_per_cell)
    return cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC)[:, start : start + COLS // step]


def enlarge(half: np.ndarray) -> np.ndarray:
    """A wall map (ROWS, COLS) from one of every other texel."""
    return cv2.resize(half, (COLS, ROWS), interpolation=cv2.INTER_LINEAR)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a wall map by `sigma` texels, round the seam in theta."""
    margin = int(3 * sigma) + 1
    wide = cv2.copyMakeBorder(image, 0, 0, margin, margin, cv2.BORDER_WRAP)
    return cv2.GaussianBlur(wide, (0, 0), sigma)[:, margin:-margin]
