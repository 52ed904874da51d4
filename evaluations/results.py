"""Results as files: metrics.json for programs, metrics.txt to read, report.html with charts."""

from pathlib import Path
from typing import Any

from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.locks import locked
from common.names import without_names
from evaluations.comparison import Comparison
from evaluations.measures import reason_lines
from evaluations.page import COLUMNS, table, write_page

VERSION = 1  # of the JSON layout


def save_sections(comparison: Comparison, sections: dict[str, Any]) -> dict[str, Any]:
    """Add `sections` to metrics.json and return all results.

    Sections of an earlier command stay if they have the same clips, protocol and settings.
    """
    path = comparison.output / "metrics.json"
    head = {"version": VERSION, "comparison": comparison.facts(), "state": comparison.state()}
    with locked(path.parent, Runtime(), wait=True):  # two commands may write at the same time
        results = {**head, "warnings": comparison.warnings(),
                   "sections": {**_earlier_sections(path, head), **sections}}
        write_json(path, results)
    return results


def _earlier_sections(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The sections of an earlier command with the same head; a damaged file is reported and has none."""
    try:
        earlier = read_json(path) if path.exists() else {}
    except InputError as error:
        print(f"{error}: overwritten", flush=True)
        earlier = {}
    same = without_names({name: earlier.get(name) for name in head}) == without_names(head)
    return earlier["sections"] if same else {}


def write_results(comparison: Comparison, sections: dict[str, Any]) -> dict[str, Any]:
    """Add `sections` to the results of the same comparison, write all files, print the table.

    Raises: `InputError` after that if one of `sections`, or a score in it, failed.
    """
    folder, results = comparison.output, save_sections(comparison, sections)
    text = results_text(results)
    with atomic_path(folder / "metrics.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_page(folder, results)
    print(text)
    print(f"in {folder}: metrics.json, metrics.txt; open {folder / 'report.html'}")
    if failed := failures(sections):
        raise InputError(f"some metrics failed, all others are in {folder}: {'; '.join(failed)}")
    return results


def failures(sections: dict[str, Any]) -> list[str]:
    """What failed, with the reasons; undefined scores are not failures."""
    by_reason: dict[str, list[str]] = {}
    for name, section in sections.items():
        if section.get("failed"):
            by_reason.setdefault(section["reason"], []).append(name)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return lines + [line for section in sections.values()
                    for line in reason_lines(section.get("scores", {}), failed=True)]


def results_text(results: dict[str, Any]) -> str:
    """All sections as aligned text."""
    facts = results["comparison"]
    lines = [f"protocol {facts['protocol']['name']}: {facts['protocol']['summary']}",
             *(f"warning: {line}" for line in results["warnings"])]
    for name, section in results["sections"].items():
        lines += ["", name]
        if weights := section.get("weights"):
            unverified = "" if weights["verified"] else ", not verified"
            lines.append(f"  weights {weights['file']} (sha256 {weights['sha256'][:16]}...{unverified})")
        if section.get("failed"):
            lines.append(f"  failed: {section['reason']}")
        if "scores" in section:
            lines += aligned([COLUMNS, *(row for group in table(section["scores"]) for row in group)])
            lines += [f"  failed: {line}" for line in reason_lines(section["scores"], failed=True)]
            lines += [f"  no value: {line}" for line in reason_lines(section["scores"], failed=False)]
        for side, reasons in section.get("bad_clips", {}).items():
            lines += [f"  skipped {len(reasons)} {side} clips, first: {reasons[0]}"] if reasons else []
        lines += [f"  {line}" for line in section.get("lines", [])]
    return "\n".join(lines)


def aligned(lines: list[list[str]]) -> list[str]:
    """Lines of cells in columns, the first two to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(["", *(cell.ljust(width) if i < 2 else cell.rjust(width)
                             for i, (cell, width) in enumerate(zip(line, widths, strict=True)))])
            for line in lines]
