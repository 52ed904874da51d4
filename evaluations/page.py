"""The results as one HTML file without external links: tables, bar charts, closest pairs."""

import base64
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from common.files import atomic_path
from common.names import inside
from evaluations.measures import reason_lines, rows

HERE = Path(__file__).parent
COLUMNS = ["score", "clips of", "value", "stderr", "real", "generated", "floor", "at n", "score at n",
           "tokenizer"]
CHARTS = 3  # side by side
BAR, REAL, TOKENIZER = "#4878a8", "#c44e52", "#55a868"


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `folder`/report.html."""
    sections = {}
    for name, section in results["sections"].items():
        sections[name] = dict(section)
        if "scores" in section:
            sections[name] |= {"chart": data_url("svg+xml", chart(section["scores"])),
                               "table": table(section["scores"])}
        if "sheet" in section:
            sheet = inside(folder, section["sheet"]).read_bytes()
            sections[name]["picture"] = data_url("png", sheet)
    return render(folder / "report.html", "page.html", results=results, sections=sections, columns=COLUMNS,
                  reason_lines=reason_lines, facts=json.dumps(results["comparison"], indent=1))


def render(path: Path, template: str, **values: Any) -> Path:
    """Write a page from a template of this folder."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    with atomic_path(path) as temporary:
        temporary.write_text(environment.get_template(template).render(**values), encoding="utf-8")
    return path


def table(scores: dict[str, Any]) -> list[list[list[str]]]:
    """The cells of all scores under `COLUMNS`: score, then its classes, mean and pool, then cell."""
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    def cells(record: dict[str, Any]) -> list[str]:
        floor, tokenizer = record.get("floor") or {}, record.get("tokenizer") or {}
        counts = [str(record.get(side, "")) for side in ("n_real", "n_generated")]
        return [number(record["value"]), number(record.get("stderr")), *counts, number(floor.get("value")),
                str(floor.get("n", "")), number(floor.get("same_n")), number(tokenizer.get("value"))]

    return [[[name, view, *cells(record)] for view, record in rows(entry)] for name, entry in scores.items()]


def data_url(kind: str, content: bytes) -> str:
    """An image as the URL of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure of so many inches, and the file that holds it as SVG after the block."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.BytesIO()
    # Equal results give equal pages. Class names may contain a $ and letters that only the browser has.
    style = {"svg.hashsalt": "endogen", "svg.fonttype": "none", "text.parse_math": False}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, file
        figure.savefig(file, format="svg", metadata={"Date": None})


def chart(scores: dict[str, Any]) -> bytes:
    """One small bar chart per score, as SVG."""
    lines = -(-len(scores) // CHARTS)
    height = lines * (1.1 + 0.28 * max(len(rows(entry)) for entry in scores.values()))
    with drawing(4.2 * CHARTS, height) as (figure, file):
        axes = figure.subplots(lines, CHARTS, squeeze=False).ravel()
        for axis, (name, entry) in zip(axes, scores.items(), strict=False):
            _bars(axis, name, entry)
        for axis in axes[len(scores):]:
            axis.set_visible(False)
        marks = {label: handle for axis in axes
                 for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if marks:
            figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=3, fontsize=8,
                          frameon=False)
    return file.getvalue()


def _bars(axis: Any, name: str, entry: dict[str, Any]) -> None:
    """A bar with its standard error per class, mean and pool; marks at the floors."""
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
