"""STAGE: real and generated clips -> the generated clips without near-copies of training clips.

A generated clip is a near-copy if it is nearer to a training clip of its class, in features of
EfficientNet-Lite0, than all but a small part of the real clips that were not trained on. The result is a
folder like the sampler's.
"""

import os
import shutil
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.locks import locked
from common.names import inside
from dataset.manifest import Manifest
from dataset.samples import FILE_NAME, FOLDERS, PATHS, read_samples
from evaluations.comparison import CompareConfig, Comparison, clip_facts
from evaluations.extractor import Lite0Frames
from evaluations.features import Features
from evaluations.lite0 import clip_means
from evaluations.memorisation import QUANTILE, SHEET_PAIRS, class_report, write_sheet

REPORT = "copies.json"


@dataclass(frozen=True, kw_only=True)
class FilterCopiesConfig:
    """Leave near-copies of training clips out of generated clips."""

    data_path: Path
    """The real clips that the model was trained on, prepared by dataset.prepare."""
    sample_path: Path
    """Generated clips: the sampler's output folder."""
    save_path: Path
    """Folder for the clips that stay, copies.json and removed.png."""
    quantile: float = QUANTILE
    """Part of real clips that are as near to a training clip as a near-copy; larger removes more."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise InputError(f"--quantile {self.quantile}: must be between 0 and 1")
        if self.save_path.resolve() == self.sample_path.resolve():
            raise InputError(f"--save-path {self.save_path}: is --sample-path")


def find_copies(real: Features, generated: Features, class_names: tuple[str, ...], quantile: float
                ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(report by class, pairs of a near-copy and its training clip, nearest first).

    Raises: `InputError` naming a class without real clips that give a threshold.
    """
    per_class, copies = {}, []
    for name in class_names:
        report, pairs = class_report(real.of_class(name), generated.of_class(name), quantile)
        if "threshold" not in report:
            raise InputError(f"class {name}: {report['reason']}")
        near = [pair for pair in pairs if pair["distance"] < report["threshold"]]
        facts = {key: report[key] for key in ("yardstick", "threshold", "median", "real_median")}
        per_class[name] = {"clips": report["n_generated"], "removed": len(near), **facts}
        copies += near
    return per_class, sorted(copies, key=lambda pair: (pair["of_real_median"], pair["generated"]))


def paths_of(clip: dict[str, Any]) -> list[str]:
    """Its files and folders of frames, below the sampler's folder."""
    return list(dict.fromkeys([*(clip[kind] for kind in PATHS if kind in clip), *clip.get("grids", [])]))


def copy_clip(source: Path, target: Path, clip: dict[str, Any]) -> None:
    """All files of a clip, as links where the file system allows it."""
    for name in paths_of(clip):
        path = inside(source, name)
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            place = inside(target, str(Path(name) / file.name) if path.is_dir() else name)
            if not (place.exists() and place.samefile(file)):
                with atomic_path(place) as temporary:
                    try:
                        os.link(file, temporary)
                    except OSError:
                        shutil.copyfile(file, temporary)


def write_kept(source: Path, target: Path, removed: set[str], facts: dict[str, Any]) -> int:
    """Write the clips none of whose grid pictures is `removed`, samples.json last -> their number."""
    record, grids = read_samples(source), Manifest.read(source / "grids")
    pictures = [{name.removeprefix("grids/") for name in clip.get("grids", [clip["grid"]])}
                for clip in record["clips"]]
    stays = [not removed & own for own in pictures]
    kept = list(compress(record["clips"], stays))
    there = read_json(target / FILE_NAME) if (target / FILE_NAME).exists() else None
    if not there or there.get("filtered") != facts:
        if held := [name for name in FOLDERS if (target / name).exists()]:
            what = "clips that were filtered in another way" if there else f"{held[0]} but no {FILE_NAME}"
            raise InputError(f"--save-path {target}: holds {what}; use another folder")
        write_json(target / FILE_NAME, {**record, "filtered": facts, "clips": []})  # whose the next files are
    for clip in kept:
        copy_clip(source, target, clip)
    names = set().union(*compress(pictures, stays))
    replace(grids, clips=tuple(clip for clip in grids.clips if clip.name in names)).write(target / "grids")
    write_json(target / FILE_NAME, {**record, "filtered": facts, "clips": kept})
    return len(kept)


def run(config: FilterCopiesConfig, runtime: Runtime) -> dict[str, Any]:
    """Filter, print, write; `InputError` if another job is at it."""
    if not (config.sample_path / FILE_NAME).exists():
        raise InputError(f"--sample-path {config.sample_path}: not the sampler's output, no {FILE_NAME}")
    with locked(config.save_path, runtime):
        comparison = CompareConfig(
            data_path=config.data_path, sample_path=config.sample_path, output=config.save_path,
            reference="all", device=config.device, groups=0).open(runtime)
        extractor = Lite0Frames(comparison.device)
        features = [clip_means(side) for side in comparison.features(extractor, runtime)[:2]]
        if not runtime.is_main:
            return {}
        return filter_clips(config.sample_path, config.save_path, config.quantile, comparison, *features)


def filter_clips(source: Path, target: Path, quantile: float, comparison: Comparison, real: Features,
                 generated: Features) -> dict[str, Any]:
    """The part of the main process."""
    per_class, copies = find_copies(real, generated, comparison.class_names, quantile)
    removed = {pair["generated"] for pair in copies}
    clips = {name: clip_facts(getattr(comparison, name))["sha256"] for name in ("real", "generated")}
    facts = {"quantile": quantile, "features": generated.facts["extractor"], "clips": clips,
             "removed": sorted(removed)}
    kept = write_kept(source, target, removed, facts)
    if copies:
        write_sheet(comparison, copies[:SHEET_PAIRS], target / "removed.png")
    result = {"kept": kept, "per_class": per_class, "removed": copies}
    write_json(target / REPORT, result)
    shown = "removed.png" if copies else REPORT
    for name, own in per_class.items():
        print(f"{name}: {own['removed']} of {own['clips']} removed, nearer than {own['threshold']:.4g}; "
              f"median {own['median']:.4g}, of real clips {own['real_median']:.4g} ({own['yardstick']})")
    if empty := [name for name, own in per_class.items() if own["removed"] == own["clips"]]:
        print(f"warning: no clip of {', '.join(empty)} is left; sample more, or give more real recordings: "
              "few of them make no good threshold")
    print(f"{kept} clips in {target}; {REPORT} names those left out: open {target / shown}")
    return result


if __name__ == "__main__":
    run_command(FilterCopiesConfig, run)
