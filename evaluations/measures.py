"""From features to scores: every measure per class, their mean over classes, and over all clips together.

Each score comes with the counts behind it, a standard error, and two floors: what real clips of other
recordings score against real clips, and what the same real clips score after the tokenizer. Shapes: n real,
m generated clips, D dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.errors import InputError
from evaluations.failures import NoValue
from evaluations.features import Features
from evaluations.frechet import Moments, gaussian_distance
from evaluations.protocols import Protocol
from evaluations.scores import inception_score, kernel_distance, neighbourhood_scores
from evaluations.uncertainty import deal_groups, disjoint_halves, extrapolate, jackknife_error, spread

MOST_FRAMES = 5000  # of a side, evenly spread, where all pairs are looked at
Function = Callable[[Features, Features], Sequence[float]]


@dataclass(frozen=True)
class Measure:
    """Some numbers that one function makes of real and generated features."""

    names: tuple[str, ...]
    better: str
    """"lower" or "higher"."""
    function: Function
    one_sided: bool = False
    """It looks at the generated clips only."""


@dataclass
class Frechet:
    """Fréchet distance; the factor of a side that stays the same between two calls is kept."""

    ddof: int
    columns: slice
    kept: dict[bytes, tuple] = field(default_factory=dict)

    def __call__(self, real: Features, generated: Features) -> list[float]:
        """One number."""
        sides = [self._gaussian(side) for side in (real, generated)]
        return [gaussian_distance(*sides[0], *sides[1])]

    def _gaussian(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        key = b"%d:" % id(features.stored_NRD) + features.places.tobytes()
        if key not in self.kept:
            moments = Moments.of_stream(features.chunks(self.columns))
            self.kept = dict(list(self.kept.items())[-1:])
            self.kept[key] = (moments.mean_D, moments.factor(self.ddof))
        else:
            self.kept[key] = self.kept.pop(key)  # used last
        return self.kept[key]


def video_measures(ddof: int) -> list[Measure]:
    """What is computed from one feature vector per clip."""
    def endless(real: Features, generated: Features) -> list[float]:
        frechet = Frechet(ddof, slice(None))
        return [extrapolate(lambda a, b: frechet(real.take(a), generated.take(b))[0],
                            np.arange(len(real)), np.arange(len(generated)))]

    return [Measure(("fvd",), "lower", Frechet(ddof, slice(None))),
            Measure(("fvd_inf",), "lower", endless),
            *_pairwise_measures(slice(None), "kvd")]


def frame_measures(ddof: int, pooled: int) -> list[Measure]:
    """What is computed from one feature vector per frame: `pooled` features, then logits."""
    def score(_: Features, generated: Features) -> list[float]:
        return [inception_score(generated.vectors(slice(pooled, None), MOST_FRAMES))]

    return [Measure(("fid",), "lower", Frechet(ddof, slice(0, pooled))),
            *_pairwise_measures(slice(0, pooled), "kid"),
            Measure(("is",), "higher", score, one_sided=True)]


def _pairwise_measures(columns: slice, kernel_name: str) -> list[Measure]:
    names = ("precision", "recall", "density", "coverage")

    def kernel(real: Features, generated: Features) -> list[float]:
        return [kernel_distance(*(side.vectors(columns, MOST_FRAMES) for side in (real, generated)))]

    def neighbours(real: Features, generated: Features) -> list[float]:
        scores = neighbourhood_scores(*(side.vectors(columns, MOST_FRAMES) for side in (real, generated)))
        return [scores[name] for name in names]

    return [Measure((kernel_name,), "lower", kernel), Measure(names, "higher", neighbours)]


@dataclass(frozen=True)
class View:
    """The clips that one score is about."""

    reference: Features
    generated: Features
    real: Features
    """All real clips of these classes: the floor is made of them."""
    rebuilt: Features | None
    """The reference after the tokenizer, as far as it is given."""


def make_views(
    protocol: Protocol, class_names: Sequence[str], real: Features, generated: Features,
    rebuilt: Features | None,
) -> tuple[dict[str, View], View]:
    """Views of every class, and of all clips.

    The EndoGen protocol picks clips class by class, and pools what it picked; the others pick from the pool.
    """
    def view(real: Features, generated: Features, rebuilt: Features | None) -> View:
        reference = real.take([i for i, entry in enumerate(real.entries)
                               if protocol.reference in ("all", entry.split)])
        picked = protocol.pick(reference.entries, generated.entries)
        return View(reference.take(picked[0]), generated.take(picked[1]), real, rebuilt)

    views = {name: view(real.of_class(name), generated.of_class(name), rebuilt and rebuilt.of_class(name))
             for name in class_names}
    if protocol.name == "endogen":
        names = {entry.name for each in views.values() for entry in each.reference.entries}
        reference = real.take([i for i, entry in enumerate(real.entries) if entry.name in names])
        names = {entry.name for each in views.values() for entry in each.generated.entries}
        picked = generated.take([i for i, entry in enumerate(generated.entries) if entry.name in names])
        return views, View(reference, picked, real, rebuilt)
    return views, view(real, generated, rebuilt)


def score_views(
    measures: Sequence[Measure], views: tuple[dict[str, View], View], groups: int
) -> dict[str, dict[str, Any]]:
    """Score name -> {"better", "per_class", "macro", "pooled"}; `groups` 0 leaves out standard errors."""
    of_class, of_all = views
    table: dict[str, dict[str, Any]] = {}
    for measure in measures:
        records = {class_name: _score(measure, view, groups) for class_name, view in of_class.items()}
        pooled = _score(measure, of_all, groups)
        for name in measure.names:
            per_class = {class_name: own[name] for class_name, own in records.items()}
            table[name] = {"better": measure.better, "per_class": per_class, "pooled": pooled[name],
                           "macro": macro_mean(per_class)}
    return table


def rows(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(of which clips, record) of one score, for tables: the classes, their mean, and all clips together."""
    return [*entry["per_class"].items(), ("macro", entry["macro"]), ("pooled", entry["pooled"])]


