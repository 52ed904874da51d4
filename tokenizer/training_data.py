"""What the tokenizer is trained and judged on: crops of whole frames, and held-out pictures."""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.errors import InputError
from common.spread import evenly
from dataset.grid import mirror_frames
from dataset.grid_images import CACHE_BYTES, GridImages
from dataset.manifest import Manifest
from tokenizer.quality import reconstruct

NEIGHBOURS = 8  # codes that a code may be replaced with


class Crops(Dataset):
    """All aligned crops of window x window frames of all pictures, without overlap.

    A still picture is a clip of one frame that stands still: it is shown window x window times.
    """

    def __init__(self, images: GridImages, window: int):
        rows, cols = images.manifest.rows, images.manifest.cols
        self.repeats = window if rows == cols == 1 else 1
        if rows * self.repeats % window or cols * self.repeats % window:
            raise InputError(f"--window {window}: does not divide the grid of {rows} x {cols} frames")
        self.images = images
        self.down, self.across = (side * self.repeats // window for side in (rows, cols))

    def __len__(self) -> int:
        return len(self.images) * self.down * self.across

    def labels(self) -> list[int]:
        """The class of each crop."""
        return [clip.label for clip in self.images.clips for _ in range(self.down * self.across)]

    def __getitem__(self, index: int) -> Tensor:
        index, cell = divmod(index, self.down * self.across)
        crops = rearrange(self.images[index], "c (r h) (k w) -> (r k) c h w", r=self.down, k=self.across)
        return crops[cell].repeat(1, self.repeats, self.repeats)


class GridSet:
    """One prepared folder: its training crops and its held-out pictures."""

    def __init__(self, folder: Path, window: int, val_pictures: int, cache_bytes: int = CACHE_BYTES):
        self.folder, self.manifest = folder, Manifest.read(folder)
        train_clips, val_clips = (self.manifest.select(split) for split in ("train", "val"))
        if not train_clips:
            raise InputError(f"--data-path {folder}: its train split is empty")
        self.crops = Crops(GridImages(folder, self.manifest, train_clips, cache_bytes), window)
        shown = [val_clips[i] for i in evenly(len(val_clips), val_pictures)]
        self.held_out = GridImages(folder, self.manifest, shown, cache_bytes)

    def strips(self, model: nn.Module, device: torch.device) -> list[Tensor]:
        """A row of pictures, (3, H, W), and a row of their reconstructions."""
        images = self.held_out if len(self.held_out) else self.crops.images
        count = max(4, 16 // self.manifest.cols)
        pictures = [images[i] for i in evenly(len(images), count)]
        outputs = [reconstruct(model, picture_3HW, device)[0] for picture_3HW in pictures]
        return [torch.cat(pictures, -1), torch.cat(outputs, -1)]


def flip_frames(pixels_B3HW: Tensor, window: int, seeds_B: Tensor) -> Tensor:
    """Mirror the frames of each crop in their places, with probability 1/2 per crop, by a bit of its seed."""
    flip_B111 = (seeds_B[:, None, None, None] >> 20) % 2 == 1
    return torch.where(flip_B111, mirror_frames(pixels_B3HW, window), pixels_B3HW)


def perturb_codes(codes_Bhw: Tensor, vectors_VD: Tensor, rate: float, seeds_B: Tensor) -> Tensor:
    """Replace each code with probability `rate` by one of the `NEIGHBOURS` nearest other ones, drawn by seed.

    A decoder that has seen such codes forgives those that a GPT gets slightly wrong (RobusTok, arXiv
    2509.12474).
    """
    drawn = [torch.rand(2, *codes_Bhw.shape[1:], generator=torch.Generator().manual_seed(seed))
             for seed in seeds_B.tolist()]
    changes_Bhw, choice_Bhw = torch.stack(drawn, 1).to(codes_Bhw.device)
    chosen_Bhw = changes_Bhw < rate
    codes_n, count = codes_Bhw[chosen_Bhw], min(NEIGHBOURS, len(vectors_VD) - 1)
    near_nk = (vectors_VD[codes_n] @ vectors_VD.mT).topk(count + 1).indices[:, 1:]  # without the code itself
    choice_n = (choice_Bhw[chosen_Bhw] * count).long()
    return codes_Bhw.masked_scatter(chosen_Bhw, near_nk.gather(1, choice_n[:, None]))
