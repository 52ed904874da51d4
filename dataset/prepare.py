"""STAGE: videos/<class>/... -> grid pictures, dataset.json and report.json.

Every recording is planned (field of view, screening, choice of clips), then the clips of every class are
split into train and val, then the grid pictures are written, dataset.json last. A rerun keeps what is there.
"""

import re
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_json
from common.locks import locked
from common.names import check_paths, inside
from common.presets import Preset, find_preset
from dataset import manifest as manifests
from dataset import report as reports
from dataset.cutting import Plan, Recording, Settings, cut, plan
from dataset.folders import find_class_folders, note_deep_classes
from dataset.manifest import Clip, Manifest
from dataset.parallel import map_everywhere
from dataset.recordings import Found, find_sources
from dataset.screening import Thresholds
from dataset.split import Piece, split_class

POSITIVE = ("rows", "cols", "frame_size", "fps", "frame_stride", "clip_stride", "clips_per_recording",
            "workers")


@dataclass(frozen=True)
class PrepareConfig:
    video_path: Path
    """Folder of class folders of recordings: videos, or folders of numbered pictures, at any depth; with
    --rows 1 --cols 1 also still pictures. Class folders of grid PNGs alone, as released, count as prepared
    and get a dataset.json in place."""
    data_path: Path
    """Folder for the grid pictures; for released grid pictures the same as --video-path."""
    preset: str | None = None
    """A named experiment of common/presets.py: gives the class folders and the defaults of the flags."""
    rows: int | None = None
    """Frames in a column of the grid (default 4)."""
    cols: int | None = None
    """Frames in a row of the grid (default 4)."""
    frame_size: int | None = None
    """Pixels of a frame's side (default 128)."""
    fps: float | None = None
    """Resample to this many frames per second by time stamps. Excludes --frame-stride."""
    frame_stride: int | None = None
    """Take every n-th frame (default 1)."""
    clip_stride: int | None = None
    """Sampled frames between the starts of consecutive clips (default: the clip's length, so no overlap)."""
    clips_per_recording: int | None = None
    """Maximum number of clips per file, evenly spread over its usable ones (default 100)."""
    recording_pattern: str | None = None
    """Regular expression whose first group, found in a file's path below its class folder without the suffix,
    names the recording that the file is a piece of, as "^(.*)_[^_]+$" (default: each file is its own)."""
    val_fraction: float = manifests.DEFAULT_VAL_FRACTION
    """Fraction of the clips for validation, 0 to 0.5. Whole recordings are held out; in a class of
    one recording, its end."""
    crop: str = "auto"
    """auto (the field of view), none (the middle square) or x,y,side in pixels."""
    crop_file: Path | None = None
    """JSON file {"<class>/<path of the recording>": crop, ...}. Its crops override --crop."""
    workers: int | None = None
    """Processes per rank (default: the cores, shared among the ranks of the machine)."""
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {value}: must be positive")
        if self.fps is not None and self.frame_stride is not None:
            raise InputError("--fps and --frame-stride exclude each other")
        if not 0 <= self.val_fraction <= 0.5:
            raise InputError(f"--val-fraction {self.val_fraction}: must be 0 to 0.5")
        check_crop(self.crop, "--crop")

    @property
    def stills(self) -> bool:
        """True if a clip is a single picture."""
        return self.rows == self.cols == 1


def check_crop(crop: object, origin: str) -> str:
    """`crop` if it is one, else an `InputError` that names where it comes from."""
    if not isinstance(crop, str) or not re.fullmatch(r"auto|none|\d+,\d+,[1-9]\d*", crop):
        raise InputError(f"{origin} {crop}: must be auto, none or x,y,side in pixels")
    return crop


def run(config: PrepareConfig, runtime: Runtime) -> Manifest:
    """Prepare a data set and return its manifest; `InputError` if another job is at it."""
    preset = find_preset(config.preset) if config.preset else None
    if config.video_path.is_dir() and not config.stills and manifests.grid_pictures(config.video_path):
        return accept_released(config, preset, runtime)
    check_data_path(config)
    with locked(config.data_path, runtime):
        return cut_all(config, preset, runtime)


