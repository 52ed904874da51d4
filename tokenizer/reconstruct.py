"""STAGE: grid pictures -> what is left of them after the tokenizer, and how good that is.

No generated clip can be better than its tokenizer, so these are the floor of every score. The pictures form
a data set again, which evaluations.fid and evaluations.fvd take for rFID and rFVD. A rerun keeps the
pictures that are there. Shapes: T frames, H x W pixels of a frame; values 0 to 255 unless said otherwise.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.image_quality import frame_quality
from common.locks import locked
from common.names import inside
from common.perceptual import LPIPSDistance
from common.progress import progress
from common.spread import evenly
from dataset.grid_images import load_grid, save_picture, to_pixels
from dataset.hub_data import data_folder
from dataset.manifest import Clip, Manifest
from dataset.masks import frames_of, mask_iou, shown_frames
from dataset.sheet import contact_sheet
from tokenizer.loading import load_tokenizer, tokenizer_facts
from tokenizer.quality import reconstruct
from tokenizer.vq_model import VQModel

STATIC = 2  # a pixel that changes by no more from one frame to the next stands still
SEAM = 4  # pixels from a frame's border that count as its seam
SHEET_CLIPS, SHEET_GAIN = 8, 4  # clips on the sheet; how much differences are amplified there


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Send grid pictures, or stills, through a tokenizer and measure what comes out."""

    data_path: Path
    """Folder written by dataset.prepare."""
    vq_ckpt: Path
    """Tokenizer."""
    save_path: Path
    """Folder for the pictures, reconstruction.json and sheet.png."""
    split: Literal["val", "train", "all"] = "val"
    """Clips to take."""
    clips_per_class: int | None = None
    """At most so many clips of each class, evenly spread (default: all)."""
    vgg_weights: Path | None = None
    """torchvision's vgg16-397923af.pth: measures LPIPS too."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        if self.clips_per_class is not None:
            require_at_least(self, clips_per_class=1)


def compare(original_T3HW: np.ndarray, output_T3HW: np.ndarray) -> dict[str, float]:
    """Measures of one clip, uint8 frames.

    psnr, ssim         means over frames; psnr in dB
    seam_error         mean absolute error within 4 px of the frames' borders, where neighbours in the grid
                       may leak in, over that inside; 1 is no seam
    flicker            mean absolute change from frame to frame of the reconstruction where the original
                       stands still; flicker_original the same of the original; nan where nothing does
    """
    psnr, ssim = frame_quality(original_T3HW, output_T3HW).mean(0)
    original, output = original_T3HW.astype(np.float32), output_T3HW.astype(np.float32)
    error_HW = np.abs(original - output).mean((0, 1))
    inside = np.zeros(error_HW.shape, bool)
    inside[SEAM:-SEAM, SEAM:-SEAM] = True
    change, change_output = (np.abs(np.diff(frames, axis=0)) for frames in (original, output))
    still = change.max(1, keepdims=True) <= STATIC
    count = 3 * still.sum()
    return {"psnr": float(psnr), "ssim": float(ssim),
            "seam_error": float(error_HW[~inside].mean() / max(error_HW[inside].mean(), 1e-6)),
            "flicker": float((change_output * still).sum() / count) if count else float("nan"),
            "flicker_original": float((change * still).sum() / count) if count else float("nan")}


@torch.no_grad()
def mean_lpips(perceptual: LPIPSDistance, original_T3HW: np.ndarray, output_T3HW: np.ndarray,
               device: torch.device) -> float:
    """LPIPS of the frames of one clip, uint8, mean over frames."""
    return float(perceptual(*(to_pixels(torch.from_numpy(frames).to(device))
                              for frames in (original_T3HW, output_T3HW))))


def reconstruct_clip(model: VQModel, perceptual: LPIPSDistance | None, clip: Clip, manifest: Manifest,
                     data_path: Path, save_path: Path, device: torch.device) -> dict[str, float]:
    """Write the reconstruction of a clip unless it is there; its measures."""
    original_3HW, path = load_grid(data_path, clip, manifest), inside(save_path, clip.name)
    if not path.exists():
        output_3HW, _ = reconstruct(model, original_3HW, device)
        save_picture(path, output_3HW, compress_level=3)
    output_3HW, facts = load_grid(save_path, clip, manifest), manifest.facts()
    grids = original_3HW.numpy(), output_3HW.numpy()
    pair = [frames_of(grid, facts) for grid in grids]
    return (compare(*pair) | ({"mask_iou": mask_iou(*grids, facts)} if manifest.masks else {})
            | ({"lpips": mean_lpips(perceptual, *pair, device)} if perceptual else {}))


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over clips, passing over what a clip has no value of."""
    means = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {"clips": len(rows), **{name: float(values[~np.isnan(values)].mean())
                                   for name, values in means.items() if not np.isnan(values).all()}}