def reason_lines(scores: dict[str, dict[str, Any]], failed: bool) -> list[str]:
    """Why scores have no value: of those that failed, or of those that these clips do not have."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, entry in scores.items():
        for view, record in rows(entry):
            if "reason" in record and record.get("failed", False) == failed:
                names.setdefault((view, record["reason"]), []).append(name)
    return [f"{', '.join(own)} of {view}: {reason}" for (view, reason), own in names.items()]


def _score(measure: Measure, view: View, groups: int) -> dict[str, dict[str, Any]]:
    """One record per name of the measure; one without a value has a reason, and "failed" if it is a fault."""
    counts = {"n_real": len(view.reference), "n_generated": len(view.generated)}
    try:
        values = _values(measure, view.reference, view.generated)
        errors = _errors(measure, view, groups)
        floor, tokenizer = _floor(measure, view), _tokenizer_floor(measure, view)
    except NoValue as error:
        return {name: {"value": None, "reason": str(error), **counts} for name in measure.names}
    except (InputError, np.linalg.LinAlgError) as error:
        return {name: {"value": None, "failed": True, "reason": str(error), **counts}
                for name in measure.names}
    return {name: {"value": values[i], "stderr": errors and errors[i], **counts,
                   "floor": floor and {**floor, "value": floor["value"][i], "same_n": floor["same_n"][i]},
                   "tokenizer": tokenizer and {**tokenizer, "value": tokenizer["value"][i]}}
            for i, name in enumerate(measure.names)}


def _values(measure: Measure, real: Features, generated: Features) -> Sequence[float]:
    """The numbers of a measure. Raises: `NoValue` if a side is empty, `InputError` if one is not finite."""
    if not len(generated) or not (len(real) or measure.one_sided):
        raise NoValue("there are no clips on one side")
    values = measure.function(real, generated)
    if not np.isfinite(values).all():
        raise InputError(f"the result is {', '.join(map(str, values))}")
    return values


def _errors(measure: Measure, view: View, groups: int) -> list[float] | None:
    """Standard errors by leaving out groups of recordings and of seeds; None where that is impossible."""
    if groups < 2:
        return None
    sides = [deal_groups(side.recordings, groups) for side in (view.reference, view.generated)]
    if measure.one_sided:
        sides[0] = [np.arange(len(view.reference))]
    try:
        errors = jackknife_error(lambda a, b: np.array(_values(measure, view.reference.take(a),
                                                               view.generated.take(b))), *sides)
    except NoValue:  # with a group left out there are too few clips
        return None
    return None if errors is None else [float(error) for error in errors]


def _floor(measure: Measure, view: View) -> dict[str, Any] | None:
    """Real against real: two halves that share no recording, and the score at the same number of clips."""
    left, right, split = disjoint_halves(view.real.recordings)
    n = min(len(left), len(right), len(view.reference), len(view.generated))
    if n < 2:
        return None
    try:
        value = _values(measure, view.real.take(spread(left, n)), view.real.take(spread(right, n)))
        same_n = _values(measure, *(side.take(spread(np.arange(len(side)), n))
                                    for side in (view.reference, view.generated)))
    except NoValue:
        return None
    return {"value": value, "same_n": same_n, "n": n, "split": split}


def _tokenizer_floor(measure: Measure, view: View) -> dict[str, Any] | None:
    """The reference against its own clips after the tokenizer."""
    if view.rebuilt is None:
        return None
    names = {entry.name for entry in view.reference.entries}
    rebuilt = view.rebuilt.take([i for i, entry in enumerate(view.rebuilt.entries) if entry.name in names])
    try:
        return {"value": _values(measure, view.reference, rebuilt), "n": len(rebuilt)}
    except NoValue:
        return None


def macro_mean(per_class: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean over classes; classes count the same however many clips they have."""
    records = list(per_class.values())
    if any(record["value"] is None for record in records):
        missing = [name for name, record in per_class.items() if record["value"] is None]
        return {"value": None, "reason": f"no value for {', '.join(missing)}", "classes": len(records)}
    errors = [record["stderr"] for record in records]
    known = all(error is not None for error in errors)
    return {"value": float(np.mean([record["value"] for record in records])), "classes": len(records),
            "stderr": float(np.sqrt(np.sum(np.square(errors))) / len(errors)) if known else None,
            "floor": _macro_floor([record["floor"] for record in records], ("value", "same_n")),
            "tokenizer": _macro_floor([record["tokenizer"] for record in records], ("value",))}


def _macro_floor(floors: list[dict[str, Any] | None], keys: Sequence[str]) -> dict[str, Any] | None:
    if any(floor is None for floor in floors):
        return None
    return {key: float(np.mean([floor[key] for floor in floors])) for key in keys}
