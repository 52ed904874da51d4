"""STAGE: grid pictures -> a small video classifier, whose accuracy and features evaluate generated clips.

It sees 8 frames of 64 px. Training blurs and recolours them at random, so that the classifier depends on
shapes and not on a tokenizer's blur. Shapes: B clips, T frames, H x W pixels, D features, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
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
from dataset.hub_data import data_folder
from evaluations.clips import ClipSet

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

    def classify(self, features_BD: Tensor) -> Tensor:
        """Features -> logits (B, K)."""
        return self.head(F.silu(features_BD))

    def forward(self, clips_BT3HW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.classify(self.features(clips_BT3HW))


def probe_input(frames_T3HW: Tensor, count: int = FRAMES, size: int = SIZE) -> Tensor:
    """uint8 frames -> uint8 (count, 3, size, size): evenly spread, repeated if there are few, resized."""
    chosen = np.linspace(0, len(frames_T3HW) - 1, count).round().astype(int)
    return F.interpolate(frames_T3HW[chosen].float(), (size, size), mode="area").round().to(torch.uint8)


class Inputs(Dataset):
    """(input of a classifier, label) of grid pictures, kept in memory once read (98 KB for the probe)."""

    def __init__(self, clips: ClipSet, count: int = FRAMES, size: int = SIZE):
        self.clips, self.labels, self.count, self.size = clips, clips.labels.tolist(), count, size
        self.kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if place not in self.kept:
            frames_T3HW = torch.from_numpy(self.clips.frames(self.clips.entries[place]))
            self.kept[place] = probe_input(frames_T3HW, self.count, self.size)
        return self.kept[place], self.labels[place]


def augment(clips_BT3HW: Tensor, seeds_B: Tensor, strong: bool = True) -> Tensor:
    """Mirror; if `strong` blur, desaturate by up to a half, scale each colour by up to a quarter.

    All by the seed's bits. The strongest blur and desaturation are about those of a small tokenizer.
    """
    bits_B1111 = seeds_B[:, None, None, None, None]
    clips = torch.where((bits_B1111 >> 20) % 2 == 1, clips_BT3HW.flip(-1), clips_BT3HW)
    if not strong:
        return clips
    for cell, amount in ((2, 1), (4, 2), (8, 3)):
        pooled = F.avg_pool2d(clips.flatten(0, 1), cell)
        blurred = F.interpolate(pooled, clips.shape[-2:], mode="bilinear")
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


class ClassifierTask(Task):
    """Data, model and loss of a classifier for the training loop; its model is a `VideoProbe` or alike."""

    def __init__(self, model: nn.Module, facts: dict[str, Any], train_set: Dataset, val_set: Sequence,
                 device: torch.device, strong: bool = True, single_frames: bool = False):
        """Sets of (clip, label); a batch of training holds one random frame of each clip if `single_frames`.
        """
        self.model, self.facts, self.device = model, facts, device
        self.train_set, self.val_set = train_set, val_set
        self.strong, self.single_frames = strong, single_frames
        self.blocks = [self.model]  # `measure`, whose batches differ in size, does not call its forward

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of augmented clips."""
        clips_BT3HW, labels_B = batch
        if self.single_frames:
            rows_B = torch.arange(len(clips_BT3HW), device=seeds_B.device)
            clips_BT3HW = clips_BT3HW[rows_B, (seeds_B >> 3) % clips_BT3HW.shape[1]][:, None]
        clips_BT3HW = augment(clips_BT3HW.float() / 127.5 - 1, seeds_B, self.strong)
        return F.cross_entropy(model(clips_BT3HW), labels_B), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on held-out clips."""
        if not len(self.val_set):
            return {}
        inputs, labels = zip(*self.val_set, strict=True)
        logits_nK, _ = measure(model, inputs, self.device)
        return {"accuracy": float(np.mean(logits_nK.argmax(1) == labels))}


@torch.no_grad()
def measure(model: nn.Module, inputs: Iterable[Tensor], device: torch.device
            ) -> tuple[np.ndarray, np.ndarray]:
    """(logits (n, K), features (n, D)) of inputs from `probe_input`, float64."""
    logits, features, remaining = [], [], iter(inputs)
    batch = 1 if device.type == "cpu" else 16  # what 16 clips leave in a CPU's caches takes twice the time
    while clips := list(islice(remaining, batch)):
        features_BD = model.features(torch.stack(clips).to(device).float() / 127.5 - 1)
        logits.append(model.classify(features_BD).cpu().double())
        features.append(features_BD.cpu().double())
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
    clips = ClipSet.read_grids(data_folder(config.data_path, runtime), "--data-path")
    sets = [Inputs(clips.select(split=split)) for split in ("train", "val")]
    torch.manual_seed(config.global_seed)
    model = VideoProbe(ProbeConfig(len(clips.class_names)))
    facts = {"config": asdict(model.config), "dataset": clips.grid.facts()}
    task = ClassifierTask(model, facts, *sets, runtime.device(config.device))
    task.next_command = ("bash", "scripts/class_consistency.sh", "--data-path", "GRIDS", "--sample-path",
                         "SAMPLES", "--probe")
    train(task, config, runtime)


if __name__ == "__main__":
    run_command(TrainProbeConfig, run)
