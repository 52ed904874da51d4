"""GPT training: learns, resumes exactly, and validates without token masking."""

import dataclasses
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from forked import kill_when

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.gpt import GPT_SIZES
from autoregressive.train import preview
from autoregressive.train.train_c2i import TrainC2IConfig, make_task, run, segment_length
from common import checkpoints
from common.checkpoints import checkpoint_file
from common.errors import InputError
from common.files import read_jsonl
from common.weights import load_checkpoint
from dataset.codes import Codes
from tokenizer.loading import load_tokenizer

FAST = {
    "global_batch_size": 4,
    "log_every": 2,
    "eval_every": 2,
    "sample_every": 0,
    "ckpt_every": 2,
    "device": "cpu",
}


@pytest.fixture(autouse=True, scope="module")
def tiny_size():
    GPT_SIZES["tiny"] = {"n_layer": 2, "n_head": 2, "dim": 32}
    yield
    del GPT_SIZES["tiny"]


@pytest.fixture
def config(codes, tmp_path):
    return TrainC2IConfig(
        code_path=codes, results_dir=tmp_path / "run", gpt_model="tiny", max_steps=6, **FAST
    )


def weights(folder, part="model"):
    return load_checkpoint(checkpoint_file(folder))[part]


def test_model_fits_the_codes(config, codes, runtime):
    model = make_task(config, runtime).model
    assert model.config.block_size == 256 and model.config.vocab_size == 64 and model.config.num_classes == 2
    assert segment_length(Codes.read(codes)) == model.config.token_dropout_segment == 8


def test_training_beats_the_frequency_of_codes(config, runtime):
    run(dataclasses.replace(config, max_steps=60, lr=1e-2, token_dropout_p=0.0, eval_every=60), runtime)
    last = [record for record in read_jsonl(config.results_dir / "log.jsonl") if "val_loss" in record][-1]
    assert last["val_loss"] < last["val_unigram"] < math.log(64)


def hang_in_the_second_checkpoint(config, runtime):
    """Train, and touch the file "hangs" when the second checkpoint is written but not yet in its place."""
    original, written = checkpoints.write_tensors, []

    def write(path, value):
        original(path, value)
        written.append(path)
        if len(written) == 2:
            (config.results_dir / "hangs").touch()
            time.sleep(300)

    checkpoints.write_tensors = write
    run(config, runtime)


def test_killed_training_continues_to_the_same_weights(config, runtime, tmp_path):
    config = dataclasses.replace(config, ema_decay=0.9, gradient_accumulation_steps=2)
    run(config, runtime)
    killed = dataclasses.replace(config, results_dir=tmp_path / "killed")
    kill_when((killed.results_dir / "hangs").exists, partial(hang_in_the_second_checkpoint, killed, runtime))
    assert list((killed.results_dir / "checkpoints").glob(".*"))  # half of the second one
    assert int(checkpoint_file(killed.results_dir).stem) == 2
    run(killed, runtime)
    for part in ("model", "ema"):
        one, two = weights(config.results_dir, part), weights(killed.results_dir, part)
        assert all(torch.equal(one[key], two[key]) for key in one)
    logs = [
        [(r["step"], r["loss"]) for r in read_jsonl(folder / "log.jsonl") if "loss" in r]
        for folder in (config.results_dir, killed.results_dir)
    ]
    assert logs[0] == logs[1] and [step for step, _ in logs[0]] == [2, 4, 6]


def test_accumulation_does_not_change_the_gradient(config, runtime, tmp_path):
    plain = dataclasses.replace(
        config,
        max_steps=3,
        mixed_precision="none",
        token_dropout_p=0.0,
        dropout_p=0.0,
        class_dropout_prob=0.0,
    )
    run(plain, runtime)
    run(dataclasses.replace(plain, gradient_accumulation_steps=4, results_dir=tmp_path / "parts"), runtime)
    one, two = weights(plain.results_dir), weights(tmp_path / "parts")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-5)


def test_checkpoint_says_all_that_sampling_needs(config, codes, runtime):
    run(config, runtime)
    model, dataset, tokenizer = load_gpt(checkpoint_file(config.results_dir))
    read = Codes.read(codes)
    assert dataset == read.dataset and tokenizer == read.tokenizer
    assert model.config.num_classes == 2 and not model.training


def test_validation_is_without_token_masking(config, runtime):
    task = make_task(dataclasses.replace(config, token_dropout_p=1.0), runtime)
    torch.nn.init.normal_(task.model.output.weight, std=0.5)
    model = task.model.eval()
    with torch.no_grad():
        assert task.validate(model) == task.validate(model)
    reference = make_task(dataclasses.replace(config, token_dropout_p=0.0), runtime)
    reference.model.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert reference.validate(reference.model.eval()) == task.validate(model)


