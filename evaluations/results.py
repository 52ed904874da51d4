"""Results as files: metrics.json for programs, metrics.txt to read, report.html to look at."""

from collections.abc import Sequence
from typing import Any

from common.files import atomic_path, read_json, write_json
from evaluations.comparison import Comparison
from evaluations.features import Features
from evaluations.page import write_page

VERSION = 1  # of the JSON layout


def write_results(comparison: Comparison, sections: dict[str, Any]) -> dict[str, Any]:
    """Add `sections` to the results of the same comparison, write all files, print the table.

    Sections of an earlier command stay if they are of the same clips, protocol and settings.
    """
    folder, facts = comparison.config.output_folder, comparison.facts()
    path = folder / "metrics.json"
    there = read_json(path) if path.exists() else {}
    same = there.get("version") == VERSION and there.get("comparison") == facts
    results = {"version": VERSION, "comparison": facts, "warnings": comparison.warnings(),
               "sections": {**(there["sections"] if same else {}), **sections}}
    write_json(path, results)
    text = results_text(results)
    with atomic_path(folder / "metrics.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_page(folder, results)
    print(text)
    print(f"in {folder}: metrics.json, metrics.txt, report.html")
    return results


def extraction_facts(features: Sequence[Features | None]) -> dict[str, Any]:
    """Extractor, weights and bad clips of the sides of a comparison, for the results."""
    names = ("real", "generated", "reconstructed")
    bad = {name: [reason for _, reason in side.bad]
           for name, side in zip(names, features, strict=True) if side is not None}
    return {**features[0].facts, "bad_clips": bad}


def number(value: float | None) -> str:
    """A score in four digits; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}"


def results_text(results: dict[str, Any]) -> str:
    """All sections as aligned text."""
    facts = results["comparison"]
    lines = [f"protocol {facts['protocol']['name']}: {facts['protocol']['summary']}",
             *(f"warning: {line}" for line in results["warnings"])]
    for name, section in results["sections"].items():
        lines += ["", name, *weight_lines(section)]
        if "scores" in section:
            lines += score_lines(section["scores"])
        for side, reasons in section.get("bad_clips", {}).items():
            lines += [f"  skipped {len(reasons)} {side} clips, first: {reasons[0]}"] if reasons else []
        lines += [f"  {line}" for line in section.get("lines", [])]
    return "\n".join(lines)


def weight_lines(section: dict[str, Any]) -> list[str]:
    """The weight file that a section stands on; nothing if it needs none."""
    weights = section.get("weights")
    if not weights:
        return []
    doubt = "" if weights["verified"] else ", not verified"
    return [f"  weights {weights['file']} (sha256 {weights['sha256'][:16]}...{doubt})"]


def score_lines(scores: dict[str, Any]) -> list[str]:
    """One line per score and class."""
    head = ["score", "clips of", "value", "+-", "real", "gen.", "floor", "at n", "score at n", "tokenizer"]
    rows = [head]
    for name, entry in scores.items():
        views = {**entry["per_class"], "macro": entry["macro"], "pooled": entry["pooled"]}
        rows += [[name, view, *score_cells(record)] for view, record in views.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  ".join(["", *(cell.ljust(width) if i < 2 else cell.rjust(width)
                             for i, (cell, width) in enumerate(zip(row, widths, strict=True)))])
            for row in rows]


def score_cells(record: dict[str, Any]) -> list[str]:
    """What a table says of one record, from its value on."""
    floor, tokenizer = record.get("floor") or {}, record.get("tokenizer") or {}
    counts = [str(record.get(side, "")) for side in ("n_real", "n_generated")]
    return [number(record["value"]), number(record.get("stderr")), *counts, number(floor.get("value")),
            str(floor.get("n", "")), number(floor.get("same_n")), number(tokenizer.get("value"))]
