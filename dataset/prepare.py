"""STAGE: videos/<class>/... -> grid pictures, dataset.json and report.json.

Steps: plan every recording (field of view, screening, choice of clips), split the clips of every class into
train and val, write the grid pictures, write dataset.json. A rerun keeps what is there.
"""

import re
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from common.command import run_command, say_next
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_json, write_json
from common.locks import locked
from common.names import check_paths, inside
from common.presets import Preset, find_preset
from dataset import manifest as manifests
from dataset.cutting import Plan, Recording, Settings, cut, plan
from dataset.folders import find_class_folders, note_deep_classes
from dataset.manifest import DEFAULT_FPS, FILE_NAME, WORK_FOLDER, Manifest, grid_pictures
from dataset.mask_files import LabelRule, MaskFiles, find_masks
from dataset.masks import MOST_LABELS, Masks, palette
from dataset.parallel import map_everywhere
from dataset.recordings import Found, find_sources
from dataset.report import FILE_NAME as REPORT_NAME
from dataset.report import make_report, report_text
from dataset.screening import Thresholds
from dataset.split import Piece

POSITIVE = ("rows", "cols", "frame_size", "fps", "frame_stride", "clip_stride", "clips_per_recording",
            "workers")
CRASHES = "reading it crashes the process"


@dataclass(frozen=True)
class PrepareConfig:
    video_path: Path
    """Folder with one folder per class; class folders of grid PNGs (released layout) are accepted too."""
    data_path: Path
    """Output folder for the grid pictures; for the released layout, the same as --video-path."""
    preset: str | None = None
    """Experiment of common/presets.py that gives the class folders and the defaults of other flags."""
    rows: int | None = None
    """Rows of frames in the grid (default 4); a grid of 1 x 1 takes still pictures too."""
    cols: int | None = None
    """Columns of frames in the grid (default 4)."""
    frame_size: int | None = None
    """Side of a frame in pixels (default 128)."""
    fps: float | None = None
    """Resample to this many frames per second by time stamps; excludes --frame-stride."""
    frame_stride: int | None = None
    """Take every n-th frame (default 1)."""
    clip_stride: int | None = None
    """Frames, after sampling, from the start of one clip to the start of the next (default: clip length)."""
    clips_per_recording: int | None = None
    """Maximum number of clips per file, evenly spread (default 100)."""
    recording_pattern: str | None = None
    """Regular expression for paths below the class folder, without suffix; group 1 names the recording."""
    val_fraction: float = manifests.DEFAULT_VAL_FRACTION
    """Fraction of the clips for validation, 0 to 0.5, by whole recordings where a class has several."""
    crop: str = "auto"
    """auto (square inside the field of view), none (middle square) or x,y,side in pixels."""
    crop_file: Path | None = None
    """JSON object of recordings (<class>/<path>) and their crops, which override --crop."""
    workers: int | None = None
    """Processes per rank (default: all cores, shared among the ranks of the machine)."""
    masks: Path | None = None
    """Folder of masks with the names of the recordings; half of the grid's cells are then masks."""
    mask_place: Literal["after", "before"] = "after"
    """after: a model segments frames and labels its clips. before: it draws clips for given masks."""
    mask_labels: int = 2
    """Labels in the masks, 2 to 255: the numbers 0 (background), 1 and so on; 2 labels may be 0 and 255."""
    mask_threshold: int | None = None
    """Of grey masks with two labels: from this number on, 1 to 255, a pixel is label 1."""
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
        if self.preset:
            find_preset(self.preset)
        self.check_masks()

    def check_masks(self) -> None:
        rows, cols = self.choose("rows", 4), self.choose("cols", 4)
        if self.masks and not Masks.fits(rows, cols):
            raise InputError(f"--rows {rows}, --cols {cols}: masks need even rows, or one row and even cols")
        if not 2 <= self.mask_labels <= MOST_LABELS:
            raise InputError(f"--mask-labels {self.mask_labels}: must be 2 to {MOST_LABELS}")
        threshold = 1 if self.mask_threshold is None else self.mask_threshold
        if not self.masks and (self.mask_place, self.mask_labels, self.mask_threshold) != ("after", 2, None):
            raise InputError("--mask-place, --mask-labels, --mask-threshold: need --masks")
        if not 1 <= threshold <= 255 or (self.mask_threshold and self.mask_labels > 2):
            raise InputError(f"--mask-threshold {self.mask_threshold}: must be 1 to 255, for two labels")

    @property
    def stills(self) -> bool:
        """True if a clip has one frame."""
        return (self.rows, self.cols) == ((1, 2) if self.masks else (1, 1))

    @property
    def experiment(self) -> Preset | None:
        return find_preset(self.preset) if self.preset else None

    def choose(self, name: str, default: Any) -> Any:
        """The flag, else the preset's value, else the default."""
        given = getattr(self, name, None)
        return given if given is not None else getattr(self.experiment, name, default)