def test_run_of_other_codes_is_refused(config, codes, runtime, tmp_path):
    run(dataclasses.replace(config, max_steps=2), runtime)
    read = Codes.read(codes)
    other = dataclasses.replace(read, tokenizer={**read.tokenizer, "hash": "another"})
    other.write(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a run with another tokenizer"):
        run(dataclasses.replace(config, code_path=tmp_path / "other"), runtime)


def test_changed_setting_or_data_of_a_run_is_refused(config, codes, runtime, tmp_path):
    run(dataclasses.replace(config, max_steps=2), runtime)
    for name, value in {"lr": 0.5, "global_seed": 3, "global_batch_size": 2, "weight_decay": 0.0}.items():
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} {value}: the run in"):
            run(dataclasses.replace(config, **{name: value}), runtime)
    read = Codes.read(codes)
    dataclasses.replace(read, splits=["train"] * len(read.splits)).write(tmp_path / "more")
    with pytest.raises(ValueError, match="another data_hash"):
        run(dataclasses.replace(config, code_path=tmp_path / "more"), runtime)
    run(dataclasses.replace(config, max_steps=3, log_every=1), runtime)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_more_steps_are_for_a_constant_learning_rate(schedule, config, runtime):
    config = dataclasses.replace(config, lr_schedule=schedule, max_steps=3)
    run(config, runtime)
    longer = dataclasses.replace(config, max_steps=4)
    if schedule == "cosine":
        with pytest.raises(InputError, match=r"--max-steps 4: the run in .* has 3, where its cosine ends"):
            run(longer, runtime)
        assert run(dataclasses.replace(config, max_steps=2), runtime) == 3  # nothing is left to do
    else:
        assert run(longer, runtime) == 4


def test_validation_and_sheet_are_spread_out_and_take_the_memory_of_one_part(config, codes, runtime, tmp_path,
                                                                            monkeypatch):
    config = dataclasses.replace(config, val_clips=3, gradient_accumulation_steps=2, sample_every=1)
    read = Codes.read(codes)
    own = [torch.from_numpy(read.codes_CAhw[i, 0].astype(int)).flatten()
           for i, split in enumerate(read.splits) if split == "val"]
    task, seen, made = make_task(config, runtime), [], []
    monkeypatch.setattr(task.model, "loss", lambda tokens_BN, _: seen.append(tokens_BN) or torch.tensor(1.0))
    found = task.validate(task.model)
    assert len(own) == 4 and [len(tokens_BN) for tokens_BN in seen] == [2, 1]
    assert torch.equal(torch.cat(seen), torch.stack([own[i] for i in (0, 2, 3)]))
    counts_V = np.bincount(task.train_set.tokens_SN.ravel(), minlength=64) + 1
    chances = (counts_V / counts_V.sum())[torch.cat(seen).numpy()]
    assert found == {"loss": 1.0, "unigram": pytest.approx(-np.log(chances).mean())}

    def generate(model, labels_B, seeds, **_):
        made.append(labels_B.tolist())
        return torch.zeros(len(seeds), 256, dtype=torch.long)

    monkeypatch.setattr(preview, "generate", generate)
    task.codes.dataset["class_names"] = [f"class {i}" for i in range(15)]
    task.draw_sheet(task.model, tmp_path / "sheet.png")
    assert made == [[0, 2], [4, 6], [8, 10], [12, 14]]


def test_missing_tokenizer_for_sheets_is_said_at_the_door(config, codes, runtime, tmp_path):
    read = Codes.read(codes)
    lost = {**read.tokenizer, "path": "gone", "name": "gone.pt"}
    dataclasses.replace(read, tokenizer=lost).write(tmp_path / "codes")
    with pytest.raises(ValueError, match="--vq-ckpt: not given"):
        run(dataclasses.replace(config, code_path=tmp_path / "codes", sample_every=1), runtime)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpt_model": "GPT-Z"}, "--gpt-model GPT-Z"),
        ({"dropout_p": 1.0}, "--dropout-p 1.0"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0"),
    ],
)
def test_wrong_flag_is_named(config, wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **wrong)


def test_tokenizer_given_as_gpt_and_gpt_given_as_tokenizer_are_refused(tokenizer_run, config, runtime):
    with pytest.raises(ValueError, match="holds no GPT"):
        load_gpt(checkpoint_file(tokenizer_run))
    run(dataclasses.replace(config, max_steps=1), runtime)
    with pytest.raises(ValueError, match="no VQ tokenizer"):
        load_tokenizer(config.results_dir)


def test_muon_resumes_to_the_same_weights(config, runtime, tmp_path):
    config = dataclasses.replace(config, optimizer="muon", lr=1e-2, max_steps=4)
    run(config, runtime)
    halves = dataclasses.replace(config, results_dir=tmp_path / "halves")
    run(dataclasses.replace(halves, max_steps=2), runtime)
    run(halves, runtime)
    whole, halves = weights(config.results_dir), weights(halves.results_dir)
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    with pytest.raises(ValueError, match="--optimizer adamw: the run in"):
        run(dataclasses.replace(config, optimizer="adamw", max_steps=6), runtime)


def test_first_rows_are_trained_on_as_beginnings_of_clips(config, runtime):
    config = dataclasses.replace(config, first_rows=1)
    task = make_task(config, runtime)
    assert task.train_set[0][0].shape == (128,)  # one of two rows of frames
    tokens, label = (torch.as_tensor(part)[None] for part in task.train_set[0])
    torch.nn.init.normal_(task.model.output.weight)
    task.model.eval()
    whole = torch.cat([tokens, torch.zeros_like(tokens)], 1)
    assert torch.allclose(task.model(tokens, label), task.model(whole, label)[:, :128], atol=1e-5)
    run(config, runtime)
    assert weights(config.results_dir).keys() == task.model.state_dict().keys()
    with pytest.raises(ValueError, match="--first-rows 3: the clips have 2 rows"):
        make_task(dataclasses.replace(config, first_rows=3), runtime)
