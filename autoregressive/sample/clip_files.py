"""The files of generated clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from common.files import atomic_path
from common.names import inside
from dataset.grid_images import save_picture
from dataset.manifest import Clip, Manifest
from dataset.masks import Masks, frames_of, labels_of, shown_frames, write_masks
from dataset.sheet import contact_sheet, save_film
from dataset.video import write_frames, write_gif, write_mp4

SHEET_CLIPS = 32  # clips on the contact sheet at most


@dataclass(frozen=True)
class ClipJob:
    """One clip to make."""

    class_name: str
    label: int
    seed: int

    def path(self, kind: str, suffix: str) -> str:
        """Path of a file of this clip, relative to the save folder."""
        return f"{kind}/{self.class_name}/{self.seed:06d}{suffix}"

    def grids(self, chain: int) -> list[str]:
        """Paths of the grid pictures of a clip of `chain` links."""
        return [self.path("grids", ".png"), *(self.path("grids", f"_{k}.png") for k in range(1, chain))]

    def record(self, chain: int, masks: bool = False) -> dict[str, Any]:
        """The entry of this clip in samples.json."""
        return {"class": self.class_name, "label": self.label, "seed": self.seed,
                "grid": self.path("grids", ".png"), "frames": self.path("frames", ""),
                "video": self.path("videos", ".mp4"), "gif": self.path("gifs", ".gif"),
                **({"masks": self.path("masks", "")} if masks else {}),
                **({"grids": self.grids(chain)} if chain > 1 else {})}


def write_clip(folder: Path, job: ClipJob, pictures: Sequence[Tensor], dataset: dict[str, Any]) -> None:
    """Write all files of a clip, whose links share a row of frames; the first grid picture comes last."""
    def joined(part: Callable[[np.ndarray, dict[str, Any]], np.ndarray]) -> np.ndarray:
        first, *rest = (part(picture_3HW.numpy(), dataset) for picture_3HW in pictures)
        return np.concatenate([first, *(link[dataset["cols"]:] for link in rest)])

    masks, frames_THWC = Masks.of(dataset), joined(shown_frames)
    record = job.record(1, bool(masks))
    write_frames(inside(folder, record["frames"]), joined(frames_of).transpose(0, 2, 3, 1))
    if masks:
        write_masks(inside(folder, record["masks"]), joined(labels_of), masks)
    write_mp4(inside(folder, record["video"]), frames_THWC, dataset["fps"])
    write_gif(inside(folder, record["gif"]), frames_THWC, dataset["fps"])
    names = job.grids(len(pictures))
    for name, picture_3HW in reversed(list(zip(names, pictures, strict=True))):
        save_picture(inside(folder, name), picture_3HW)


def write_manifest(folder: Path, clips: Sequence[dict[str, Any]], dataset: dict[str, Any]) -> None:
    """Write dataset.json beside the grid pictures, so that they are a data set."""
    facts = {field.name: dataset.get(field.name) for field in fields(Manifest)}
    facts["masks"] = Masks.of(dataset)
    names, split_by = tuple(facts["class_names"]), dict.fromkeys(facts["class_names"], "recording")
    entries = []
    for clip in clips:
        recording = f"{clip['class']}/{clip['seed']}"
        for name in clip.get("grids", [clip["grid"]]):
            entries.append(Clip(name.removeprefix("grids/"), clip["label"], recording, "train", 0.0))
    Manifest(**{**facts, "class_names": names, "split_by": split_by, "clips": tuple(entries)}).write(folder)


def write_sheet(folder: Path, jobs: Sequence[ClipJob], dataset: dict[str, Any]) -> None:
    """Write the contact sheets: the first clips, a row each, and side by side in motion."""
    rows = []
    for job in jobs[:SHEET_CLIPS]:
        with Image.open(folder / job.path("grids", ".png")) as image:
            picture_3HW = np.array(image).transpose(2, 0, 1)
        rows.append((f"{job.class_name} {job.seed}", shown_frames(picture_3HW, dataset)))
    with atomic_path(folder / "contact_sheet.png") as temporary:
        contact_sheet(rows).save(temporary)
    save_film(folder / "contact_sheet.webp", rows, dataset["fps"])