def cut_all(config: PrepareConfig, preset: Preset | None, runtime: Runtime) -> Manifest:
    """Plan, split and write; `InputError` if nothing usable comes out."""
    class_names = preset.class_names if preset else None
    with runtime.together():
        mine = find_recordings(config, preset) if runtime.is_main else None
    folder, found = runtime.gather(mine)[0]
    settings = choose_settings(config, preset)
    jobs = list_jobs(replace(config, video_path=folder), settings, found)
    made = map_everywhere(plan, [(job,) for job in jobs], runtime, config.workers, "plan")
    plans = [Plan(problem="reading it kills the process") if isinstance(one, BrokenProcessPool) else one
             for one in made]
    manifest = merge(jobs, plans, settings, class_names, config.val_fraction, found.shared)
    report = reports.make_report(manifest, jobs, plans, found)
    if not manifest.clips:
        if runtime.is_main:
            reports.write_report(report, config.data_path)
        files_first = sorted(report["unusable"], key=lambda entry: "/" not in entry["file"])
        first = next((f", such as {entry['file']}: {entry['reason']}" for entry in files_first), "")
        raise InputError(f"--video-path {config.video_path}: no usable clip in {len(jobs)} recordings{first} "
                         f"(all in {config.data_path / reports.FILE_NAME})")
    if runtime.is_main:
        remove_stale(config.data_path, {job.plan_path for job in jobs}, manifest)
    runtime.gather(None)
    write_grids(jobs, plans, manifest, config, runtime)
    if runtime.is_main:
        finish(manifest, report, config.data_path)
    return manifest


def finish(manifest: Manifest, report: dict[str, Any], folder: Path) -> None:
    """Write report.json and dataset.json, and print the report."""
    reports.write_report(report, folder)
    manifest.write(folder)
    print(reports.report_text(report, folder))


def check_data_path(config: PrepareConfig) -> None:
    """Refuse a data folder among the videos, and one that holds a data set of other origin."""
    data, videos = config.data_path.resolve(), config.video_path.resolve()
    if data == videos or videos in data.parents:
        raise InputError(f"--data-path {config.data_path}: lies in --video-path; give a folder outside it")
    if (data / manifests.FILE_NAME).exists() and not (data / manifests.WORK_FOLDER).is_dir():
        raise InputError(f"--data-path {config.data_path}: holds a data set that prepare did not make")


def find_recordings(config: PrepareConfig, preset: Preset | None) -> tuple[Path, Found]:
    """The folder of the class folders, and what is in it."""
    folder, notes = config.video_path, []
    if not folder.is_dir():
        raise InputError(f"--video-path {folder}: no such folder")
    if preset:
        below, notes = find_class_folders(folder, preset)
        folder = folder / below
    class_names = preset.class_names if preset else None
    found = find_sources(folder, class_names, config.recording_pattern, config.stills)
    found.notes += notes if preset else note_deep_classes([source.path for source in found.sources])
    return folder, found


def choose_settings(config: PrepareConfig, preset: Preset | None) -> Settings:
    """The flags, where not given the preset's values or the defaults."""
    def choose(name: str, default: Any) -> Any:
        given = getattr(config, name)
        return given if given is not None else getattr(preset, name) if preset else default

    rows, cols, stride = choose("rows", 4), choose("cols", 4), choose("frame_stride", 1)
    resampled = config.fps is not None or stride is None
    return Settings(rows, cols, choose("frame_size", 128), choose("fps", None) if resampled else None,
                    None if resampled else stride, choose("clip_stride", rows * cols),
                    choose("clips_per_recording", 100), config.thresholds)


def list_jobs(config: PrepareConfig, settings: Settings, found: Found) -> list[Recording]:
    """One job per recording, with its crop."""
    crops = read_crops(config, {source.path for source in found.sources} | {path for path, _ in found.copies})
    return [Recording(source, config.video_path, config.data_path, settings,
                      crops.get(source.path, config.crop)) for source in found.sources]


def read_crops(config: PrepareConfig, recordings: Collection[str]) -> dict[str, str]:
    """The crops that --crop-file gives: recording's path -> crop."""
    crops = read_json(config.crop_file) if config.crop_file else {}
    if not isinstance(crops, dict):
        raise InputError(f"--crop-file {config.crop_file}: must hold one object")
    for path, crop in crops.items():
        check_crop(crop, f"--crop-file {config.crop_file}: {path}:")
        if path not in recordings:
            raise InputError(f"--crop-file {config.crop_file}: {path} is none of the recordings")
    return crops


