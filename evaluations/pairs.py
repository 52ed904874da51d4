"""Clips in pairs: LPIPS among generated clips and to the nearest real one, PSNR and SSIM of reconstructions.

Shapes: T frames, H x W pixels. A pair's value is the mean over frames at the same time.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.distributed import Runtime
from common.errors import InputError
from common.image_quality import frame_quality
from common.perceptual import Perceptual
from common.progress import progress
from evaluations.clips import ClipSet, Entry
from evaluations.comparison import Comparison
from evaluations.features import Features
from evaluations.memorisation import nearest, split_real
from evaluations.uncertainty import spread
from evaluations.weight_files import ALEXNET

PAIRS = 50  # of a class at most
FRAMES = 4  # of a pair, evenly spread
LEAST_SIDE = 32  # pixels: AlexNet pools smaller frames away
Pair = tuple[ClipSet, Entry, ClipSet, Entry]


class LPIPS:
    """The lpips package's distance on AlexNet (Zhang et al. 2018); smaller is more alike."""

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = ALEXNET.find(path, unverified)
        self.network, self.device = Perceptual("alex", path, "--lpips-weights").to(device), device

    @torch.inference_mode()
    def __call__(self, a_T3HW: np.ndarray, b_T3HW: np.ndarray) -> float:
        """Mean over some frames of two clips, uint8, of the same size."""
        places = spread(np.arange(len(a_T3HW)), min(FRAMES, len(a_T3HW)))
        sides = [torch.from_numpy(side[places]).to(self.device).float() / 127.5 - 1
                 for side in (a_T3HW, b_T3HW)]
        return float(self.network(*sides))


