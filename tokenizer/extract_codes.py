"""STAGE: grid pictures -> codes, with a look at whether the codes are any good.

The work is cut into blocks of clips. A block is computed by one process, written whole, and never again:
so the same command resumes, and what comes out depends neither on the number of processes nor on the
order. Shapes: C clips, A variants of each (with --flip the mirrored clip too), h x w tokens per picture.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command, say_next
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, remove, write_json
from common.locks import locked
from common.progress import progress
from common.spread import evenly
from dataset.codes import Codes
from dataset.grid import mirror_frames
from dataset.grid_images import GridImages, to_pixels
from dataset.hub_data import data_folder
from dataset.manifest import Manifest
from tokenizer.loading import load_tokenizer, tokenizer_facts
from tokenizer.quality import Quality, measure_quality
from tokenizer.vq_model import VQModel

BLOCK = 64  # clips per block
GOOD_PSNR = 20.0  # dB; below it no GPT can make good clips
GOOD_IOU = 0.9  # of masks


@dataclass(frozen=True, kw_only=True)
class ExtractCodesConfig:
    """Encode every grid picture of a prepared data set."""

    data_path: Path
    """Folder of grid pictures written by dataset.prepare."""
    code_path: Path
    """Folder for codes.npy and codes.json."""
    vq_ckpt: Path
    """Tokenizer."""
    batch_size: int = 8
    """Pictures encoded at once."""
    flip: bool = False
    """Also encode each clip mirrored left to right, frame by frame (doubles the training data)."""
    mixed_precision: Literal["bf16", "none"] = "none"
    """bf16 autocast, or float32 throughout (the codes of near ties differ)."""
    check_pictures: int = 16
    """Pictures that are decoded again to see how good the codes are."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, batch_size=1, check_pictures=1)


def variants(pixels_B3HW: Tensor, cols: int, flip: bool) -> Tensor:
    """(B, 3, H, W) -> (B, A, 3, H, W): the picture, and with `flip` its mirrored frames."""
    return torch.stack([pixels_B3HW, mirror_frames(pixels_B3HW, cols)] if flip else [pixels_B3HW], 1)


@torch.no_grad()
def encode_block(
    model: VQModel, images: GridImages, indices: range, batch_size: int, flip: bool, precision: str,
    device: torch.device
) -> np.ndarray:
    """Codes (C, A, h, w) of the pictures at `indices`."""
    parts = []
    for start in range(indices.start, indices.stop, batch_size):
        batch = range(start, min(start + batch_size, indices.stop))
        pixels_B3HW = to_pixels(torch.stack([images[i] for i in batch]).to(device))
        pixels_BA3HW = variants(pixels_B3HW, images.manifest.cols, flip)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            codes_Nhw = model.encode(pixels_BA3HW.flatten(0, 1))
        parts.append(codes_Nhw.unflatten(0, pixels_BA3HW.shape[:2]).cpu().numpy())
    dtype = np.uint16 if model.config.codebook_size <= 1 << 16 else np.uint32
    return np.concatenate(parts).astype(dtype)


def work_folder(config: ExtractCodesConfig, manifest: Manifest, tokenizer: dict) -> Path:
    """Where finished blocks wait; its name stands for everything that the codes depend on."""
    key = json.dumps([manifest.facts(), manifest.pictures_hash(config.data_path), tokenizer["hash"],
                      config.flip, config.mixed_precision])
    return config.code_path / f".blocks-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def check_quality(model: VQModel, images: GridImages, pictures: int, device: torch.device) -> Quality:
    """Reconstruction quality on pictures spread over the data set."""
    chosen = [images[i] for i in evenly(len(images), pictures)]
    return measure_quality(model, chosen, images.manifest.facts(), device)


def quality_lines(quality: Quality, codebook_size: int) -> list[str]:
    """What to tell the user about the codes."""
    lines = [f"reconstruction PSNR {quality.psnr:.2f} dB, SSIM {quality.ssim:.3f}; {quality.usage:.1%} of "
             f"{codebook_size} codes used, perplexity {quality.perplexity:.0f} ({quality.frames} frames)"]
    if quality.psnr < GOOD_PSNR:
        lines.append(f"warning: PSNR below {GOOD_PSNR:.0f} dB: the tokenizer does not fit these pictures; "
                     "fine-tune it on them with tokenizer.train_vq before training a GPT")
    if quality.mask_iou is not None:
        lines.append(f"masks: intersection over union {quality.mask_iou:.3f} after the tokenizer")
        if quality.mask_iou < GOOD_IOU:
            lines.append(f"warning: below {GOOD_IOU}: fine-tune the tokenizer on these pictures")
    if quality.collapsed(codebook_size):
        lines.append(f"warning: the pictures use few codes (perplexity {quality.perplexity:.0f} of "
                     f"{codebook_size}): look at the reconstructions before training a GPT")
    return lines


def run(config: ExtractCodesConfig, runtime: Runtime) -> None:
    """Encode what is not encoded yet; `InputError` if another job is at it."""
    with locked(config.code_path, runtime):
        extract(config, runtime)


def extract(config: ExtractCodesConfig, runtime: Runtime) -> None:
    """Encode this process's blocks; the main process then joins all blocks into codes.npy and codes.json."""
    config = replace(config, data_path=data_folder(config.data_path, runtime))
    manifest, device = Manifest.read(config.data_path), runtime.device(config.device)
    file = checkpoint_file(config.vq_ckpt, runtime)
    model = load_tokenizer(file).to(device)
    tokenizer = {**tokenizer_facts(model, file), **model.facts}
    if manifest.frame_size % tokenizer["downsample"]:
        raise InputError(f"--vq-ckpt {config.vq_ckpt}: frames of {manifest.frame_size} px are no multiple of "
                         f"its downsample factor {tokenizer['downsample']}")
    images = GridImages(config.data_path, manifest, manifest.clips, cache_bytes=0)
    folder = work_folder(config, manifest, tokenizer)
    starts = range(0, len(images), BLOCK)
    paths = [folder / f"{start:07d}.npy" for start in starts]
    todo = [(start, path) for start, path in runtime.share(list(zip(starts, paths, strict=True)))
            if not path.exists()]
    for start, path in progress(todo, len(todo), "encode", "block", runtime.is_main):
        indices = range(start, min(start + BLOCK, len(images)))
        block_CAhw = encode_block(model, images, indices, config.batch_size, config.flip,
                                  config.mixed_precision, device)
        with atomic_path(path) as temporary:
            np.save(temporary, block_CAhw)
    runtime.gather(None)  # all blocks are there
    if not runtime.is_main:
        return
    codes_CAhw = np.concatenate([np.load(path) for path in paths])
    names = "label", "split", "name", "recording"
    columns = ([getattr(clip, name) for clip in manifest.clips] for name in names)
    Codes(codes_CAhw, *columns, manifest.facts(), tokenizer).write(config.code_path)
    quality = check_quality(model, images, config.check_pictures, device)
    write_json(config.code_path / "quality.json", asdict(quality))
    clips, count, height, width = codes_CAhw.shape
    print(f"{clips} clips, {count} variants of {height} x {width} tokens in {config.code_path}")
    print("\n".join(quality_lines(quality, model.config.codebook_size)))
    say_next("bash", "scripts/train_c2i.sh", "--results-dir", "RUN", "--code-path", config.code_path)
    for stale in config.code_path.glob(".blocks-*"):
        if stale != folder:
            remove(stale)


if __name__ == "__main__":
    run_command(ExtractCodesConfig, run)
