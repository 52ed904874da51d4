"""Exported weights are the checkpoint's, in both layouts, for the GPT and for the tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from training_jobs import TINY_GPT

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.gpt import GPT_SIZES
from autoregressive.train.export import ExportConfig, released_layout
from autoregressive.train.export import run as export
from autoregressive.train.train_c2i import TrainC2IConfig
from autoregressive.train.train_c2i import run as train_c2i
from common.checkpoints import checkpoint_file
from common.errors import InputError
from common.files import read_json
from common.weights import load_checkpoint, save_safetensors
from tokenizer.loading import load_tokenizer

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module", params=[0.0, 0.9])
def gpt_run(request, codes, tmp_path_factory, runtime):
    GPT_SIZES["tiny"] = TINY_GPT
    folder = tmp_path_factory.mktemp("gpt")
    train_c2i(TrainC2IConfig(code_path=codes, results_dir=folder, gpt_model="tiny", max_steps=2, lr=1e-2,
                             ema_decay=request.param, eval_every=0, sample_every=0, device="cpu"), runtime)
    yield folder
    del GPT_SIZES["tiny"]


def assert_equal_states(one, two):
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_safetensors_are_sampled_from_like_the_run(gpt_run, tmp_path, runtime, codes):
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "model.safetensors"), runtime)
    model, dataset, tokenizer = load_gpt(tmp_path / "model.safetensors")
    own, own_dataset, own_tokenizer = load_gpt(checkpoint_file(gpt_run))
    assert_equal_states(model.state_dict(), own.state_dict())
    assert model.config == own.config and dataset == own_dataset
    assert {**tokenizer, "path": own_tokenizer["path"]} == own_tokenizer and "path" not in tokenizer
    assert read_json(tmp_path / "model.json")["dataset"] == dataset
    assert str(gpt_run.parent) not in (tmp_path / "model.json").read_text()


def test_released_layout_holds_what_theirs_does(gpt_run, tmp_path, runtime):
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "model.pt"), runtime)
    released, own = load_checkpoint(tmp_path / "model.pt"), load_checkpoint(checkpoint_file(gpt_run))
    assert_equal_states(released["model"], own.get("ema", own["model"]))
    assert released["steps"] == 2 and released["args"].gpt_model == "tiny"
    assert (released["args"].num_classes, released["args"].image_size) == (2, 64)
    assert ("optimizer" in released) == ("ema" not in own)


def test_weights_without_facts_get_them_from_flags_and_export_carries_them(gpt_run, tokenizer_run, codes,
                                                                          tmp_path, runtime):
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "theirs.pt"), runtime)
    facts = {"preset": str(codes / "codes.json"), "vq_ckpt": tokenizer_run}
    export(ExportConfig(ckpt=tmp_path / "theirs.pt", output=tmp_path / "ours.safetensors", **facts), runtime)
    model, dataset, tokenizer = load_gpt(tmp_path / "ours.safetensors")
    own, own_dataset, own_tokenizer = load_gpt(checkpoint_file(gpt_run))
    assert_equal_states(model.state_dict(), own.state_dict())
    assert dataset == {name: own_dataset[name] for name in dataset} and len(dataset) == 6
    assert tokenizer == {name: own_tokenizer[name] for name in own_tokenizer if name != "path"}
    torch.testing.assert_close(model(torch.zeros(1, 16).long(), torch.tensor([1])),
                               own(torch.zeros(1, 16).long(), torch.tensor([1])))
    with pytest.raises(InputError, match="itself holds the facts"):
        export(ExportConfig(ckpt=gpt_run, output=tmp_path / "again.safetensors", **facts), runtime)


def test_released_layout_numbers_weights_and_moments_in_the_released_order(gpt_run):
    checkpoint = load_checkpoint(checkpoint_file(gpt_run))
    checkpoint.pop("ema", None)
    facts = {name: checkpoint[name] for name in ("config", "dataset", "tokenizer")}
    released = released_layout(checkpoint, checkpoint["model"], facts)
    order = list(json.loads((GOLDENS / "state_dict_shapes.json").read_text())["GPT-B (8 classes)"])
    order = [name for name in order if name in released["model"]]
    assert list(released["model"]) == order
    names = [name for dims in (2, 1) for name in order if checkpoint["model"][name].ndim == dims]
    moments = released["optimizer"]["state"]
    assert [moments[i]["exp_avg"].shape for i in range(len(names))] == [
        checkpoint["model"][name].shape for name in names]
    assert torch.equal(moments[0]["exp_avg"], checkpoint["optimizer"]["state"][1]["exp_avg"])


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_tokenizer_is_exported_too(name, tokenizer_run, tmp_path, runtime):
    export(ExportConfig(ckpt=tokenizer_run, output=tmp_path / name), runtime)
    assert_equal_states(load_checkpoint(tmp_path / name)["model"], load_tokenizer(tokenizer_run).state_dict())


def test_what_is_no_model_is_refused(tmp_path, runtime):
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: no VQ tokenizer"):
        export(ExportConfig(ckpt=tmp_path / "x.pt", output=tmp_path / "y.pt"), runtime)
    with pytest.raises(ValueError, match=r"--output .*model.bin: must end in"):
        ExportConfig(ckpt=tmp_path / "x.pt", output=tmp_path / "model.bin")


def test_half_precision_rounds_the_weights_and_keeps_the_facts(gpt_run, tmp_path, runtime):
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "half.safetensors", precision="half"), runtime)
    half, dataset, _ = load_gpt(tmp_path / "half.safetensors")
    whole, own_dataset, _ = load_gpt(checkpoint_file(gpt_run))
    assert dataset == own_dataset
    for key, value in whole.state_dict().items():
        assert torch.equal(half.state_dict()[key], value.half().float())


def test_mean_of_two_checkpoints_lies_between_them(gpt_run, tokenizer_run, tmp_path, runtime):
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "a.safetensors"), runtime)
    once = load_checkpoint(tmp_path / "a.safetensors")
    state = once.pop("model")
    save_safetensors(tmp_path / "b.safetensors", {name: 3 * value for name, value in state.items()}, once)
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "mean.safetensors", share=0.25,
                        average_with=tmp_path / "b.safetensors"), runtime)
    for name, value in load_checkpoint(tmp_path / "mean.safetensors")["model"].items():
        assert torch.allclose(value, 2.5 * state[name], atol=1e-7)
    with pytest.raises(InputError, match=r"--average-with .*: has other weights than --ckpt"):
        export(ExportConfig(ckpt=gpt_run, output=tmp_path / "x.safetensors", average_with=tokenizer_run),
               runtime)


@pytest.mark.parametrize(("part", "flags", "kept"), [
    ("decoder.", {"share": 0.7}, True), ("quantize.embedding", {"share": 0.7}, False),
    ("decoder.", {"precision": "half"}, False)])
def test_tokenizer_whose_codes_change_does_not_claim_to_keep_them(tokenizer_run, tmp_path, runtime, capsys,
                                                                  part, flags, kept):
    state, base = load_tokenizer(tokenizer_run).state_dict(), checkpoint_file(tokenizer_run)
    changed = {name: value + 0.1 if name.startswith(part) else value for name, value in state.items()}
    facts = {"config": asdict(load_tokenizer(tokenizer_run).config), "same_codes": ["abc"]}
    save_safetensors(tmp_path / "changed.safetensors", changed, facts)
    export(ExportConfig(ckpt=tmp_path / "changed.safetensors", output=tmp_path / "x.safetensors", **flags,
                        average_with=base if "share" in flags else None), runtime)
    assert ("same_codes" in load_checkpoint(tmp_path / "x.safetensors")) == kept
    assert ("extract codes with it" in capsys.readouterr().err) == (not kept)


def test_weights_of_the_last_step_instead_of_the_averaged_ones(gpt_run, tmp_path, runtime):
    export(ExportConfig(ckpt=gpt_run, output=tmp_path / "last.safetensors", averaged=False), runtime)
    assert_equal_states(load_checkpoint(tmp_path / "last.safetensors")["model"],
                        load_checkpoint(checkpoint_file(gpt_run))["model"])
