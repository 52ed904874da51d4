import numpy as np
import pytest
from preparing import prepare, report
from synthetic import moving_texture
from video_files import change_packets, encode

from common.errors import InputError
from dataset.report import report_text
from dataset.video import DamagedRecording, read_frames, write_mp4

COUNT, GROUP = 50, 10  # frames, and from one key frame to the next
CODECS = {
    "mpeg4": ("x.avi", {}), "mpeg4 with B": ("x.mp4", {"bf": "2"}), "libx264": ("x.mp4", {}),
    "libx264 in a stream": ("x.ts", {}), "libx264 without B": ("x.mkv", {"bf": "0"}),
    "mpeg2video": ("x.mpg", {}), "mpeg2video with B": ("x.ts", {"bf": "2"}), "mjpeg": ("x.avi", {}),
    "libvpx-vp9": ("x.webm", {"deadline": "realtime", "cpu-used": "8"}),
    "libx265": ("x.mp4", {"x265-params": "log-level=none"}), "flv": ("x.flv", {}),
}
CODECS_WITHOUT_CHECKS = {"libvpx": "x.webm", "ffv1": "x.mkv"}  # their decoders make pictures of anything


def noisy_frames() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 6, (COUNT, 96, 96, 3))
    return (moving_texture(0, COUNT, 96, 96) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=CODECS)
def video(request, tmp_path_factory):
    """A codec, a whole video, and its frames."""
    name, options = CODECS[request.param]
    codec = request.param.split()[0]
    path = tmp_path_factory.mktemp("video") / name
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encode(path, codec, pixel_format, noisy_frames(), g=str(GROUP), **options)
    whole = list(read_frames(path))
    assert len(whole) == COUNT
    assert {frame.segment for frame in whole} == {0}
    return codec, path, whole


def scrambled(data: bytes) -> bytes:
    """The middle third replaced."""
    third = len(data) // 3
    return data[:third] + np.random.default_rng(1).bytes(third) + data[2 * third :]


