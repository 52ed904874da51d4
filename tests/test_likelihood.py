"""Classes of clips by the likelihood of their codes under a GPT."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive.models.checkpoint import load_gpt
from common.files import read_json
from dataset.codes import Codes
from evaluations.likelihood import LikelihoodConfig, evidence_map, log_likelihood, run, summary


@pytest.fixture
def config(codes, gpt_file, tmp_path):
    return LikelihoodConfig(code_path=codes, gpt_ckpt=gpt_file, output=tmp_path / "out", split="all",
                            device="cpu")


def test_likelihood_is_that_of_the_logits_in_any_batches(codes, gpt_file):
    model = load_gpt(gpt_file)[0]
    tokens = torch.from_numpy(Codes.read(codes).codes_CAhw[0, 0].astype(np.int64)).flatten()
    found = log_likelihood(model, tokens, 2, batch_size=2)
    with torch.no_grad():
        logits = model(tokens[None], torch.tensor([1]))
    torch.testing.assert_close(found[1], logits[0].log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(log_likelihood(model, tokens, 2, batch_size=1), found)


def test_clips_that_a_class_makes_likely_are_of_that_class(config, codes, gpt_file, tmp_path, runtime):
    """A GPT whose class decides between two halves of the codebook, and clips of either half."""
    checkpoint = torch.load(gpt_file, weights_only=True)
    state = {key: torch.zeros_like(value) for key, value in checkpoint["model"].items()}
    state |= {key: torch.ones_like(value) for key, value in state.items() if "norm" in key}
    state["cls_embedding.embedding_table.weight"][0, 0] = 1
    state["cls_embedding.embedding_table.weight"][1, 0] = -1
    state["output.weight"][:32, 0], state["output.weight"][32:, 0] = 1, -1
    torch.save({**checkpoint, "model": state}, tmp_path / "gpt.pt")
    read = Codes.read(codes)
    low = np.random.RandomState(0).randint(0, 32, read.codes_CAhw.shape)
    halves = low + 32 * np.array(read.labels)[:, None, None, None]
    dataclasses.replace(read, codes_CAhw=halves.astype(np.uint16)).write(tmp_path / "halves")
    config = dataclasses.replace(config, code_path=tmp_path / "halves", gpt_ckpt=tmp_path / "gpt.pt")
    result = run(config, runtime)
    assert result["accuracy"] == result["balanced_accuracy"] == 1 and result["clips"] == len(read.labels)
    assert result["accuracy_after_rows"] == [1, 1] and result["probability_of_the_class"] > 0.5
    assert result["nats_per_token"] < np.log(64) and read_json(config.output / "likelihood.json") == result
    with Image.open(config.output / "map.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 2


def test_rerun_continues_with_the_blocks_that_are_there(config, runtime, monkeypatch):
    monkeypatch.setattr("evaluations.likelihood.BLOCK", 2)
    result = run(config, runtime)
    blocks = sorted(config.output.glob(".blocks-*/*.npy"))
    assert len(blocks) > 1
    blocks[0].unlink()
    stamps = {path: path.stat().st_mtime_ns for path in blocks[1:]}
    assert run(config, runtime) == result
    assert {path: path.stat().st_mtime_ns for path in blocks[1:]} == stamps and blocks[0].exists()
    run(dataclasses.replace(config, clips_per_class=1), runtime)
    assert not blocks[0].exists() and len(list(config.output.glob(".blocks-*"))) == 1


def test_chance_and_certainty():
    labels = np.repeat([0, 1], 5)
    recordings = list("aabbccddee")
    sure = np.where(labels[:, None] == [0, 1], 100.0, -100.0)
    names = ["a", "b"]
    assert summary(sure, labels, names, recordings)["probability_of_the_class"] == pytest.approx(1)
    assert summary(np.zeros((10, 2)), labels, names, recordings)["probability_of_the_class"] == 0.5
    wrong = summary(-sure, labels, names, recordings)
    assert wrong["accuracy"] == wrong["stderr"] == 0 and wrong["by_class"]["a"]["taken_for"] == [0, 5]


def test_error_of_the_accuracy_goes_by_recordings():
    labels = np.zeros(40, int)
    total = np.where((np.arange(40) % 8 < 4)[:, None], [1.0, 0.0], [0.0, 1.0])
    recordings = [str(i % 8) for i in range(40)]  # all clips of a recording are right, or none
    error = summary(total, labels, ["a", "b"], recordings)["stderr"]
    assert error == pytest.approx(np.sqrt(0.25 / 7))
    assert summary(total, labels, ["a", "b"], ["one"] * 40)["stderr"] is None


def test_map_is_red_for_and_blue_against():
    picture = evidence_map(np.array([9.0, -9.0, 0.0, 1.0]), (2, 2), 3)
    assert picture.shape == (3, 6, 6)
    assert picture[:, 0, 0].tolist() == [255, 0, 0] and picture[:, 0, 5].tolist() == [0, 0, 255]
    assert picture[:, 5, 0].tolist() == [255] * 3 and picture[:, 5, 5].tolist() == [255, 127, 127]


def test_what_does_not_fit_is_refused(config, codes, gpt_file, tmp_path, runtime):
    read = Codes.read(codes)
    for change, message in ((dict(tokenizer={**read.tokenizer, "hash": "another"}), "another tokenizer"),
                            (dict(dataset={**read.dataset, "class_names": ["x", "y"]}), "its classes"),
                            (dict(dataset={**read.dataset, "rows": 1}), "not tiled as"),
                            (dict(codes_CAhw=read.codes_CAhw[..., :-2, :]), "not tiled as")):
        dataclasses.replace(read, **change).write(tmp_path / "other")
        with pytest.raises(ValueError, match=message):
            run(dataclasses.replace(config, code_path=tmp_path / "other"), runtime)
    own = read.tokenizer["hash"]  # of a decoder that was trained on
    accepted = dataclasses.replace(read, tokenizer={**read.tokenizer, "hash": "another", "same_codes": [own]})
    accepted.write(tmp_path / "other")
    run(dataclasses.replace(config, code_path=tmp_path / "other"), runtime)
    dataclasses.replace(read, splits=["train"] * len(read.splits)).write(tmp_path / "other")
    with pytest.raises(ValueError, match="--split val: --code-path has no such clips"):
        run(dataclasses.replace(config, code_path=tmp_path / "other", split="val"), runtime)
