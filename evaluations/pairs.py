"""Scores of clip pairs: LPIPS of generated clips with each other and with the nearest real one, PSNR and SSIM
of reconstructions.

Shapes: T frames, H x W pixels. The score of a pair is the mean over its frames.
"""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from common.distributed import Runtime
from common.errors import InputError
from common.image_quality import frame_quality
from common.perceptual import LPIPSDistance
from common.progress import progress
from common.spread import evenly
from evaluations.clips import ClipSet, Entry
from evaluations.comparison import Comparison
from evaluations.features import Features
from evaluations.memorisation import nearest, split_real
from evaluations.weight_files import ALEXNET

PAIRS = 50  # of a class at most
FRAMES = 4  # of a pair, evenly spread
LEAST_SIDE = 32  # pixels: smaller frames vanish in AlexNet's pooling
Pair = tuple[ClipSet, Entry, ClipSet, Entry]
Key = TypeVar("Key", bound=Hashable)


class LPIPS:
    """The lpips package's distance on AlexNet (Zhang et al. 2018); smaller is more similar."""

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = ALEXNET.find(path, unverified)
        self.network, self.device = LPIPSDistance("alex", path, "--lpips-weights").to(device), device

    @torch.inference_mode()
    def __call__(self, a_T3HW: np.ndarray, b_T3HW: np.ndarray) -> float:
        """Mean over `FRAMES` frames of two uint8 clips of the same size."""
        places = evenly(len(a_T3HW), FRAMES)
        sides = [torch.from_numpy(side[places]).to(self.device).float() / 127.5 - 1
                 for side in (a_T3HW, b_T3HW)]
        return float(self.network(*sides))