def zeroed(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_if(chosen: bool, data: bytes) -> bytes:
    return cut(data) if chosen else data


def read_damaged(path):
    """The good frames, and the error at the end."""
    good = []
    with pytest.raises(DamagedRecording, match="damaged after") as caught:
        good.extend(read_frames(path))
    return good, caught.value


def check_against(whole, good):
    """Every frame is as in the whole video, and no segment has a hole; returns the numbers of the frames."""
    numbers = {round(frame.time, 2): number for number, frame in enumerate(whole)}
    found = [numbers[round(frame.time, 2)] for frame in good]
    for number, frame in zip(found, good, strict=True):
        assert np.array_equal(frame.pixels, whole[number].pixels)
    for i in range(1, len(good)):
        assert (found[i] == found[i - 1] + 1) == (good[i].segment == good[i - 1].segment)
    return found


@pytest.mark.parametrize("harm", [scrambled, zeroed, cut])
@pytest.mark.parametrize("place", [2 * GROUP, 2 * GROUP + 1])
def test_one_bad_packet_costs_its_group_at_most(tmp_path, video, harm, place):
    codec, path, whole = video
    if harm is scrambled and codec in ("libx264", "libx265") and place % GROUP:
        return  # arithmetic coding makes pictures of anything: whether it is noticed depends on the bytes
    change_packets(path, tmp_path / path.name, lambda number, data: harm(data) if number == place else data)
    good, error = read_damaged(tmp_path / path.name)
    found = check_against(whole, good)
    assert len(found) + error.lost == COUNT
    assert 1 <= error.lost <= GROUP + 4  # frames shown before a key frame may need it
    assert found[0] == 0
    assert found[-1] == COUNT - 1


@pytest.mark.parametrize("codec", CODECS_WITHOUT_CHECKS)
@pytest.mark.parametrize("place", [2 * GROUP, 2 * GROUP + 1])
def test_wiped_packet_is_noticed_in_codecs_without_checks(tmp_path, codec, place):
    path = tmp_path / CODECS_WITHOUT_CHECKS[codec]
    encode(path, codec, "yuv420p", noisy_frames(), g=str(GROUP))
    whole = list(read_frames(path))
    assert len(whole) == COUNT
    change_packets(path, tmp_path / f"bad_{path.name}",
                   lambda number, data: zeroed(data) if number == place else data)
    good, error = read_damaged(tmp_path / f"bad_{path.name}")
    assert check_against(whole, good) == [*range(place), *range(3 * GROUP, COUNT)]
    assert error.lost == 3 * GROUP - place


@pytest.mark.parametrize("codec", CODECS_WITHOUT_CHECKS)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_pictures_of_one_colour_are_not_wiped(tmp_path, codec, grey):
    path = tmp_path / CODECS_WITHOUT_CHECKS[codec]
    encode(path, codec, "yuv420p", np.full((12, 96, 96, 3), grey, np.uint8), g="4")
    assert len(list(read_frames(path))) == 12


def test_damaged_first_packet_costs_its_group(tmp_path, video):
    _, path, whole = video
    damaged = tmp_path / path.name
    change_packets(path, damaged, lambda number, data: data if number else data[: -len(data) // 4])
    good, error = read_damaged(damaged)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(good, whole[-len(good) :], strict=True))
    assert len(good) + error.lost == COUNT
    assert "damaged after 0 frames" in str(error)


def test_beginning_that_was_cut_off_is_no_damage(tmp_path):
    frames = moving_texture(0, 30, 96, 96)
    encode(tmp_path / "all.ts", "libx264", "yuv420p", frames, g="10")
    change_packets(tmp_path / "all.ts", tmp_path / "x.ts", lambda number, data: data if number > 3 else None)
    read = list(read_frames(tmp_path / "x.ts"))
    assert {frame.segment for frame in read} == {0}
    assert len(read) == 20


@pytest.fixture
def recording(tmp_path):
    """A data folder's source with a whole recording and one with a bad packet, 40 frames each."""
    folder = tmp_path / "videos" / "a"
    folder.mkdir(parents=True)
    encode(folder / "whole.avi", "mpeg4", "yuv420p", moving_texture(0, 40, 64, 64), g="10")
    change_packets(folder / "whole.avi", folder / "bad.avi", lambda number, data: cut_if(number == 13, data))
    return tmp_path / "videos"


def test_no_clip_spans_damage_and_the_report_counts_it(recording, tmp_path):
    manifest = prepare(recording, tmp_path / "data")
    starts = {name: sorted(round(10 * clip.start) for clip in manifest.clips if clip.recording == f"a/{name}")
              for name in ("whole", "bad")}
    assert starts == {"whole": list(range(0, 40, 4)), "bad": [0, 4, 8, 20, 24, 28, 32, 36]}
    made = report(tmp_path / "data")
    assert made["notes"] == [{"file": "a/bad.avi", "reason": "damaged after 13 frames, 7 lost"}]
    assert made["lost_frames"] == made["recordings"]["a/bad.avi"]["lost_frames"] == 7
    assert made["recordings"]["a/whole.avi"]["lost_frames"] == 0
    assert "damaged: 7 frames of 1 recordings" in report_text(made, tmp_path)


def test_clips_of_a_damaged_recording_hold_its_own_frames(recording, tmp_path):
    for fps, most in ((None, 8), (5, 1)):
        data = tmp_path / f"at{fps}"
        manifest = prepare(recording, data, fps=fps)
        times = {clip.start: clip.name for clip in manifest.clips if clip.recording == "a/whole"}
        same = [clip for clip in manifest.clips if clip.recording == "a/bad" and clip.start in times]
        assert len(same) == most
        for clip in same:
            assert (data / clip.name).read_bytes() == (data / times[clip.start]).read_bytes()


def test_recording_of_short_pieces_says_so(recording, tmp_path):
    whole = recording / "a" / "whole.avi"
    bad = recording / "a" / "bad.avi"
    change_packets(whole, bad, lambda number, data: cut_if(number % 10 == 3, data))
    prepare(recording, tmp_path / "data")
    (entry,) = report(tmp_path / "data")["unusable"]
    assert entry["reason"] == ("only 3 frames in a row at this rate, a clip has 4; "
                               "damaged after 3 frames, 28 lost")


def test_file_that_ends_early_keeps_its_frames_and_counts_the_others(tmp_path):
    write_mp4(tmp_path / "whole.mp4", moving_texture(0, 40, 96, 96), 10)
    whole = list(read_frames(tmp_path / "whole.mp4"))
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "x.mp4").write_bytes(data[: data.index(b"mdat") + 3000])
    good, error = read_damaged(tmp_path / "x.mp4")
    assert check_against(whole, good) == list(range(len(good)))
    assert len(good) + error.lost == 40


def test_video_without_a_good_frame_is_refused(tmp_path):
    encode(tmp_path / "whole.avi", "mpeg4", "yuv420p", moving_texture(0, 8, 64, 64), g="10")
    change_packets(tmp_path / "whole.avi", tmp_path / "x.avi", lambda number, data: cut(data))
    with pytest.raises(InputError, match=r"x\.avi: not a readable video \(all of its frames are damaged\)"):
        list(read_frames(tmp_path / "x.avi"))
