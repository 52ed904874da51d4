"""From features to scores: every measure per class, their mean over classes, and over all clips together.

Each score comes with its counts, a standard error, and two floors: the score of real clips against real clips
of other recordings, and the score of the same real clips after the tokenizer. Shapes: n real, m generated
clips, D dimensions.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from common.errors import InputError
from common.spread import evenly
from evaluations.clips import ANY_SPLIT
from evaluations.comparison import Comparison, FeatureSets
from evaluations.failures import NoValue
from evaluations.features import Features
from evaluations.frechet import Moments, gaussian_distance, gaussian_of_few
from evaluations.scores import inception_score, kernel_distance, neighbourhood_scores
from evaluations.uncertainty import deal_groups, disjoint_halves, extrapolate, jackknife_error

MOST_FRAMES = 5000  # of a side, evenly spread, for scores of all pairs of frames
ALL = slice(None)
Function = Callable[[Features, Features], Sequence[float]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One or more scores that one function computes from real and generated features."""

    names: tuple[str, ...]
    better: str
    """"lower", "higher" or "near 1"."""
    function: Function
    one_sided: bool = False
    """It ignores the real clips."""


class Frechet:
    """Fréchet distance; caches the last two Gaussians, as often only one side changes between two calls."""

    def __init__(self, ddof: int, columns: slice = ALL):
        self.ddof, self.columns = ddof, columns
        self.gaussians: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, real: Features, generated: Features) -> list[float]:
        return [gaussian_distance(*self._gaussian(real), *self._gaussian(generated))]

    def _gaussian(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        key = b"%d:" % id(features.stored_NRD) + features.places.tobytes()
        gaussian = self.gaussians.pop(key, None)
        if gaussian is None:
            count, dimensions = features.shape(self.columns)
            if count <= dimensions:
                gaussian = gaussian_of_few(features.vectors(self.columns), self.ddof)
            else:
                moments = reduce(add, map(Moments.of, features.chunks(self.columns)))
                gaussian = moments.mean_D, moments.factor(self.ddof)
        self.gaussians = {**dict(list(self.gaussians.items())[-1:]), key: gaussian}
        return gaussian


def video_measures(ddof: int) -> list[Measure]:
    """Scores of one feature vector per clip."""
    def extrapolated(real: Features, generated: Features) -> list[float]:
        frechet = Frechet(ddof)
        return [extrapolate(lambda a, b: frechet(real.take(a), generated.take(b))[0],
                            len(real), len(generated))]

    return [Measure(("fvd",), "lower", Frechet(ddof)), Measure(("fvd_inf",), "lower", extrapolated),
            *_pairwise_measures(ALL, "kvd")]


def frame_measures(ddof: int, pooled: int) -> list[Measure]:
    """Scores of one feature vector per frame: `pooled` features, then logits."""
    def score(_: Features, generated: Features) -> list[float]:
        return [inception_score(generated.vectors(slice(pooled, None), MOST_FRAMES))]

    columns = slice(0, pooled)
    return [Measure(("fid",), "lower", Frechet(ddof, columns)), *_pairwise_measures(columns, "kid"),
            Measure(("is",), "higher", score, one_sided=True)]


def _pairwise_measures(columns: slice, kernel_name: str) -> list[Measure]:
    names = ("precision", "recall", "density", "coverage")

    def kernel(*sides: Features) -> list[float]:
        return [kernel_distance(*(side.vectors(columns, MOST_FRAMES) for side in sides))]

    def neighbours(*sides: Features) -> list[float]:
        scores = neighbourhood_scores(*(side.vectors(columns, MOST_FRAMES) for side in sides))
        return [scores[name] for name in names]

    return [Measure((kernel_name,), "lower", kernel), Measure(names, "higher", neighbours)]


@dataclass(frozen=True)
class View:
    """The clips of one score."""

    reference: Features
    generated: Features
    real: Features
    """All real clips of these classes, for the real-against-real floor."""
    reconstructed: Features | None
    """The reference after the tokenizer, those clips that exist."""


def section(comparison: Comparison, features: FeatureSets, measures: Sequence[Measure]) -> dict[str, Any]:
    """Facts of the features, bad clips, and scores: name -> {"better", "per_class", "macro", "pooled"}."""
    named = zip(("real", "generated", "reconstructed"), features, strict=True)
    bad = {name: [reason for _, reason in side.bad] for name, side in named if side is not None}

    def view(real: Features, generated: Features, reconstructed: Features | None) -> View:
        reference = real.where(lambda entry: comparison.protocol.reference in (ANY_SPLIT, entry.split))
        picked = comparison.protocol.pick(reference.entries, generated.entries)
        reference = reference.take(picked[0])
        names = {entry.name for entry in reference.entries}
        return View(reference, generated.take(picked[1]), real,
                    reconstructed and reconstructed.where(lambda entry: entry.name in names))

    views = {name: view(*(side and side.of_class(name) for side in features))
             for name in comparison.class_names}
    all_clips, scores = view(*features), {}
    for measure in measures:
        records = {class_name: _score(measure, own, comparison.groups) for class_name, own in views.items()}
        pooled = _score(measure, all_clips, comparison.groups)
        for name in measure.names:
            per_class = {class_name: own[name] for class_name, own in records.items()}
            scores[name] = {"better": measure.better, "per_class": per_class, "pooled": pooled[name],
                            "macro": macro_mean(per_class)}
    return {**features[0].facts, "bad_clips": bad, "scores": scores}


def _score(measure: Measure, view: View, groups: int) -> dict[str, Record]:
    """One record per name of the measure; one without a value has a reason, and "failed" after an error."""
    counts = {"n_real": len(view.reference), "n_generated": len(view.generated)}
    try:
        values = _values(measure, view.reference, view.generated)
        errors = _errors(measure, view, groups)
        floor, tokenizer = _floor(measure, view), _tokenizer_floor(measure, view)
    except (InputError, np.linalg.LinAlgError) as error:
        failed = {} if isinstance(error, NoValue) else {"failed": True}
        return {name: {"value": None, **failed, "reason": str(error), **counts} for name in measure.names}
    return {name: {"value": values[i], "stderr": errors and errors[i], **counts,
                   "floor": floor and {**floor, "value": floor["value"][i], "same_n": floor["same_n"][i]},
                   "tokenizer": tokenizer and {**tokenizer, "value": tokenizer["value"][i]}}
            for i, name in enumerate(measure.names)}


def _values(measure: Measure, real: Features, generated: Features) -> Sequence[float]:
    """The scores of a measure. Raises: `NoValue` if a side is empty, `InputError` if one is not finite."""
    if not len(generated) or not (len(real) or measure.one_sided):
        raise NoValue("there are no clips on one side")
    values = measure.function(real, generated)
    if not np.isfinite(values).all():
        raise InputError(f"the result is {', '.join(map(str, values))}")
    return values


def _errors(measure: Measure, view: View, groups: int) -> list[float] | None:
    """Jackknife standard errors; None without groups, or with too few clips outside of a group."""
    if not groups:
        return None
    sides = [deal_groups(side.recordings, groups) for side in (view.reference, view.generated)]
    if measure.one_sided:
        sides[0] = [np.arange(len(view.reference))]
    with suppress(NoValue):
        errors = jackknife_error(lambda a, b: _values(measure, view.reference.take(a),
                                                      view.generated.take(b)), *sides)
        return None if errors is None else errors.tolist()
    return None


def _floor(measure: Measure, view: View) -> Record | None:
    """Real against real: two halves that share no recording, and the score at the same number of clips."""
    left, right, split = disjoint_halves(view.real.recordings)
    n = min(len(left), len(right), len(view.reference), len(view.generated))
    if n < 2:
        return None
    halves = view.real.take(left), view.real.take(right)
    with suppress(NoValue):
        value, same_n = (_values(measure, *(side.take(evenly(len(side), n)) for side in sides))
                         for sides in (halves, (view.reference, view.generated)))
        return {"value": value, "same_n": same_n, "n": n, "split": split}
    return None


def _tokenizer_floor(measure: Measure, view: View) -> Record | None:
    """The reference against the same clips after the tokenizer."""
    if view.reconstructed is not None:
        with suppress(NoValue):
            return {"value": _values(measure, view.reference, view.reconstructed),
                    "n": len(view.reconstructed)}
    return None


def macro_mean(per_class: dict[str, Record]) -> Record:
    """Mean over classes, each with the same weight whatever its number of clips."""
    def mean(floors: list[Record | None], *keys: str) -> Record | None:
        return None if None in floors else {key: float(np.mean([floor[key] for floor in floors]))
                                            for key in keys}

    records = list(per_class.values())
    if missing := [name for name, record in per_class.items() if record["value"] is None]:
        return {"value": None, "reason": f"no value for {', '.join(missing)}", "classes": len(records)}
    errors = [record["stderr"] for record in records]
    return {**mean(records, "value"), "classes": len(records),
            "stderr": None if None in errors else float(np.linalg.norm(errors)) / len(errors),
            "floor": mean([record["floor"] for record in records], "value", "same_n"),
            "tokenizer": mean([record["tokenizer"] for record in records], "value")}


def rows(entry: Record) -> list[tuple[str, Record]]:
    """(clips, record) of one score, for tables: the classes, their mean, and all clips together."""
    return [*entry["per_class"].items(), ("macro", entry["macro"]), ("pooled", entry["pooled"])]


def reason_lines(scores: dict[str, Record], failed: bool) -> list[str]:
    """Why scores have no value: those that failed, or those that are undefined for these clips."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, entry in scores.items():
        for view, record in rows(entry):
            if "reason" in record and record.get("failed", False) == failed:
                names.setdefault((view, record["reason"]), []).append(name)
    return [f"{', '.join(own)} of {view}: {reason}" for (view, reason), own in names.items()]
