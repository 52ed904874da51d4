"""Annotated clips: half of a grid's cells are frames, the other half their masks.

A mask holds a label number for every pixel. In the grid every label is a colour, so that tokenizer and GPT
treat masks as frames. `facts` are those of a data set (`Manifest.facts`), which codes, checkpoints and
samples carry along. Without the fact "masks" all cells are frames. Shapes: T frames, C = 3 channels, H x W
pixels of one, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import atomic_path
from dataset.grid import frames_to_grid, grid_to_frames

if TYPE_CHECKING:
    from torch import Tensor

MOST_LABELS = 255
PLACES = ("after", "before")
Array = TypeVar("Array")  # torch.Tensor or numpy.ndarray
Facts = dict[str, Any]


@dataclass(frozen=True)
class Masks:
    """Where the masks are, and what their colours mean.

    Every row of frames has a row of masks. In a grid of one row frames and masks alternate.
    """

    place: str  # "after" or "before" their frames
    colours: tuple[tuple[int, int, int], ...]  # RGB of labels 0, 1, ...; 0 is the background

    @classmethod
    def of(cls, facts: Facts, origin: object = "data set") -> Masks | None:
        """The fact of a data set, None if it has no masks. Raises: `InputError` naming `origin`."""
        record = facts.get("masks")
        if record is None:
            return None
        try:
            masks = cls(record["place"], tuple(tuple(map(int, colour)) for colour in record["colours"]))
            known = masks.place in PLACES and np.shape(masks.colours)[1:] == (3,)
            pairs = masks.fits(facts["rows"], facts["cols"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{origin}: its masks are {record!r:.80} ({type(error).__name__})") from None
        if not known or not pairs or not 2 <= len(set(masks.colours)) == len(masks.colours) <= MOST_LABELS:
            raise InputError(f"{origin}: its masks are {record!r:.80}")
        return masks

    def facts(self) -> Facts:
        """As JSON values."""
        return {"place": self.place, "colours": [list(colour) for colour in self.colours]}

    @staticmethod
    def fits(rows: int, cols: int) -> bool:
        """True if a grid can be shared evenly."""
        return (cols if rows == 1 else rows) % 2 == 0

    def cells(self, rows: int, cols: int) -> tuple[list[int], list[int]]:
        """Positions in raster order of the frames and of their masks, T each."""
        second = np.arange(rows * cols) // (cols if rows > 1 else 1) % 2 == 1
        first, second = np.flatnonzero(~second).tolist(), np.flatnonzero(second).tolist()
        return (first, second) if self.place == "after" else (second, first)

    def pictures(self, labels_THW: np.ndarray) -> np.ndarray:
        """Labels in their colours, uint8 (T, C, H, W)."""
        return np.array(self.colours, np.uint8)[labels_THW].transpose(0, 3, 1, 2)

    def labels(self, pictures_TCHW: np.ndarray) -> np.ndarray:
        """The label of the nearest colour of every pixel, uint8 (T, H, W)."""
        colours_L3 = np.array(self.colours, np.float32)
        norms_L = (colours_L3**2).sum(1)
        pictures_THWC = pictures_TCHW.transpose(0, 2, 3, 1).astype(np.float32)
        labels = [(2 * picture_HWC @ colours_L3.T - norms_L).argmax(-1) for picture_HWC in pictures_THWC]
        return np.stack(labels).astype(np.uint8)


def palette(labels: int) -> tuple[tuple[int, int, int], ...]:
    """Black, white, and then of 8 x 8 x 8 colours always the one farthest in RGB from those before it."""
    levels = np.arange(8) * 255 // 7
    colours_M3 = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    chosen, distance_M = [], np.full(len(colours_M3), np.inf)
    for _ in range(labels):
        chosen.append(int(distance_M.argmax()) if chosen else 0)
        distance_M = np.minimum(distance_M, ((colours_M3 - colours_M3[chosen[-1]]) ** 2).sum(1))
    return tuple(map(tuple, colours_M3[chosen].tolist()))


def clip_length(facts: Facts) -> int:
    """Frames of a clip."""
    return facts["rows"] * facts["cols"] // (2 if facts.get("masks") else 1)


def tile(frames_TCHW: np.ndarray, labels_THW: np.ndarray | None, rows: int, cols: int, masks: Masks | None
         ) -> np.ndarray:
    """Frames, and with `masks` their labels, as a grid picture (C, rows*H, cols*W)."""
    if masks is None:
        return frames_to_grid(frames_TCHW, rows, cols)
    cells = np.empty((rows * cols, *frames_TCHW.shape[1:]), np.uint8)
    frame_cells, mask_cells = masks.cells(rows, cols)
    cells[frame_cells], cells[mask_cells] = frames_TCHW, masks.pictures(labels_THW)
    return frames_to_grid(cells, rows, cols)


def frames_of(grid: Array, facts: Facts) -> Array:
    """(..., C, rows*H, cols*W) -> the frames (..., T, C, H, W): `grid_to_frames` without masks."""
    rows, cols, masks = facts["rows"], facts["cols"], Masks.of(facts)
    cells = grid_to_frames(grid, rows, cols)
    return cells[..., masks.cells(rows, cols)[0], :, :, :] if masks else cells


def labels_of(grid: np.ndarray, facts: Facts) -> np.ndarray | None:
    """The labels (T, H, W) of a grid picture (C, rows*H, cols*W); None without masks."""
    rows, cols, masks = facts["rows"], facts["cols"], Masks.of(facts)
    return masks and masks.labels(grid_to_frames(grid, rows, cols)[masks.cells(rows, cols)[1]])


def shown_frames(grid: np.ndarray | Tensor, facts: Facts) -> np.ndarray:
    """The frames (T, H, W, C) for the eye, with the outlines of their masks in the labels' colours."""
    grid = np.asarray(grid)
    frames_THWC, masks = np.ascontiguousarray(frames_of(grid, facts).transpose(0, 2, 3, 1)), Masks.of(facts)
    if masks:
        for frame_HWC, labels_HW in zip(frames_THWC, labels_of(grid, facts), strict=True):
            inner = (cv2.erode(labels_HW, np.ones((3, 3))) != labels_HW) & (labels_HW > 0)
            frame_HWC[inner] = np.array(masks.colours, np.uint8)[labels_HW[inner]]
    return frames_THWC


def mask_iou(original: np.ndarray, output: np.ndarray, facts: Facts) -> float:
    """Intersection over union of the masks of two grid pictures, mean over the labels in the first."""
    a_THW, b_THW = labels_of(original, facts), labels_of(output, facts)
    pairs = [(a_THW == label, b_THW == label) for label in np.unique(a_THW)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def write_masks(folder: Path, labels_THW: np.ndarray, masks: Masks) -> None:
    """Write 00000.png, 00001.png, ... of label numbers, which viewers show in the labels' colours."""
    with atomic_path(folder, folder=True) as temporary:
        for t, labels_HW in enumerate(labels_THW):
            picture = Image.fromarray(labels_HW)
            picture.putpalette(np.array(masks.colours, np.uint8).tobytes())
            picture.save(temporary / f"{t:05d}.png")