def merge(
    jobs: Sequence[Recording], plans: Sequence[Plan], settings: Settings, class_names: Sequence[str] | None,
    val_fraction: float, only_train: Collection[str],
) -> Manifest:
    """The manifest of all planned clips. If no class names are given, classes without a clip are left out."""
    planned = [(job, made) for job, made in zip(jobs, plans, strict=True) if made.starts]
    class_names = tuple(class_names or sorted({job.source.class_name for job, _ in planned}))
    clips, split_by = [], {}
    for label, class_name in enumerate(class_names):
        pieces, times = [], []
        for job, made in planned:
            if job.source.class_name == class_name:
                pieces += [Piece(name, job.source.recording, job.source.path, start,
                                 start + job.settings.clip_length)
                           for name, start in zip(made.names, made.starts, strict=True)]
                times += made.times
        splits, split_by[class_name] = split_class(pieces, val_fraction, only_train)
        clips += [Clip(piece.name, label, piece.recording, split, time)
                  for piece, split, time in zip(pieces, splits, times, strict=True) if split]
    fps = median([made.fps for _, made in planned] or [0.0]) or manifests.DEFAULT_FPS
    return Manifest(class_names, settings.rows, settings.cols, settings.frame_size, fps,
                    settings.frame_stride, split_by, tuple(clips))


def remove_stale(data_path: Path, current: set[Path], manifest: Manifest) -> None:
    """Delete the grid pictures that other settings or other files have led to, and what a kill left behind.

    dataset.json goes before them, so that at no time it speaks of pictures that are gone.
    """
    wanted = {clip.name for clip in manifest.clips}
    pictures, plans = [], []
    for path in sorted((data_path / manifests.WORK_FOLDER).glob("[!.]*.json")):
        names = read_json(path)["names"]
        check_paths(names, path)
        pictures += [inside(data_path, name) for name in names if path not in current or name not in wanted]
        plans += [path] if path not in current else []
    if any(picture.exists() for picture in pictures):
        (data_path / manifests.FILE_NAME).unlink(missing_ok=True)
    for path in [*pictures, *plans, *data_path.glob("*/.*.tmp.*")]:
        path.unlink(missing_ok=True)


def write_grids(
    jobs: Sequence[Recording], plans: Sequence[Plan], manifest: Manifest, config: PrepareConfig,
    runtime: Runtime,
) -> None:
    """Write the grid pictures of the manifest that are not there yet."""
    wanted = {clip.name for clip in manifest.clips}
    calls = [(job, [start for start, name in zip(made.starts, made.names, strict=True) if name in wanted])
             for job, made in zip(jobs, plans, strict=True)]
    for call, result in zip(calls, map_everywhere(cut, calls, runtime, config.workers, "write"), strict=True):
        if isinstance(result, BrokenProcessPool):
            raise InputError(f"{call[0].path}: reading it kills the process")


def accept_released(config: PrepareConfig, preset: Preset | None, runtime: Runtime) -> Manifest:
    """Write the dataset.json of class folders of grid PNGs, in place."""
    if config.data_path.resolve() != config.video_path.resolve():
        raise InputError(f"--data-path {config.data_path}: {config.video_path} holds grid pictures already, "
                         "which get their dataset.json in place; give that folder as --data-path")
    facts = {name: getattr(config, name) or (getattr(preset, name) if preset else None)
             for name in ("rows", "cols", "frame_size", "fps")}
    facts["fps"] = facts["fps"] or manifests.DEFAULT_FPS
    manifest = manifests.read_released(config.video_path, **facts, val_fraction=config.val_fraction)
    if preset and manifest.class_names != preset.class_names:
        raise InputError(f"--preset {config.preset}: its classes are {', '.join(preset.class_names)}; "
                         f"{config.video_path} has {', '.join(manifest.class_names)}")
    if runtime.is_main:
        finish(manifest, reports.make_report(manifest, [], [], Found()), config.data_path)
    return manifest


if __name__ == "__main__":
    run_command(PrepareConfig, run)
