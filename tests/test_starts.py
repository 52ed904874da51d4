"""Clips that begin with given frames, go on from one another, or lie between two classes."""

import dataclasses

import av
import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks

from autoregressive.models.generate import generate
from autoregressive.sample.gallery import RESEARCH
from autoregressive.sample.sample_c2i import run
from autoregressive.sample.starts import continued, given_tokens, read_start
from common.errors import InputError
from common.files import read_json
from dataset.grid import frames_to_grid
from dataset.manifest import Manifest
from tokenizer.loading import load_tokenizer

FACTS = {"rows": 2, "cols": 2, "frame_size": 32, "fps": 10.0}


@pytest.fixture
def config(sample_config):
    return sample_config


def grid_codes(given_N, side=16):
    return given_N.view(side, side)


def test_given_tokens_stay_and_the_others_depend_on_them(small_gpt):
    given = torch.full((2, 256), -1)
    given[:, :64] = torch.arange(64)
    given[0, 200] = 7
    tokens = generate(small_gpt, torch.tensor([0, 1]), [1, 2], given_BN=given)
    assert torch.equal(tokens[given >= 0], given[given >= 0])
    free = generate(small_gpt, torch.tensor([0, 1]), [1, 2])
    assert not torch.equal(tokens[:, 64:200], free[:, 64:200])
    assert torch.equal(generate(small_gpt, torch.tensor([0, 1]), [1, 2], given_BN=free), free)
    with pytest.raises(ValueError, match="given tokens"):
        generate(small_gpt, torch.tensor([0]), [1], given_BN=torch.full((1, 256), 64))


def test_blend_goes_from_one_class_to_the_other(tiny_gpt):
    def clip(label, towards=None, cfg_scale=1.0):
        labels = torch.tensor([label])
        return generate(tiny_gpt, labels, [3], towards=towards, cfg_scale=cfg_scale)

    for scale in (1.0, 2.0):
        assert torch.equal(clip(0, (1, 0.0), scale), clip(0, None, scale))
        assert torch.equal(clip(0, (1, 1.0), scale), clip(1, None, scale))
    assert not torch.equal(clip(0, (1, 0.5)), clip(0)) and not torch.equal(clip(0, (1, 0.5)), clip(1))
    with pytest.raises(ValueError, match="label 2"):
        clip(0, (2, 0.5))


def test_tokens_of_the_kept_frames_are_those_of_their_grid(tokenizer_run, grids):
    tokenizer, clip = load_tokenizer(tokenizer_run), Manifest.read(grids).clips[0].name
    frames = read_start(grids / clip, FACTS)[0]
    assert frames.shape == (4, 3, 32, 32)
    picture = np.array(Image.open(grids / clip)).transpose(2, 0, 1)
    assert np.array_equal(frames_to_grid(frames, 2, 2), picture)
    three = grid_codes(given_tokens(frames, 3, tokenizer, FACTS))
    assert (three[8:, 8:] == -1).all() and (three[:8] >= 0).all() and (three[8:, :8] >= 0).all()
    last = grid_codes(given_tokens(frames, -2, tokenizer, FACTS))
    assert (last[:8] >= 0).all() and (last[8:] == -1).all()
    for wrong in (0, 4, -5):
        with pytest.raises(ValueError, match=f"--start-frames {wrong}"):
            given_tokens(frames, wrong, tokenizer, FACTS)


def test_all_but_one_frame_of_a_single_row_are_kept_by_default(tokenizer_run):
    tokenizer, facts = load_tokenizer(tokenizer_run), {**FACTS, "rows": 1}
    given = given_tokens(np.zeros((2, 3, 32, 32), np.uint8), None, tokenizer, facts)
    assert (given >= 0).sum() == len(given) // 2


def test_start_may_be_a_picture_a_folder_or_a_video(config, runtime, tmp_path):
    run(config, runtime)
    video = read_start(config.save_folder / "videos" / "red wall" / "000000.mp4", FACTS)[0]
    folder = read_start(config.save_folder / "frames" / "red wall" / "000000", FACTS)[0]
    assert video.shape == folder.shape == (4, 3, 32, 32)
    assert np.abs(video.astype(int) - folder).mean() < 25  # noise is hard on H.264
    Image.fromarray(np.full((90, 120, 3), 128, np.uint8)).save(tmp_path / "photo.jpg")
    assert read_start(tmp_path / "photo.jpg", FACTS)[0].shape == (1, 3, 32, 32)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for wrong in ("none.png", "broken.png"):
        with pytest.raises(ValueError, match="--start-from"):
            read_start(tmp_path / wrong, FACTS)


def test_next_link_begins_with_the_last_row():
    tokens = torch.arange(32).view(2, 16)
    next_tokens = continued(tokens, rows=2)
    assert next_tokens[:, :8].equal(tokens[:, 8:]) and (next_tokens[:, 8:] == -1).all()


def test_chain_makes_longer_clips_and_its_first_link_is_the_plain_clip(config, runtime, tmp_path):
    run(config, runtime)
    chained = dataclasses.replace(config, save_folder=tmp_path / "chain", chain=3)
    run(chained, runtime)
    clip = read_json(tmp_path / "chain" / "samples.json")["clips"][0]
    first, plain = (folder / clip["grid"] for folder in (tmp_path / "chain", config.save_folder))
    assert first.read_bytes() == plain.read_bytes()
    assert len(list((tmp_path / "chain" / clip["frames"]).iterdir())) == 4 + 2 + 2
    with av.open(str(tmp_path / "chain" / clip["video"])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8
    assert len(Manifest.read(tmp_path / "chain" / "grids").clips) == 2 * 3
    with pytest.raises(ValueError, match="was sampled with chain 3, now 2"):
        run(dataclasses.replace(chained, chain=2), runtime)


def test_variations_share_their_first_frames(config, runtime, tmp_path):
    run(config, runtime)
    start = config.save_folder / "grids" / "red wall" / "000000.png"
    more = dataclasses.replace(config, save_folder=tmp_path / "more", start_from=start, clips_per_class=2)
    run(more, runtime)
    assert read_json(tmp_path / "more" / "samples.json")["sampling"]["start"]["tokens"] == 128
    assert RESEARCH in (config.save_folder / "index.html").read_text()
    assert "Not a patient" not in (tmp_path / "more" / "index.html").read_text()
    one, two = (np.array(Image.open(tmp_path / "more" / "grids" / "red wall" / f"00000{seed}.png"))
                for seed in (0, 1))
    top, bottom = (np.abs(one[rows].astype(int) - two[rows]).mean() for rows in (slice(32), slice(32, 64)))
    assert top < bottom  # the same tokens, seen by a decoder that looks at all of the picture


def test_refusal_has_one_status_on_all_processes(config, runtime):
    run(config, runtime)
    other = dataclasses.replace(config, temperature=0.5)

    def refused(runtime):
        with pytest.raises(InputError, match="was sampled with temperature"):
            run(other, runtime)

    assert run_ranks(refused, 2) == [0, 0]


def test_wrong_blend_is_named(config, runtime):
    with pytest.raises(ValueError, match="--blend-with green wall: the checkpoint knows blue wall, red wall"):
        run(dataclasses.replace(config, blend_with="green wall"), runtime)
    with pytest.raises(ValueError, match=r"--blend 1.5: must be from 0 to 1"):
        dataclasses.replace(config, blend=1.5)