def check_crop(crop: object, origin: str) -> str:
    """`crop` if it is one, else an `InputError` that names where it comes from."""
    if not isinstance(crop, str) or not re.fullmatch(r"auto|none|\d+,\d+,[1-9]\d*", crop):
        raise InputError(f"{origin} {crop}: must be auto, none or x,y,side in pixels")
    return crop


def run(config: PrepareConfig, runtime: Runtime) -> Manifest:
    """Prepare a data set and return its manifest; `InputError` if another job uses the data folder."""
    released = config.video_path.is_dir() and not config.stills and not config.masks
    if released and grid_pictures(config.video_path):
        return accept_released(config, runtime)
    check_data_path(config)
    with locked(config.data_path, runtime):
        return cut_all(config, runtime)


def cut_all(config: PrepareConfig, runtime: Runtime) -> Manifest:
    """Plan, split and write; `InputError` if there is no usable clip."""
    folder, found, masks = runtime.agree(lambda: with_masks(config, *find_recordings(config)))
    settings, crops = choose_settings(config), read_crops(config, found)
    jobs = [Recording(source, folder, config.data_path, settings, crops.get(source.path, config.crop),
                      masks.get(source.path)) for source in found.sources]
    made = map_everywhere(plan, [(job,) for job in jobs], runtime, config.workers, "plan")
    planned = [(job, Plan(problem=CRASHES) if isinstance(one, BrokenProcessPool) else one)
               for job, one in zip(jobs, made, strict=True)]
    manifest = merge(planned, settings, config, found)
    report = make_report(manifest, planned, found)
    if not manifest.clips:
        if runtime.is_main:
            write_json(config.data_path / REPORT_NAME, report)
        files_first = sorted(report["unusable"], key=lambda entry: "/" not in entry["file"])
        first = "".join(f", such as {entry['file']}: {entry['reason']}" for entry in files_first[:1])
        raise InputError(f"--video-path {config.video_path}: no usable clip{first} "
                         f"(all in {config.data_path / REPORT_NAME})")
    wanted = {clip.name for clip in manifest.clips}
    runtime.agree(lambda: remove_stale(config.data_path, {job.plan_path for job in jobs}, wanted))
    calls = [(job, [start for start in made.starts if job.clip_name(start) in wanted])
             for job, made in planned]
    for job, result in zip(jobs, map_everywhere(cut, calls, runtime, config.workers, "write"), strict=True):
        if isinstance(result, BrokenProcessPool):
            raise InputError(f"{job.path}: {CRASHES}")
    if runtime.is_main:
        finish(manifest, report, config.data_path)
    return manifest


def finish(manifest: Manifest, report: dict[str, Any], folder: Path) -> None:
    write_json(folder / REPORT_NAME, report)
    manifest.write(folder)
    print(report_text(report, folder))
    say_next("bash", "scripts/train_vq.sh", "--results-dir", "RUN", "--data-path", folder)


def check_data_path(config: PrepareConfig) -> None:
    """Refuse a data folder inside the video folder, and one whose data set prepare did not make."""
    data, videos = config.data_path.resolve(), config.video_path.resolve()
    if data == videos or videos in data.parents:
        raise InputError(f"--data-path {config.data_path}: lies in --video-path; give a folder outside it")
    if config.masks and config.masks.resolve().is_relative_to(videos):
        raise InputError(f"--masks {config.masks}: lies in --video-path; give a folder outside it")
    if (data / FILE_NAME).exists() and not (data / WORK_FOLDER).is_dir():
        raise InputError(f"--data-path {config.data_path}: holds a data set that prepare did not make")


def find_recordings(config: PrepareConfig) -> tuple[Path, Found]:
    folder, preset = config.video_path, config.experiment
    if not folder.is_dir():
        raise InputError(f"--video-path {folder}: no such folder")
    if not preset:
        found = find_sources(folder, None, config.recording_pattern, config.stills)
        found.notes += note_deep_classes([source.path for source in found.sources])
        return folder, found
    below, notes = find_class_folders(folder, preset)
    found = find_sources(folder / below, preset.class_names, config.recording_pattern, config.stills)
    found.notes += notes
    return folder / below, found


