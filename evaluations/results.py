"""Results as files: metrics.json for programs, metrics.txt to read, report.html to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.locks import locked
from evaluations.comparison import Comparison
from evaluations.features import Features
from evaluations.measures import reason_lines, rows
from evaluations.page import write_page

VERSION = 1  # of the JSON layout


def save_sections(comparison: Comparison, sections: dict[str, Any]) -> dict[str, Any]:
    """Add `sections` to the results of the same comparison in metrics.json; all results.

    Sections of an earlier command stay if they are of the same clips, protocol and settings.
    """
    path = comparison.config.output_folder / "metrics.json"
    head = {"version": VERSION, "comparison": comparison.facts(), "state": comparison.state()}
    with locked(path.parent, Runtime(), wait=True):  # else sections of two commands at once would be lost
        results = {**head, "warnings": comparison.warnings(),
                   "sections": {**_sections_of(path, head), **sections}}
        write_json(path, results)
    return results


def _sections_of(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The sections of an earlier command with the same head; a damaged file is said and has none."""
    try:
        there = read_json(path) if path.exists() else {}
    except InputError as error:
        print(f"{error}: written anew", flush=True)
        there = {}
    return there["sections"] if all(there.get(name) == value for name, value in head.items()) else {}


def failures(sections: dict[str, Any]) -> list[str]:
    """What failed, with the reasons; not what these clips cannot have."""
    by_reason: dict[str, list[str]] = {}
    for name, section in sections.items():
        if section.get("failed"):
            by_reason.setdefault(section["reason"], []).append(name)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return lines + [line for section in sections.values()
                    for line in reason_lines(section.get("scores", {}), failed=True)]


def write_results(comparison: Comparison, sections: dict[str, Any]) -> dict[str, Any]:
    """Add `sections` to the results of the same comparison, write all files, print the table.

    Raises: `InputError` after that if one of `sections`, or a score in it, failed.
    """
    folder, results = comparison.config.output_folder, save_sections(comparison, sections)
    text = results_text(results)
    with atomic_path(folder / "metrics.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_page(folder, results)
    print(text)
    print(f"in {folder}: metrics.json, metrics.txt, report.html")
    if failed := failures(sections):
        raise InputError(f"all but this is in {folder}: {'; '.join(failed)}")
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
        if section.get("failed"):
            lines.append(f"  failed: {section['reason']}")
        if "scores" in section:
            lines += score_lines(section["scores"])
            lines += [f"  failed: {line}" for line in reason_lines(section["scores"], failed=True)]
            lines += [f"  no value: {line}" for line in reason_lines(section["scores"], failed=False)]
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
    table = [head]
    for name, entry in scores.items():
        table += [[name, view, *score_cells(record)] for view, record in rows(entry)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return ["  ".join(["", *(cell.ljust(width) if i < 2 else cell.rjust(width)
                             for i, (cell, width) in enumerate(zip(row, widths, strict=True)))])
            for row in table]


def score_cells(record: dict[str, Any]) -> list[str]:
    """What a table says of one record, from its value on."""
    floor, tokenizer = record.get("floor") or {}, record.get("tokenizer") or {}
    counts = [str(record.get(side, "")) for side in ("n_real", "n_generated")]
    return [number(record["value"]), number(record.get("stderr")), *counts, number(floor.get("value")),
            str(floor.get("n", "")), number(floor.get("same_n")), number(tokenizer.get("value"))]
