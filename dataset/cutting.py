"""One recording -> grid pictures, in two steps: plan which clips to cut, then write them.

A recording is read three times (to find its field of view, to screen it, to write its clips), so that memory
does not grow with its length.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.names import check_paths, inside
from dataset.field_of_view import Crop, centre_square, find_field_of_view
from dataset.grid import frames_to_grid
from dataset.manifest import WORK_FOLDER
from dataset.recordings import Source
from dataset.screening import Thresholds, frame_stats, luminance, reason_to_reject
from dataset.video import Frame, read_frames

PLAN_VERSION = 1  # raise it when the same settings lead to other clips


@dataclass(frozen=True)
class Settings:
    """All that decides which clips come out of a recording, and what they look like."""

    rows: int
    cols: int
    frame_size: int
    fps: float | None
    frame_stride: int | None
    """Exactly one of `fps` and `frame_stride` is None."""
    clip_stride: int
    clips_per_recording: int
    thresholds: Thresholds

    @property
    def clip_length(self) -> int:
        """Frames of a clip."""
        return self.rows * self.cols


@dataclass(frozen=True)
class Recording:
    """A recording to be prepared."""

    source: Source
    video_path: Path
    data_path: Path
    settings: Settings
    crop: str
    """"auto", "none" or "x,y,side"."""

    @property
    def path(self) -> Path:
        """The video file or the folder of pictures."""
        return self.video_path / self.source.path

    @property
    def plan_path(self) -> Path:
        """Where the plan is kept: the name changes with the settings and with the file's size or date."""
        files = [self.path, *sorted(self.path.iterdir())] if self.path.is_dir() else [self.path]
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        facts = [PLAN_VERSION, self.source, asdict(self.settings), self.crop, state]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return self.data_path / WORK_FOLDER / f"{digest[:24]}.json"

    def clip_name(self, start: int) -> str:
        """Name of the grid picture whose first frame is sampled frame `start`."""
        return f"{self.source.class_name}/{self.source.stem}_{start:06d}.png"


@dataclass
class Plan:
    """What is known of a recording: the clips to cut from it, or why there are none."""

    starts: list[int] = field(default_factory=list)
    """First sampled frame of every clip."""
    times: list[float] = field(default_factory=list)
    """The same in seconds."""
    names: list[str] = field(default_factory=list)
    """Their grid pictures."""
    frames: int = 0
    """Sampled frames."""
    fps: float = 0.0
    """Sampled frames per second."""
    crop: Sequence[int | str] | None = None
    """A `Crop`."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason -> number of clips."""
    surplus: int = 0
    """Good clips beyond the maximum."""
    problem: str | None = None
    """Why no clip came out."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of a recording that is used all the same."""


def plan(job: Recording) -> Plan:
    """The plan of a recording: the one in the data folder, else a new one, which is written there."""
    cv2.setNumThreads(1)
    path = job.plan_path
    if not path.exists():
        made = Plan()
        try:
            _choose_clips(job, made)
        except InputError as error:
            made.problem = _without_folders(error, job)
        write_json(path, asdict(made))
    return read_plan(path)


def read_plan(path: Path) -> Plan:
    """A plan that was written; `InputError` if it names pictures outside of the data folder."""
    made = Plan(**read_json(path))
    check_paths(made.names, path)
    return made


def cut(job: Recording, starts: Sequence[int]) -> None:
    """Write the grid pictures of the clips that begin at `starts`, except those that are there."""
    cv2.setNumThreads(1)
    missing = {start for start in starts if not (job.data_path / job.clip_name(start)).exists()}
    if not missing:
        return
    settings, crop = job.settings, Crop(*plan(job).crop)
    frames: deque[np.ndarray] = deque(maxlen=settings.clip_length)
    for index, frame in enumerate(_frames(job, [])):
        frames.append(crop.apply(frame.pixels, settings.frame_size))
        start = index + 1 - settings.clip_length
        if start in missing:
            _write_grid(inside(job.data_path, job.clip_name(start)), np.stack(frames), settings)
            missing.remove(start)
        if not missing:
            return
    raise InputError(f"{job.path}: changed while it was read")


