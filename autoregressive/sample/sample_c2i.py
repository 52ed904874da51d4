"""STAGE: checkpoint -> clips, as grid pictures, frames, mp4 and gif.

A clip is a function of (weights, class, seed, settings). Its grid picture is written last, so a clip that
has one is complete: the same command makes what is missing. Shapes: B clips at once, N tokens of a clip,
T frames, H x W pixels of a frame.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from autoregressive.models.checkpoint import find_gpt, load_gpt
from autoregressive.models.decoding import Passes
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT
from autoregressive.models.packing import pack
from autoregressive.sample.clip_files import (
    ClipJob,
    remove_unfinished,
    write_clip,
    write_manifest,
    write_sheet,
)
from autoregressive.sample.gallery import write_gallery
from autoregressive.sample.pictures import check_bfloat16, pictures_of
from autoregressive.sample.starts import continued, given_tokens, read_start
from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash, write_json
from common.hardware import free_memory, own_cores
from common.locks import locked
from common.progress import progress
from common.registry import MODELS_FOLDER, registry
from dataset.samples import FILE_NAME, read_samples
from tokenizer.loading import find_tokenizer, tokenizer_facts
from tokenizer.vq_model import VQModel

LINK_SEED = 1 << 40  # from the seed of one link of a chain to the next one's


@dataclass(frozen=True, kw_only=True)
class SampleC2IConfig:
    """Sample clips of every class, or of some, from a trained checkpoint."""

    save_folder: Path
    """Where grids, frames, videos and gifs go; clips already there are kept."""
    gpt_ckpt: Path | None = None
    """Checkpoint or run folder; it says what its classes, grid and frame rate are."""
    model: str | None = None
    """Instead of a checkpoint: a model of pretrained_models/registry.json. Neither: the first one that is
    there, the bundled phantom last."""
    vq_ckpt: Path | None = None
    """Tokenizer; without it the one that the checkpoint names."""
    classes: tuple[str, ...] = ()
    """Classes to sample; none given: all."""
    clips_per_class: int = 1
    """Clips of each class, with seeds --seed, --seed + 1 and so on."""
    seed: int = 0
    """First seed."""
    batch_size: int | None = None
    """Clips sampled at once (default: what memory holds, at most 32, on a GPU 128)."""
    cfg_scale: float | None = None
    """Classifier-free guidance; 1: none (default: what suits a registered model, else 1)."""
    cfg_interval: int = -1
    """Last decode step that is guided; -1: all are."""
    temperature: float | None = None
    """0: always the most likely token (default: what suits a registered model, else 1)."""
    top_k: int = 2000
    """Sample among this many most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest tokens that hold this probability."""
    start_from: Path | None = None
    """Begin every clip with the first frames of this: a grid picture, a picture, a frame folder, a video."""
    start_frames: int | None = None
    """How many of them; -k: the last k (default: the first row of the grid, or what there is)."""
    chain: int = 1
    """Clips joined to a longer one: each goes on from the last row of frames of the one before."""
    blend_with: str | None = None
    """Move every class towards this one ..."""
    blend: float = 0.5
    """... by so much: 0 is the class itself, 1 the other one."""
    decode_window: int | None = None
    """Tokens of a clip guessed and checked at once, which changes no clip; 1: one after the other (default:
    8, on a GPU 16)."""
    mixed_precision: Literal["bf16", "none"] = "none"
    """bf16 weights of the GPT (on a CPU autocast) are faster, but a clip may then change with its batch."""
    decode_precision: Literal["bf16", "none"] = "none"
    """bf16 autocast of the tokenizer, where that is faster; refused if pictures then differ visibly."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require_at_least(self, clips_per_class=1, seed=0, chain=1)
        for name in ("batch_size", "decode_window"):
            if getattr(self, name) is not None:
                require_at_least(self, **{name: 1})
        if not 0 <= self.blend <= 1:
            raise InputError(f"--blend {self.blend}: must be from 0 to 1")
        if self.gpt_ckpt and self.model:
            raise InputError(f"--model {self.model}: not together with --gpt-ckpt")

    def settled(self, entry: dict[str, Any]) -> "SampleC2IConfig":
        """The flags that were not given filled in from a model's registry entry."""
        best = {"cfg_scale": 1.0, "temperature": 1.0, **entry.get("sampling", {})}
        return replace(self, **{name: value for name, value in best.items() if getattr(self, name) is None})

    def settings(self) -> dict[str, Any]:
        """What, beside weights, class and seed, a clip depends on."""
        names = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")
        return {name: getattr(self, name) for name in names}


