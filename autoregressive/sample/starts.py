"""The beginning of a clip: given frames, or the last row of frames of the previous clip.

Given frames are encoded as tokens; the GPT samples the others. Shapes: T frames of a clip in rows x cols, S
pixels of a frame's side, N = h*w tokens; -1 marks a token to be sampled.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from dataset.field_of_view import find_field_of_view
from dataset.grid import frames_to_grid, grid_to_frames
from dataset.grid_images import to_pixels
from dataset.pictures import IMAGE_SUFFIXES
from dataset.video import read_frames
from tokenizer.vq_model import VQModel


def read_start(path: Path, dataset: dict[str, Any], most_bytes: float = math.inf) -> np.ndarray:
    """Frames (T, 3, S, S) uint8 of a grid picture, a picture, a folder of frames or a video.

    A video is read at the frame rate of the clips. Frames of another size than the clips are cropped
    to the field of view, as in dataset.prepare.

    Raises: `InputError` naming the file if it cannot be read, or if its frames take more than `most_bytes`.
    """
    rows, cols, size = dataset["rows"], dataset["cols"], dataset["frame_size"]
    if not path.exists():
        raise InputError(f"--start-from {path}: no such file or folder")
    is_picture = path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
    try:
        pixels = []
        for frame in read_frames(path, None if is_picture or path.is_dir() else dataset["fps"]):
            pixels.append(frame.pixels)
            most_bytes -= frame.pixels.nbytes
            if most_bytes < 0:
                raise InputError(f"{path}: longer or larger than can be held in memory")
    except InputError as error:
        raise InputError(f"--start-from {error}") from None
    if is_picture and pixels[0].shape[:2] == (rows * size, cols * size):
        return np.ascontiguousarray(grid_to_frames(pixels[0].transpose(2, 0, 1), rows, cols))
    if pixels[0].shape[:2] != (size, size):
        crop = find_field_of_view(pixels)
        pixels = [crop.apply(frame, size) for frame in pixels]
    return np.stack(pixels).transpose(0, 3, 1, 2)


@torch.no_grad()
def given_tokens(frames_T3SS: np.ndarray, keep: int | None, tokenizer: VQModel, dataset: dict[str, Any]
                 ) -> Tensor:
    """(N,): the tokens of the first `keep` frames, or of the last -`keep` if it is negative; -1 elsewhere.

    None keeps the first frames, one row of the grid.

    Raises: `InputError` if there are fewer frames, or no frame is left to sample.
    """
    rows, cols = dataset["rows"], dataset["cols"]
    count = len(frames_T3SS)
    keep = min(count, cols) if keep is None else keep
    most = min(count, rows * cols - 1)
    if not 0 < abs(keep) <= most:
        raise InputError(f"--start-frames {keep}: must be 1 to {most}, or for the last frames -1 to -{most}")
    given_T3SS = frames_T3SS[:keep] if keep > 0 else frames_T3SS[keep:]
    filled = np.concatenate([given_T3SS, np.repeat(given_T3SS[-1:], rows * cols - len(given_T3SS), 0)])
    picture_3HW = torch.from_numpy(frames_to_grid(filled, rows, cols))
    device = tokenizer.quantize.embedding.weight.device
    codes_hw = tokenizer.encode(to_pixels(picture_3HW)[None].to(device))[0]
    cells_Thw = grid_to_frames(codes_hw[None], rows, cols)[:, 0].clone()
    cells_Thw[len(given_T3SS):] = -1
    return frames_to_grid(cells_Thw[:, None], rows, cols).flatten().cpu()


def continued(tokens_BN: Tensor, rows: int) -> Tensor:
    """(B, N): the last row of frames as the first row of the next clip, -1 elsewhere."""
    row = tokens_BN.shape[1] // rows
    next_BN = torch.full_like(tokens_BN, -1)
    next_BN[:, :row] = tokens_BN[:, -row:]
    return next_BN
