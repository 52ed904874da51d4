"""Spatiotemporal Grid-Frame Patterning (SGP, EndoGen paper): a clip as one picture, frames in raster order.

Shapes: T = rows*cols frames, C channels, H x W pixels of one frame. Works on torch tensors and numpy arrays,
with any leading dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from einops import rearrange

if TYPE_CHECKING:  # stages without tensors do not wait for torch
    from torch import Tensor

Array = TypeVar("Array")  # torch.Tensor or numpy.ndarray


def frames_to_grid(frames: Array, rows: int, cols: int) -> Array:
    """(..., T, C, H, W) -> (..., C, rows*H, cols*W): frame t at row t // cols, column t % cols."""
    if frames.shape[-4] != rows * cols:
        raise ValueError(f"{frames.shape[-4]} frames do not fill a grid of {rows} x {cols}")
    return rearrange(frames, "... (r c) ch h w -> ... ch (r h) (c w)", r=rows, c=cols)


def mirror_frames(grid: Tensor, cols: int) -> Tensor:
    """A grid (..., C, H, cols*W) with each frame mirrored in its place; a whole flip would reverse time."""
    parts = rearrange(grid, "... h (c w) -> ... h c w", c=cols)
    return rearrange(parts.flip(-1), "... h c w -> ... h (c w)")


def grid_to_frames(grid: Array, rows: int, cols: int) -> Array:
    """(..., C, rows*H, cols*W) -> (..., T, C, H, W), the inverse of `frames_to_grid`."""
    height, width = grid.shape[-2:]
    if height % rows or width % cols:
        raise ValueError(f"a picture of {height} x {width} pixels is no grid of {rows} x {cols} frames")
    return rearrange(grid, "... ch (r h) (c w) -> ... (r c) ch h w", r=rows, c=cols)
