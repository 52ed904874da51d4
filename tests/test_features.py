"""Features: equal for all kinds of folders and after a kill; bad clips and damaged caches are reported."""

import shutil
import time
import tracemalloc
from dataclasses import replace
from threading import get_ident

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import make_grids
from tiny_extractor import TinyExtractor

from autoregressive.sample.sample_c2i import run as sample
from common.errors import InputError
from dataset.grid import grid_to_frames
from dataset.video import write_frames
from evaluations.clips import ClipSet
from evaluations.features import Extraction, require_comparable


def extraction(cache, **settings):
    options = {"extractor": TinyExtractor(), "device": torch.device("cpu"), "batch_size": 4, **settings}
    return Extraction(cache=cache, **options)


def as_kind(grids, folder, kind):
    """The clips of a prepared data set as frame folders or npz files."""
    clips = ClipSet.read(grids, "--data-path")
    for entry in clips.entries:
        frames_THWC = clips.frames(entry).transpose(0, 2, 3, 1)
        target = folder / entry.name.removesuffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "npz":
            np.savez_compressed(target.with_suffix(".npz"), frames_THWC)
        else:
            write_frames(target, frames_THWC)
    return folder


@pytest.mark.parametrize("kind", ["frames", "npz"])
def test_a_clip_has_the_same_frames_in_every_kind_of_folder(grids, tmp_path, kind):
    clips, other = ClipSet.read(grids, "x"), ClipSet.read(as_kind(grids, tmp_path, kind), "x")
    assert [entry.class_name for entry in other.entries] == [entry.class_name for entry in clips.entries]
    assert [entry.recording for entry in other.entries] == [entry.recording for entry in clips.entries]
    for a, b in zip(clips.entries, other.entries, strict=True):
        np.testing.assert_array_equal(clips.frames(a), other.frames(b))


def test_what_a_kill_leaves_beside_the_features_goes_with_the_rerun(grids, tmp_path, runtime):
    clips, work = ClipSet.read(grids, "x"), extraction(tmp_path)
    work.run(clips, runtime, "real")
    (folder,) = tmp_path.iterdir()
    whole = sorted(path.name for path in folder.iterdir())
    (folder / "features.json").unlink()  # killed while the array was written
    (folder / ".features.4711.tmp.npy").write_bytes(b"half")
    work.run(clips, runtime, "real")
    assert sorted(path.name for path in folder.iterdir()) == whole


def test_folder_of_the_sampler_is_read_as_grids_frames_and_videos(sample_config, runtime):
    sample(sample_config, runtime)
    folder = sample_config.save_folder
    folders = folder, folder / "frames", folder / "videos"
    grids, frames, videos = (ClipSet.read(path, "--sample-path") for path in folders)
    assert grids.origin["checkpoint"] and grids.class_names == frames.class_names == videos.class_names
    for a, b, c in zip(grids.entries, frames.entries, videos.entries, strict=True):
        np.testing.assert_array_equal(grids.frames(a), frames.frames(b))
        assert videos.frames(c).shape == grids.frames(a).shape
    assert videos.lossy and not grids.lossy and not frames.lossy


def test_frames_are_those_of_the_picture(grids):
    clips = ClipSet.read(grids, "--data-path")
    picture = np.array(Image.open(grids / clips.entries[3].name)).transpose(2, 0, 1)
    np.testing.assert_array_equal(clips.frames(clips.entries[3]), grid_to_frames(picture, 2, 2))