def _write_grid(path: Path, frames_THWC: np.ndarray, settings: Settings) -> None:
    grid_CHW = frames_to_grid(frames_THWC.transpose(0, 3, 1, 2), settings.rows, settings.cols)
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(grid_CHW.transpose(1, 2, 0))).save(temporary, compress_level=3)


def _frames(job: Recording, damage: list[str]) -> Iterator[Frame]:
    """The sampled frames; the error that ends a recording after good frames is added to `damage` instead."""
    count = 0
    try:
        for frame in read_frames(job.path, job.settings.fps, job.settings.frame_stride or 1):
            count += 1
            yield frame
    except InputError as error:
        if count == 0:
            raise
        damage.append(_without_folders(error, job))


def _without_folders(error: InputError, job: Recording) -> str:
    """The error's text without the folders of this machine, and without the recording's own name."""
    return str(error).removeprefix(f"{job.path}: ").replace(f"{job.video_path}/", "")


def _choose_clips(job: Recording, made: Plan) -> None:
    """Fill in the plan: crop, screening, and the good clips, evenly spread if they are more than the maximum.

    Raises: `InputError` saying why there are none, after filling in what is known.
    """
    settings, damage = job.settings, []
    crop = _find_crop(job)
    times, stats, previous_HW = [], [], None
    for frame in _frames(job, damage):
        luma_HW = luminance(crop.apply(frame.pixels, settings.frame_size))
        stats.append(frame_stats(luma_HW, previous_HW))
        times.append(frame.time)
        previous_HW = luma_HW
    made.crop, made.frames = crop, len(times)
    made.fps = settings.fps or (round((len(times) - 1) / times[-1], 3) if times[-1] else 0.0)
    made.notes = damage + _notes(crop, times, settings)
    length, stats_N3 = settings.clip_length, np.array(stats)
    if len(times) < length:
        raise InputError("; ".join([f"only {len(times)} frames at this rate, a clip has {length}", *damage]))
    reasons = {start: reason_to_reject(stats_N3[start : start + length], settings.thresholds)
               for start in range(0, len(times) - length + 1, settings.clip_stride)}
    good = [start for start, reason in reasons.items() if reason is None]
    made.rejected = dict(sorted(Counter(filter(None, reasons.values())).items()))
    if not good:
        counts = ", ".join(f"{count} {reason}" for reason, count in made.rejected.items())
        raise InputError(f"every clip rejected ({counts})")
    chosen = min(len(good), settings.clips_per_recording)
    made.surplus = len(good) - chosen
    made.starts = [good[i] for i in np.linspace(0, len(good) - 1, chosen).round().astype(int)]
    made.times = [round(times[start], 6) for start in made.starts]
    made.names = [job.clip_name(start) for start in made.starts]


def _find_crop(job: Recording) -> Crop:
    """The crop that the user gives for the recording, or its field of view."""
    if job.crop == "auto":
        return find_field_of_view(frame.pixels for frame in _frames(job, []))
    height, width = next(_frames(job, [])).pixels.shape[:2]
    if job.crop == "none":
        return centre_square(height, width, "given")
    return Crop(*map(int, job.crop.split(",")), "given")


def _notes(crop: Crop, times: Sequence[float], settings: Settings) -> list[str]:
    notes = []
    if crop.found == "centre":
        notes.append("no field of view found, cropped to the middle square")
    if crop.side < settings.frame_size:
        notes.append(f"enlarged: the crop has {crop.side} pixels, a frame {settings.frame_size}")
    repeated = int((np.diff(times) == 0).sum())
    if repeated:
        notes.append(f"slower than {settings.fps:g} fps: {repeated} of {len(times)} frames are repeated")
    return notes
