"""STAGE: checkpoint -> clips, as grid pictures, frames, mp4 and gif.

A clip is a function of (weights, class, seed, settings). Its grid picture is written last, so a clip that
has one is complete: the same command makes what is missing. Shapes: B clips at once, N tokens of a clip,
T frames, H x W pixels of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoregressive.models.checkpoint import find_gpt, load_gpt
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.files import atomic_path, file_hash, read_json, write_json
from common.progress import progress
from dataset.grid import grid_to_frames
from dataset.grid_images import to_uint8
from dataset.manifest import Clip, Manifest
from dataset.sheet import contact_sheet
from dataset.video import write_frames, write_gif, write_mp4
from tokenizer.vq_model import VQModel
from tokenizer.weights import find_tokenizer, tokenizer_facts

SHEET_CLIPS = 32  # clips on the contact sheet at most


@dataclass(frozen=True, kw_only=True)
class SampleC2IConfig:
    """Sample clips of every class, or of some, from a trained checkpoint."""

    save_folder: Path
    """Where grids, frames, videos and gifs go; clips already there are kept."""
    gpt_ckpt: Path | None = None
    """Checkpoint or run folder; it says what its classes, grid and frame rate are. None: the first model
    found in pretrained_models/."""
    vq_ckpt: Path | None = None
    """Tokenizer; without it the one that the checkpoint names."""
    classes: tuple[str, ...] = ()
    """Classes to sample; none given: all."""
    clips_per_class: int = 1
    """Clips of each class, with seeds --seed, --seed + 1 and so on."""
    seed: int = 0
    """First seed."""
    batch_size: int = 8
    """Clips sampled at once."""
    cfg_scale: float = 1.0
    """Classifier-free guidance; 1: none."""
    cfg_interval: int = -1
    """Last decode step that is guided; -1: all are."""
    temperature: float = 1.0
    """0: always the most likely token."""
    top_k: int = 2000
    """Sample among this many most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest tokens that hold this probability."""
    mixed_precision: Literal["bf16", "none"] = "none"
    """bf16 autocast of the GPT is faster, but a clip may then change with the batch it is in."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require_at_least(self, clips_per_class=1, batch_size=1, seed=0)

    def settings(self) -> dict[str, Any]:
        """What, beside weights, class and seed, a clip depends on."""
        names = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    class_name: str
    label: int
    seed: int

    def path(self, kind: str, suffix: str) -> str:
        """Where a file of this clip goes, below the save folder."""
        return f"{kind}/{self.class_name}/{self.seed:06d}{suffix}"

    def record(self) -> dict[str, Any]:
        """What samples.json says of this clip."""
        return {"class": self.class_name, "label": self.label, "seed": self.seed,
                "grid": self.path("grids", ".png"), "frames": self.path("frames", ""),
                "video": self.path("videos", ".mp4"), "gif": self.path("gifs", ".gif")}


def make_jobs(config: SampleC2IConfig, class_names: Sequence[str]) -> list[Job]:
    """The queue: for every seed, every class."""
    unknown = [name for name in config.classes if name not in class_names]
    if unknown:
        raise ValueError(f"--classes {unknown[0]}: the checkpoint knows {', '.join(class_names)}")
    chosen = config.classes or class_names
    return [Job(name, list(class_names).index(name), seed)
            for seed in range(config.seed, config.seed + config.clips_per_class) for name in chosen]


@torch.no_grad()
def make_clips(
    gpt: GPT, tokenizer: VQModel, jobs: Sequence[Job], config: SampleC2IConfig, dataset: dict[str, Any]
) -> list[Tensor]:
    """Grid pictures, uint8 (3, rows*H, cols*W), of some jobs."""
    labels_B = torch.tensor([job.label for job in jobs])
    device = gpt.output.weight.device
    with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        tokens_BN = generate(gpt, labels_B, [job.seed for job in jobs], **config.settings())
    height = dataset["rows"] * dataset["frame_size"] // tokenizer.config.downsample
    codes_Bhw = tokens_BN.unflatten(1, (height, -1))
    return [to_uint8(tokenizer.decode(codes_hw[None])[0]).cpu() for codes_hw in codes_Bhw]


def frames_of(picture_3HW: Tensor, dataset: dict[str, Any]) -> np.ndarray:
    """Grid picture -> frames (T, H, W, 3) uint8."""
    frames_TCHW = grid_to_frames(picture_3HW, dataset["rows"], dataset["cols"])
    return frames_TCHW.permute(0, 2, 3, 1).contiguous().numpy()