def test_features_are_those_of_each_clip_alone(grids, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr("evaluations.features.BLOCK", 5)
    clips = ClipSet.read(grids, "x")
    made = extraction(tmp_path).run(clips, runtime, "test")
    tiny = TinyExtractor()
    frames = [torch.from_numpy(clips.frames(entry))[None] for entry in clips.entries]
    alone = [tiny.features(frames_1T3HW)[0] for frames_1T3HW in frames]
    assert made.entries == clips.entries and made.stored_NRD.shape == (12, 1, 6)
    np.testing.assert_allclose(made.vectors(), torch.cat(alone).numpy(), rtol=1e-5)
    assert made.facts["frames"] == 4 and made.facts["height"] == 32


def test_vectors_of_some_clips_are_theirs_whole_or_in_chunks(grids, tmp_path, runtime):
    clips = ClipSet.read(grids, "x")
    made = extraction(tmp_path, extractor=TinyExtractor(per_frame=True)).run(clips, runtime, "test")
    some = made.take([7, 2, 9]).take([2, 0])
    assert some.entries == (clips.entries[9], clips.entries[7])
    np.testing.assert_array_equal(some.vectors(), np.concatenate(made.stored_NRD[[9, 7]]))
    chunks = np.concatenate(list(made.chunks(slice(1, 3), clips=5)))
    np.testing.assert_array_equal(chunks, made.vectors()[:, 1:3])
    np.testing.assert_array_equal(made.vectors(most=5), made.vectors()[[0, 12, 24, 35, 47]])


def test_rerun_reads_the_cache_and_changed_clips_do_not(tmp_path, runtime):
    grids = make_grids(tmp_path / "grids")
    first, second, changed = TinyExtractor(), TinyExtractor(), TinyExtractor()
    clips = ClipSet.read(grids, "x")
    made = extraction(tmp_path / "cache", extractor=first).run(clips, runtime, "test")
    cached = extraction(tmp_path / "cache", extractor=second).run(clips, runtime, "test")
    assert first.batches and not second.batches
    np.testing.assert_array_equal(made.vectors(), cached.vectors())
    picture = Image.open(grids / clips.entries[0].name)
    Image.fromarray(255 - np.array(picture)).save(grids / clips.entries[0].name)
    fresh = extraction(tmp_path / "cache", extractor=changed).run(clips, runtime, "test")
    assert changed.batches and np.abs(fresh.vectors() - made.vectors())[0].max() > 0.1
    np.testing.assert_array_equal(fresh.vectors()[1:], made.vectors()[1:])


def test_interrupted_run_computes_only_what_is_missing(grids, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr("evaluations.features.BLOCK", 4)
    clips = ClipSet.read(grids, "x")
    whole = extraction(tmp_path / "whole").run(clips, runtime, "test")

    class Dies(TinyExtractor):
        def features(self, pixels):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().features(pixels)

    with pytest.raises(KeyboardInterrupt):
        extraction(tmp_path / "cut", extractor=Dies()).run(clips, runtime, "test")
    rest = TinyExtractor()
    made = extraction(tmp_path / "cut", extractor=rest).run(clips, runtime, "test")
    assert rest.batches == [4]  # one block of three
    np.testing.assert_array_equal(made.vectors(), whole.vectors())


@pytest.fixture
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def test_batches_computed_side_by_side_stay_in_order(grids, tmp_path, runtime, monkeypatch, three_threads):
    monkeypatch.setattr("evaluations.features.BLOCK", 3)
    folder = shutil.copytree(grids, tmp_path / "grids")
    clips = ClipSet.read(folder, "x")
    for entry in clips.entries[3:6]:  # a block of which nothing is left
        (folder / entry.name).write_bytes(b"no picture")
    there = [entry for i, entry in enumerate(clips.entries) if not 3 <= i < 6]
    alone = [TinyExtractor().features(torch.from_numpy(clips.frames(entry))[None]) for entry in there]
    at_once, most = set(), []

    class Slow(TinyExtractor):
        def features(self, pixels):
            at_once.add(get_ident())
            most.append(len(at_once))
            time.sleep(0.02 * (len(self.batches) % 3))
            made = super().features(pixels)
            at_once.remove(get_ident())
            return made

    slow = extraction(tmp_path / "cache", extractor=Slow(), batch_size=1, skip_bad=True)
    made = slow.run(clips, runtime, "test")
    assert [entry.name for entry in made.entries] == [entry.name for entry in there]
    assert [name for name, _ in made.bad] == [entry.name for entry in clips.entries[3:6]]
    np.testing.assert_allclose(made.vectors(), torch.cat(alone).flatten(0, 1).numpy(), rtol=1e-5)
    assert 1 < max(most) <= 3
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", ["features.npy", "features.json", "blocks/0000000.npz"])
def test_damaged_cache_is_reported_and_computed_again(grids, tmp_path, runtime, capsys, name):
    clips = ClipSet.read(grids, "x")
    whole = extraction(tmp_path).run(clips, runtime, "test").vectors()
    path = next(tmp_path.iterdir()) / name
    if name.startswith("blocks"):
        (path.parent.parent / "features.json").unlink()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"PK rubbish")
    again = extraction(tmp_path).run(clips, runtime, "test")
    assert "damaged, computed again" in capsys.readouterr().out
    np.testing.assert_array_equal(again.vectors(), whole)


def spoiled(tmp_path):
    grids = make_grids(tmp_path / "grids")
    (grids / "red wall" / "rec1_000000.png").write_bytes(b"no picture")
    return ClipSet.read(grids, "x")


def test_bad_clip_is_named(tmp_path, runtime):
    with pytest.raises(ValueError, match=r"red wall/rec1_000000.png: not a readable picture.*--skip-bad"):
        extraction(tmp_path / "cache").run(spoiled(tmp_path), runtime, "test")


def test_bad_clips_are_left_out_and_listed_when_asked(tmp_path, runtime):
    clips = spoiled(tmp_path)
    for _ in range(2):  # computed, then cached
        made = extraction(tmp_path / "cache", skip_bad=True).run(clips, runtime, "test")
        assert [name for name, _ in made.bad] == ["red wall/rec1_000000.png"]
        assert len(made) == len(made.vectors()) == 11
    with pytest.raises(ValueError, match="rec1_000000"):
        extraction(tmp_path / "cache").run(clips, runtime, "test")


def test_damaged_npz_files_are_input_errors_whatever_is_damaged(tmp_path):
    random = np.random.RandomState(0)
    (tmp_path / "red").mkdir()
    path = tmp_path / "red" / "clip.npz"
    np.savez_compressed(path, random.randint(0, 40, (4, 8, 8, 3)).astype(np.uint8))
    whole, clips = path.read_bytes(), ClipSet.read(tmp_path, "x")
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in random.randint(0, len(data), 2):
            data[place] = random.randint(256)
        path.write_bytes(data)
        try:
            clips.frames(clips.entries[0])
        except InputError as error:
            refused += "clip.npz: " in str(error)
    assert refused > 250


def test_clip_of_another_length_is_named(tmp_path, grids, runtime):
    folder = as_kind(grids, tmp_path / "clips", "frames")
    next((folder / "red wall" / "rec2_000000").iterdir()).unlink()
    with pytest.raises(ValueError, match="wall/rec2_000000: 3 frames of 32 x 32 px, the first clip has 4"):
        extraction(tmp_path / "cache").run(ClipSet.read(folder, "x"), runtime, "test")


def test_clips_too_short_for_the_network_are_refused(grids, tmp_path, runtime):
    extractor = TinyExtractor()
    extractor.min_frames = 9
    with pytest.raises(ValueError, match="clips of 4 frames, but tiny needs at least 9"):
        extraction(tmp_path, extractor=extractor).run(ClipSet.read(grids, "x"), runtime, "test")


@pytest.mark.parametrize("fact", ["weights", "window", "height", "frames"])
def test_features_of_another_kind_are_refused(grids, tmp_path, runtime, fact):
    made = extraction(tmp_path).run(ClipSet.read(grids, "x"), runtime, "test")
    require_comparable(made, made)
    with pytest.raises(ValueError, match=f"{fact} is .* for one side and other for the other"):
        require_comparable(made, replace(made, facts={**made.facts, fact: "other"}))


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path, runtime):
    grids = make_grids(tmp_path / "grids", clips_per_class=16)
    names = [entry.name for entry in ClipSet.read(grids, "x").entries]
    peaks = []
    for copies in (2, 10):
        folder = tmp_path / f"clips{copies}"
        for copy in range(copies):
            for name in names:
                target = folder / name.replace(".png", f"_{copy}.png")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(grids / name, target)
        clips = ClipSet.read(grids, "x")
        entries = tuple(replace(entry, name=entry.name.replace(".png", f"_{copy}.png"))
                        for entry in clips.entries for copy in range(copies))
        clips = replace(clips, folder=folder, entries=entries)
        tracemalloc.start()
        extraction(tmp_path / "cache").run(clips, runtime, "test")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(clips.entries) * 3 * 64 * 64 > 3 * peaks[1]  # the pixels would not have fitted
    assert peaks[1] < 1.5 * peaks[0]
