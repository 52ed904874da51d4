"""The tokenizer computes the released function, trains, resumes, and is found again by later stages."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import kill_when
from golden_weights import golden_state
from PIL import Image
from small_data import make_grids

from common.checkpoints import checkpoint_file, checkpoints, save_checkpoint
from common.files import read_jsonl
from common.weights import load_checkpoint, save_safetensors
from dataset.grid import frames_to_grid, grid_to_frames, mirror_frames
from dataset.grid_images import GridImages
from dataset.manifest import Manifest
from tokenizer.loading import find_tokenizer, load_tokenizer, tokenizer_facts
from tokenizer.train_vq import TokenizerTask, TrainVQConfig, revive_dead_codes, start_model
from tokenizer.train_vq import run as train_vq
from tokenizer.training_data import Crops, GridSet
from tokenizer.vq_model import VQConfig, VQModel

GOLDENS = Path(__file__).parent / "goldens"
TINY = {
    "ch": 32,
    "ch_mult": (1, 1, 1),
    "z_channels": 32,
    "codebook_size": 64,
    "num_res_blocks": 1,
    "global_batch_size": 4,
    "log_every": 2,
    "eval_every": 4,
    "sample_every": 4,
    "ckpt_every": 2,
    "device": "cpu",
}


def shapes(model):
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def test_same_function_as_the_reference():
    golden = np.load(GOLDENS / "vq_small.npz")
    args = json.loads(str(golden["args"]))
    size = args.pop("size")
    model = VQModel(VQConfig(**args)).double().eval()
    model.load_state_dict(golden_state(shapes(model), int(golden["seed0"])))
    x = np.random.RandomState(int(golden["x_seed"])).uniform(-1, 1, (len(golden["x"]), 3, size, size))
    codes = torch.from_numpy(golden["codes"]).long()
    with torch.no_grad():
        np.testing.assert_allclose(model.latent(torch.from_numpy(x)), golden["latent"], rtol=1e-9, atol=1e-12)
        assert torch.equal(model.encode(torch.from_numpy(x)), codes)
        np.testing.assert_allclose(model.decode(codes), golden["dec"], rtol=1e-9, atol=1e-12)


def test_released_keys_and_shapes():
    released = json.loads((GOLDENS / "state_dict_shapes.json").read_text())["VQ-16"]
    with torch.device("meta"):
        assert shapes(VQModel(VQConfig())) == released


def test_small_tokenizer_keeps_mean_colour_through_its_norms(tmp_path):
    config = TrainVQConfig(data_path=(tmp_path,), results_dir=tmp_path, ch=32)
    assert start_model(config).encoder.norm_out.num_groups == 8  # with 32 each channel would lose its mean
    assert start_model(dataclasses.replace(config, ch=128, ch_mult=(1, 1))).config.norm_groups == 32
    narrow = start_model(dataclasses.replace(config, ch=16))
    save_checkpoint(tmp_path / "checkpoints", 1, {"model": narrow.state_dict(),
                                                  "config": dataclasses.asdict(narrow.config)}, keep=1)
    assert load_tokenizer(tmp_path).config == narrow.config


@pytest.mark.parametrize("config", [VQConfig(), VQConfig(32, (1, 2), 64, 128, 4, 1, norm_groups=32)])
def test_shape_is_read_off_a_state_dict(config):
    with torch.device("meta"):
        assert VQModel.from_state(VQModel(config).state_dict()).config == config
    with pytest.raises(ValueError, match="no VQ tokenizer"):
        VQModel.from_state({"weight": torch.ones(1)})


def test_picture_that_does_not_divide_is_refused():
    model = VQModel(VQConfig(32, (1, 1, 1), 32, 64))
    with pytest.raises(ValueError, match="30 x 32 pixels: not a multiple"):
        model.encode(torch.zeros(1, 3, 30, 32))


def test_codebook_gradient_reaches_encoder_and_codebook():
    model = VQModel(VQConfig(32, (1, 1), 32, 64, num_res_blocks=1))
    quantised = model(torch.randn(1, 3, 16, 16))
    (quantised.pixels_B3HW.mean() + (quantised.vectors_BDhw * torch.randn(8, 8, 8)).mean()).backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad.abs().sum() > 0


def test_mirrored_frames_stay_in_their_places():
    frames = torch.arange(4)[:, None, None, None].expand(4, 1, 2, 3) * 10 + torch.arange(3)
    grid = torch.cat([torch.cat(list(frames[:2]), -1), torch.cat(list(frames[2:]), -1)], -2)
    assert torch.equal(grid_to_frames(mirror_frames(grid, 2), 2, 2), frames.flip(-1))


def test_crops_are_whole_frames(grids):
    manifest = Manifest.read(grids)
    images = GridImages(grids, manifest, manifest.clips[:1])
    crops = Crops(images, 1)
    assert len(crops) == 4
    assert torch.equal(torch.stack([crops[i] for i in range(4)]), grid_to_frames(images[0], 2, 2))
    with pytest.raises(ValueError, match="--window 3"):
        Crops(images, 3)


def test_held_out_pictures_and_sheet_are_spread_over_all(tmp_path):
    folder = make_grids(tmp_path / "grids", clips_per_class=15)  # of which 5 are held out
    val = [clip.name for clip in Manifest.read(folder).select("val")]
    part = GridSet(folder, 1, 7)
    assert [clip.name for clip in part.held_out.clips] == [val[i] for i in (0, 2, 3, 4, 6, 8, 9)]
    everything = GridSet(folder, 1, 99).held_out
    assert [clip.name for clip in everything.clips] == val


def test_a_still_fills_a_window_as_a_clip_that_stands_still(tmp_path):
    folder = make_grids(tmp_path / "stills", rows=1, cols=1)
    manifest = Manifest.read(folder)
    images = GridImages(folder, manifest, manifest.clips)
    crops = Crops(images, 2)
    assert len(crops) == len(images) == len(crops.labels())
    assert torch.equal(crops[3], frames_to_grid(images[3][None].expand(4, -1, -1, -1), 2, 2))


def test_dead_codes_move_to_latents_and_used_ones_stay():
    torch.manual_seed(0)
    model = VQModel(VQConfig(32, (1, 1), 32, 64, num_res_blocks=1))
    seen = model(torch.randn(4, 3, 64, 64))  # 4096 latents a batch: the usage window turns over in 16 steps
    before = model.quantize.embedding.weight.detach().clone()
    for step in range(16):
        revive_dead_codes(model, seen, step, fresh=False)
    used = torch.zeros(64, dtype=torch.bool)
    used[seen.codes_Bhw.flatten()] = True
    moved = (model.quantize.embedding.weight != before).any(1)
    assert 0 < used.sum() < 64 and torch.equal(moved, ~used)


def test_moved_codes_move_in_the_averaged_weights_too(grids, tmp_path, runtime):
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path, max_steps=1, ema_decay=0.999, **TINY)
    train_vq(config, runtime)
    checkpoint = load_checkpoint(checkpoint_file(tmp_path))
    codes, averaged = (checkpoint[part]["quantize.embedding.weight"] for part in ("model", "ema"))
    assert torch.equal(codes, averaged)  # the first step places all codes


def test_training_learns_to_reconstruct(grids, tmp_path, runtime):
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path, max_steps=30, lr=1e-3,
                           **{**TINY, "sample_every": 30, "ckpt_every": 30})
    train_vq(config, runtime)
    psnr = [record["val_psnr"] for record in read_jsonl(tmp_path / "log.jsonl") if "val_psnr" in record]
    assert psnr[-1] > max(16, psnr[0] + 3)
    assert Image.open(tmp_path / "sheets" / "0000030.png").size == (256, 128)


def test_collapsed_codebook_is_said(grids, tmp_path, runtime, capsys):
    task = TokenizerTask(TrainVQConfig(data_path=(grids,), results_dir=tmp_path, **TINY), runtime)
    task.validate(task.model)
    assert "collapsed" not in capsys.readouterr().out
    torch.nn.init.ones_(task.model.quantize.embedding.weight)
    assert task.validate(task.model)["perplexity"] == 1
    assert "the codebook has collapsed: perplexity 1 of" in capsys.readouterr().out


def test_two_data_folders_are_measured_apart(grids, tmp_path, runtime):
    stills = make_grids(tmp_path / "more" / "grids", rows=1, cols=1)
    config = TrainVQConfig(data_path=(grids, stills), data_share=(0.75, 0.25), results_dir=tmp_path / "run",
                           class_balance=True, max_steps=2, **{**TINY, "window": 1})
    train_vq(config, runtime)
    scores = {name for record in read_jsonl(tmp_path / "run" / "log.jsonl") for name in record}
    assert {"val_psnr_grids", "val_psnr_grids (2)", "val_usage_grids (2)"} <= scores
    other = make_grids(tmp_path / "other", size=16)
    with pytest.raises(ValueError, match="frames of different sizes"):
        train_vq(dataclasses.replace(config, data_path=(grids, other)), runtime)
    with pytest.raises(ValueError, match="--data-share"):
        dataclasses.replace(config, data_share=(0.5, 0.6))


def test_killed_training_continues_to_the_same_weights(grids, tmp_path, runtime):
    settings = {**TINY, "ema_decay": 0.9, "sample_every": 0}
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path / "whole", max_steps=8, **settings)
    train_vq(config, runtime)
    killed = dataclasses.replace(config, results_dir=tmp_path / "killed")
    kill_when(lambda: checkpoints(tmp_path / "killed" / "checkpoints"), lambda: train_vq(killed, runtime))
    assert int(checkpoint_file(tmp_path / "killed").stem) < 8
    train_vq(killed, runtime)
    one, two = (load_checkpoint(checkpoint_file(tmp_path / name)) for name in ("whole", "killed"))
    assert one["step"] == two["step"] == 8
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    logs = [read_jsonl(tmp_path / name / "log.jsonl") for name in ("whole", "killed")]
    assert [r["loss"] for r in logs[0] if "loss" in r] == [r["loss"] for r in logs[1] if "loss" in r]


def test_run_folder_of_another_model_is_refused(grids, tmp_path, runtime):
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path, max_steps=2, **TINY)
    train_vq(config, runtime)
    with pytest.raises(ValueError, match="--codebook-size 32: the run in"):
        train_vq(dataclasses.replace(config, codebook_size=32), runtime)
    with pytest.raises(ValueError, match=r"--ema-decay 0.5: the run in .* has 0.0"):
        train_vq(dataclasses.replace(config, ema_decay=0.5), runtime)


def test_run_does_not_go_on_with_other_pictures_of_the_same_names(tmp_path, runtime):
    grids = make_grids(tmp_path / "grids")
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path / "run", max_steps=2, **TINY)
    train_vq(config, runtime)
    moved = dataclasses.replace(config, data_path=(shutil.copytree(grids, tmp_path / "moved"),), max_steps=3)
    train_vq(moved, runtime)
    for path in tmp_path.glob("moved/*/*.png"):
        with Image.open(path) as image:
            darker = image.point(lambda value: value // 2)
        darker.save(path)
    with pytest.raises(ValueError, match="holds a run with another pictures_hash"):
        train_vq(dataclasses.replace(moved, max_steps=4), runtime)


def test_sharing_out_a_tokenizer_is_refused(grids, tmp_path):
    with pytest.raises(ValueError, match="--data-parallel fsdp: a tokenizer is small"):
        TrainVQConfig(data_path=(grids,), results_dir=tmp_path, data_parallel="fsdp")


def test_fine_tuning_starts_from_the_given_tokenizer(grids, tokenizer_run, tmp_path, runtime):
    other_shape = {**TINY, "ch": 64}
    config = TrainVQConfig(
        data_path=(grids,), results_dir=tmp_path, max_steps=1, vq_ckpt=tokenizer_run, lr=0.0, **other_shape
    )
    train_vq(config, runtime)
    before, after = (
        load_checkpoint(checkpoint_file(folder))["model"] for folder in (tokenizer_run, tmp_path)
    )
    assert all(torch.equal(before[key], after[key]) for key in before if key != "quantize.codebook_used")


def test_tokenizer_with_other_weights_is_refused(tokenizer_run, tmp_path):
    facts = tokenizer_facts(load_tokenizer(tokenizer_run), tokenizer_run)
    other = tmp_path / "other.safetensors"
    save_safetensors(other, VQModel(load_tokenizer(tokenizer_run).config).state_dict(), {})
    with pytest.raises(
        ValueError, match=r"other.safetensors: the model was trained with a tokenizer of hash"
    ):
        find_tokenizer(facts, other, tmp_path)
    with pytest.raises(ValueError, match=r"--vq-ckpt: not given, and gone.pt"):
        find_tokenizer({**facts, "name": "gone.pt", "path": "nowhere/gone.pt"}, None, tmp_path)


def test_tokenizer_is_found_in_its_run_folder_when_all_runs_were_moved(tokenizer_run, tmp_path):
    facts = {**tokenizer_facts(load_tokenizer(tokenizer_run), tokenizer_run), "path": "gone/x.pt"}
    moved = tmp_path / "tokenizer" / "checkpoints" / facts["name"]
    gpt = tmp_path / "gpt" / "checkpoints" / facts["name"]  # of the same name: no tokenizer
    for path in (moved, gpt):
        path.parent.mkdir(parents=True)
    torch.save({"model": {"tok_embeddings.weight": torch.ones(1)}}, gpt)
    moved.write_bytes(checkpoint_file(tokenizer_run).read_bytes())
    assert find_tokenizer(facts, None, gpt)[1] == moved
    assert find_tokenizer(facts, None, tmp_path / "codes")[1] == moved


def test_tokenizer_is_found_beside_the_checkpoint_when_the_run_was_moved(tokenizer_run, tmp_path):
    facts = tokenizer_facts(load_tokenizer(tokenizer_run), tokenizer_run)
    (tmp_path / facts["name"]).write_bytes(checkpoint_file(tokenizer_run).read_bytes())
    _, path = find_tokenizer({**facts, "path": "gone/x.pt"}, None, tmp_path / "gpt.pt")
    assert path == tmp_path / facts["name"]
