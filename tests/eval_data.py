"""Clips for tests of whole comparisons: real ones with a held-out part, and generated ones, of 16 frames."""

import numpy as np
from PIL import Image

from dataset.grid import frames_to_grid
from dataset.manifest import Clip, Manifest

CLASSES = ("blue", "red")
SIDE, SIZE = 4, 16  # frames per side of the grid, pixels per frame


def moving_blob(seed, label):
    """uint8 (16, 3, 16, 16): a soft blob of one class's colour that drifts over noise."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    start, step = random.uniform(3, 12, 2), random.uniform(-0.6, 0.6, 2)
    frames = np.zeros((SIDE * SIDE, 3, SIZE, SIZE))
    for t, frame in enumerate(frames):
        blob = np.exp(-((y - start[0] - t * step[0]) ** 2 + (x - start[1] - t * step[1]) ** 2) / 12)
        frame += 60 + 40 * random.rand() + 20 * random.rand(1, SIZE, SIZE)
        frame[2 if label == 0 else 0] += 100 * blob
    return frames.clip(0, 255).astype(np.uint8)


def make_clips(folder, counts, seed=0, recordings=4, val=0.5):
    """A prepared data set: `counts` clips of each class, the last part `val` of the recordings held out."""
    clips = []
    for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            recording = index % recordings
            picture = frames_to_grid(moving_blob(seed + 1000 * label + index, label), SIDE, SIDE)
            file = f"{name}/rec{recording}_{index:06d}.png"
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / file)
            split = "val" if recording >= recordings * (1 - val) else "train"
            clips.append(Clip(file, label, f"{name}/rec{recording}", split, float(index)))
    split_by = dict.fromkeys(CLASSES, "recording")
    Manifest(CLASSES, SIDE, SIDE, SIZE, 10.0, 1, split_by, tuple(clips)).write(folder)
    return folder
