"""A segmentation network, its training with added pictures, and a teacher that labels those without masks.

Shapes: B pictures of S x S pixels, K classes and the background, which is class 0. Pixels are RGB, uint8 at
the doors and 0 to 1 inside.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.command import require_at_least
from common.errors import InputError
from common.layouts import model_state
from common.networks import Lite0
from common.weights import load_checkpoint, load_strict

CHECKS = 5  # validations in a training, evenly spread to its end: the best one's weights are kept
EMA = 0.99  # of the teacher's weights that stay in a step, fewer in the first 890 steps
SURE = 0.95  # least probability of a label of the teacher; pixels below it are ignored
IGNORED = 255  # label of such pixels
RAMP = 0.4  # part of the steps over which the weight of the teacher's labels grows to 1
TURN, ZOOM, SHIFT = 30, 0.25, 0.1  # weak augmentation: degrees, share of the size, share of half a side


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Network and training, the same for all arms."""

    architecture: str = "Unet"
    """Architecture of segmentation-models-pytorch: Unet, DeepLabV3Plus, ..."""
    encoder: str = "tf_efficientnet_lite0"
    """Encoder: a model of timm with maps of features, at --size."""
    encoder_weights: str = "lite0"
    """lite0 (ImageNet, comes with the requirements), a file of timm's weights, or none."""
    classes: int = 1
    """Labels in the masks besides the background."""
    size: int | None = None
    """Side in pixels to which pictures are stretched (default 128; with --quick 96); a multiple of 32."""
    steps: int | None = None
    """Optimiser steps of every training (default 1000; with --quick 100)."""
    batch_size: int = 8
    """Labelled pictures in a step; as many added ones beside them."""
    lr: float = 1e-3
    """Highest learning rate of AdamW, in one cycle."""

    def __post_init__(self) -> None:
        import timm

        if not timm.is_model(self.encoder):
            raise InputError(f"--encoder {self.encoder}: not a model of timm {timm.__version__}")
        require_at_least(self, classes=1, batch_size=2)
        if self.size is not None and (self.size < 32 or self.size % 32):
            raise InputError(f"--size {self.size}: must be a multiple of 32")
        if self.steps is not None:
            require_at_least(self, steps=1)


