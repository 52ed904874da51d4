"""The report of prepare: report.json, and a summary as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset.cutting import Plan, Recording
from dataset.manifest import Manifest
from dataset.recordings import Found

FILE_NAME = "report.json"
SHOWN = 10  # files listed under one heading of the text; report.json lists all


def make_report(
    manifest: Manifest, planned: Sequence[tuple[Recording, Plan]], found: Found
) -> dict[str, Any]:
    recordings = {job.source.path: plan for job, plan in planned}
    plans = recordings.values()
    classes = {}
    for label, name in enumerate(manifest.class_names):
        clips = [clip for clip in manifest.clips if clip.label == label]
        splits = Counter(clip.split for clip in clips)
        classes[name] = {"train": splits["train"], "val": splits["val"], "split_by": manifest.split_by[name],
                         "recordings": len({clip.recording for clip in clips})}
    rejected = sum((Counter(plan.rejected) for plan in plans), Counter())
    unusable = [(path, plan.problem) for path, plan in recordings.items() if plan.problem]
    notes = [(path, note) for path, plan in recordings.items() if not plan.problem for note in plan.notes]
    return {
        "clips": len(manifest.clips),
        "classes": classes,
        "rejected_clips": dict(sorted(rejected.items())),
        "thresholds": asdict(planned[0][0].settings.thresholds) if planned else {},
        "lost_frames": sum(plan.lost for plan in plans),
        "clips_over_maximum": sum(plan.surplus for plan in plans),
        "clips_between_train_and_val":
            sum(len(plan.starts) for plan in plans) - len(manifest.clips) if planned else 0,
        "unusable": _entries(sorted([*found.unusable, *unusable])),
        "copies": _entries(found.copies),
        "notes": _entries([*found.notes, *notes]),
        "recordings": {path: {"clips": len(plan.starts), "frames": plan.frames, "fps": plan.fps,
                              "lost_frames": plan.lost, "crop": plan.crop, "rejected_clips": plan.rejected}
                       for path, plan in recordings.items()},
    }


def _entries(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"file": path, "reason": reason} for path, reason in pairs]


def report_text(report: dict[str, Any], folder: Path) -> str:
    width = max(map(len, report["classes"]), default=0)
    lines = [f"{folder}: {report['clips']} clips"]
    for name, row in report["classes"].items():
        lines.append(f"  {name:<{width}}  train {row['train']:5d}  val {row['val']:5d}  "
                     f"from {row['recordings']} recordings, split by {row['split_by']}")
    if report["recordings"]:
        rejected = ", ".join(f"{count} {reason}" for reason, count in report["rejected_clips"].items())
        lines.append(f"rejected clips: {rejected or 'none'}")
        lines.append(f"left out: {report['clips_over_maximum']} over the maximum per recording, "
                     f"{report['clips_between_train_and_val']} that overlap both splits")
    if report["lost_frames"]:
        damaged = sum(row["lost_frames"] > 0 for row in report["recordings"].values())
        lines.append(f"damaged: {report['lost_frames']} frames of {damaged} recordings; no clip spans them")
    rates = sorted({row["fps"] for row in report["recordings"].values() if row["clips"]})
    if len(rates) > 1:
        lines.append(f"frame rates of the clips: {rates[0]:g} to {rates[-1]:g} fps; --fps makes them equal")
    lost = {entry["file"].partition("/")[0] for entry in report["unusable"] if "/" in entry["file"]}
    lost -= report["classes"].keys()
    lines += [f"left out: class {name}, none of its recordings is usable" for name in sorted(lost)]
    for key in ("unusable", "copies", "notes"):
        if report[key]:
            lines.append(f"{key}: {len(report[key])}")
            lines += [f"  {entry['file']}: {entry['reason']}" for entry in report[key][:SHOWN]]
            lines += [f"  ... all in {folder / FILE_NAME}"] if len(report[key]) > SHOWN else []
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """`line` with escapes for what cannot be printed, such as a line end in the name of a file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
