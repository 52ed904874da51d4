"""The beginning of a clip: given frames or masks, or the last row of frames of the previous clip.

Given cells of the grid are encoded as tokens; the GPT samples the others. Shapes: T frames of a clip, M cells
of its grid, S pixels of a frame's side, N = h*w tokens; -1 marks a token to be sampled.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from dataset.field_of_view import Crop, find_field_of_view
from dataset.grid import frames_to_grid, grid_to_frames
from dataset.grid_images import to_pixels
from dataset.mask_files import LabelRule, MaskFiles
from dataset.masks import Masks, clip_length, frames_of, tile
from dataset.video import WrongMasks, numbered_pictures, read_frames
from tokenizer.vq_model import VQModel


def read_start(path: Path, dataset: dict[str, Any], masks: Path | None = None,
               most_bytes: float = math.inf) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (T, 3, S, S) uint8 of a grid picture, a picture, a folder of frames or a video, and labels.

    A video is read at the frame rate of the clips. Frames of another size than the clips are cropped
    to the field of view, as in dataset.prepare, and `masks` with them: labels (T, S, S) uint8, else None.

    Raises: `InputError` naming the file if it cannot be read, or if its frames take more than `most_bytes`.
    """
    rows, cols, size = dataset["rows"], dataset["cols"], dataset["frame_size"]
    if not path.exists():
        raise InputError(f"--start-from {path}: no such file or folder")
    fps = None if path.is_dir() else dataset["fps"]
    labels, frames = masks and _mask_files(masks, dataset).read(path), []
    try:
        for frame in read_frames(path, fps, masks=labels):
            frames.append(frame)
            most_bytes -= frame.pixels.nbytes
            if most_bytes < 0:
                raise InputError(f"{path}: longer or larger than can be held in memory")
    except WrongMasks as error:
        raise _wrong_masks(error) from None
    except InputError as error:
        raise InputError(f"--start-from {error}") from None
    shape = frames[0].pixels.shape[:2]
    if shape == (rows * size, cols * size) and len(frames) == 1 and not masks:
        return np.ascontiguousarray(frames_of(frames[0].pixels.transpose(2, 0, 1), dataset)), None
    crop = Crop(0, 0, size, "given")
    if shape != (size, size):
        crop = find_field_of_view(frame.pixels for frame in frames)
    pixels = np.stack([crop.apply(frame.pixels, size) for frame in frames])
    return pixels.transpose(0, 3, 1, 2), masks and np.stack(
        [crop.apply(frame.labels, size, labels=True) for frame in frames])


def read_start_masks(path: Path, dataset: dict[str, Any]) -> np.ndarray:
    """Labels (T, S, S) uint8 of masks without frames, which must be square."""
    files = _mask_files(path, dataset)
    try:
        labels = [read() for read in files.read(path)]
    except InputError as error:
        raise _wrong_masks(error) from None
    if any(height != width for height, width in (own.shape for own in labels)):
        raise InputError(f"--start-masks {path}: masks without frames must be square")
    size = dataset["frame_size"]
    return np.stack([Crop(0, 0, len(own), "given").apply(own, size, labels=True) for own in labels])


def _mask_files(path: Path, dataset: dict[str, Any]) -> MaskFiles:
    if (masks := Masks.of(dataset)) is None:
        raise InputError(f"--start-masks {path}: the model was trained on clips without masks")
    if not path.exists():
        raise InputError(f"--start-masks {path}: no such file or folder")
    if path.is_dir() and not numbered_pictures(path):
        raise InputError(f"--start-masks {path}: holds no masks itself; give the folder of one clip")
    return MaskFiles(path.parent, path.name, LabelRule(len(masks.colours)))


def _wrong_masks(error: InputError) -> InputError:
    """The error with its flag, and without a hint at flags of dataset.prepare."""
    said, _, hint = str(error).rpartition("; ")
    return InputError(f"--start-masks {said if '--mask-' in hint else error}")


@torch.no_grad()
def given_tokens(frames_T3SS: np.ndarray | None, keep: int | None, tokenizer: VQModel,
                 dataset: dict[str, Any], labels_TSS: np.ndarray | None = None) -> Tensor:
    """(N,): tokens of the first `keep` frames and masks, or of the last -`keep` if negative; else -1.

    Either may be None and is then sampled, if it comes after the other. A `keep` of None is a row of frames,
    or all masks without frames. The tokenizer sees the last frame and mask in the places to be sampled, and
    black where no frame or no mask is given.

    Raises: `InputError` if fewer are given, nothing is left to sample, or the others come first.
    """
    rows, cols, masks = dataset["rows"], dataset["cols"], Masks.of(dataset)
    length = clip_length(dataset)
    alone = masks is not None and (frames_T3SS is None or labels_TSS is None)
    if alone and (labels_TSS is None) == (masks.place == "before"):
        flags = ("--start-from", "--start-masks")[:: 1 if labels_TSS is None else -1]
        raise InputError(f"{flags[0]}: needs {flags[1]}, as the model's masks come {masks.place} its frames")
    count, usual = (len(labels_TSS), length) if frames_T3SS is None else (len(frames_T3SS), cols)
    most = min(count, length if alone else length - 1)
    keep = min(most, usual) if keep is None else keep
    if not 0 < abs(keep) <= most:
        raise InputError(f"--start-frames {keep}: must be 1 to {most}, or for the last frames -1 to -{most}")

    def filled(given: np.ndarray | None, otherwise: np.ndarray) -> np.ndarray:
        kept = otherwise if given is None else given[:keep] if keep > 0 else given[keep:]
        return np.concatenate([kept, np.repeat(kept[-1:], length - len(kept), 0)])

    size = dataset["frame_size"]
    picture_3HW = torch.from_numpy(tile(
        filled(frames_T3SS, np.zeros((1, 3, size, size), np.uint8)),
        filled(labels_TSS, np.zeros((1, size, size), np.uint8)), rows, cols, masks))
    device = tokenizer.quantize.embedding.weight.device
    codes_hw = tokenizer.encode(to_pixels(picture_3HW)[None].to(device))[0]
    cells_Mhw = grid_to_frames(codes_hw[None], rows, cols)[:, 0]
    places = masks.cells(rows, cols) if masks else (range(length), ())
    known = [place for given, own in zip((frames_T3SS, labels_TSS), places, strict=True) if given is not None
             for place in own[: abs(keep)]]
    given_Mhw = torch.full_like(cells_Mhw, -1)
    given_Mhw[known] = cells_Mhw[known]
    return frames_to_grid(given_Mhw[:, None], rows, cols).flatten().cpu()


def start_facts(start_N: Tensor) -> dict[str, Any]:
    """How many tokens are given, and a hash that tells them from others."""
    digest = hashlib.sha256(start_N.numpy().tobytes()).hexdigest()
    return {"tokens": int((start_N >= 0).sum()), "hash": digest[:16]}


def continued(tokens_BN: Tensor, rows: int) -> Tensor:
    """(B, N): the last of `rows` rows of frames, with its masks, as the first of the next clip; else -1."""
    row = tokens_BN.shape[1] // rows
    next_BN = torch.full_like(tokens_BN, -1)
    next_BN[:, :row] = tokens_BN[:, -row:]
    return next_BN