def disjoint_pairs(clips: ClipSet, entries: Sequence[Entry]) -> list[Pair]:
    """At most `PAIRS` pairs, drawn with a fixed seed; no clip is in two, so that they are independent."""
    order = np.random.RandomState(0).permutation(len(entries))
    count = min(PAIRS, len(entries) // 2)
    return [(clips, entries[a], clips, entries[b]) for a, b in order[: 2 * count].reshape(count, 2)]


def nearest_pairs(clips: ClipSet, features: Features, real: ClipSet, train: Features) -> list[Pair]:
    """At most `PAIRS` clips, evenly spread, with their nearest training clips in feature space."""
    if not len(features) or not len(train):
        return []
    features = features.take(evenly(len(features), PAIRS))
    return [(clips, entry, real, train.entries[place])
            for entry, place in zip(features.entries, nearest(features, train)[1], strict=True)]


def over_pairs(
    function: Callable[[np.ndarray, np.ndarray], Any], pairs: dict[Key, list[Pair]], runtime: Runtime,
    title: str, skip_bad: bool = False,
) -> dict[Key, list[Any]]:
    """`function` of the frames of every pair, in order; the processes share the pairs.

    Raises: `InputError` naming a pair that is unreadable or differs in size, or whose score is not finite.
    With `skip_bad` the score of an unreadable or differing pair is the reason, a string.
    """
    work = [(key, pair) for key, own in pairs.items() for pair in own]
    mine, values = runtime.share(work), []
    with runtime.together():
        for _, pair in progress(mine, len(mine), title, "pair", runtime.is_main):
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
    shares, results = runtime.gather(values), {key: [] for key in pairs}
    for i, (key, _) in enumerate(work):
        results[key].append(shares[i % runtime.world_size][i // runtime.world_size])
    return results


def pair_frames(a: ClipSet, entry_a: Entry, b: ClipSet, entry_b: Entry) -> tuple[np.ndarray, np.ndarray]:
    """The frames of two clips. Raises: `InputError` if their numbers or sizes differ."""
    frames_a, frames_b = a.frames(entry_a), b.frames(entry_b)
    if frames_a.shape != frames_b.shape:
        found = " and ".join("{} frames of {} x {} px".format(len(frames), *frames.shape[2:])
                             for frames in (frames_a, frames_b))
        raise InputError(f"{a.folder / entry_a.name} and {b.folder / entry_b.name}: {found}")
    return frames_a, frames_b


def mean_record(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of the scores of independent pairs."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(np.mean(values)) if len(values) else None, "stderr": error, "pairs": len(values)}


def pair_section(per_class: dict[str, dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """A section of the results: the records by class and kind, their means over classes, a line per class."""
    def shown(kind: str, record: dict[str, Any]) -> str:
        if record["value"] is None:
            return f"{kind.replace('_', ' ')} has no value (no pairs)"
        error = "" if record["stderr"] is None else f" +- {record['stderr']:.2g}"
        return f"{kind.replace('_', ' ')} {record['value']:.4g}{error}"

    values = {kind: [own[kind]["value"] for own in per_class.values()]
              for kind in next(iter(per_class.values()))}
    return {**facts, "per_class": per_class,
            "macro": {kind: None if None in own else float(np.mean(own)) for kind, own in values.items()},
            "lines": [f"{name}: " + ", ".join(shown(kind, record) for kind, record in own.items())
                      for name, own in per_class.items()]}


def measure_lpips(
    comparison: Comparison, lpips: LPIPS, real: Features, generated: Features, runtime: Runtime
) -> dict[str, Any]:
    """The section "lpips": per class, diversity and distance to training clips, with those of real clips.

    The features decide which training clip is nearest.
    """
    side = min(real.facts[name] for name in ("height", "width"))
    if side < LEAST_SIDE:
        raise InputError(f"--metrics lpips: needs frames of at least {LEAST_SIDE} px, these have {side}")
    pairs = {}
    for name in comparison.class_names:
        train, held_out = split_real(real.of_class(name))
        own = generated.of_class(name)
        pairs |= {(name, "diversity"): disjoint_pairs(comparison.generated, own.entries),
                  (name, "real_diversity"): disjoint_pairs(comparison.real, real.of_class(name).entries),
                  (name, "to_nearest"): nearest_pairs(comparison.generated, own, comparison.real, train),
                  (name, "real_to_nearest"): nearest_pairs(comparison.real, held_out, comparison.real, train)}
    per_class: dict[str, dict[str, Any]] = {name: {} for name in comparison.class_names}
    for (class_name, kind), values in over_pairs(lpips, pairs, runtime, "LPIPS").items():
        per_class[class_name][kind] = mean_record(values)
    return {"lpips": pair_section(per_class, weights=lpips.weights, frames=FRAMES)}


def quality(a_T3HW: np.ndarray, b_T3HW: np.ndarray) -> list[float]:
    """[PSNR in dB, SSIM], mean over the frames of two uint8 clips."""
    return frame_quality(a_T3HW, b_T3HW).mean(0).tolist()


def measure_reconstruction(comparison: Comparison, runtime: Runtime) -> dict[str, Any]:
    """The section "reconstruction": PSNR and SSIM of the reconstructed clips, per class; {} without any.

    With `skip_bad` of the comparison, unusable pairs are left out and listed.
    """
    reconstructed = comparison.reconstructed
    if reconstructed is None:
        return {}
    real = {entry.name: entry for entry in comparison.real.entries}
    pairs = {name: [(comparison.real, real[entry.name], reconstructed, entry)
                    for entry in reconstructed.select([name]).entries] for name in comparison.class_names}
    per_class, bad = {}, []
    for name, values in over_pairs(quality, pairs, runtime, "PSNR and SSIM", comparison.skip_bad).items():
        good = [value for value in values if not isinstance(value, str)]
        bad += [value for value in values if isinstance(value, str)]
        per_class[name] = {kind: mean_record([value[i] for value in good])
                           for i, kind in enumerate(("psnr", "ssim"))}
    return {"reconstruction": pair_section(per_class, bad_clips={"reconstructed": bad})}