def make_jobs(config: SampleC2IConfig, class_names: Sequence[str]) -> list[ClipJob]:
    """The queue: for every seed, every class."""
    unknown = [name for name in config.classes if name not in class_names]
    if config.blend_with and config.blend_with not in class_names:
        raise InputError(f"--blend-with {config.blend_with}: the checkpoint knows {', '.join(class_names)}")
    if unknown:
        raise InputError(f"--classes {unknown[0]}: the checkpoint knows {', '.join(class_names)}")
    chosen = config.classes or class_names
    return [ClipJob(name, list(class_names).index(name), seed)
            for seed in range(config.seed, config.seed + config.clips_per_class) for name in chosen]


def fitting_batch(gpt: GPT, device: torch.device, runtime: Runtime) -> int:
    """Clips at once: 32, on a GPU 128, or fewer if their keys and values would fill half the free memory."""
    config, weight = gpt.config, gpt.output.weight
    slots = 2 * 2 * config.n_layer * config.block_size * config.kv_heads * config.head_dim  # under guidance
    if device.type == "cuda":
        free, most = torch.cuda.mem_get_info(device)[0], 128
    else:
        free, most = free_memory() // runtime.world_size, 32
    return max(1, min(most, int(free // 2 // (slots * weight.element_size()))))


@torch.no_grad()
def make_clips(
    gpt: GPT, tokenizer: VQModel, jobs: Sequence[ClipJob], config: SampleC2IConfig, dataset: dict[str, Any],
    start_N: Tensor | None, kept: dict[tuple, Passes],
) -> list[list[Tensor]]:
    """For each job the grid pictures of its links, uint8 (3, rows*H, cols*W); `kept` as in `generate`."""
    labels_B = torch.tensor([job.label for job in jobs])
    default = 16 if gpt.output.weight.is_cuda else 8
    window = config.decode_window or min(default, gpt.config.block_size)
    height = dataset["rows"] * dataset["frame_size"] // tokenizer.config.downsample
    frame_width = gpt.config.block_size // height // dataset["cols"]
    given_BN = None if start_N is None else start_N.expand(len(jobs), -1)
    towards = (dataset["class_names"].index(config.blend_with), config.blend) if config.blend_with else None
    links = []
    for link in range(config.chain):
        seeds = [job.seed + link * LINK_SEED for job in jobs]
        with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            tokens_BN = generate(gpt, labels_B, seeds, **config.settings(), given_BN=given_BN,
                                 towards=towards, decode_window=window, frame_width=frame_width, kept=kept)
        links.append(pictures_of(tokens_BN.unflatten(1, (height, -1)), tokenizer, config.decode_precision))
        given_BN = continued(tokens_BN, dataset["rows"])
    return [list(pictures) for pictures in zip(*links, strict=True)]


def read_given(config: SampleC2IConfig, tokenizer: VQModel, dataset: dict[str, Any]) -> Tensor | None:
    """The tokens (N,) that every clip begins with, -1 where there are none; None without --start-from."""
    if config.start_from is None:
        return None
    frames_T3SS = read_start(config.start_from, dataset)
    keep = min(len(frames_T3SS), dataset["cols"]) if config.start_frames is None else config.start_frames
    return given_tokens(frames_T3SS, keep, tokenizer, dataset)


def sampling_facts(config: SampleC2IConfig, start_N: Tensor | None) -> dict[str, Any]:
    """All that, beside weights, class and seed, decides what a clip looks like."""
    facts = {**config.settings(), "mixed_precision": config.mixed_precision}
    if config.decode_precision != "none":
        facts["decode_precision"] = config.decode_precision
    if config.chain > 1:
        facts["chain"] = config.chain
    if config.blend_with:
        facts |= {"blend_with": config.blend_with, "blend": config.blend}
    if start_N is not None:
        digest = hashlib.sha256(start_N.numpy().tobytes()).hexdigest()[:16]
        facts["start"] = {"name": config.start_from.name, "tokens": int((start_N >= 0).sum()), "hash": digest}
    return facts


def clips_there(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips that samples.json lists, if it is there; refuses those of other weights or settings.

    What a killed run has left half written is deleted.
    """
    if not (folder / FILE_NAME).exists():
        for kind in ("grids", "frames", "videos", "gifs"):
            if (folder / kind).exists():
                raise InputError(f"--save-folder {folder}: holds {kind} but no {FILE_NAME}; choose another")
        return []
    there = read_samples(folder)
    for name, value in facts.items():
        if there.get(name) != value:
            raise InputError(f"--save-folder {folder}: has clips of another {name}")
    remove_unfinished(folder)
    return there["clips"]


def run(config: SampleC2IConfig, runtime: Runtime) -> None:
    """Make the clips that are missing; `InputError` if another job is at it."""
    with locked(config.save_folder, runtime):
        sample(config, runtime)


def sample(config: SampleC2IConfig, runtime: Runtime) -> None:
    """Make this process's share of the clips that are missing."""
    device, folder = runtime.device(config.device), config.save_folder
    path = find_gpt(config.gpt_ckpt, config.model, runtime)
    entry = registry().get(path.name, {}) if path.parent == MODELS_FOLDER else {}
    config = config.settled(entry)
    gpt, dataset, wanted = load_gpt(path)
    given = config.vq_ckpt and checkpoint_file(config.vq_ckpt, runtime)
    tokenizer, vq_path = find_tokenizer(wanted, given, path)
    jobs = make_jobs(config, dataset["class_names"])
    start_N = read_given(config, tokenizer, dataset)
    digest = runtime.agree(lambda: file_hash(path))[:16]
    facts = {"version": 1, "checkpoint": {"name": path.name, "hash": digest},
             "tokenizer": {k: v for k, v in tokenizer_facts(tokenizer, vq_path).items() if k != "path"},
             "dataset": dataset, "sampling": sampling_facts(config, start_N),
             **{name: value for name, value in entry.items() if name == "notice"}}
    if config.decode_precision == "bf16":
        check_bfloat16(tokenizer.to(device), dataset)
    if runtime.is_main:
        print(f"model {path.name}, tokenizer {vq_path.name}")
        if "notice" in entry:
            print(entry["notice"])
    clips = clips_there(folder, facts) if runtime.is_main else []
    if runtime.is_main and not clips:
        write_json(folder / FILE_NAME, {**facts, "clips": []})  # from now on the folder is theirs
    runtime.gather(None)  # nobody writes clips before
    gpt, tokenizer = gpt.to(device), tokenizer.to(device)
    gpt = pack(gpt, torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32)
    todo = [job for job in runtime.share(jobs) if not (folder / job.path("grids", ".png")).exists()]
    size, kept = config.batch_size or fitting_batch(gpt, device, runtime), {}
    pool = ThreadPoolExecutor(own_cores())
    with progress(None, len(todo), "sample", "clip", runtime.is_main) as bar, pool as writers:
        writing: list[Future] = []  # one batch is written while the next one is sampled
        for start in range(0, len(todo) + size, size):
            batch = todo[start : start + size]
            chains = make_clips(gpt, tokenizer, batch, config, dataset, start_N, kept) if batch else []
            for written in writing:
                written.result()
            bar.update(len(writing))  # all at once, so that the rate is that of batches
            writing = [writers.submit(write_clip, folder, job, pictures, dataset)
                       for job, pictures in zip(batch, chains, strict=True)]
    runtime.gather(None)  # all clips are there
    if runtime.is_main:
        records = [job.record(config.chain) for job in jobs]
        clips += [record for record in records if record not in clips]
        clips.sort(key=lambda clip: (clip["seed"], clip["label"]))
        write_json(folder / FILE_NAME, {**facts, "clips": clips})
        write_manifest(folder / "grids", clips, dataset)
        write_sheet(folder, jobs, dataset)
        write_gallery(folder, facts, clips)
        print(f"{len(jobs)} clips of {len({job.class_name for job in jobs})} classes in {folder}: open "
              f"{folder / 'index.html'}")


if __name__ == "__main__":
    run_command(SampleC2IConfig, run)
