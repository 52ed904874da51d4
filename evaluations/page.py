"""The results as one HTML file without any link to elsewhere: tables, bars with error bars, closest pairs."""

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from common.files import atomic_path
from common.names import inside
from evaluations.measures import reason_lines, rows

HERE = Path(__file__).parent
COLUMNS = 3  # charts side by side
BAR, REAL, TOKENIZER = "#4878a8", "#c44e52", "#55a868"


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `folder`/report.html."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters["digits"] = lambda value: "-" if value is None else f"{value:.4g}"
    sections = {name: {**section, "chart": _chart(section["scores"]) if "scores" in section else None,
                       "picture": _picture(inside(folder, section["sheet"])) if "sheet" in section else None}
                for name, section in results["sections"].items()}
    html = environment.get_template("page.html").render(
        results=results, sections=sections, rows=rows, reason_lines=reason_lines,
        facts=json.dumps(results["comparison"], indent=1))
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _picture(path: Path) -> str:
    """A PNG file as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _chart(scores: dict[str, Any]) -> str:
    """One small bar chart per score, as the address of an SVG picture."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    lines = -(-len(scores) // COLUMNS)
    height = lines * (1.1 + 0.28 * max(len(rows(entry)) for entry in scores.values()))
    file = io.BytesIO()
    # the same page from the same results; class names may have a $, and letters that only the browser knows
    style = {"svg.hashsalt": "endogen", "svg.fonttype": "none", "text.parse_math": False}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(4.2 * COLUMNS, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axis, (name, entry) in zip(axes, scores.items(), strict=False):
            _bars(axis, name, entry)
        for axis in axes[len(scores):]:
            axis.set_visible(False)
        marks = {label: handle for axis in axes
                 for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if marks:
            figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=3, fontsize=8,
                          frameon=False)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _bars(axis: Any, name: str, entry: dict[str, Any]) -> None:
    """A bar with its standard error per class, mean and pool; marks where the floors are."""
    views = rows(entry)
    for place, (_, record) in enumerate(views):
        if record["value"] is None:
            axis.text(0, place, " no value", va="center", fontsize=7, color="grey")
            continue
        axis.barh(place, record["value"], xerr=record["stderr"], color=BAR, height=0.6, ecolor="black",
                  capsize=2)
        for floor, colour, label in ((record["floor"], REAL, "real against real"),
                                     (record["tokenizer"], TOKENIZER, "tokenizer")):
            if floor:
                axis.plot([floor["value"]] * 2, [place - 0.4, place + 0.4], color=colour, linewidth=2.5,
                          label=label)
        if record["floor"]:
            axis.plot(record["floor"]["same_n"], place, "D", markersize=4, color="white",
                      markeredgecolor="black", label="score at the floor's n")
    axis.set_yticks(range(len(views)), [name for name, _ in views], fontsize=7, parse_math=False)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_ylim(len(views) - 0.4, -0.6)
    axis.set_title(f"{name} ({entry['better']} is better)", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
