"""The fact of masks on its way through all stages, and clips from given frames or masks."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from annotated import annotated_frames, write_annotated, write_masks
from conftest import make_gpt
from PIL import Image

from autoregressive.models.checkpoint import load_gpt
from autoregressive.sample import sampler
from autoregressive.sample.sample_c2i import SampleC2IConfig, run
from autoregressive.sample.starts import given_tokens, read_start, read_start_masks
from autoregressive.train.export import ExportConfig
from autoregressive.train.export import run as export
from benchmarks import gpt_segments
from common.errors import InputError
from common.files import read_json
from dataset.codes import Codes
from dataset.grid import grid_to_frames
from dataset.manifest import Manifest
from dataset.masks import Masks, labels_of
from dataset.prepare import PrepareConfig
from dataset.prepare import run as prepare
from dataset.video import read_frames, write_frames
from evaluations.clips import ClipSet
from tokenizer.extract_codes import ExtractCodesConfig
from tokenizer.extract_codes import run as extract_codes
from tokenizer.loading import load_tokenizer
from tokenizer.reconstruct import ReconstructConfig
from tokenizer.reconstruct import run as reconstruct


def tiled(videos, masks, data, runtime):
    return prepare(PrepareConfig(videos, data, masks=masks, mask_labels=3, rows=2, cols=2, frame_size=32,
                                 workers=1, crop="none"), runtime)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_run, runtime):
    """Annotated grids of 2 x 2 cells, their codes, a GPT, and two clips that it sampled."""
    folder = tmp_path_factory.mktemp("annotated")
    write_annotated(folder, size=32)
    tiled(folder / "videos", folder / "masks", folder / "grids", runtime)
    extract_codes(ExtractCodesConfig(data_path=folder / "grids", code_path=folder / "codes",
                                     vq_ckpt=tokenizer_run, flip=True), runtime)
    codes = Codes.read(folder / "codes")
    model = make_gpt()
    torch.save({"model": model.state_dict(), "config": dataclasses.asdict(model.config),
                "dataset": codes.dataset, "tokenizer": codes.tokenizer}, folder / "gpt.pt")
    run(job(folder), runtime)
    return folder


def job(folder, name="samples", **options):
    return SampleC2IConfig(gpt_ckpt=folder / "gpt.pt", save_folder=folder / name, top_k=0, device="cpu",
                           **options)


@pytest.fixture(scope="module")
def facts(folder):
    return Manifest.read(folder / "grids").facts()


def test_fact_travels_from_prepare_to_codes_samples_and_exports(folder, facts, runtime):
    assert len(facts["masks"]["colours"]) == 3
    assert Codes.read(folder / "codes").dataset == facts
    assert read_json(folder / "samples" / "samples.json")["dataset"] == facts
    assert Manifest.read(folder / "samples" / "grids").masks == Masks.of(facts)
    export(ExportConfig(ckpt=folder / "gpt.pt", output=folder / "gpt.safetensors"), runtime)
    assert load_gpt(folder / "gpt.safetensors")[1] == facts


def test_clips_are_written_as_frames_and_label_numbers(folder, facts):
    samples = folder / "samples"
    for clip in read_json(samples / "samples.json")["clips"]:
        grid = np.array(Image.open(samples / clip["grid"])).transpose(2, 0, 1)
        cells = grid_to_frames(grid, 2, 2).transpose(0, 2, 3, 1)
        frames, masks = ([Image.open(path) for path in sorted((samples / clip[kind]).iterdir())]
                         for kind in ("frames", "masks"))
        assert np.array_equal(np.stack(frames), cells[:2])
        labels = np.stack([np.array(mask) for mask in masks])
        assert np.array_equal(labels, labels_of(grid, facts)) and labels.max() == 2
        assert np.array_equal(np.array(masks[0].convert("RGB")),
                              np.array(facts["masks"]["colours"], np.uint8)[labels[0]])
        assert sum(1 for _ in read_frames(samples / clip["video"])) == 2


def test_sampled_folder_is_annotated_data_again(folder, facts, runtime, tmp_path):
    samples = folder / "samples"
    manifest = tiled(samples / "frames", samples / "masks", tmp_path / "again", runtime)
    for name in "ab":
        pictures = [np.array(Image.open(path / name / file)) for path, file in
                    ((samples / "grids", "000000.png"), (tmp_path / "again", "000000_000000.png"))]
        labels = [labels_of(picture.transpose(2, 0, 1), facts) for picture in pictures]
        assert np.array_equal(*labels) and np.array_equal(pictures[0][:32], pictures[1][:32])
    assert manifest.masks == Masks.of(facts)


def test_metrics_see_frames_only(folder, facts, runtime, tokenizer_run):
    for path in (folder / "grids", folder / "samples"):
        clips = ClipSet.read(path, "--data-path")
        frames, shown = clips.frames(clips.entries[0]), clips.shown(clips.entries[0])
        assert frames.shape == (2, 3, 32, 32) and shown.shape == (2, 32, 32, 3)
        assert not np.array_equal(frames.transpose(0, 2, 3, 1), shown)  # which has outlines
    assert read_json(folder / "codes" / "quality.json")["frames"] == 16 * 2
    result = reconstruct(ReconstructConfig(data_path=folder / "grids", vq_ckpt=tokenizer_run, device="cpu",
                                           save_path=folder / "rebuilt", clips_per_class=1), runtime)
    assert 0 < result["all"]["mask_iou"] < 1
    assert Manifest.read(folder / "rebuilt").masks == Masks.of(facts)


def grid_cells(given_N):
    """(4, 8, 8): the tokens of each cell."""
    return grid_to_frames(given_N.view(1, 16, 16), 2, 2)[:, 0]


def spied(monkeypatch):
    """The codes that the sampler decodes from now on."""
    decoded, decode = [], sampler.pictures_of
    monkeypatch.setattr(sampler, "pictures_of",
                        lambda codes, *rest: decoded.append(codes) or decode(codes, *rest))
    return decoded


def test_given_frames_are_kept_and_their_masks_sampled(
    folder, facts, runtime, tokenizer_run, monkeypatch, tmp_path
):
    frames = annotated_frames(5, 2, 32)[0]
    write_frames(tmp_path / "clip", frames)
    given_N = given_tokens(read_start(tmp_path / "clip", facts)[0], 2, load_tokenizer(tokenizer_run), facts)
    known = (grid_cells(given_N) >= 0).flatten(1)
    assert known.all(1).tolist() == known.any(1).tolist() == [True, True, False, False]
    decoded = spied(monkeypatch)
    run(job(folder, "segmented", start_from=tmp_path / "clip", start_frames=2), runtime)
    for codes_hw in decoded[0]:
        assert torch.equal(codes_hw.flatten()[given_N >= 0], given_N[given_N >= 0])
    assert not torch.equal(*decoded[0])  # the classes' masks differ
    assert read_json(folder / "segmented" / "samples.json")["sampling"]["start"]["tokens"] == 128


def test_given_masks_are_kept_and_their_frames_sampled(
    folder, facts, runtime, tokenizer_run, monkeypatch, tmp_path
):
    before = {**facts, "masks": {**facts["masks"], "place": "before"}}
    checkpoint = torch.load(folder / "gpt.pt")
    torch.save({**checkpoint, "dataset": before}, tmp_path / "gpt.pt")
    labels = annotated_frames(5, 2, 64)[1]
    write_masks(tmp_path / "masks", labels)
    given = read_start_masks(tmp_path / "masks", before)
    assert np.array_equal(given, labels[:, 1::2, 1::2]) or np.array_equal(given, labels[:, ::2, ::2])
    given_N = given_tokens(None, None, load_tokenizer(tokenizer_run), before, given)
    assert (grid_cells(given_N) >= 0).flatten(1).all(1).tolist() == [True, True, False, False]
    decoded = spied(monkeypatch)
    config = dataclasses.replace(job(folder), gpt_ckpt=tmp_path / "gpt.pt", save_folder=tmp_path / "out",
                                 start_masks=tmp_path / "masks", vq_ckpt=tokenizer_run)
    run(config, runtime)
    assert torch.equal(decoded[0][0].flatten()[given_N >= 0], given_N[given_N >= 0])
    with pytest.raises(ValueError, match="--start-from: needs --start-masks, as the model's masks come bef"):
        given_tokens(np.zeros((2, 3, 32, 32), np.uint8), 1, load_tokenizer(tokenizer_run), before)


def test_given_frames_and_masks_are_cropped_alike(facts, tmp_path, tokenizer_run):
    frames, masks = annotated_frames(5, 3, 48)
    frames, masks = (np.pad(side, ((0, 0), (8, 8), (20, 4), (0, 0))[: side.ndim]) for side in (frames, masks))
    write_frames(tmp_path / "clip", frames)
    write_masks(tmp_path / "masks", masks)
    cropped, labels = read_start(tmp_path / "clip", facts, tmp_path / "masks")
    assert cropped.shape == (3, 3, 32, 32) and labels.shape == (3, 32, 32)
    for label in (1, 2):
        inside = cropped[:, label % 3][labels == label]
        assert np.median(inside) == 200 and np.median(cropped[:, label % 3][labels == 0]) < 200
    tall = {**facts, "rows": 4, "cols": 1}
    given_N = given_tokens(cropped, None, load_tokenizer(tokenizer_run), tall, labels)
    assert (given_N.view(4, -1) >= 0).all(1).tolist() == [True, True, False, False]  # a frame and its mask


def test_wrong_start_is_named(folder, facts, runtime, sample_config, tmp_path, tokenizer_run):
    write_masks(tmp_path / "wide", np.zeros((1, 16, 20), np.uint8))
    with pytest.raises(ValueError, match=r"--start-masks .*wide: masks without frames must be square"):
        read_start_masks(tmp_path / "wide", facts)
    for masks, reason in (("none", "no such file"), ("wide", "its mask has 20 x 16 pixels")):
        write_frames(tmp_path / "clip", np.zeros((1, 16, 16, 3), np.uint8))
        with pytest.raises(ValueError, match=f"--start-masks .*{reason}"):
            read_start(tmp_path / "clip", facts, tmp_path / masks)
    shutil.rmtree(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"--start-masks .*: holds no masks itself; give the folder"):
        read_start_masks(tmp_path, facts)
    write_masks(tmp_path / "grey", np.full((1, 16, 16), 120, np.uint8))
    with pytest.raises(ValueError, match=r"^--start-masks .*from 120 to 120, but labels are 0 [^;]*$"):
        read_start_masks(tmp_path / "grey", facts)
    shutil.rmtree(tmp_path / "grey")
    write_masks(tmp_path / "square", np.zeros((1, 16, 16), np.uint8))
    with pytest.raises(ValueError, match="--start-masks: needs --start-from, as the model's masks come aft"):
        run(job(folder, "wrong", start_masks=tmp_path / "square"), runtime)
    with pytest.raises(ValueError, match=r"^--start-masks \S*square: .*trained on clips without masks"):
        run(dataclasses.replace(sample_config, start_masks=tmp_path / "square"), runtime)
    with pytest.raises(ValueError, match="--chain 2: the clips of this model have one row of frames"):
        run(job(folder, "wrong", chain=2), runtime)
    with pytest.raises(ValueError, match="--start-frames 3: must be 1 to 2"):
        given_tokens(np.zeros((3, 3, 32, 32), np.uint8), 3, load_tokenizer(tokenizer_run), facts)


def test_masks_that_the_gpt_draws_for_frames_are_scored(folder, runtime, tmp_path, monkeypatch, capsys):
    config = gpt_segments.GPTSegmentsConfig(
        data_path=folder / "grids", gpt_ckpt=folder / "gpt.pt", results_dir=tmp_path, clips=2, device="cpu")
    result = gpt_segments.run(config, runtime)
    assert 0 <= result["majority"]["dice"] < 1 and result["first guess"]["hd95"] > 0
    assert read_json(tmp_path / "segments.json")["majority"]["dice"] == result["majority"]["dice"]
    assert f"{result['majority']['dice']:.3g}" in capsys.readouterr().out
    assert Image.open(tmp_path / "segments.png").width > 3 * 32
    load, loaded = gpt_segments.load_grid, []
    monkeypatch.setattr(gpt_segments, "load_grid", lambda *of: loaded.append(load(*of)) or loaded[-1])
    monkeypatch.setattr(sampler.ClipSampler, "pictures", lambda self, tokens: [loaded[-1]] * len(tokens))
    perfect = gpt_segments.run(config, runtime)["first guess"]
    assert (perfect["dice"], perfect["iou"], perfect["hd95"]) == (1, 1, 0)
    votes = np.array([[0, 1, 2, 1], [1, 1, 2, 0], [2, 0, 2, 1]], np.uint8)[:, None, None]
    assert gpt_segments.majority(votes).tolist() == [[[0, 1, 2, 1]]]


def test_gpt_of_other_clips_is_not_scored(folder, grids, gpt_file, runtime, tmp_path):
    config = gpt_segments.GPTSegmentsConfig(
        data_path=grids, gpt_ckpt=folder / "gpt.pt", results_dir=tmp_path, device="cpu")
    with pytest.raises(InputError, match=r"--data-path .* differs from that of the GPT's data"):
        gpt_segments.run(config, runtime)
    with pytest.raises(InputError, match=r"--gpt-ckpt .* its clips have no masks"):
        gpt_segments.run(dataclasses.replace(config, gpt_ckpt=gpt_file), runtime)
