"""STAGE: pictures of any size -> what is left of them after the tokenizer, under the same names.

The tokenizer sees each picture as a square and the result has the picture's own size again, so that masks of
the picture fit it: the folder for the arm "reconstructions" of evaluations.segmentation. A rerun keeps the
pictures that are there.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command, say_next
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_json, state_hash, write_json
from common.locks import locked
from common.progress import progress
from dataset.folders import pictures_by_name
from dataset.grid_images import save_picture
from dataset.pictures import read_picture
from tokenizer.loading import load_tokenizer, weights_hash
from tokenizer.quality import reconstruct
from tokenizer.vq_model import VQModel


@dataclass(frozen=True, kw_only=True)
class ReconstructPicturesConfig:
    """Send a folder of pictures through a tokenizer."""

    picture_path: Path
    """Folder of pictures, or of folders of them."""
    vq_ckpt: Path
    """Tokenizer."""
    save_path: Path
    """Folder for the PNG files."""
    size: int = 128
    """Side in px of the square that the tokenizer sees, best that of the frames it was trained on."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, size=8)
        if not self.picture_path.is_dir():
            raise InputError(f"--picture-path {self.picture_path}: no such folder")
        if self.save_path.resolve().is_relative_to(self.picture_path.resolve()):
            raise InputError(f"--save-path {self.save_path}: is --picture-path, or in it")

    def target(self, name: str) -> Path:
        """The file of a picture without suffix."""
        return self.save_path / f"{name}.png"


def reconstructed(picture_HW3: np.ndarray, model: VQModel, size: int, device: torch.device) -> torch.Tensor:
    """The picture (H, W, 3) uint8 after the tokenizer -> (3, H, W) uint8."""
    shape = picture_HW3.shape[1::-1]
    small_SS3 = cv2.resize(picture_HW3, (size, size), interpolation=cv2.INTER_AREA)
    output_3SS, _ = reconstruct(model, torch.from_numpy(small_SS3).permute(2, 0, 1), device)
    output_SS3 = output_3SS.permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(cv2.resize(output_SS3, shape, interpolation=cv2.INTER_CUBIC)).permute(2, 0, 1)


def claim(config: ReconstructPicturesConfig, model: VQModel, files: dict[str, Path]) -> None:
    """Refuse a folder that holds other pictures; note whose reconstructions it is for."""
    record = config.save_path / "pictures.json"
    facts = {"tokenizer": weights_hash(model), "size": config.size, "pictures": state_hash(files)}
    there = read_json(record) if record.exists() else facts
    if there != facts or (not record.exists() and any(config.target(name).exists() for name in files)):
        raise InputError(f"--save-path {config.save_path}: holds other pictures, or those of another "
                         "tokenizer or --size; use another folder")
    write_json(record, facts)


def run(config: ReconstructPicturesConfig, runtime: Runtime) -> None:
    """Write the reconstructions; `InputError` if another job is at it, or something else is there."""
    with locked(config.save_path, runtime):
        device = runtime.device(config.device)
        model = load_tokenizer(checkpoint_file(config.vq_ckpt, runtime)).to(device)
        with runtime.together():
            if config.size % model.config.downsample:
                raise InputError(f"--size {config.size}: must be a multiple of the tokenizer's downsample "
                                 f"factor {model.config.downsample}")
            files = pictures_by_name(config.picture_path)
            if not files:
                raise InputError(f"--picture-path {config.picture_path}: holds no pictures")
            if runtime.is_main:
                claim(config, model, files)
        mine = runtime.share(list(files))
        for name in progress(mine, len(mine), "reconstruct", "picture", runtime.is_main):
            if not (path := config.target(name)).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_picture(path, reconstructed(read_picture(files[name]), model, config.size, device))
        runtime.gather(None)
        if runtime.is_main:
            print(f"{len(files)} pictures in {config.save_path}")
            say_next("bash", "scripts/evaluate_segmentation.sh", "--data-path", "REAL", "--output", "OUT",
                     "--reconstruction-path", config.save_path)


if __name__ == "__main__":
    run_command(ReconstructPicturesConfig, run)
