"""Grid pictures of a prepared data set as tensors.

Shapes: a picture is uint8 (3, rows*S, cols*S), S pixels per frame side.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import InputError
from common.files import atomic_path
from dataset.manifest import Clip, Manifest
from dataset.pictures import read_picture

CACHE_BYTES = 2 << 30  # of a folder's pictures that the processes of a machine keep in memory together


def load_grid(folder: Path, clip: Clip, manifest: Manifest) -> Tensor:
    """The picture of one clip; `InputError` names one that is unreadable or of the wrong size."""
    path = Path(folder) / clip.name
    picture_HWC = read_picture(path)
    if picture_HWC.shape[:2] != manifest.grid_size:
        found, wanted = ("{} x {}".format(*size) for size in (picture_HWC.shape[:2], manifest.grid_size))
        raise InputError(f"{path}: {found} pixels, but the manifest says {manifest.rows} x {manifest.cols} "
                         f"frames of {manifest.frame_size} px, which is {wanted}")
    return torch.from_numpy(picture_HWC).permute(2, 0, 1)


def save_picture(path: Path, picture_3HW: Tensor, **options: int) -> None:
    """Write a picture, atomically; `options` are those of its format."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture_3HW.permute(1, 2, 0).numpy()).save(temporary, **options)


class GridImages(Dataset):
    """The pictures of `clips`, kept in memory once read until `cache_bytes` are full."""

    def __init__(self, folder: Path, manifest: Manifest, clips: Sequence[Clip],
                 cache_bytes: int = CACHE_BYTES):
        self.folder, self.manifest, self.clips = Path(folder), manifest, clips
        self.cache: dict[int, Tensor] = {}
        height, width = manifest.grid_size
        self.cache_size = cache_bytes // (3 * height * width)

    def __len__(self) -> int:
        return len(self.clips)

    def sizes(self) -> dict[str, int]:
        """Name and bytes of each picture's file: what changes with the pictures, and not where they are."""
        return {clip.name: (self.folder / clip.name).stat().st_size for clip in self.clips}

    def __getitem__(self, index: int) -> Tensor:
        if index in self.cache:
            return self.cache[index]
        picture_3HW = load_grid(self.folder, self.clips[index], self.manifest)
        if len(self.cache) < self.cache_size:
            self.cache[index] = picture_3HW
        return picture_3HW


def to_pixels(picture_3HW: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return picture_3HW.float() / 127.5 - 1


def to_uint8(pixels_3HW: Tensor) -> Tensor:
    """Pixels in [-1, 1] (clamped) -> uint8 0..255, rounded to nearest."""
    return ((pixels_3HW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
