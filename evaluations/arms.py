"""Arms of a downstream comparison: what real labels give, and what added data change, over paired seeds.

A job is one training. Its result is a JSON file with the settings that made it, so that a rerun continues and
changed settings are refused. Shapes: S seeds, P test samples.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from evaluations.page import data_url, render
from evaluations.results import aligned
from evaluations.uncertainty import GROUPS, deal_groups, seed_half_widths

BASELINE = "real"  # the arm that differences are to
FEW_SEEDS, FEW_GROUPS = 5, 10  # below them a warning


@dataclass(frozen=True)
class Job:
    """One training: an arm with `labels` real labels, and the seed of its draw and its weights."""

    arm: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.labels}-{self.seed}"


def kept(path: Path, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """The result in a JSON file, else that of `make`, written there with its settings.

    Raises: `InputError` naming the first setting that the file's result was not made with.
    """
    if not path.exists():
        write_json(path, {"settings": settings, "result": make()})
    record = read_json(path)
    if different := differing(record.get("settings", {}), settings):
        name, old, new = different
        raise InputError(f"{path}: was made with {name} {old!s:.60}, now it is {new!s:.60}; take another "
                         "--output")
    return record["result"]


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(name, old value, new value) of the first setting that differs."""
    new = json.loads(json.dumps(new))
    return next(((name, old.get(name), new.get(name)) for name in {**new, **old}
                 if old.get(name) != new.get(name)), None)


def summarise(results: Mapping[Job, Mapping[str, Any]], groups: Sequence[str], scores: Sequence[str],
              generators: Mapping[str, int] = {}) -> list[dict[str, Any]]:
    """A row for every arm and number of labels: mean, interval and paired difference to `BASELINE` by score.

    A result holds "added", the number of added samples, and a list of P values under every name of `scores`.
    Intervals go by the `groups` of the test samples and by the seeds, or by the `generators` of an arm, whose
    number is given by arm and which its seeds take in turn.
    """
    rows = []
    for labels in sorted({job.labels for job in results}):
        own = [job for job in results if job.labels == labels]
        for arm in dict.fromkeys(job.arm for job in own):
            jobs = sorted((job for job in own if job.arm == arm), key=lambda job: job.seed)
            added = min(results[job]["added"] for job in jobs)
            row = {"arm": arm, "labels": labels, "added": added, "seeds": len(jobs)}
            turns = [job.seed for job in jobs], generators.get(arm, 1)
            for score in scores:
                values_SP = np.array([results[job][score] for job in jobs])
                row[score] = with_interval(values_SP, groups, *turns)
                if arm != BASELINE and Job(BASELINE, labels, jobs[0].seed) in results:
                    real_SP = np.array([results[Job(BASELINE, labels, job.seed)][score] for job in jobs])
                    row[score]["difference"] = with_interval(values_SP - real_SP, groups, *turns)
            rows.append(row)
    return rows


def with_interval(values_SP: np.ndarray, groups: Sequence[str], seeds: Sequence[int], generators: int = 1
                  ) -> dict[str, Any]:
    """The mean and the ends of its 95 % interval, None where all test samples are of one group."""
    mean, dealt = float(values_SP.mean()), deal_groups(groups, GROUPS)
    if len(dealt) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(seed_half_widths(lambda samples, own: values_SP[np.ix_(own, samples)].mean(), dealt, seeds,
                                  generators))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def not_shown(folder: Path, names: Iterable[str]) -> list[str]:
    """A note of the results in `folder` that are not those of the jobs called `names`, if there are any."""
    others = {path.stem for path in folder.glob("*.json")}.difference(names)
    return [f"{len(others)} finished trainings are not in this report, as {min(others)}: give their flags "
            "too to see all"] if others else []


def table(rows: Sequence[dict[str, Any]], scores: Sequence[str]) -> list[list[str]]:
    """The rows as cells, below a line of titles."""
    def cell(value: Mapping[str, float | None] | None, sign: str) -> str:
        if value is None:
            return "-"
        mean, low, high = ("-" if value[end] is None else f"{value[end]:{sign}}"
                           for end in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    titles = ["arm", "labels", "added", "seeds"]
    titles += [title for score in scores for title in (score, f"{score} - {BASELINE}")]
    lines = [[row["arm"], *(str(row[name]) for name in titles[1:4]),
              *(text for score in scores for text in
                (cell(row[score], ".3f"), cell(row[score].get("difference"), "+.3f")))] for row in rows]
    return [titles, *lines]


def draw_curve(rows: Sequence[dict[str, Any]], scores: Mapping[str, str], path: Path) -> None:
    """One plot per score over the number of labels, a line with intervals for each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(scores), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    axes = figure.subplots(1, len(scores), squeeze=False)[0]
    for axis, (score, better) in zip(axes, scores.items(), strict=True):
        for place, arm in enumerate(arms):
            own = [row for row in rows if row["arm"] == arm]
            means = np.array([row[score]["mean"] for row in own])
            ends = np.array([[row[score]["low"], row[score]["high"]] for row in own], float)
            shift = 1 + 0.02 * (place - len(arms) / 2)  # so that intervals do not cover each other
            axis.errorbar([row["labels"] * shift for row in own], means, np.abs(ends - means[:, None]).T,
                          marker="o", markersize=4, capsize=2, linewidth=1.2, label=arm)
        axis.set_xscale("log")
        ticks = sorted({row["labels"] for row in rows})
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_xticks([], minor=True)
        axis.set(xlabel="real labels", title=f"{score} ({better} is better)")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms),
                  fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def write_report(
    folder: Path, title: str, scores: Mapping[str, str], results: Mapping[Job, Mapping[str, Any]],
    groups: Sequence[str], notes: Sequence[str], facts: Mapping[str, Any], pictures: Mapping[str, str],
    generators: Mapping[str, int] = {}
) -> list[dict[str, Any]]:
    """Write results.json, table.txt, curve.png and report.html, print the table -> its rows.

    `scores` says of each whether "higher" or "lower" is better. `pictures` are PNG files of `folder` and
    their captions; `generators` is as in `summarise`.
    """
    rows = summarise(results, groups, list(scores), generators)
    if (seeds := min(row["seeds"] for row in rows)) < FEW_SEEDS:
        notes = [*notes, "one seed: the intervals lack the spread between seeds" if seeds == 1 else
                 f"seeds: {seeds}; intervals are rough, take {FEW_SEEDS}"]
    if (count := len(set(groups))) < FEW_GROUPS:
        notes = [*notes, "the test is one independent group: there are no intervals" if count == 1 else
                 f"the test has {count} independent groups; intervals are rough, take {FEW_GROUPS}"]
    cells = table(rows, list(scores))
    draw_curve(rows, scores, folder / "curve.png")
    pictures = {"curve.png": "Means and 95 % intervals over the number of real labels.", **pictures}
    urls = {caption: data_url("png", (folder / name).read_bytes()) for name, caption in pictures.items()}
    render(folder / "report.html", "arms.html", title=title, cells=cells, notes=notes, pictures=urls,
           baseline=BASELINE, facts=json.dumps(facts, indent=1))
    lines = [line for score in scores for line in (*aligned(table(rows, [score])), "")]
    text = "\n".join([*lines, *(f"note: {note}" for note in notes)])
    with atomic_path(folder / "table.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(folder / "results.json", {"title": title, **facts, "notes": notes, "rows": rows})
    print(text)
    print(f"in {folder}: report.html, table.txt, curve.png, results.json")
    return rows
