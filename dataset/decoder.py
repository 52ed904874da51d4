"""The undamaged frames of a video, in display order.

At a damaged packet some decoders fail, some mark the frame as corrupt, some leave it out. None marks the
frames predicted from it. Here a frame is good if no packet from its key frame to its own is damaged. Packets
are numbered in file order: a frame comes after those it is predicted from, but not always in display order.
"""

import re
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer

from dataset.display import Matrix, display_matrix

REORDERED = 16  # packets by which a codec may delay a frame
PACKET_HISTORY = 4 * REORDERED  # number of latest packets remembered
# Frames are matched with packets by their time stamps, which are numbers from this one on in the decoder.
FIRST = 1 << 40
# Formats that can begin anywhere: what fails before the first key frame has lost its references, no more.
STREAMS = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v")
# A row of zero bytes that these codecs never write: data that was wiped out, of which their decoders report
# nothing. H.264 and H.265 escape three zeros in a row, save between two units and at the end.
INSIDE_UNITS, ANYWHERE = re.compile(rb"\0{16,}[^\0\1]"), re.compile(rb"\0{16,}")
WIPED = {"h264": INSIDE_UNITS, "hevc": INSIDE_UNITS, "vp8": ANYWHERE, "ffv1": ANYWHERE}

Stamped = tuple[float | None, bool, av.VideoFrame]


@dataclass(eq=False)
class _Packet:
    number: int
    pts: int | None
    key: int = -1  # number of the key frame that it was predicted from; -1 if that is not known

    def before(self, other: "_Packet") -> bool:
        """True if it is shown before another one, as far as is known."""
        known = self.pts is not None and other.pts is not None
        return self.pts < other.pts if known else self.number < other.number