def write_clip(folder: Path, job: Job, picture_3HW: Tensor, dataset: dict[str, Any]) -> None:
    """All files of a clip, the grid picture last."""
    frames_THWC, record = frames_of(picture_3HW, dataset), job.record()
    write_frames(folder / record["frames"], frames_THWC)
    write_mp4(folder / record["video"], frames_THWC, dataset["fps"])
    write_gif(folder / record["gif"], frames_THWC, dataset["fps"])
    with atomic_path(folder / record["grid"]) as temporary:
        Image.fromarray(picture_3HW.permute(1, 2, 0).numpy()).save(temporary)


def clips_there(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips that samples.json lists, if it is there; refuses those of other weights or settings."""
    path = folder / "samples.json"
    if not path.exists():
        if (folder / "grids").exists():
            raise ValueError(f"--save-folder {folder}: holds grids but no samples.json; choose another")
        return []
    there = read_json(path)
    for name, value in facts.items():
        if there.get(name) != value:
            raise ValueError(f"--save-folder {folder}: has clips of another {name}")
    return there["clips"]


def write_manifest(folder: Path, clips: Sequence[dict[str, Any]], dataset: dict[str, Any]) -> None:
    """dataset.json beside the grid pictures, so that they are a data set again."""
    facts = {field.name: dataset.get(field.name) for field in fields(Manifest)}
    names, split_by = tuple(facts["class_names"]), dict.fromkeys(facts["class_names"], "recording")
    entries = []
    for clip in clips:
        name, recording = clip["grid"].removeprefix("grids/"), f"{clip['class']}/{clip['seed']}"
        entries.append(Clip(name, clip["label"], recording, "train", 0.0))
    Manifest(**{**facts, "class_names": names, "split_by": split_by, "clips": tuple(entries)}).write(folder)


def write_sheet(folder: Path, jobs: Sequence[Job], dataset: dict[str, Any]) -> None:
    """The first clips of the queue, a row each."""
    rows = []
    for job in jobs[:SHEET_CLIPS]:
        with Image.open(folder / job.path("grids", ".png")) as image:
            picture_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        rows.append((f"{job.class_name} {job.seed}", frames_of(picture_3HW, dataset)))
    with atomic_path(folder / "contact_sheet.png") as temporary:
        contact_sheet(rows).save(temporary)


def run(config: SampleC2IConfig, runtime: Runtime) -> None:
    """Make this process's share of the clips that are missing."""
    device, folder = runtime.device(config.device), config.save_folder
    path = find_gpt(config.gpt_ckpt)
    gpt, dataset, wanted = load_gpt(path)
    tokenizer, vq_path = find_tokenizer(wanted, config.vq_ckpt, path)
    jobs = make_jobs(config, dataset["class_names"])
    facts = {"version": 1, "checkpoint": {"name": path.name, "hash": file_hash(path)[:16]},
             "tokenizer": {k: v for k, v in tokenizer_facts(tokenizer, vq_path).items() if k != "path"},
             "dataset": dataset, "sampling": {**config.settings(), "mixed_precision": config.mixed_precision}}
    clips = clips_there(folder, facts) if runtime.is_main else []
    if runtime.is_main and not clips:
        write_json(folder / "samples.json", {**facts, "clips": []})  # from now on the folder is theirs
    runtime.gather(None)  # nobody writes clips before
    gpt, tokenizer = gpt.to(device), tokenizer.to(device)
    todo = [job for job in runtime.share(jobs) if not (folder / job.path("grids", ".png")).exists()]
    with progress(None, len(todo), "sample", "clip", runtime.is_main) as bar:
        for start in range(0, len(todo), config.batch_size):
            batch = todo[start : start + config.batch_size]
            pictures = make_clips(gpt, tokenizer, batch, config, dataset)
            for job, picture_3HW in zip(batch, pictures, strict=True):
                write_clip(folder, job, picture_3HW, dataset)
            bar.update(len(batch))
    runtime.gather(None)  # all clips are there
    if runtime.is_main:
        clips += [job.record() for job in jobs if job.record() not in clips]
        clips.sort(key=lambda clip: (clip["seed"], clip["label"]))
        write_json(folder / "samples.json", {**facts, "clips": clips})
        write_manifest(folder / "grids", clips, dataset)
        write_sheet(folder, jobs, dataset)
        print(f"{len(jobs)} clips of {len({job.class_name for job in jobs})} classes in {folder}")


if __name__ == "__main__":
    run_command(SampleC2IConfig, run)
