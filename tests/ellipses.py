"""Tiny labelled pictures for tests of segmentation: bright ellipses on noise, with their masks."""

import numpy as np
from PIL import Image

SIDE = 40


def ellipse(seed):
    """(picture uint8 (40, 40, 3), mask bool (40, 40))."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    (top, left), (height, width) = random.uniform(12, 28, 2), random.uniform(5, 11, 2)
    mask = ((y - top) / height) ** 2 + ((x - left) / width) ** 2 < 1
    picture = random.uniform(0, 90, (SIDE, SIDE, 3)) + mask[..., None] * random.uniform(60, 140, 3)
    return picture.clip(0, 255).astype(np.uint8), mask


def write_pair(folder, name, seed, images="images", label=255):
    """The picture `name` of a folder, and its mask."""
    picture, mask = ellipse(seed)
    for kind, pixels in ((images, picture), ("masks", mask.astype(np.uint8) * label)):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def write_pairs(folder, count, seed=0, name="p{:02}"):
    """A folder pair of `count` stills."""
    for number in range(count):
        write_pair(folder, name.format(number), seed + number)
    return folder