class GoodFrames:
    """Iterates over the good frames of a stream, and counts them and the lost ones up to the current frame.

    Items are (time stamp in seconds or None, True if frames before it are lost, frame).
    """

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        self.count, self.lost = 0, 0
        self.intact = 0  # good frames before the first damage
        self.matrix: Matrix | None = None  # of frames that have no display matrix of their own
        self._container, self._stream = container, stream
        self._codec = stream.codec_context.name
        self._keys: deque[_Packet] = deque(maxlen=PACKET_HISTORY)
        self._damaged: list[tuple[int, int]] = []  # sorted numbers, and those of their key frames
        self._absent: set[_Packet] = set()  # lost frames that are not counted yet
        self._awaited: list[_Packet] = []  # sent to the decoder, which has neither given a frame nor failed
        self._sent: deque[_Packet] = deque(maxlen=PACKET_HISTORY)
        self._cut_off = False

    def __iter__(self) -> Iterator[Stamped]:
        waiting: deque[tuple[_Packet, av.VideoFrame]] = deque()
        started = False
        for own, frame in self._decoded():
            self._settle(own)
            if frame.is_corrupt and self._is_good(own):
                if not started and own not in self._keys:
                    continue  # the beginning was cut off, and its references with it
                self._damage(own)
            started = True
            waiting.append((own, frame))
            while waiting and all(packet.number > waiting[0][0].number for packet in self._awaited):
                yield from self._judged(*waiting.popleft())
        for own, frame in waiting:
            yield from self._judged(own, frame)
        never = [packet for packet in self._awaited if not self._is_good(packet)]
        self.lost += len(self._absent) + len(never) + self._missing_at_the_end()

    def _decoded(self) -> Iterator[tuple[_Packet, av.VideoFrame]]:
        decoder = _decoder(self._stream)
        for number, packet in enumerate(self._packets()):
            sent = _Packet(number, packet.pts)
            if packet.is_keyframe:
                self._keys.append(sent)
            sent.key = next((key.number for key in reversed(self._keys) if not sent.before(key)), -1)
            if packet.is_corrupt or self._is_wiped(bytes(packet)):
                if not self._keys:
                    continue  # nothing that can be used depends on it
                self._damage(sent)
            if number == 0 and decoder is not self._stream.codec_context:
                self.matrix = self._matrix_in_container(packet)
            if not packet.is_discard:
                self._awaited.append(sent)
            self._sent.append(sent)
            packet.pts = packet.dts = FIRST + number
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError:
                self._awaited = [packet for packet in self._awaited if packet is not sent]
                if self._keys or self._container.format.name not in STREAMS:
                    self._damage(sent)
                    self._absent.add(sent)  # some decoders give the frame all the same
                continue
            yield from self._matched(frames)
        try:
            yield from self._matched(decoder.decode(None))
        except av.error.FFmpegError:
            self._cut_off = True

    def _is_wiped(self, data: bytes) -> bool:
        return self._codec in WIPED and bytes(16) in data and WIPED[self._codec].search(data) is not None

    def _matrix_in_container(self, packet: av.Packet) -> Matrix | None:
        """The display matrix, which only the container's own decoder knows."""
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            return None
        return display_matrix(frames[0]) if frames else None

    def _packets(self) -> Iterator[av.Packet]:
        """The stream's packets as far as the file can be read."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except (av.error.FFmpegError, OSError):
            self._cut_off = True

    def _matched(self, frames: list[av.VideoFrame]) -> Iterator[tuple[_Packet, av.VideoFrame]]:
        """Each frame with its packet, whose time stamp it gets."""
        for frame in frames:
            number = frame.pts - FIRST
            own = next((packet for packet in reversed(self._sent) if packet.number == number), self._sent[-1])
            frame.pts = own.pts
            frame.time_base = frame.time_base or self._stream.time_base
            yield own, frame

    def _settle(self, shown: _Packet) -> None:
        """Stop waiting for packets that are due before a frame that is shown.

        They hold frames that are never displayed, or a second field; in H.265 they are damaged.
        """
        late = [packet for packet in self._awaited if packet.number <= shown.number - REORDERED
                or packet.number == shown.number or (packet.before(shown) and packet.pts is not None)]
        for packet in late:
            self._awaited.remove(packet)
            if packet.number == shown.number:
                continue
            if self._codec == "hevc" and packet.key >= 0:
                self._damage(packet)
            if not self._is_good(packet):
                self._absent.add(packet)

    def _damage(self, packet: _Packet) -> None:
        insort(self._damaged, (packet.number, packet.key))

    def _is_good(self, packet: _Packet) -> bool:
        """True if no packet from its key frame to its own is damaged.

        Packets after a key frame that are shown before it do not count: no later frame depends on them.
        """
        first, last = (bisect_left(self._damaged, (n,)) for n in (packet.key, packet.number + 1))
        return all(key < packet.key for _, key in self._damaged[first:last])

    def _judged(self, own: _Packet, frame: av.VideoFrame) -> Iterator[Stamped]:
        """The frame if it is good; counts the lost ones before it."""
        if not self._is_good(own):
            self._absent.add(own)
            return
        left = {packet for packet in self._absent if not packet.before(own)}
        missing = len(self._absent) - len(left)
        self._absent = left
        self.lost += missing
        self.count += 1
        self.intact += self.lost == 0
        yield frame.time, missing > 0, frame

    def _missing_at_the_end(self) -> int:
        """Frames missing from a file that was cut off; one, if its format does not state their number."""
        sent = self._sent[-1].number + 1 if self._sent else 0
        if not self._cut_off and (not self._damaged or self._damaged[-1][0] != sent - 1):
            return 0
        counted = self._stream.frames if self._container.format.name.startswith("mov") else 0
        return max(counted - sent, int(self._cut_off))


def _decoder(stream: av.VideoStream) -> av.CodecContext:
    """The decoder that reports most damage, and transparency in VP8 and VP9."""
    decoder = stream.codec_context
    if decoder.name == "vp9" or (decoder.name == "vp8" and stream.metadata.get("alpha_mode") == "1"):
        decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[decoder.name], "r")
    if decoder.name == "mjpeg":
        decoder.options = {**decoder.options, "err_detect": "explode"}  # else it gives incomplete pictures
    decoder.thread_count = 1  # recordings are read in parallel
    return decoder
