"""The results of a classification comparison: scores with intervals, table, JSON, page."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import t as student

from common.files import atomic_path, write_json
from evaluations.class_scores import class_scores, class_summary, confusion_matrix
from evaluations.classification_plan import Experiment
from evaluations.page import data_url, drawing, render
from evaluations.results import aligned
from evaluations.uncertainty import deal_groups, jackknife_error

Array = np.ndarray
Statistic = Callable[[Array, Array], Array]
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
GROUPS = 20  # of recordings, left out in turn
LEVEL = 0.95  # of the intervals


def half_widths(statistic: Statistic, recordings: list[Array], seeds: list[Array]) -> Array | None:
    """Half of the 95 % interval of each value of `statistic(places of clips, places of seeds)`.

    The variances between recordings and between seeds (jackknife) add up; the quantile is Student's with the
    degrees of freedom of Welch and Satterthwaite. None for a single group of recordings and a single seed.
    """
    sides = [(recordings, [np.concatenate(seeds)]), ([np.concatenate(recordings)], seeds)]
    found = [(jackknife_error(statistic, *side), max(map(len, side)) - 1) for side in sides]
    parts = [(error**2, degrees) for error, degrees in found if error is not None]
    if not parts:
        return None
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / degrees for variance, degrees in parts)
    degrees = total**2 / np.where(spread > 0, spread, 1)
    return student.ppf((1 + LEVEL) / 2, np.maximum(degrees, 1)) * np.sqrt(total)


def make_rows(labels_n: Array, recordings: list[str], predicted: dict[tuple, Array],
              class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each arm: scores, and their difference from real clips alone, each [value, low, high].

    `predicted`: (arm, recordings of a class) -> labels (S, n); the first arm is "real". Scores are means over
    seeds. Real clips alone are those of as many recordings, for synthetic clips alone the most.
    """
    arms, counts = list(predicted), [count for arm, count in predicted if arm == "real"]
    base = [arms.index(("real", count if count in counts else counts[-1])) for _, count in arms]

    def statistic(clips: Array, seeds: Array) -> Array:
        scores_AM = np.array([np.mean([[*class_scores(confusion_matrix(
            labels_n[clips], own_Sn[seed, clips], len(class_names))).values()] for seed in seeds], 0)
            for own_Sn in predicted.values()])
        return np.stack([scores_AM, scores_AM - scores_AM[base]])

    seeds = len(next(iter(predicted.values())))
    value = statistic(np.arange(len(labels_n)), np.arange(seeds))
    half = half_widths(statistic, deal_groups(recordings, GROUPS), list(np.arange(seeds)[:, None]))
    low, high = (value, value) if half is None else (value - half, value + half)
    rows = []
    for place, (arm, count) in enumerate(arms):
        scores, difference = (dict(zip(METRICS, ranges_M3, strict=True)) for ranges_M3 in
                              np.stack([value, low, high], -1)[:, place].tolist())
        own_Sn = predicted[arm, count]
        summary = class_summary(class_names, np.tile(labels_n, seeds), own_Sn.ravel())
        rows.append({"arm": arm, "recordings_per_class": count, "scores": scores,
                     "difference": None if base[place] == place else difference,
                     "by_class": summary["by_class"]})
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells under a head: scores with their intervals, and the differences from real clips alone."""
    def cell(values: list[float], sign: str = "") -> str:
        value, low, high = (f"{100 * x:{sign}.1f}" for x in values)
        return f"{value} [{low}, {high}]"

    names = [f"{metric.replace('_', ' ')}, {kind}" for kind in ("%", "gain") for metric in METRICS]
    lines = [["trained on", "recordings", *names]]
    for row in rows:
        gains = [cell(row["difference"][m], "+") if row["difference"] else "-" for m in METRICS]
        count = str(row["recordings_per_class"] or ("all" if row["arm"] != "synthetic" else "-"))
        lines.append([row["arm"], count, *(cell(row["scores"][m]) for m in METRICS), *gains])
    return lines


def curve(rows: list[dict[str, Any]]) -> bytes:
    """Scores against the number of real recordings of a class, as SVG; synthetic clips alone stand at 0."""
    with drawing(4.2 * len(METRICS), 3.4) as (figure, file):
        for axis, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
            ticks = [str(row["recordings_per_class"] or "all") for row in rows if row["arm"] == "real"]
            for arm in dict.fromkeys(row["arm"] for row in rows):
                own = np.array([row["scores"][metric] for row in rows if row["arm"] == arm]) * 100
                places = [0] if arm == "synthetic" else 1 + np.arange(len(own)) + 0.1 * (arm != "real")
                errors = np.abs(own[:, 1:] - own[:, :1]).T
                axis.errorbar(places, own[:, 0], errors, marker="o", capsize=3, label=arm)
            axis.set_xticks(range(len(ticks) + 1), ["0", *ticks])
            axis.set(title=f"{metric.replace('_', ' ')}, %", xlabel="real recordings of each class")
            axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return file.getvalue()


def write_report(experiment: Experiment, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Write classification.json, classification.txt and report.html; print the table."""
    config, real, folder = experiment.config, experiment.real, experiment.config.results_dir
    test = [place for fold in experiment.folds for place in fold.test]
    by_arm: dict[tuple, dict[int, list[int]]] = {}
    for result in results:  # fold by fold
        seeds = by_arm.setdefault((result["arm"], result["recordings"]), {})
        seeds.setdefault(result["seed"], []).extend(result["predicted"])
    predicted = {arm: np.array([*seeds.values()]) for arm, seeds in by_arm.items()}
    recordings = [real.entries[place].recording for place in test]
    rows = make_rows(real.labels[test], recordings, predicted, experiment.class_names)
    settings = results[-1]["settings"]
    report = {"class_names": list(experiment.class_names), "test_clips": len(test), "folds": config.folds,
              "seeds": config.seeds, "warnings": experiment.warnings(), "rows": rows, "settings": settings}
    write_json(folder / "classification.json", report)
    head, *cells = table(rows)
    lines = [f"{len(test)} real test clips, folds {config.folds}, seeds {config.seeds}, {config.network}; "
             "in brackets 95 % intervals",
             *(f"warning: {line}" for line in report["warnings"]), *aligned([head, *cells])]
    with atomic_path(folder / "classification.txt") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    render(folder / "report.html", "classification.html", report=report, head=head, cells=cells,
           curve=data_url("svg+xml", curve(rows)), facts=json.dumps(settings, indent=1))
    print("\n".join(lines))
    print(f"in {folder}: classification.json, classification.txt, report.html")
    return report