def write_sheet(clips: list[Clip], manifest: Manifest, data_path: Path, save_path: Path) -> None:
    """Originals, reconstructions and differences (amplified, grey is none) of clips spread over the set."""
    rows = []
    for i in evenly(len(clips), SHEET_CLIPS):
        original, output = (shown_frames(load_grid(folder, clips[i], manifest), manifest.facts())
                            for folder in (data_path, save_path))
        difference = 128 + SHEET_GAIN * (output.astype(np.int16) - original)
        title = f"{clips[i].name}: original, reconstruction, difference x {SHEET_GAIN}"
        rows += [(title, original), ("", output), ("", difference.clip(0, 255).astype(np.uint8))]
    with atomic_path(save_path / "sheet.png") as temporary:
        contact_sheet(rows).save(temporary)


def claim(save_path: Path, facts: dict[str, Any], manifest: Manifest, pictures: str) -> None:
    """Refuse a folder that holds the pictures of another tokenizer or data set.

    What is there of other `pictures`, as those of another crop, is deleted.
    """
    path = save_path / "reconstruction.json"
    if not path.exists() and any(inside(save_path, clip.name).exists() for clip in manifest.clips):
        raise InputError(f"--save-path {save_path}: holds pictures but no {path.name}, use another folder")
    there = read_json(path) if path.exists() else {"inputs": facts}
    if {**there["inputs"], "tokenizer": ""} != {**facts, "tokenizer": ""}:  # its file may have been renamed
        raise InputError(f"--save-path {save_path}: holds reconstructions of other inputs")
    if there.get("pictures") != pictures:
        for clip in manifest.clips:
            inside(save_path, clip.name).unlink(missing_ok=True)
        write_json(path, {"inputs": facts, "pictures": pictures})


def run(config: ReconstructConfig, runtime: Runtime) -> dict[str, Any]:
    """Reconstruct the clips and measure; `InputError` if another job is at it."""
    with locked(config.save_path, runtime):
        return reconstruct_all(config, runtime)


def reconstruct_all(config: ReconstructConfig, runtime: Runtime) -> dict[str, Any]:
    """Reconstruct this process's share; the main process then writes what was measured."""
    config = replace(config, data_path=data_folder(config.data_path, runtime))
    manifest, device = Manifest.read(config.data_path), runtime.device(config.device)
    if config.save_path.resolve() == config.data_path.resolve():
        raise InputError(f"--save-path {config.save_path}: is --data-path")
    file = checkpoint_file(config.vq_ckpt, runtime)
    model, clips = load_tokenizer(file).to(device), manifest.choose(config.split, config.clips_per_class)
    tokenizer = tokenizer_facts(model, file)
    with runtime.together():
        if runtime.is_main:
            facts = {"data": manifest.facts(), "tokenizer": tokenizer["name"], "hash": tokenizer["hash"]}
            claim(config.save_path, facts, manifest, manifest.pictures_hash(config.data_path))
    mine = runtime.share(clips)
    perceptual = (LPIPSDistance("vgg", config.vgg_weights, "--vgg-weights").to(device)
                  if config.vgg_weights else None)
    folders = config.data_path, config.save_path
    measured = {clip.name: reconstruct_clip(model, perceptual, clip, manifest, *folders, device)
                for clip in progress(mine, len(mine), "reconstruct", "clip", runtime.is_main)}
    rows = {name: row for part in runtime.gather(measured) for name, row in part.items()}
    if not runtime.is_main:
        return {}
    by_class = {class_name: summary(own) for label, class_name in enumerate(manifest.class_names)
                if (own := [rows[clip.name] for clip in clips if clip.label == label])}
    result = {**read_json(config.save_path / "reconstruction.json"), "split": config.split,
              "all": summary([rows[clip.name] for clip in clips]), "by_class": by_class}
    replace(manifest, clips=tuple(clips)).write(config.save_path)
    write_sheet(clips, manifest, *folders)
    write_json(config.save_path / "reconstruction.json", result)
    for name, row in {"all": result["all"], **by_class}.items():
        print(f"{name:24}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(f"open {config.save_path / 'sheet.png'}")
    return result


if __name__ == "__main__":
    run_command(ReconstructConfig, run)
