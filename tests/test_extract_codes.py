"""Extraction of codes: the same whatever the batch, the ranks or a kill; stale and bad codes are noticed."""

from functools import partial

import numpy as np
import pytest
import torch
from forked import kill_when
from PIL import Image
from ranks import run_ranks
from small_data import make_grids

from common.checkpoints import checkpoint_file
from common.files import read_json
from common.weights import save_safetensors
from dataset.codes import Codes, CodesDataset
from dataset.manifest import Manifest
from tokenizer.extract_codes import ExtractCodesConfig, quality_lines
from tokenizer.extract_codes import run as extract_codes
from tokenizer.loading import find_tokenizer, load_tokenizer
from tokenizer.quality import Quality, perplexity
from tokenizer.vq_model import VQModel


def extract(grids, folder, tokenizer_run, runtime, **settings):
    extract_codes(
        ExtractCodesConfig(data_path=grids, code_path=folder, vq_ckpt=tokenizer_run, **settings), runtime
    )
    return (folder / "codes.npy").read_bytes()


def test_codes_do_not_depend_on_batch_size(grids, tokenizer_run, tmp_path, runtime):
    outputs = {
        extract(grids, tmp_path / str(size), tokenizer_run, runtime, batch_size=size) for size in (1, 3, 8)
    }
    assert len(outputs) == 1


def test_codes_do_not_depend_on_the_number_of_processes(tokenizer_run, tmp_path, runtime):
    grids = make_grids(tmp_path / "grids", clips_per_class=40)  # two blocks
    extract(grids, tmp_path / "one", tokenizer_run, runtime)
    config = ExtractCodesConfig(data_path=grids, code_path=tmp_path / "two", vq_ckpt=tokenizer_run)
    assert run_ranks(partial(extract_codes, config), 2) == [0, 0]
    for name in ("codes.npy", "codes.json", "quality.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rerun_computes_only_missing_blocks(grids, tokenizer_run, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr("tokenizer.extract_codes.BLOCK", 5)
    whole = extract(grids, tmp_path, tokenizer_run, runtime)
    blocks = sorted(tmp_path.glob(".blocks-*/*.npy"))
    stamps = [path.stat().st_mtime_ns for path in blocks]
    blocks[1].unlink()
    (tmp_path / "codes.json").unlink()
    assert extract(grids, tmp_path, tokenizer_run, runtime) == whole
    again = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob(".blocks-*/*.npy"))]
    assert len(stamps) == 3 and again[0] == stamps[0] and again[1] != stamps[1] and again[2] == stamps[2]


def test_another_tokenizer_does_not_reuse_blocks(grids, tokenizer_run, tmp_path, runtime):
    first = extract(grids, tmp_path / "codes", tokenizer_run, runtime)
    torch.manual_seed(9)
    other = VQModel(load_tokenizer(tokenizer_run).config)
    save_safetensors(tmp_path / "other.safetensors", other.state_dict(), {})
    assert extract(grids, tmp_path / "codes", tmp_path / "other.safetensors", runtime) != first
    assert len(list((tmp_path / "codes").glob(".blocks-*"))) == 1


def test_changed_pictures_do_not_reuse_blocks(tokenizer_run, tmp_path, runtime):
    grids = make_grids(tmp_path / "grids", clips_per_class=2)
    first = extract(grids, tmp_path / "codes", tokenizer_run, runtime)
    name = grids / "red wall" / "rec0_000000.png"
    Image.fromarray(255 - np.array(Image.open(name))).save(name)
    changed = extract(grids, tmp_path / "codes", tokenizer_run, runtime)
    assert changed != first
    assert changed == extract(grids, tmp_path / "fresh", tokenizer_run, runtime)


def test_killed_extraction_continues_to_the_same_codes(tokenizer_run, tmp_path, runtime):
    grids = make_grids(tmp_path / "grids", clips_per_class=40)  # two blocks

    def extract_to(name):
        extract(grids, tmp_path / name, tokenizer_run, runtime, batch_size=1)

    extract_to("whole")
    kill_when(lambda: list(tmp_path.glob("killed/.blocks-*/[0-9]*.npy")), lambda: extract_to("killed"))
    assert not (tmp_path / "killed" / "codes.json").exists()
    extract_to("killed")
    for name in ("codes.npy", "codes.json", "quality.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_frames_that_tokens_would_straddle_are_refused(tmp_path, tokenizer_run, runtime):
    grids = make_grids(tmp_path / "grids", clips_per_class=2, size=34)
    with pytest.raises(ValueError, match="frames of 34 px are no multiple of its downsample factor 4"):
        extract(grids, tmp_path / "codes", tokenizer_run, runtime)


def test_codes_carry_the_facts_of_data_and_tokenizer(grids, codes, tokenizer_run):
    read = Codes.read(codes)
    assert read.dataset == Manifest.read(grids).facts()
    assert read.tokenizer["downsample"] == 4 and read.tokenizer["codebook_size"] == 64
    assert read.codes_CAhw.shape == (12, 2, 16, 16) and read.codes_CAhw.dtype == np.uint16
    assert read.splits.count("val") == 4 and len(CodesDataset(read, "train")) == 16
    assert len(CodesDataset(read, "val", variants=1)) == 4
    _, path = find_tokenizer(read.tokenizer, None, codes)
    assert path == checkpoint_file(tokenizer_run)


def test_wrong_sized_picture_is_named(tmp_path, tokenizer_run, runtime):
    grids = make_grids(tmp_path / "grids", clips_per_class=2)
    wrong = grids / "red wall" / "rec1_000000.png"
    Image.new("RGB", (64, 60)).save(wrong)
    with pytest.raises(ValueError, match=r"red wall/rec1_000000.png: 60 x 64 pixels, .* which is 64 x 64"):
        extract(grids, tmp_path / "codes", tokenizer_run, runtime)


def test_bad_codes_are_warned_of():
    assert len(quality_lines(Quality(30, 0.9, 0.9, 500, 16), 1024)) == 1
    lines = quality_lines(Quality(15, 0.3, 0.01, 5, 16), 1024)
    assert len(lines) == 3 and "fine-tune" in lines[1] and "few codes" in lines[2]


def test_perplexity_counts_codes_as_if_equally_often():
    assert perplexity(np.array([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([0, 7])) == pytest.approx(1)


def test_quality_is_written_beside_the_codes(codes):
    quality = read_json(codes / "quality.json")
    assert quality["frames"] == 48 and 0 < quality["usage"] <= 1 <= quality["perplexity"] <= 64
