import pytest
from preparing import prepare, report
from synthetic import moving_texture
from video_files import encode

from dataset.timing import sampled, timed
from dataset.video import read_frames

HOURS = 3 * 3600


def read_clock(stamps, interval=0.04, missing=()):
    """(segment, time) of every stamp."""
    source = ((stamp, index in missing, None) for index, stamp in enumerate(stamps))
    return [(segment, round(time, 6)) for segment, time, _ in timed(source, interval)]


def test_even_stamps_are_times_of_one_segment():
    assert read_clock([5.0, 5.04, 5.08]) == [(0, 0.0), (0, 0.04), (0, 0.08)]
    assert read_clock([None, None, None]) == [(0, 0.0), (0, 0.04), (0, 0.08)]


def test_gap_of_hours_begins_a_segment():
    stamps = [0.0, 0.04, 0.08, HOURS, HOURS + 0.04]
    assert read_clock(stamps) == [(0, 0.0), (0, 0.04), (0, 0.08), (1, HOURS), (1, HOURS + 0.04)]
    assert [segment for segment, _ in read_clock([0.0, HOURS, HOURS + 0.04])] == [0, 1, 1]


def test_held_picture_of_a_variable_rate_is_no_gap():
    assert {segment for segment, _ in read_clock([0.0, 0.04, 0.08, 4.0, 4.04, 8.9])} == {0}


def test_slow_recorder_has_no_gaps():
    assert {segment for segment, _ in read_clock([20.0 * k for k in range(9)], interval=20.0)} == {0}
    assert {segment for segment, _ in read_clock([20.0 * k for k in range(9)], interval=4.0)} == {0}


def test_mean_rate_of_a_file_with_a_gap_does_not_hide_it():
    stamps = [0.04 * k for k in range(30)] + [HOURS + 0.04 * k for k in range(30)]
    assert {segment for segment, _ in read_clock(stamps, interval=HOURS / 60)} == {0, 1}


def test_clock_that_stands_or_goes_back_goes_on():
    assert read_clock([1.0, 1.0, 0.9, 1.2]) == [(0, 0.0), (0, 0.04), (0, 0.08), (0, 0.2)]


def test_clock_set_back_by_far_begins_a_segment_and_runs_on():
    read = read_clock([100.0, 100.04, 0.0, 0.5, 0.6])
    assert read == [(0, 0.0), (0, 0.04), (1, 0.08), (1, 0.58), (1, 0.68)]


def test_missing_frames_begin_a_segment():
    assert [segment for segment, _ in read_clock([0.0, 0.04, 0.2, 0.24], missing={2})] == [0, 0, 1, 1]


def test_sampling_begins_anew_in_every_segment():
    source = [(0, 0.0, "a"), (0, 0.1, "b"), (0, 0.2, "c"), (1, 9.05, "d"), (1, 9.15, "e"), (1, 9.25, "f")]
    assert [item for _, _, item in sampled(iter(source), 10, 1)] == list("abcdef")
    assert [item for _, _, item in sampled(iter(source), 5, 1)] == list("acdf")
    assert [item for _, _, item in sampled(iter(source), None, 2)] == list("acdf")


def test_stream_without_time_stamps_has_the_rate_that_it_states(tmp_path):
    encode(tmp_path / "x.h264", "libx264", "yuv420p", moving_texture(0, 8, 32, 48))
    times = [frame.time for frame in read_frames(tmp_path / "x.h264")]
    assert times == pytest.approx([k / 25 for k in range(8)], abs=1e-4)  # it states none: 25


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_recording_with_a_gap_gives_no_frozen_clips_and_none_across(tmp_path, name):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    stamps = [100 * k + (k >= 10) * 1000 * HOURS for k in range(20)]
    path = tmp_path / "videos" / "a" / name
    encode(path, "libx264", "yuv420p", moving_texture(0, 20, 32, 48), stamps=stamps)
    frames = list(read_frames(path, fps=10))
    assert [frame.segment for frame in frames] == [0] * 10 + [1] * 10
    manifest = prepare(tmp_path / "videos", tmp_path / "data", fps=10)
    starts = sorted(clip.start for clip in manifest.clips)
    assert starts == pytest.approx([0, 0.4, HOURS + 1, HOURS + 1.4], abs=0.01)
    (note,) = report(tmp_path / "data")["notes"]
    assert note["reason"] == f"gaps in its time stamps: 1, up to {HOURS} s; no clip spans them"
    strided = prepare(tmp_path / "videos", tmp_path / "strided")
    assert strided.fps == pytest.approx(10, abs=0.01)
    assert len(strided.clips) == 4
