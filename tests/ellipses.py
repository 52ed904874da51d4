"""Tiny labelled data for tests of segmentation: bright ellipses on noise with masks, annotated clips."""

import numpy as np
from eval_data import make_clips
from PIL import Image

from common.files import read_json, write_json
from dataset.masks import Masks, frames_of, tile

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


def annotated(folder, colours=((0, 0, 0), (255, 255, 255))):
    """Clips of 4 x 4 cells of 16 px with the same labels in all; (folder, labels bool (8, 16, 16))."""
    make_clips(folder, (8, 8), recordings=4)
    facts = read_json(folder / "dataset.json")
    masks = Masks("after", colours)
    write_json(folder / "dataset.json", {**facts, "masks": masks.facts()})
    labels_THW = np.arange(8 * 16 * 16).reshape(8, 16, 16) % 5 > 2
    for clip in facts["clips"]:
        with Image.open(folder / clip["name"]) as image:
            frames_TCHW = frames_of(np.array(image).transpose(2, 0, 1),
                                   {"rows": 4, "cols": 4, "masks": masks.facts()})
        grid = tile(frames_TCHW, labels_THW.astype(np.uint8), 4, 4, masks)
        Image.fromarray(grid.transpose(1, 2, 0)).save(folder / clip["name"])
    return folder, labels_THW
