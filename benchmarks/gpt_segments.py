"""How well a GPT of annotated clips segments given frames (`sample_c2i --start-from`), against true masks.

    python -m benchmarks.gpt_segments --data-path out/grids --gpt-ckpt out/gpt --results-dir out/segments

Held-out clips keep their frames, and the GPT samples their masks. Of several guesses each pixel's most
frequent label counts. Shapes: T frames of S x S pixels, G guesses, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoregressive.sample.sampler import ClipSampler, Models, usual_window
from autoregressive.sample.starts import given_tokens
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, write_json
from common.progress import progress
from common.spread import evenly
from dataset.grid_images import load_grid
from dataset.manifest import Manifest
from dataset.masks import clip_length, frames_of, labels_of
from evaluations.results import aligned
from evaluations.segmentation_scores import overlay_sheet, score_all
from evaluations.uncertainty import GROUPS, deal_groups, jackknife_error

SHOWN = 6  # clips on the sheet


@dataclass(frozen=True, kw_only=True)
class GPTSegmentsConfig:
    """Segment held-out clips by the GPT."""

    data_path: Path
    """Folder of annotated clips, from dataset.prepare --masks."""
    gpt_ckpt: Path
    """Checkpoint or run folder of a GPT that was trained on such clips, masks after frames."""
    results_dir: Path
    """Folder for segments.json and segments.png."""
    vq_ckpt: Path | None = None
    """Tokenizer, if it is not found beside the GPT."""
    clips: int = 32
    """At most so many clips of the val split, evenly spread."""
    guesses: int = 3
    """Masks sampled for each clip."""
    temperature: float = 0.5
    """Of sampling."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, clips=1, guesses=1)


def majority(labels_GTSS: np.ndarray) -> np.ndarray:
    """The most frequent label of every pixel (T, S, S), the lowest of equals."""
    counts = [(labels_GTSS == label).sum(0) for label in range(int(labels_GTSS.max()) + 1)]
    return np.argmax(counts, axis=0).astype(np.uint8)


def run(config: GPTSegmentsConfig, runtime: Runtime) -> dict[str, Any]:
    """Sample the masks and write their scores: Dice, IoU and HD95 of the first guess and of the majority."""
    device, manifest = runtime.device(config.device), Manifest.read(config.data_path)
    models = Models.load(config.gpt_ckpt, None, None, config.vq_ckpt, runtime)
    facts = models.dataset
    for name in ("rows", "cols", "frame_size", "masks", "class_names"):
        if manifest.facts().get(name) != facts.get(name):
            raise InputError(f"--data-path {config.data_path}: {name} differs from that of the GPT's data")
    if not facts.get("masks"):
        raise InputError(f"--gpt-ckpt {config.gpt_ckpt}: its clips have no masks")
    if not (held_out := manifest.select("val")):
        raise InputError(f"--data-path {config.data_path}: has no clips of val")
    clips = [held_out[i] for i in evenly(len(held_out), config.clips)]
    gpt, tokenizer = models.gpt.to(device), models.tokenizer.to(device)
    sampler = ClipSampler(gpt, tokenizer, facts, {
        "temperature": config.temperature, "decode_window": usual_window(gpt, device)})
    found: list[tuple[np.ndarray, ...]] = []
    for clip in progress(clips, len(clips), "segment", "clip", runtime.is_main):
        grid_3HW = load_grid(config.data_path, clip, manifest).numpy()
        frames_T3SS, true_TSS = frames_of(grid_3HW, facts), labels_of(grid_3HW, facts)
        given_N = given_tokens(frames_T3SS, clip_length(facts), tokenizer, facts)
        tokens_GN = sampler.tokens(torch.full((config.guesses,), clip.label), range(config.guesses),
                                   given_N.expand(config.guesses, -1))
        pictures = sampler.pictures(tokens_GN)
        guesses_GTSS = np.stack([labels_of(picture_3HW.numpy(), facts) for picture_3HW in pictures])
        found.append((frames_T3SS, true_TSS, guesses_GTSS[0], majority(guesses_GTSS)))
    return report(config, [clip.recording for clip in clips], found)


def report(config: GPTSegmentsConfig, recordings: Sequence[str], found: Sequence[tuple[np.ndarray, ...]]
           ) -> dict[str, Any]:
    """Print a table, write segments.json and the sheet."""
    result: dict[str, Any] = {"guesses": config.guesses}
    for place, name in ((2, "first guess"), (3, "majority")):
        scores = [{kind: float(np.mean(own)) for kind, own in score_all(clip[1], clip[place]).items()}
                  for clip in found]
        dice_n = np.array([own["dice"] for own in scores])
        error = jackknife_error(lambda some, _, dice_n=dice_n: dice_n[some].mean(),
                                deal_groups(recordings, GROUPS), [np.array([0])])
        result[name] = {**{kind: float(np.mean([own[kind] for own in scores])) for kind in scores[0]},
                        "stderr of dice": None if error is None else float(error),
                        "dice by clip": list(zip(recordings, dice_n.round(4).tolist(), strict=True))}
    write_json(config.results_dir / "segments.json", result)
    shown = [found[i] for i in evenly(len(found), SHOWN)]
    frames, true, first, best = (np.stack([clip[k][0] for clip in shown]) for k in range(4))
    names = [recordings[i] for i in evenly(len(found), SHOWN)]
    with atomic_path(config.results_dir / "segments.png") as temporary:
        overlay_sheet(names, frames, true, {"first guess": first, "majority": best}).save(temporary)
    kinds = [kind for kind in result["majority"] if kind != "dice by clip"]
    rows = [[name, *("-" if result[name][kind] is None else f"{result[name][kind]:.3g}" for kind in kinds)]
            for name in ("first guess", "majority")]
    print("\n".join(aligned([["", *kinds], *rows])))
    return result


if __name__ == "__main__":
    run_command(GPTSegmentsConfig, run)
