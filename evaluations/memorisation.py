"""Did the model learn its training clips by heart, and does it repeat itself?

Every generated clip's nearest training clip is looked for in feature space. How near is too near is told by
real clips: those held out, or, where none are, training clips against other recordings. Shapes: n and m
clips, D dimensions.
"""

from typing import Any

import numpy as np

from common.files import atomic_path
from dataset.sheet import contact_sheet
from evaluations.comparison import Comparison
from evaluations.features import Features
from evaluations.scores import nearest_neighbours

QUANTILE = 0.05  # of real clips that are nearer to a training clip than the threshold
SHOWN = 8  # closest pairs on the sheet
SHEET = "closest_pairs.png"
EXACT = 1e-5  # of the length of a feature vector: nearer clips are the same up to rounding


def nearest(
    clips: Features, others: Features, other_recording: bool = False, other_clip: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(distance, place) of the nearest of `others` for each clip; infinity where there is none.

    With `other_recording` a clip's own recording does not count, with `other_clip` the clip itself.
    """
    owners = None
    if other_recording:
        owners = clips.recordings, others.recordings
    elif other_clip:
        owners = tuple([entry.name for entry in side.entries] for side in (clips, others))
    return nearest_neighbours(clips.vectors(), others.vectors(), owners)


def split_real(real: Features) -> tuple[Features, Features]:
    """Real clips that the model may have been trained on, and those that it was not."""
    held_out = [entry.split == "val" for entry in real.entries]
    return real.take(np.flatnonzero(np.logical_not(held_out))), real.take(np.flatnonzero(held_out))


def class_report(real: Features, generated: Features) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is said of one class, and all its (generated, training) pairs."""
    train, held_out = split_real(real)
    if not len(train) or not len(generated):
        return {"reason": "no training clips" if len(generated) else "no generated clips"}, []
    distance_n, place_n = nearest(generated, train)
    if len(held_out):
        yardstick, usual = "held-out clips", nearest(held_out, train)[0]
    else:
        yardstick, usual = "training clips, other recordings", nearest(train, train, other_recording=True)[0]
    repeats = nearest(generated, generated, other_clip=True)[0]
    size = np.sqrt((generated.vectors() ** 2).sum(1).mean())
    report = {"n_generated": len(generated), "n_train": len(train), "median": float(np.median(distance_n)),
              "exact_duplicates": float((repeats < EXACT * size).mean())}
    if np.isfinite(usual).all():
        threshold = float(np.quantile(usual, QUANTILE))
        report |= {"yardstick": yardstick, "real_median": float(np.median(usual)), "threshold": threshold,
                   "too_near": float((distance_n < threshold).mean()),
                   "duplicates": float((repeats < threshold).mean())}
    else:
        report["reason"] = "one recording and nothing held out: no real distance to compare with"
    usual_distance = report.get("real_median")
    pairs = [{"class": entry.class_name, "generated": entry.name, "train": train.entries[place].name,
              "distance": float(distance),
              "of_real_median": float(distance) / usual_distance if usual_distance else None}
             for entry, place, distance in zip(generated.entries, place_n, distance_n, strict=True)]
    return report, pairs


def memorisation(comparison: Comparison, real: Features, generated: Features) -> dict[str, Any]:
    """The section of the results, and the sheet of the closest pairs in the output folder."""
    per_class, pairs = {}, []
    for name in comparison.class_names:
        report, own = class_report(real.of_class(name), generated.of_class(name))
        per_class[name] = report
        pairs += own
    pairs.sort(key=lambda pair: (pair["of_real_median"] is None, pair["of_real_median"], pair["generated"]))
    section = {"features": real.facts["extractor"], "quantile": QUANTILE, "per_class": per_class,
               "closest": pairs[:SHOWN], "lines": [_line(name, report) for name, report in per_class.items()]}
    if pairs:
        write_sheet(comparison, pairs[:SHOWN])
        section["sheet"] = SHEET
    return section


def write_sheet(comparison: Comparison, pairs: list[dict[str, Any]]) -> None:
    """Each generated clip above its nearest training clip."""
    rows = []
    for pair in pairs:
        usual = pair["of_real_median"]
        share = "" if usual is None else f" ({usual:.0%} of the usual)"
        for side, clips in (("generated", comparison.generated), ("train", comparison.real)):
            entry = next(entry for entry in clips.entries if entry.name == pair[side])
            rows.append((f"{side} {entry.name}   distance {pair['distance']:.3g}{share}",
                         clips.frames(entry).transpose(0, 2, 3, 1)))
    with atomic_path(comparison.config.output_folder / SHEET) as temporary:
        contact_sheet(rows).save(temporary)


def _line(name: str, report: dict[str, Any]) -> str:
    if "too_near" not in report:
        return f"{name}: {report['reason']}"
    return (f"{name}: nearest training clip at {report['median']:.4g} (median), of real clips "
            f"{report['real_median']:.4g}; nearer than the nearest {QUANTILE:.0%} of those: "
            f"{report['too_near']:.1%}; "
            f"duplicates {report['duplicates']:.1%} ({report['exact_duplicates']:.1%} exact)")