def with_masks(config: PrepareConfig, folder: Path, found: Found) -> tuple[Path, Found, dict[str, MaskFiles]]:
    """The same and the masks of every recording by its path, none without --masks; see `find_masks`."""
    rule = LabelRule(config.mask_labels, config.mask_threshold)
    return folder, found, find_masks(config.masks, found, rule, config.stills) if config.masks else {}


def choose_settings(config: PrepareConfig) -> Settings:
    masks = Masks(config.mask_place, palette(config.mask_labels)) if config.masks else None
    rows, cols = config.choose("rows", 4), config.choose("cols", 4)
    clip_stride = rows * cols // 2 if masks else config.choose("clip_stride", rows * cols)
    stride = None if config.fps else config.choose("frame_stride", 1)
    fps = None if stride else config.choose("fps", None)
    return Settings(rows, cols, config.choose("frame_size", 128), fps, stride,
                    config.clip_stride or clip_stride,
                    config.choose("clips_per_recording", 100), config.thresholds, masks)


def read_crops(config: PrepareConfig, found: Found) -> dict[str, str]:
    """The crops that --crop-file gives: recording's path -> crop."""
    crops = read_json(config.crop_file) if config.crop_file else {}
    if not isinstance(crops, dict):
        raise InputError(f"--crop-file {config.crop_file}: must hold one object")
    recordings = {source.path for source in found.sources} | {path for path, _ in found.copies}
    for path, crop in crops.items():
        check_crop(crop, f"--crop-file {config.crop_file}: {path}:")
        if path not in recordings:
            raise InputError(f"--crop-file {config.crop_file}: {path} is none of the recordings")
    return crops


def merge(
    planned: Sequence[tuple[Recording, Plan]], settings: Settings, config: PrepareConfig, found: Found
) -> Manifest:
    """The manifest of all planned clips. Without a preset, classes without a clip are left out."""
    planned = [(job, made) for job, made in planned if made.starts]
    class_names = sorted({job.source.class_name for job, _ in planned})
    pieces: dict[str, list[Piece]] = {name: [] for name in config.choose("class_names", class_names)}
    for job, made in planned:
        source = job.source
        pieces[source.class_name] += [
            Piece(name, source.recording, source.path, start, start + settings.clip_length, time)
            for name, start, time in zip(made.names, made.starts, made.times, strict=True)]
    fps = median([made.fps for _, made in planned] or [0.0]) or DEFAULT_FPS
    return Manifest(tuple(pieces), settings.rows, settings.cols, settings.frame_size, fps,
                    settings.frame_stride, **manifests.split_clips(pieces, config.val_fraction, found.shared),
                    masks=settings.masks)


def remove_stale(data_path: Path, current: set[Path], wanted: set[str]) -> None:
    """Delete grid pictures of earlier settings or files, their plans, and temporary files of killed runs.

    dataset.json is deleted first, so that it never lists pictures that are gone.
    """
    pictures, plans = [], []
    for path in sorted((data_path / WORK_FOLDER).glob("[!.]*.json")):
        names = read_json(path)["names"]
        check_paths(names, path)
        pictures += [inside(data_path, name) for name in names if path not in current or name not in wanted]
        plans += [path] if path not in current else []
    if any(picture.exists() for picture in pictures):
        (data_path / FILE_NAME).unlink(missing_ok=True)
    for path in [*pictures, *plans, *data_path.glob("*/.*.tmp.*")]:
        path.unlink(missing_ok=True)


def accept_released(config: PrepareConfig, runtime: Runtime) -> Manifest:
    """Write the dataset.json of class folders of grid PNGs, in place."""
    if config.data_path.resolve() != config.video_path.resolve():
        raise InputError(f"--data-path {config.data_path}: {config.video_path} holds grid pictures already, "
                         "which get their dataset.json in place; give that folder as --data-path")
    rows, cols, size = (config.choose(name, None) for name in ("rows", "cols", "frame_size"))
    fps = config.choose("fps", DEFAULT_FPS)
    manifest = manifests.read_released(config.video_path, rows, cols, size, fps, config.val_fraction)
    preset = config.experiment
    if preset and manifest.class_names != preset.class_names:
        raise InputError(f"--preset {config.preset}: its classes are {', '.join(preset.class_names)}; "
                         f"{config.video_path} has {', '.join(manifest.class_names)}")
    if runtime.is_main:
        finish(manifest, make_report(manifest, [], Found()), config.data_path)
    return manifest


if __name__ == "__main__":
    run_command(PrepareConfig, run)
