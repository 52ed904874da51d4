"""A small video classifier: what does a clip show, and how far are two sets of clips apart?

Trained on real clips with the project's own loop, it measures generated ones: accuracy, and distances
between its features. It sees 8 frames of 64 px, smoothed and recoloured at random in training, so that it
looks at shapes more than at a tokenizer's softness.
Shapes: B clips, T frames, H x W pixels, D features, K classes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.checkpoints import checkpoint_file
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.layouts import model_state
from common.names import check_classes
from common.training.config import TrainingConfig
from common.training.loop import train
from common.training.task import Task
from common.weights import load_checkpoint, load_strict
from dataset.grid import grid_to_frames
from dataset.grid_images import load_grid
from dataset.manifest import Manifest

FRAMES, SIZE = 8, 64


@dataclass(frozen=True)
class ProbeConfig:
    """Shape of the classifier."""

    num_classes: int
    width: int = 32
    """Channels after the first convolution; 4 times as many at the end."""
    features: int = 128


class VideoProbe(nn.Module):
    """Convolutions on each frame, pooled over space, then over time together with how much changes."""

    def __init__(self, config: ProbeConfig):
        super().__init__()
        self.config = config
        widths = [3, *(config.width * m for m in (1, 2, 3, 4, 4))]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if i < 3 else 1, padding=1)
            for i, (before, after) in enumerate(pairwise(widths)))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.project = nn.Linear(4 * widths[-1], config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    def features(self, clips_BT3HW: Tensor) -> Tensor:
        """Clips of `FRAMES` x `SIZE` x `SIZE` in [-1, 1] -> features (B, D)."""
        x = clips_BT3HW.flatten(0, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        pooled_BTC = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1).unflatten(0, clips_BT3HW.shape[:2])
        change_BC = pooled_BTC.diff(dim=1).abs().mean(1)
        return self.project(torch.cat([pooled_BTC.mean(1), change_BC], 1))

    def forward(self, clips_BT3HW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(F.silu(self.features(clips_BT3HW)))


def probe_input(picture_3HW: Tensor, rows: int, cols: int) -> Tensor:
    """Grid picture uint8 (3, H, W) -> uint8 (FRAMES, 3, SIZE, SIZE): frames evenly chosen, area-averaged."""
    frames_T3HW = grid_to_frames(picture_3HW, rows, cols)
    chosen = np.linspace(0, len(frames_T3HW) - 1, FRAMES).round().astype(int)
    return F.interpolate(frames_T3HW[chosen].float(), (SIZE, SIZE), mode="area").round().to(torch.uint8)


class ProbeClips(Dataset):
    """(input of the probe, label) of the clips of one split, held in memory: 98 KB a clip."""

    def __init__(self, folder: Path, manifest: Manifest, split: str):
        clips = manifest.select(split)
        self.labels = [clip.label for clip in clips]
        self.inputs = [probe_input(load_grid(folder, clip, manifest), manifest.rows, manifest.cols)
                       for clip in clips]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], self.labels[index]


def augment(clips_BT3HW: Tensor, seeds_B: Tensor) -> Tensor:
    """Mirror, blur, fade by up to a half, brighten and tint by up to a quarter, by the bits of each seed.

    Blurs and fading go as far as a small tokenizer's: what is judged is the finding, not its sharpness.
    """
    bits_B1111 = seeds_B[:, None, None, None, None]
    clips = torch.where((bits_B1111 >> 20) % 2 == 1, clips_BT3HW.flip(-1), clips_BT3HW)
    for cell, amount in ((2, 1), (4, 2), (8, 3)):
        blurred = F.interpolate(F.avg_pool2d(clips.flatten(0, 1), cell), scale_factor=cell, mode="bilinear")
        clips = torch.where((bits_B1111 >> 52) % 4 == amount, blurred.view_as(clips), clips)
    gain_B3 = torch.stack([(seeds_B >> shift) % 1024 for shift in (22, 32, 42)], 1) / 2046 + 0.75
    clips = (clips + 1) * gain_B3[:, None, :, None, None] - 1
    grey = clips.mean(2, keepdim=True)
    return (grey + ((bits_B1111 >> 10) % 1024 / 2046 + 0.5) * (clips - grey)).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class TrainProbeConfig(TrainingConfig):
    """Train the probe on the grid pictures of a prepared data set."""

    data_path: Path
    """Folder written by dataset.prepare."""


class ProbeTask(Task):
    """What the training loop needs to know of the probe."""

    def __init__(self, config: TrainProbeConfig, runtime: Runtime):
        manifest = Manifest.read(config.data_path)
        self.train_set = ProbeClips(config.data_path, manifest, "train")
        self.val_set = ProbeClips(config.data_path, manifest, "val")
        torch.manual_seed(config.global_seed)
        self.model: nn.Module = VideoProbe(ProbeConfig(len(manifest.class_names)))
        self.facts: dict[str, Any] = {"config": asdict(self.model.config), "dataset": manifest.facts()}
        self.blocks = [self.model]  # `measure`, whose batches differ in size, does not call its forward
        self.device = runtime.device(config.device)

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of augmented clips."""
        clips_BT3HW, labels_B = batch
        return F.cross_entropy(model(augment(clips_BT3HW.float() / 127.5 - 1, seeds_B)), labels_B), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on held-out clips."""
        if not self.val_set.labels:
            return {}
        logits_nK, _ = measure(model, self.val_set.inputs, self.device)
        return {"accuracy": float(np.mean(logits_nK.argmax(1) == self.val_set.labels))}


@torch.no_grad()
def measure(
    model: VideoProbe, inputs: Iterable[Tensor], device: torch.device, batch: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """(logits (n, K), features (n, D)) of inputs from `probe_input`, float64."""
    logits, features, waiting = [], [], []
    def work() -> None:
        features_BD = model.features(torch.stack(waiting).to(device).float() / 127.5 - 1)
        logits.append(model.head(F.silu(features_BD)).double().cpu())
        features.append(features_BD.double().cpu())
        waiting.clear()
    for clip in inputs:
        waiting.append(clip)
        if len(waiting) == batch:
            work()
    if waiting:
        work()
    return torch.cat(logits).numpy(), torch.cat(features).numpy()


def load_probe(path: Path) -> tuple[VideoProbe, dict[str, Any]]:
    """(probe in eval mode, facts of the data set it was trained on) from a checkpoint or a run folder."""
    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    try:
        model, dataset = VideoProbe(ProbeConfig(**checkpoint["config"])), checkpoint["dataset"]
        class_names = dataset["class_names"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: holds no probe") from None
    check_classes(class_names, path)
    load_strict(model, model_state(checkpoint), str(path))
    return model.requires_grad_(False).eval().float(), dataset


def run(config: TrainProbeConfig, runtime: Runtime) -> None:
    """Train until `config.max_steps`."""
    train(ProbeTask(config, runtime), config, runtime)


if __name__ == "__main__":
    run_command(TrainProbeConfig, run)
