"""Opening video files by their content: names are never addresses, and no file opens another one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer

from common.errors import InputError

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".vob", ".mts",
    ".m2ts", ".m2t", ".m2v", ".m1v", ".mpv", ".mpe", ".tod", ".mod", ".dat", ".3gp", ".3g2", ".asf", ".flv",
    ".f4v", ".ogv", ".ogm", ".dv", ".dif", ".mxf", ".divx", ".xvid", ".h264", ".264", ".avc", ".h265", ".265",
    ".hevc", ".mjpg", ".mjpeg", ".mjp", ".qt", ".rm", ".rmvb", ".nut", ".ivf", ".y4m", ".dcm", ".dicom")
OFTEN_NO_VIDEO = (".dat", ".mod", ".dcm", ".dicom")  # the content decides
STILL_FORMATS = ("image2", "ico", "tty")
COVER = av.stream.Disposition.attached_pic  # a picture of the whole recording beside its moving pictures
ALONE = {"protocol_whitelist": "none"}  # playlists and the like name other files and addresses


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A video file's container and its first video stream that is not a cover picture.

    Raises: `InputError` naming the file if there is none.
    """
    with open(os.open(path, os.O_RDONLY), "rb", buffering=0) as file:  # the library sees no name
        if os.path.getsize(path) == 0:
            raise InputError(f"{path}: empty file")
        if is_dicom(path):
            raise InputError(f"{path}: a DICOM file, which is not read; convert it to a video or to numbered "
                             "pictures first, as DCMTK's dcm2img does")
        try:
            container = av.open(file, metadata_errors="replace", container_options=ALONE)
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"{path}: not a readable video ({error.strerror})") from None
        with container:
            streams = [stream for stream in container.streams.video if not stream.disposition & COVER]
            if not streams:
                raise InputError(f"{path}: has no video stream")
            if streams[0].codec_context is None:
                raise InputError(f"{path}: its video stream is of an unknown codec")
            yield container, streams[0]


def is_dicom(path: Path) -> bool:
    """True for the medical image format DICOM, by the mark in it (PS3.10)."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def can_open(path: Path) -> bool:
    """True if a file of any name holds a readable video; reads its beginning only."""
    try:
        with open_video(path) as (container, stream):
            still = container.format.name in STILL_FORMATS or container.format.name.endswith("_pipe")
            return not still and stream.frames != 1 and stream.codec_context.width > 0
    except (InputError, OSError):
        return False


def may_be_video(path: Path) -> bool:
    """True for a file with the suffix of a video; where that is ambiguous, the content decides."""
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES and (suffix not in OFTEN_NO_VIDEO or can_open(path))