class Segmenter(nn.Module):
    """A network of segmentation-models-pytorch on a timm encoder."""

    def __init__(self, config: SegmenterConfig):
        """Raises: `InputError` naming the flag of an unknown architecture, or of weights that do not fit."""
        super().__init__()
        import segmentation_models_pytorch as smp
        from timm.models import get_pretrained_cfg

        try:
            self.network = smp.create_model(config.architecture, f"tu-{config.encoder}", encoder_weights=None,
                                            classes=config.classes + 1)
        except (KeyError, ValueError, RuntimeError, AttributeError) as error:
            flags = f"--architecture {config.architecture} --encoder {config.encoder}"
            raise InputError(f"{flags}: {error}") from None
        cfg = get_pretrained_cfg(config.encoder)
        for name in ("mean", "std"):
            value = getattr(cfg, name) if cfg else (0.5, 0.5, 0.5)
            self.register_buffer(name, torch.tensor(value).reshape(3, 1, 1), persistent=False)
        if config.encoder_weights != "none":
            load_encoder(self.network.encoder.model, config.encoder_weights)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Logits (B, 1 + K, S, S) of pixels in 0 to 1."""
        return self.network((pixels_B3SS - self.mean) / self.std)


def check_network(config: SegmenterConfig) -> None:
    """Raises: `InputError` naming the flags of a network that cannot be built or does not take --size."""
    model = Segmenter(config).eval()
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, config.size, config.size))
    except (AssertionError, RuntimeError) as error:
        flags = f"--architecture {config.architecture} --encoder {config.encoder} --size {config.size}"
        raise InputError(f"{flags}: {error}") from None


def load_encoder(encoder: nn.Module, weights: str) -> None:
    """Load "lite0" or a file; what follows the features (head, classifier) is not used."""
    own = encoder.state_dict()
    state = (Lite0().network.state_dict() if weights == "lite0"
             else model_state(load_checkpoint(Path(weights))))
    load_strict(encoder, {key: value for key, value in state.items() if key in own},
                f"--encoder-weights {weights}")


def weak_view(pixels_B3SS: Tensor, labels_BSS: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures and labels mirrored, turned, zoomed and shifted at random; the edge is mirrored outwards."""
    count, device = len(pixels_B3SS), pixels_B3SS.device

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=random) * 2 - 1) * limit

    turn_B, zoom_B = uniform(TURN * torch.pi / 180), 1 + uniform(ZOOM)
    flips_2B = torch.randint(2, (2, count), generator=random) * 2 - 1
    cos_B, sin_B = torch.cos(turn_B) * zoom_B, torch.sin(turn_B) * zoom_B
    rows = [torch.stack([flip_B * a, flip_B * b, uniform(SHIFT)], 1)
            for flip_B, a, b in zip(flips_2B, (cos_B, sin_B), (-sin_B, cos_B), strict=True)]
    grid_BSS2 = F.affine_grid(torch.stack(rows, 1).to(device), list(pixels_B3SS.shape), align_corners=False)
    pixels = F.grid_sample(pixels_B3SS, grid_BSS2, padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(labels_BSS[:, None].float(), grid_BSS2, "nearest", "reflection", False)[:, 0]
    return pixels.clamp(0, 1), labels.long()


def strong_view(pixels_B3SS: Tensor, random: torch.Generator) -> Tensor:
    """Pictures with other colours and contrast, half of them blurred, each with a grey square.

    Nothing moves, so that labels of the picture before fit.
    """
    count, side, device = len(pixels_B3SS), pixels_B3SS.shape[-1], pixels_B3SS.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, 1, 1, generator=random) * (high - low) + low).to(device)

    pixels = pixels_B3SS * uniform(0.75, 1.25, 3)
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * uniform(0, 1.5, 1)
    middle = pixels.mean((1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * uniform(0.6, 1.4, 1)
    blurred = F.interpolate(F.avg_pool2d(pixels, 4), size=(side, side), mode="bilinear")
    pixels = torch.where(uniform(0, 1, 1) < 0.5, blurred, pixels)
    places = torch.arange(side, device=device)
    inside_B1SS = torch.ones(count, 1, 1, 1, dtype=torch.bool, device=device)
    for places_SS in (places[:, None], places[None, :]):
        start = (uniform(0, 1, 1) * (side - side // 3)).floor()
        inside_B1SS = inside_B1SS & (places_SS >= start) & (places_SS < start + side // 3)
    return pixels.clamp(0, 1).masked_fill(inside_B1SS, 0.5)


def teacher_labels(logits_BKSS: Tensor) -> Tensor:
    """The likeliest class of each pixel (B, S, S), `IGNORED` where its probability is below `SURE`.

    With one class these are the pixels whose foreground has a probability between 0.05 and 0.95.
    """
    probability_BSS, labels_BSS = logits_BKSS.softmax(1).max(1)
    return labels_BSS.masked_fill(probability_BSS < SURE, IGNORED)


def follow(teacher: nn.Module, student: nn.Module, step: int) -> None:
    """Move the teacher's weights and buffers a step towards the student's (Tarvainen and Valpola 2017)."""
    keep = min(EMA, (1 + step) / (10 + step))
    for own, new in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        if own.is_floating_point():
            own.lerp_(new, 1 - keep)
        else:
            own.copy_(new)


def segmentation_loss(logits_BKSS: Tensor, labels_BSS: Tensor) -> Tensor:
    """Cross-entropy and Dice loss of the foreground; pixels labelled `IGNORED` do not count."""
    from segmentation_models_pytorch.losses import DiceLoss

    labels_BSS = labels_BSS.long()
    counted_BSS = labels_BSS != IGNORED
    losses = F.cross_entropy(logits_BKSS, labels_BSS, ignore_index=IGNORED, reduction="sum")
    dice = DiceLoss("multiclass", classes=list(range(1, logits_BKSS.shape[1])), ignore_index=IGNORED,
                    smooth=1.0)
    return losses / counted_BSS.sum().clamp(min=1) + dice(logits_BKSS, labels_BSS)


@dataclass(frozen=True)
class Added:
    """Pictures beside the labelled ones: pixels (m, 3, S, S) and labels (m, S, S)."""

    pixels: Tensor
    labels: Tensor
    taught: bool
    """Whether the teacher's labels are taken instead."""


@dataclass(frozen=True)
class Training:
    """One training: its data, and how it goes."""

    config: SegmenterConfig
    pixels: Tensor
    labels: Tensor
    added: Added | None
    strong: bool
    """Whether the labelled pictures are seen in the strong view."""
    seed: int
    device: torch.device

    def run(self, score: Callable[[nn.Module], float]) -> tuple[nn.Module, list[float]]:
        """(averaged network at its best validation, `score` of all `CHECKS` validations).

        All arms give the average of the weights, so that arms with a teacher have no advantage by that.
        """
        torch.manual_seed(self.seed)  # the initial weights, and dropout
        random = torch.Generator().manual_seed(self.seed)
        student = Segmenter(self.config).to(self.device, memory_format=torch.channels_last)
        teacher = copy.deepcopy(student).requires_grad_(False).eval()
        steps, lr = self.config.steps, self.config.lr
        optimizer = torch.optim.AdamW(student.parameters(), lr)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
        real, extra = (batches(count, self.config.batch_size, steps, self.seed)
                       for count in (len(self.pixels), len(self.added.pixels) if self.added else 1))
        checks = {steps * check // CHECKS for check in range(1, CHECKS + 1)} - {0}
        history, best = [], None
        for step in range(steps):
            loss = self._loss(student.train(), teacher, real[step], extra[step], step, random)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cycle.step()
            follow(teacher, student, step)
            if step + 1 in checks:
                history.append(score(teacher))
                if history[-1] >= max(history):
                    best = copy.deepcopy(teacher)
        return best, history

    def _loss(self, student: nn.Module, teacher: nn.Module, real: np.ndarray, extra: np.ndarray, step: int,
              random: torch.Generator) -> Tensor:
        """Loss of a step: labelled pictures, and as many added ones in the same pass."""
        pixels, labels = self._weak(self.pixels, self.labels, real, random)
        if self.strong:
            pixels = strong_view(pixels, random)
        if self.added is None:
            return segmentation_loss(student(pixels), labels)
        count, weight = len(pixels), 1.0
        more, targets = self._weak(self.added.pixels, self.added.labels, extra, random)
        if self.added.taught:
            with torch.no_grad():
                targets = teacher_labels(teacher(more))
            more, weight = strong_view(more, random), min(1.0, step / (RAMP * self.config.steps))
        logits = student(torch.cat([pixels, more]))
        return (segmentation_loss(logits[:count], labels)
                + weight * segmentation_loss(logits[count:], targets))

    def _weak(self, pixels: Tensor, labels: Tensor, places: np.ndarray, random: torch.Generator
              ) -> tuple[Tensor, Tensor]:
        """Weak view of the pictures at `places`, on the device."""
        pixels, labels = (own[places].to(self.device) for own in (pixels, labels))
        pixels, labels = weak_view(pixels.float() / 255, labels, random)
        return pixels.contiguous(memory_format=torch.channels_last), labels


def batches(count: int, batch: int, steps: int, seed: int) -> np.ndarray:
    """Places (steps, batch) of `count` pictures: all of them in random order, again and again."""
    random = np.random.RandomState(seed)
    rounds = [random.permutation(count) for _ in range(-(-steps * batch // count))]
    return np.concatenate(rounds)[: steps * batch].reshape(steps, batch)


@torch.no_grad()
def predict(model: nn.Module, pixels: Tensor, device: torch.device, batch: int = 16) -> np.ndarray:
    """Labels (n, S, S) uint8 of pictures (n, 3, S, S) uint8, by a network in eval mode."""
    parts = []
    for part in pixels.split(batch):
        own = (part.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        parts.append(model(own).argmax(1).to(torch.uint8).cpu())
    return torch.cat(parts).numpy()


def constant_labels(labels_nSS: Tensor, classes: int, score: Callable[[np.ndarray], float]) -> np.ndarray:
    """The one label map (S, S) for all pictures that has the best `score` on the labelled ones.

    Each pixel has its most frequent class in front, if that is more frequent than a threshold.
    """
    shares_KSS = np.stack([(labels_nSS == label).float().mean(0).numpy() for label in range(1, classes + 1)])
    likeliest_SS = (shares_KSS.argmax(0) + 1).astype(np.uint8)
    maps: Sequence[np.ndarray] = [np.where(shares_KSS.max(0) > threshold, likeliest_SS, 0).astype(np.uint8)
                                  for threshold in np.arange(0, 1, 0.05)]
    return max(maps, key=score)
