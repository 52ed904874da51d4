"""STAGE: nothing -> videos/<class>/<class>_<seed>.mp4, rendered phantoms as input for dataset.prepare.

Every recording is a function of its class, its seed and the flags; those already there are kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from common.command import say_next
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path
from dataset.parallel import map_everywhere
from dataset.phantom.clip import CLASS_NAMES, render_clip
from dataset.video import write_mp4

NOTICE = """PHANTOM: THIS IS NO CLINICAL DATA.

Everything in this folder was rendered by a program (python -m dataset.phantom). No patient, no tissue and no
endoscope was involved. The lesions are made up and were judged by no clinician. Fit for trying out and
testing software; unfit for any statement about patients, diseases or diagnostic performance.

Settings: {frames} frames of {size} x {size} px at {fps:g} frames per second, view: {view}.
"""


@dataclass(frozen=True)
class PhantomConfig:
    video_path: Path
    """Folder for <class>/<class>_<seed>.mp4, as dataset.prepare reads it; what is already there is kept."""
    clips_per_class: int = 20
    """Recordings of every class, with the seeds --seed, --seed + 1, ..."""
    frames: int = 80
    """Frames of a recording; dataset.prepare cuts several clips from a long one."""
    size: int = 128
    """Pixels of a frame's side."""
    fps: float = 8.0
    """Frames per second; the motion is the same at every rate."""
    view: Literal["any", "round", "octagon", "barrel", "full"] = "any"
    """Shape of the picture: one endoscope's for all recordings, or any."""
    seed: int = 0
    """Seed of the first recording of every class."""
    masks: bool = False
    """Also write lesion masks, beside the videos: <video-path>_masks/<class>/<class>_<seed>/00000.png, ..."""
    workers: int | None = None
    """Processes per rank (default: the cores, shared among the ranks of the machine)."""

    def __post_init__(self) -> None:
        for name in ("clips_per_class", "frames", "size", "fps", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {value}: must be positive")
        if self.size < 16:
            raise InputError(f"--size {self.size}: must be at least 16")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must not be negative")


def run(config: PhantomConfig, runtime: Runtime) -> int:
    """Write the recordings that are missing; returns how many that were, on all ranks together."""
    claim_folder(config, runtime)
    seeds = range(config.seed, config.seed + config.clips_per_class)
    calls = [(config, label, seed) for seed in seeds for label in range(len(CLASS_NAMES))]
    results = map_everywhere(write_recording, calls, runtime, config.workers, "phantom")
    for result in results:
        if isinstance(result, BaseException):
            raise result
    if runtime.is_main:
        masks = ("--masks", mask_root(config.video_path)) if config.masks else ()
        say_next("bash", "scripts/prepare.sh", "--data-path", "GRIDS", "--video-path", config.video_path,
                 *masks)
    return sum(results)


def claim_folder(config: PhantomConfig, runtime: Runtime) -> None:
    """Write PHANTOM.txt; a folder whose recordings were made with other settings is refused."""
    notice = NOTICE.format(frames=config.frames, size=config.size, fps=config.fps, view=config.view)
    path = config.video_path / "PHANTOM.txt"
    if path.exists() and path.read_text(encoding="utf-8") != notice:
        raise InputError(f"--video-path {config.video_path}: has phantoms of other --frames, --size, --fps "
                         "or --view")
    runtime.gather(None)  # nobody writes before all have read
    if runtime.is_main:
        with atomic_path(path) as temporary:
            temporary.write_text(notice, encoding="utf-8")


def write_recording(config: PhantomConfig, label: int, seed: int) -> bool:
    """Render one recording, unless it is there; True if it was not."""
    name = f"{CLASS_NAMES[label]}_{seed:06d}"
    video = config.video_path / CLASS_NAMES[label] / f"{name}.mp4"
    folder = mask_root(config.video_path) / CLASS_NAMES[label] / name
    if video.exists() and (folder.exists() or not config.masks):
        return False
    cv2.setNumThreads(1)  # recordings are rendered side by side
    frames_THWC, masks_THW = render_clip(label, seed, config.frames, config.size, config.fps, config.view)
    if config.masks:
        write_masks(folder, masks_THW)
    write_mp4(video, frames_THWC, config.fps, preset="veryfast")
    return True


def mask_root(video_path: Path) -> Path:
    """Where masks go: beside the videos, as dataset.prepare takes every folder among them for a class."""
    return video_path.absolute().with_name(f"{video_path.absolute().name}_masks")


def write_masks(folder: Path, masks_THW: np.ndarray) -> None:
    """Write masks (T, H, W) as 00000.png, 00001.png, ... of one bit, white where lesion is."""
    with atomic_path(folder, folder=True) as temporary:
        for t, mask in enumerate(masks_THW):
            Image.fromarray(mask).save(temporary / f"{t:05d}.png")
