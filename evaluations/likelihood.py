"""STAGE: codes and a GPT -> the class of each clip by the generator's own likelihood.

By Bayes, p(class | clip) is p(tokens | class) over its sum over classes, all classes being equally frequent:
a classifier that needs no training, and a measure of how much the GPT heeds its class. This module alone of
its station imports the model. Shapes: n clips, K classes, N tokens, h x w of them in a picture.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.gpt import GPT
from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, file_hash, remove, write_json
from common.locks import locked
from common.progress import progress
from common.spread import choose, evenly
from dataset.codes import Codes
from dataset.grid import grid_to_frames
from dataset.grid_images import to_uint8
from dataset.sheet import contact_sheet
from evaluations.class_scores import class_summary
from evaluations.uncertainty import GROUPS, deal_groups, jackknife_error
from tokenizer.loading import find_tokenizer
from tokenizer.vq_model import VQModel

BLOCK = 16  # clips between two saves
STRONG = 2.0  # nats of a token that have the full colour on the map


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Classify clips by the likelihood of their codes under a GPT."""

    code_path: Path
    """Folder written by tokenizer.extract_codes."""
    gpt_ckpt: Path
    """Checkpoint or run folder of a GPT of the same tokenizer and classes."""
    output: Path
    """Folder for likelihood.json and map.png."""
    split: Literal["val", "train", "all"] = "val"
    """Clips to classify."""
    clips_per_class: int | None = None
    """At most so many clips of each class, evenly spread (default: all)."""
    map_clips: int = 8
    """Clips on the map, evenly spread."""
    vq_ckpt: Path | None = None
    """Tokenizer for the map, if it is not found beside the GPT."""
    batch_size: int = 8
    """Pairs of clip and class at once."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, map_clips=0, batch_size=1)
        if self.clips_per_class is not None:
            require_at_least(self, clips_per_class=1)


@torch.inference_mode()
def log_likelihood(model: GPT, tokens_N: Tensor, classes: int, batch_size: int) -> Tensor:
    """log p(token | class, tokens before it) of a clip under every class, in nats: (N,) -> (K, N)."""
    parts = []
    for labels_B in torch.arange(classes, device=tokens_N.device).split(batch_size):
        tokens_BN = tokens_N.expand(len(labels_B), -1)
        logits_BVN = model(tokens_BN, labels_B).float().movedim(-1, 1)
        parts.append(-F.cross_entropy(logits_BVN, tokens_BN, reduction="none"))
    return torch.cat(parts)


def summary(total_nK: np.ndarray, labels_n: np.ndarray, class_names: list[str], recordings: list[str]
            ) -> dict[str, Any]:
    """Scores, by class too, the accuracy's standard error, and the mean probability of the right class.

    The error is a jackknife over recordings; None if there is only one.
    """
    posterior_nK = torch.from_numpy(total_nK).softmax(1).numpy()
    right_n, one = total_nK.argmax(1) == labels_n, [np.array([0])]
    error = jackknife_error(lambda clips, _: right_n[clips].mean(), deal_groups(recordings, GROUPS), one)
    return {**class_summary(class_names, labels_n, total_nK.argmax(1)),
            "stderr": None if error is None else float(error),
            "probability_of_the_class": float(posterior_nK[np.arange(len(labels_n)), labels_n].mean())}


def evidence_map(ratio_N: np.ndarray, grid: tuple[int, int], scale: int) -> np.ndarray:
    """Log ratio of two classes by token as uint8 (3, H, W): red speaks for the first, blue for the second."""
    share_hw = (ratio_N.reshape(grid) / STRONG).clip(-1, 1).repeat(scale, 0).repeat(scale, 1)
    red, blue = 1 - (-share_hw).clip(0), 1 - share_hw.clip(0)
    return (255 * np.stack([red, np.minimum(red, blue), blue])).astype(np.uint8)


def write_map(path: Path, codes: Codes, places: list[int], tokens_nKN: np.ndarray, tokenizer: VQModel,
              device: torch.device) -> None:
    """Frames of clips, and below them what each token says for their class against the likeliest other."""
    facts, rows = codes.dataset, []
    for place, tokens_KN in zip(places, tokens_nKN, strict=True):
        label, total_K = codes.labels[place], tokens_KN.sum(1)
        other = int(np.argmax(np.where(np.arange(len(total_K)) == label, -np.inf, total_K)))
        with torch.inference_mode():
            codes_1hw = torch.from_numpy(codes.codes_CAhw[place, :1].astype(np.int64)).to(device)
            picture_3HW = to_uint8(tokenizer.decode(codes_1hw)[0]).cpu().numpy()
        ratio_N = tokens_KN[label] - tokens_KN[other]
        heat_3HW = evidence_map(ratio_N, codes.token_grid, picture_3HW.shape[1] // codes.token_grid[0])
        names = facts["class_names"]
        title = f"{codes.names[place]}: {ratio_N.sum():+.1f} nats for {names[label]} against {names[other]}"
        rows += [(text, grid_to_frames(picture, facts["rows"], facts["cols"]).transpose(0, 2, 3, 1))
                 for text, picture in ((title, picture_3HW), ("red: for it, blue: against it", heat_3HW))]
    with atomic_path(path) as temporary:
        contact_sheet(rows).save(temporary)


def run(config: LikelihoodConfig, runtime: Runtime) -> dict[str, Any]:
    """Classify, print, write; `InputError` if another job is at it."""
    with locked(config.output, runtime):
        return classify(config, runtime)


def classify(config: LikelihoodConfig, runtime: Runtime) -> dict[str, Any]:
    """Compute this process's blocks; the main process then joins all of them."""
    codes, file = Codes.read(config.code_path), checkpoint_file(config.gpt_ckpt, runtime)
    model, dataset, tokenizer = load_gpt(file)
    class_names, device = dataset["class_names"], runtime.device(config.device)
    if codes.dataset["class_names"] != class_names:
        raise InputError(f"--code-path {config.code_path}: its classes are not those of {file}")
    grids = [(own.get("rows"), own.get("cols"), own.get("masks")) for own in (codes.dataset, dataset)]
    if grids[0] != grids[1] or codes.token_grid != model.config.grid:
        raise InputError(f"--code-path {config.code_path}: its clips are not tiled as those of {file}")
    known = [{side.get("hash"), *side.get("same_codes", ())} for side in (codes.tokenizer, tokenizer)]
    if None not in set.union(*known) and known[0].isdisjoint(known[1]):
        raise InputError(f"--code-path {config.code_path}: codes of another tokenizer than that of {file}")
    places = choose(codes.splits, codes.labels, config.split, config.clips_per_class, "--code-path")
    labels_n = np.array(codes.labels)[places]
    tokens_nN = np.asarray(codes.codes_CAhw[places, 0]).reshape(len(places), -1).astype(np.int64)
    key = json.dumps([runtime.agree(lambda: file_hash(file)), hashlib.sha256(tokens_nN).hexdigest()])
    blocks = config.output / f".blocks-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    starts, model = range(0, len(places), BLOCK), model.to(device)
    todo = [start for start in runtime.share(starts) if not (blocks / f"{start:07d}.npy").exists()]
    for start in progress(todo, len(todo), "likelihood", "block", runtime.is_main):
        tokens_bN = torch.from_numpy(tokens_nN[start : start + BLOCK]).to(device)
        found = [log_likelihood(model, tokens_N, len(class_names), config.batch_size)
                 for tokens_N in tokens_bN]
        with atomic_path(blocks / f"{start:07d}.npy") as temporary:
            np.save(temporary, torch.stack(found).cpu().numpy())
    runtime.gather(None)  # all blocks are there
    if not runtime.is_main:
        return {}
    for other in set(config.output.glob(".blocks-*")) - {blocks}:
        remove(other)
    tokens_nKN = np.concatenate([np.load(blocks / f"{start:07d}.npy") for start in starts])
    total_nK = tokens_nKN.sum(2, dtype=np.float64)
    row_ends = np.arange(1, codes.dataset["rows"] + 1) * tokens_nN.shape[1] // codes.dataset["rows"]
    after_rows = [float((tokens_nKN[:, :, :end].sum(2).argmax(1) == labels_n).mean()) for end in row_ends]
    own_n = total_nK[np.arange(len(places)), labels_n]
    recordings = [codes.recordings[place] for place in places]
    result = {"checkpoint": file_hash(file)[:16], "split": config.split,
              **summary(total_nK, labels_n, class_names, recordings), "accuracy_after_rows": after_rows,
              "nats_per_token": float(-own_n.mean() / tokens_nN.shape[1])}
    write_json(config.output / "likelihood.json", result)
    if config.map_clips:
        vq = find_tokenizer(tokenizer, config.vq_ckpt, file)[0].to(device)
        shown = evenly(len(places), config.map_clips)
        write_map(config.output / "map.png", codes, [places[i] for i in shown], tokens_nKN[shown], vq, device)
    print_result(result)
    print(f"open {config.output / ('map.png' if config.map_clips else 'likelihood.json')}")
    return result


def print_result(result: dict[str, Any]) -> None:
    """A line for all clips, and one for each class."""
    error = "" if result["stderr"] is None else f" +- {result['stderr']:.1%}"
    print(f"{result['clips']} clips: accuracy {result['accuracy']:.1%}{error}, balanced "
          f"{result['balanced_accuracy']:.1%}, {result['nats_per_token']:.3f} nats per token")
    print("accuracy after each row of frames:", *(f"{value:.1%}" for value in result["accuracy_after_rows"]))
    for name, own in result["by_class"].items():
        print(f"    {name:30} {own['clips']:5} clips  accuracy {own['accuracy']:6.1%}  "
              f"taken for {own['taken_for']}")


if __name__ == "__main__":
    run_command(LikelihoodConfig, run)
