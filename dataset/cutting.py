"""One recording -> grid pictures, in two steps: plan which clips to cut, then write them.

A recording is read three times (field of view, screening, writing), so that memory does not grow with its
length.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.names import check_paths, inside
from common.spread import evenly
from dataset.field_of_view import Crop, centre_square, find_field_of_view
from dataset.manifest import WORK_FOLDER
from dataset.mask_files import MaskFiles
from dataset.masks import Masks, tile
from dataset.recordings import Source
from dataset.screening import Thresholds, frame_stats, luminance, reason_to_reject
from dataset.timing import LONGEST_STEP
from dataset.video import DamagedRecording, Frame, WrongMasks, read_frames

PLAN_VERSION = 2  # raise it when the same settings lead to other clips


@dataclass(frozen=True)
class Settings:
    """All that decides which clips come out of a recording, and what they look like."""

    rows: int
    cols: int
    frame_size: int
    fps: float | None
    frame_stride: int | None  # exactly one of `fps` and `frame_stride` is None
    clip_stride: int
    clips_per_recording: int
    thresholds: Thresholds
    masks: Masks | None = None

    @property
    def clip_length(self) -> int:
        return self.rows * self.cols // (2 if self.masks else 1)


@dataclass(frozen=True)
class Recording:
    """A recording to be prepared."""

    source: Source
    video_path: Path  # folder of class folders
    data_path: Path
    settings: Settings
    crop: str  # "auto", "none" or "x,y,side"
    masks: MaskFiles | None = None

    @property
    def path(self) -> Path:
        return self.video_path / self.source.path

    @property
    def plan_path(self) -> Path:
        """Where the plan is kept: the name changes with the settings and with the file's size or date."""
        settings = asdict(self.settings)
        masks = settings.pop("masks")  # plans without masks are as before there were any
        facts = [PLAN_VERSION, self.source, settings, self.crop, _state(self.path)]
        if self.masks:
            facts += [masks, self.masks.name, self.masks.rule, _state(self.masks.path)]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return self.data_path / WORK_FOLDER / f"{digest[:24]}.json"

    def clip_name(self, start: int) -> str:
        return f"{self.source.class_name}/{self.source.stem}_{start:06d}.png"


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of a folder and its files."""
    files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@dataclass
class Plan:
    """What is known of a recording: the clips to cut from it, or why there are none."""

    starts: list[int] = field(default_factory=list)  # first sampled frame of every clip
    times: list[float] = field(default_factory=list)  # the same in seconds
    names: list[str] = field(default_factory=list)  # the clips' grid pictures
    frames: int = 0  # sampled frames
    fps: float = 0.0  # sampled frames per second, 0 if that is not known
    crop: Sequence[int | str] | None = None  # a `Crop`
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> number of clips
    lost: int = 0  # frames that could not be read
    surplus: int = 0  # good clips beyond the maximum
    problem: str | None = None  # why no clip came out
    notes: list[str] = field(default_factory=list)  # what is unusual about a recording that is used


def plan(job: Recording) -> Plan:
    """The plan of a recording: the one in the data folder, else a new one, which is written there.

    Raises: `InputError` if the one in the data folder names pictures outside of it.
    """
    cv2.setNumThreads(1)
    path = job.plan_path
    if not path.exists():
        made = Plan()
        try:
            _choose_clips(job, made)
        except InputError as error:
            made.problem = _without_folders(error, job)
        write_json(path, asdict(made))
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
    labels: deque[np.ndarray] = deque(maxlen=settings.clip_length)
    for index, frame in enumerate(_frames(job, [])):
        frames.append(crop.apply(frame.pixels, settings.frame_size))
        if settings.masks:
            labels.append(crop.apply(frame.labels, settings.frame_size, labels=True))
        start = index + 1 - settings.clip_length
        if start in missing:
            frames_TCHW = np.stack(frames).transpose(0, 3, 1, 2)
            labels_THW = np.stack(labels) if settings.masks else None
            grid_HWC = tile(frames_TCHW, labels_THW, settings.rows, settings.cols, settings.masks
                            ).transpose(1, 2, 0)
            with atomic_path(inside(job.data_path, job.clip_name(start))) as temporary:
                Image.fromarray(np.ascontiguousarray(grid_HWC)).save(temporary, compress_level=3)
            missing.remove(start)
        if not missing:
            return
    raise InputError(f"{job.path}: changed while it was read")


def _frames(job: Recording, damage: list[InputError]) -> Iterator[Frame]:
    """The sampled frames; an error after good frames is not raised but added to `damage`."""
    good = False
    try:
        masks = job.masks.read(job.path) if job.masks else None
        for frame in read_frames(job.path, job.settings.fps, job.settings.frame_stride or 1, masks):
            good = True
            yield frame
    except InputError as error:
        if not good or isinstance(error, WrongMasks):
            raise
        damage.append(error)


def _without_folders(error: InputError, job: Recording) -> str:
    """The error's text without the paths of this machine and without the recording's name."""
    text = str(error).replace(f"{job.masks.folder}/", "") if job.masks else str(error)
    return text.removeprefix(f"{job.path}: ").replace(f"{job.video_path}/", "")


def _choose_clips(job: Recording, made: Plan) -> None:
    """Fill in the plan: crop, screening, and the good clips, evenly spread if they exceed the maximum.

    Raises: `InputError` saying why there are none, after filling in what is known.
    """
    settings, length, damage = job.settings, job.settings.clip_length, []
    crop = _find_crop(job)
    times, stats, segments, previous_HW = [], [], [], None
    for frame in _frames(job, damage):
        luma_HW = luminance(crop.apply(frame.pixels, settings.frame_size))
        stats.append(frame_stats(luma_HW, previous_HW))
        times.append(frame.time)
        segments.append(frame.segment)
        previous_HW = luma_HW
    borders = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]
    pieces = list(pairwise(borders))  # (first frame, one past the last) of every segment
    problems = [_without_folders(error, job) for error in damage]
    made.crop, made.frames = crop, len(times)
    made.lost = sum(error.lost for error in damage if isinstance(error, DamagedRecording))
    made.fps = settings.fps or _mean_rate(times, pieces)
    made.notes = problems + _notes(crop, times, pieces, settings)
    longest = max(end - first for first, end in pieces)
    if longest < length:
        where = " in a row" if len(pieces) > 1 else ""
        short = f"only {longest} frames{where} at this rate, a clip has {length}"
        raise InputError("; ".join([short, *problems]))
    reasons = {start: reason_to_reject(np.array(stats[start : start + length]), settings.thresholds)
               for first, end in pieces for start in range(first, end - length + 1, settings.clip_stride)}
    good = [start for start, reason in reasons.items() if reason is None]
    made.rejected = dict(sorted(Counter(filter(None, reasons.values())).items()))
    if not good:
        counts = ", ".join(f"{count} {reason}" for reason, count in made.rejected.items())
        raise InputError(f"every clip rejected ({counts})")
    made.starts = [good[i] for i in evenly(len(good), settings.clips_per_recording)]
    made.surplus = len(good) - len(made.starts)
    made.times = [round(times[start], 6) for start in made.starts]
    made.names = [job.clip_name(start) for start in made.starts]


def _mean_rate(times: Sequence[float], pieces: Sequence[tuple[int, int]]) -> float:
    """Frames per second, with nothing missing in between; 0 if that is not known."""
    seconds = sum(times[end - 1] - times[first] for first, end in pieces)
    return round((len(times) - len(pieces)) / seconds, 3) if seconds else 0.0


def _find_crop(job: Recording) -> Crop:
    if job.crop == "auto":
        return find_field_of_view(frame.pixels for frame in _frames(replace(job, masks=None), []))
    height, width = next(_frames(replace(job, masks=None), [])).pixels.shape[:2]
    if job.crop == "none":
        return centre_square(height, width, "given")
    return Crop(*map(int, job.crop.split(",")), "given")


def _notes(
    crop: Crop, times: Sequence[float], pieces: Sequence[tuple[int, int]], settings: Settings
) -> list[str]:
    notes = []
    breaks = [times[first] - times[first - 1] for first, _ in pieces[1:]]
    gaps = [seconds for seconds in breaks if seconds > LONGEST_STEP]
    if gaps:
        notes.append(f"gaps in its time stamps: {len(gaps)}, up to {max(gaps):.0f} s; no clip spans them")
    if crop.found == "centre":
        notes.append("no field of view found, cropped to the middle square")
    if crop.side < settings.frame_size:
        notes.append(f"enlarged: the crop has {crop.side} pixels, a frame {settings.frame_size}")
    repeated = int((np.diff(times) == 0).sum())
    if repeated:
        notes.append(f"slower than {settings.fps:g} fps: {repeated} of {len(times)} frames are repeated")
    return notes
