"""A tiny prepared data set: two classes of coloured walls with a moving spot."""

import numpy as np
from PIL import Image

from dataset.grid import frames_to_grid
from dataset.manifest import Clip, Manifest

CLASSES = ("blue wall", "red wall")


def make_grids(folder, clips_per_class=6, rows=2, cols=2, size=32):
    """A prepared data set of coloured walls with a moving spot; the last third of a class is held out."""
    clips = []
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(clips_per_class):
            random = np.random.RandomState(100 * label + index)
            frames = np.full((rows * cols, 3, size, size), 60 + random.randint(20))
            frames[:, 2 if label == 0 else 0] += 120
            for t, frame in enumerate(frames):
                frame[:, 4 + index : 10 + index, 4 * t : 4 * t + 8] = 250
            picture = frames_to_grid(frames, rows, cols).transpose(1, 2, 0)
            clip = f"{name}/rec{index}_000000.png"
            Image.fromarray(picture.astype(np.uint8)).save(folder / clip)
            split = "val" if index >= clips_per_class * 2 // 3 else "train"
            clips.append(Clip(clip, label, f"{name}/rec{index}", split, 0.0))
    manifest = Manifest(CLASSES, rows, cols, size, 10.0, 1, dict.fromkeys(CLASSES, "recording"), tuple(clips))
    manifest.write(folder)
    return folder
