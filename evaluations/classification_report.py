"""The results of a classification comparison: scores with intervals, table, JSON, page."""

import json
from typing import Any

import numpy as np

from common.files import atomic_path, write_json
from evaluations.class_scores import class_scores, class_summary, confusion_matrix
from evaluations.classification_plan import Experiment
from evaluations.page import data_url, drawing, render
from evaluations.results import aligned
from evaluations.uncertainty import GROUPS, deal_groups, seed_half_widths

Array = np.ndarray
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def deal_by_class(labels_n: Array, recordings: list[str]) -> list[Array]:
    """Places of the clips in at most `GROUPS` groups of whole recordings, those of a class in different ones.

    So that a class with two recordings or more stays when a group is left out.
    """
    groups: list[list[Array]] = [[] for _ in range(GROUPS)]
    places = [np.flatnonzero(labels_n == label) for label in np.unique(labels_n)]
    parts = [own[part] for own in places for part in deal_groups([recordings[i] for i in own], GROUPS)]
    for turn, part in enumerate(parts):
        groups[turn % GROUPS].append(part)
    return [np.concatenate(group) for group in groups if group]


def make_rows(labels_n: Array, recordings: list[str], predicted: dict[tuple, Array],
              class_names: tuple[str, ...], generators: int = 1) -> list[dict[str, Any]]:
    """A row for each arm: scores, and their difference from real clips alone, each [value, low, high].

    `predicted`: (arm, recordings of a class) -> labels (S, n); the first arm is "real". Scores are means over
    seeds. Real clips alone are those of as many recordings, for synthetic clips alone the most. Low and high
    are None where a class has a single recording: without it, means over classes are those of others. Seeds
    take the `generators` of synthetic clips in turn.
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
    groups, low, high = deal_by_class(labels_n, recordings), *np.full((2, *value.shape), None)
    if len(groups) > 1 and all(set(labels_n) == set(np.delete(labels_n, group)) for group in groups):
        of_real, of_others = (seed_half_widths(statistic, groups, range(seeds), count)
                              for count in (1, generators))
        half = np.where(np.array([arm == "real" for arm, _ in arms])[:, None], of_real, of_others)
        low, high = value - half, value + half
        low[0], high[0] = low[0].clip(0), high[0].clip(None, 1)  # scores; the others are differences
    both = np.stack([value.astype(object), low, high], -1).tolist()
    rows = []
    for place, (arm, count) in enumerate(arms):
        scores, difference = (dict(zip(METRICS, own_AM3[place], strict=True)) for own_AM3 in both)
        own_Sn = predicted[arm, count]
        summary = class_summary(class_names, np.tile(labels_n, seeds), own_Sn.ravel())
        rows.append({"arm": arm, "recordings_per_class": count, "scores": scores,
                     "difference": None if base[place] == place else difference,
                     "by_class": summary["by_class"]})
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells under a head: scores with their intervals, and the differences from real clips alone."""
    def cell(values: list[float | None], sign: str = "") -> str:
        value, low, high = ("-" if x is None else f"{100 * x:{sign}.1f}" for x in values)
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
                own = np.array([row["scores"][metric] for row in rows if row["arm"] == arm], float) * 100
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
    rows = make_rows(real.labels[test], recordings, predicted, experiment.class_names, experiment.generators)
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
