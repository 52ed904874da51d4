"""The curves of a run as one picture."""

from pathlib import Path

from common.files import atomic_path, read_jsonl

LOSSES = ("loss", "val_loss", "val_unigram")  # drawn in one panel
WIDE = 3  # panels in a row


def draw_curves(folder: Path) -> None:
    """Draw every scalar of `folder/log.jsonl` against the step into `folder/curves.png`, if there are any."""
    records = read_jsonl(Path(folder) / "log.jsonl")
    names = dict.fromkeys(name for record in records for name in record if name != "step")
    if not names:
        return
    losses = [name for name in LOSSES if name in names]
    panels = [losses] * bool(losses) + [[name] for name in names if name not in LOSSES]
    from matplotlib.figure import Figure  # takes a second to import

    rows = -(-len(panels) // WIDE)
    figure = Figure(figsize=(4.5 * WIDE, 3 * rows))
    figure.subplots_adjust(0.07, 0.5 / (3 * rows), 0.99, 1 - 0.3 / (3 * rows), 0.28, 0.45)
    for place, group in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, WIDE, place, title=group[0], xlabel="step")
        for name in group:
            points = [(record["step"], record[name]) for record in records if name in record]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=name)
        axes.grid(alpha=0.3)
        if len(group) > 1:
            axes.legend()
    with atomic_path(Path(folder) / "curves.png") as temporary:
        figure.savefig(temporary, dpi=100)