def disjoint_pairs(clips: ClipSet, entries: Sequence[Entry]) -> list[Pair]:
    """At most `PAIRS` pairs, drawn with a fixed seed; no clip is in two, so that they are independent."""
    order = np.random.RandomState(0).permutation(len(entries))
    count = min(PAIRS, len(entries) // 2)
    return [(clips, entries[a], clips, entries[b]) for a, b in order[: 2 * count].reshape(count, 2)]


def nearest_pairs(clips: ClipSet, some: Features, real: ClipSet, train: Features) -> list[Pair]:
    """At most `PAIRS` clips, evenly spread, with their nearest training clips in feature space."""
    if not len(some) or not len(train):
        return []
    some = some.take(spread(np.arange(len(some)), min(PAIRS, len(some))))
    return [(clips, entry, real, train.entries[place])
            for entry, place in zip(some.entries, nearest(some, train)[1], strict=True)]


def over_pairs(
    function: Callable[[np.ndarray, np.ndarray], Any], pairs: dict[str, list[Pair]], runtime: Runtime,
    title: str, skip_bad: bool = False,
) -> dict[str, list[Any]]:
    """`function` of the frames of every pair, pair by pair in order; the pairs are shared among processes.

    Raises: `InputError` naming a pair that is unreadable or differs in size, or whose value is not finite.
    With `skip_bad` an unreadable or differing pair has the reason, a string, as its value.
    """
    work = [pair for own in pairs.values() for pair in own]
    mine, values = runtime.share(work), []
    with runtime.together():
        for pair in progress(mine, len(mine), title, "pair", runtime.is_main):
            try:
                frames = pair_frames(*pair)
            except InputError as error:
                if not skip_bad:
                    raise
                values.append(str(error))
                continue
            values.append(function(*frames))
            if not np.isfinite(values[-1]).all():
                raise InputError(f"{title} of {pair[1].name} and {pair[3].name} is {values[-1]}")
    parts = [iter(part) for part in runtime.gather(values)]
    in_order = iter([next(parts[i % runtime.world_size]) for i in range(len(work))])
    return {name: list(islice(in_order, len(own))) for name, own in pairs.items()}


def pair_frames(a: ClipSet, entry_a: Entry, b: ClipSet, entry_b: Entry) -> tuple[np.ndarray, np.ndarray]:
    """The frames of two clips, which must be as many and as large."""
    frames_a, frames_b = a.frames(entry_a), b.frames(entry_b)
    if frames_a.shape != frames_b.shape:
        found = " and ".join("{} frames of {} x {} px".format(len(frames), *frames.shape[2:])
                             for frames in (frames_a, frames_b))
        raise InputError(f"{a.folder / entry_a.name} and {b.folder / entry_b.name}: {found}")
    return frames_a, frames_b


def mean_record(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of the values of independent pairs."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(np.mean(values)) if len(values) else None, "stderr": error, "pairs": len(values)}


def measure_lpips(
    comparison: Comparison, lpips: LPIPS, features: tuple[Features, Features], runtime: Runtime
) -> dict[str, Any]:
    """The section "lpips": per class, diversity and distance to training clips, with those of real clips.

    `features` of the real and the generated clips say which training clip is nearest.
    """
    side = min(features[0].facts[name] for name in ("height", "width"))
    if side < LEAST_SIDE:
        raise InputError(f"--metrics lpips: needs frames of at least {LEAST_SIDE} px, these have {side}")
    pairs = {}
    for name in comparison.class_names:
        real, generated = (side.of_class(name) for side in features)
        train, held_out = split_real(real)
        pairs |= {f"{name}|diversity": disjoint_pairs(comparison.generated, generated.entries),
                  f"{name}|real diversity": disjoint_pairs(comparison.real, real.entries),
                  f"{name}|to nearest":
                      nearest_pairs(comparison.generated, generated, comparison.real, train),
                  f"{name}|real to nearest":
                      nearest_pairs(comparison.real, held_out, comparison.real, train)}
    per_class: dict[str, dict[str, Any]] = {name: {} for name in comparison.class_names}
    for key, values in over_pairs(lpips, pairs, runtime, "LPIPS").items():
        class_name, _, kind = key.rpartition("|")
        per_class[class_name][kind.replace(" ", "_")] = mean_record(values)
    return {"lpips": {"weights": lpips.weights, "frames": FRAMES, "per_class": per_class,
                      "macro": macro(per_class), "lines": pair_lines(per_class)}}


def quality(a_T3HW: np.ndarray, b_T3HW: np.ndarray) -> list[float]:
    """[PSNR in dB, SSIM], mean over the frames of two uint8 clips."""
    return frame_quality(a_T3HW, b_T3HW).mean(0).tolist()


def measure_reconstruction(comparison: Comparison, runtime: Runtime) -> dict[str, Any]:
    """The section "reconstruction": PSNR and SSIM of the reconstructed clips, per class; {} without any.

    With --skip-bad, clips that cannot be compared are left out and listed.
    """
    if comparison.rebuilt is None:
        return {}
    real = {entry.name: entry for entry in comparison.real.entries}
    pairs = {name: [(comparison.real, real[entry.name], comparison.rebuilt, entry)
                    for entry in comparison.rebuilt.entries if entry.class_name == name]
             for name in comparison.class_names}
    per_class, bad = {}, []
    for name, values in over_pairs(quality, pairs, runtime, "PSNR and SSIM",
                                   comparison.config.skip_bad).items():
        good = [value for value in values if not isinstance(value, str)]
        bad += [value for value in values if isinstance(value, str)]
        per_class[name] = {"psnr": mean_record([pair[0] for pair in good]),
                           "ssim": mean_record([pair[1] for pair in good])}
    return {"reconstruction": {"per_class": per_class, "macro": macro(per_class),
                               "bad_clips": {"reconstructed": bad}, "lines": pair_lines(per_class)}}


def macro(per_class: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Mean over classes of every kind of value; None where a class has none."""
    kinds = next(iter(per_class.values()))
    values = {kind: [own[kind]["value"] for own in per_class.values()] for kind in kinds}
    return {kind: None if None in own else float(np.mean(own)) for kind, own in values.items()}


def pair_lines(per_class: dict[str, dict[str, Any]]) -> list[str]:
    """One line per class."""
    def shown(kind: str, record: dict[str, Any]) -> str:
        if record["value"] is None:
            return f"{kind.replace('_', ' ')} without a value, as there are no pairs"
        error = "" if record["stderr"] is None else f" +- {record['stderr']:.2g}"
        return f"{kind.replace('_', ' ')} {record['value']:.4g}{error}"

    return [f"{name}: " + ", ".join(shown(kind, record) for kind, record in own.items())
            for name, own in per_class.items()]
