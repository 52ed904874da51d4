"""Copies of training clips, and repeated clips, among the generated ones.

The nearest training clip of each generated clip is searched in feature space. The distances of real clips
give the threshold: held-out clips, or, if there are none, training clips against other recordings. Shapes: n
and m clips, D dimensions.
"""

from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path
from dataset.sheet import contact_sheet
from evaluations.comparison import Comparison
from evaluations.features import Features
from evaluations.scores import nearest_neighbours

QUANTILE = 0.05  # of the real clips' distances: the threshold below which a clip is too near
SHEET_PAIRS = 8  # closest pairs on the sheet
EXACT = 1e-5  # of the length of a feature vector: nearer clips are the same up to rounding


def nearest(clips: Features, others: Features, except_same: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(distance, place) of the nearest of `others` for each clip; infinity if there is none.

    `except_same` "recording" ignores clips of the same recording, "name" the clip itself.
    """
    owners = None
    if except_same:
        owners = tuple([getattr(entry, except_same) for entry in side.entries] for side in (clips, others))
    return nearest_neighbours(clips.vectors(), others.vectors(), owners)


def split_real(real: Features) -> tuple[Features, Features]:
    """Real clips that the model may have been trained on, and held-out ones."""
    return real.where(lambda entry: entry.split != "val"), real.where(lambda entry: entry.split == "val")


def class_report(real: Features, generated: Features, quantile: float = QUANTILE
                 ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The facts of one class, and all its (generated, training) pairs."""
    train, held_out = split_real(real)
    if not len(train) or not len(generated):
        return {"reason": "no training clips" if len(generated) else "no generated clips"}, []
    distance_n, place_n = nearest(generated, train)
    known = {entry.recording for entry in train.entries}
    unknown = held_out.where(lambda entry: entry.recording not in known)
    if len(unknown):
        real_clips, real_distance = "held-out clips", nearest(unknown, train)[0]
    elif len(known) > 1 or not len(held_out):
        real_clips = "training clips, other recordings"
        real_distance = nearest(train, train, except_same="recording")[0]
    else:
        real_clips, real_distance = "held-out clips of the same recording", nearest(held_out, train)[0]
    repeat_n = nearest(generated, generated, except_same="name")[0]
    length = np.sqrt((generated.vectors() ** 2).sum(1).mean())
    report = {"n_generated": len(generated), "n_train": len(train), "median": float(np.median(distance_n)),
              "exact_duplicates": float((repeat_n < EXACT * length).mean())}
    if np.isfinite(real_distance).all():
        threshold = float(np.quantile(real_distance, quantile))
        report |= {"yardstick": real_clips, "real_median": float(np.median(real_distance)),
                   "threshold": threshold, "too_near": float((distance_n < threshold).mean()),
                   "duplicates": float((repeat_n < threshold).mean())}
    else:
        report["reason"] = "one recording and no held-out clips: no real distance to compare with"
    real_median = report.get("real_median")
    pairs = [{"class": entry.class_name, "generated": entry.name, "train": train.entries[place].name,
              "distance": float(distance),
              "of_real_median": float(distance) / real_median if real_median else None}
             for entry, place, distance in zip(generated.entries, place_n, distance_n, strict=True)]
    return report, pairs


def memorisation(comparison: Comparison, real: Features, generated: Features,
                 sheet: str = "closest_pairs.png") -> dict[str, Any]:
    """The section of the results, and the sheet of the closest pairs, a file of the output folder."""
    per_class, pairs = {}, []
    for name in comparison.class_names:
        per_class[name], own = class_report(real.of_class(name), generated.of_class(name))
        pairs += own
    pairs.sort(key=lambda pair: (pair["of_real_median"] is None, pair["of_real_median"], pair["generated"]))
    section = {"features": real.facts["extractor"], "quantile": QUANTILE, "per_class": per_class,
               "closest": pairs[:SHEET_PAIRS],
               "lines": [_line(name, report) for name, report in per_class.items()]}
    if pairs:
        write_sheet(comparison, pairs[:SHEET_PAIRS], comparison.output / sheet)
        section["sheet"] = sheet
    return section


def write_sheet(comparison: Comparison, pairs: list[dict[str, Any]], path: Path) -> None:
    """Each generated clip above its nearest training clip."""
    rows = []
    for pair in pairs:
        relative = pair["of_real_median"]
        suffix = "" if relative is None else f" ({relative:.0%} of the real median)"
        for side, clips in (("generated", comparison.generated), ("train", comparison.real)):
            entry = next(entry for entry in clips.entries if entry.name == pair[side])
            rows.append((f"{side} {entry.name}   distance {pair['distance']:.3g}{suffix}",
                         clips.shown(entry)))
    with atomic_path(path) as temporary:
        contact_sheet(rows).save(temporary)


def _line(name: str, report: dict[str, Any]) -> str:
    if "too_near" not in report:
        return f"{name}: {report['reason']}"
    return (f"{name}: median distance to the nearest training clip {report['median']:.4g}, of real clips "
            f"{report['real_median']:.4g}; {report['too_near']:.1%} are nearer than {1 - QUANTILE:.0%} of "
            f"the real clips; duplicates {report['duplicates']:.1%} ({report['exact_duplicates']:.1%} exact)")
