"""STAGE: grid pictures -> a small video classifier, whose accuracy and features evaluate generated clips.

It sees 8 frames of 64 px. Training blurs and recolours them at random, so that the classifier depends on
shapes and not on a tokenizer's blur. Shapes: B clips, T frames, H x W pixels, D features, K classes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from dataset.grid_images import load_grid
from dataset.manifest import Manifest
from dataset.masks import frames_of

FRAMES, SIZE = 8, 64


@dataclass(frozen=True)
class ProbeConfig:
    """Shape of the classifier."""

    num_classes: int
    width: int = 32
    """Channels after the first convolution; 4 times as many at the end."""
    features: int = 128


class VideoProbe(nn.Module):
    """Convolutions on each frame, pooled over space; then mean over time and mean change between frames."""

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


def probe_input(frames_T3HW: Tensor) -> Tensor:
    """uint8 frames -> uint8 (FRAMES, 3, SIZE, SIZE): evenly spread, repeated if there are few, resized."""
    chosen = np.linspace(0, len(frames_T3HW) - 1, FRAMES).round().astype(int)
    return F.interpolate(frames_T3HW[chosen].float(), (SIZE, SIZE), mode="area").round().to(torch.uint8)


def probe_clips(folder: Path, manifest: Manifest, split: str) -> list[tuple[Tensor, int]]:
    """(input of the probe, label) of the clips of one split; 98 KB of memory a clip."""
    return [(probe_input(frames_of(load_grid(folder, clip, manifest), manifest.facts())), clip.label)
            for clip in manifest.select(split)]


def augment(clips_BT3HW: Tensor, seeds_B: Tensor) -> Tensor:
    """Mirror, blur, desaturate by up to a half, scale each colour by up to a quarter; by the seed's bits.

    The strongest blur and desaturation are about those of a small tokenizer.
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
    """Data, model and loss of the probe for the training loop."""

    def __init__(self, folder: Path, seed: int, device: torch.device):
        manifest = Manifest.read(folder)
        self.train_set, self.val_set = (probe_clips(folder, manifest, split) for split in ("train", "val"))
        torch.manual_seed(seed)
        self.model: nn.Module = VideoProbe(ProbeConfig(len(manifest.class_names)))
        self.facts: dict[str, Any] = {"config": asdict(self.model.config), "dataset": manifest.facts()}
        self.blocks = [self.model]  # `measure`, whose batches differ in size, does not call its forward
        self.device = device

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of augmented clips."""
        clips_BT3HW, labels_B = batch
        return F.cross_entropy(model(augment(clips_BT3HW.float() / 127.5 - 1, seeds_B)), labels_B), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on held-out clips."""
        if not self.val_set:
            return {}
        inputs, labels = zip(*self.val_set, strict=True)
        logits_nK, _ = measure(model, inputs, self.device)
        return {"accuracy": float(np.mean(logits_nK.argmax(1) == labels))}


@torch.no_grad()
def measure(
    model: VideoProbe, inputs: Iterable[Tensor], device: torch.device, batch: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """(logits (n, K), features (n, D)) of inputs from `probe_input`, float64."""
    logits, features, remaining = [], [], iter(inputs)
    while clips := list(islice(remaining, batch)):
        features_BD = model.features(torch.stack(clips).to(device).float() / 127.5 - 1)
        logits.append(model.head(F.silu(features_BD)).double().cpu())
        features.append(features_BD.double().cpu())
    return torch.cat(logits).numpy(), torch.cat(features).numpy()


def load_probe(path: Path) -> tuple[VideoProbe, dict[str, Any]]:
    """(probe in eval mode, facts of the data set it was trained on) from a checkpoint or a run folder."""
    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    try:
        model, dataset = VideoProbe(ProbeConfig(**checkpoint["config"])), checkpoint["dataset"]
        class_names = dataset["class_names"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: holds no probe; evaluations.probe trains one") from None
    check_classes(class_names, path)
    load_strict(model, model_state(checkpoint), str(path))
    return model.requires_grad_(False).eval().float(), dataset


def run(config: TrainProbeConfig, runtime: Runtime) -> None:
    """Train until `config.max_steps`."""
    task = ProbeTask(config.data_path, config.global_seed, runtime.device(config.device))
    train(task, config, runtime)


if __name__ == "__main__":
    run_command(TrainProbeConfig, run)
