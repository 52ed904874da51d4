"""Weight files never run code and load strictly."""

import argparse
import contextlib
import os
import pickle
import random as random_module

import pytest
import torch
from torch import nn

from common.layouts import model_state
from common.weights import load_checkpoint, load_strict, save_safetensors


class Attack:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (str(self.victim),)


def test_released_layout_with_a_pickled_namespace_loads(tmp_path):
    args = argparse.Namespace(gpt_model="GPT-B", lr=1e-4)
    released = {"model": {"w": torch.ones(2)}, "optimizer": {}, "steps": 54236, "args": args}
    torch.save(released, tmp_path / "c.pt")
    checkpoint = load_checkpoint(tmp_path / "c.pt")
    assert checkpoint["steps"] == 54236 and checkpoint["args"].gpt_model == "GPT-B"
    assert model_state(checkpoint)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_file_that_would_run_code_is_refused_by_name_and_does_not_run_it(tmp_path, write):
    victim = tmp_path / "victim"
    victim.touch()
    write({"model": Attack(victim)}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: refused, loading it would run code.*remove"):
        load_checkpoint(tmp_path / "evil.pt")
    assert victim.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_broken_file_is_named(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.*not a readable checkpoint"):
        load_checkpoint(path)


def test_truncated_checkpoint_is_named(tmp_path):
    torch.save({"model": {"w": torch.ones(1000)}}, tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"c\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_no_damage_to_a_checkpoint_gets_past_the_door(tmp_path):
    path, random = tmp_path / "c.pt", random_module.Random(0)
    torch.save({"model": {"w": torch.ones(8)}, "step": 3, "args": argparse.Namespace(lr=1.0)}, path)
    good = path.read_bytes()
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(random.randint(1, 4)):
            bad[random.randrange(len(bad))] = random.randrange(256)
        path.write_bytes(bad)
        with contextlib.suppress(ValueError):  # some damage does not show
            load_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pt: no such file"):
        load_checkpoint(tmp_path / "gone.pt")


def test_loading_names_what_does_not_fit():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"f\.pt: .* weight: \(2, 4\) in the file, \(2, 3\) in the model"):
        load_strict(model, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "f.pt")
    with pytest.raises(ValueError, match=r"bias: absent in the file"):
        load_strict(model, {"weight": torch.zeros(2, 3)}, "f.pt")
    with pytest.raises(ValueError, match=r"extra: .* absent in the model"):
        load_strict(model, {**model.state_dict(), "extra": torch.zeros(1)}, "f.pt")


def test_named_exceptions_keep_their_initialisation():
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    state = {"weight": torch.zeros(5, 3), "bias": torch.full((2,), 7.0)}
    fresh = load_strict(model, state, "f.pt", reinit=("weight",))
    assert fresh == ["weight"] and torch.equal(model.weight, before) and model.bias.tolist() == [7, 7]


def test_safetensors_bring_back_weights_and_facts(tmp_path):
    state, facts = {"w": torch.randn(3, 4).T}, {"dataset": {"class_names": ["é", "b"]}, "step": 3}
    save_safetensors(tmp_path / "m.safetensors", state, facts)
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    assert torch.equal(checkpoint.pop("model")["w"], state["w"]) and checkpoint == facts
