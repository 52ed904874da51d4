"""Weights that other programs saved: their names, their arguments, and files that are no weights."""

import datetime
import gzip
import pathlib
import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError
from common.layouts import model_state
from common.weights import load_checkpoint, load_strict

WEIGHT = torch.arange(3.0)


@pytest.mark.parametrize("wrap", [
    lambda state: {"model": state}, lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    lambda state: {"model": {"state_dict": state}}, lambda state: {"module": state}, lambda state: state,
    lambda state: {"state_dict": state}, lambda state: {"ema": state, "model": {}},
    lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    lambda state: {"model": {f"_orig_mod.{k}": v for k, v in state.items()}},
    lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    lambda state: {f"model._orig_mod.{k}": v for k, v in state.items()},
    lambda state: {k.replace("layers.", "layers.0._fsdp_wrapped_module.").replace(".0._", "._"): v
                   for k, v in state.items()},
    lambda state: {"model": {k: v + 1 for k, v in state.items()}, "ema": {"shadow": state}},
    lambda state: {**{f"online_model.{k}": v + 1 for k, v in state.items()}, "initted": torch.tensor(True),
                   **{f"ema_model.{k}": v for k, v in state.items()}, "step": torch.tensor(3)},
    lambda state: {**{f"module.{k}": v for k, v in state.items()}, "n_averaged": torch.tensor(3)},
], ids=["plain", "lightning", "nested", "deepspeed", "bare", "state_dict", "ema", "ddp", "compiled",
        "compiled ddp", "ddp compiled", "lightning compiled", "fsdp1", "ema beside", "ema_pytorch", "swa"])
def test_weights_are_found_by_their_own_names(wrap, tmp_path):
    torch.save(wrap({"layers.weight": WEIGHT}), tmp_path / "c.pt")
    state = model_state(load_checkpoint(tmp_path / "c.pt"))
    assert list(state) == ["layers.weight"] and torch.equal(state["layers.weight"], WEIGHT)


def test_averages_without_names_are_said():
    with pytest.raises(InputError, match="without names"):
        model_state({"ema": {"decay": 0.9, "shadow_params": [WEIGHT]}})


def test_harmless_arguments_are_read(tmp_path):
    counts = defaultdict(int)
    counts["a"] += 1
    arguments = {"lr": np.float64(0.5), "steps": np.int64(3), "folder": pathlib.Path("runs/a"),
                 "counts": counts, "names": OrderedDict(a=1), "when": datetime.date(2026, 1, 2),
                 "table": np.arange(3),
                 "shape": torch.Size([2]), "dtype": torch.float32}
    torch.save({"model": {"w": WEIGHT}, "args": arguments}, tmp_path / "c.pt")
    found = load_checkpoint(tmp_path / "c.pt")["args"]
    assert found["lr"] == 0.5 and str(found["folder"]) == "runs/a" and found["counts"] == {"a": 1}
    assert found["table"].tolist() == [0, 1, 2] and found["when"].year == 2026


@pytest.mark.parametrize(("content", "words"), [
    (b"<!DOCTYPE html><html>not found</html>", "a web page"), (b"", "an empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    (b'{"error": "gone"}', "a JSON file"), (gzip.compress(b"weights", mtime=0), "a gzip archive")])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_is_no_checkpoint_is_called_what_it_is(content, words, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: not a readable checkpoint but {words}"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = nn.Linear(2, 2)
    state = {**model.state_dict(), "bias": torch.tensor([0.0, value])}
    with pytest.raises(InputError, match=r"x\.pt: bias holds values that are not finite"):
        load_strict(model, state, "x.pt")


def test_a_class_that_calls_itself_a_path_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return pathlib.Path.touch, (pathlib.Path(tmp_path / "ran"),)

    (tmp_path / "x.pt").write_bytes(pickle.dumps({"args": Hostile()}, 2))
    with pytest.raises(InputError, match=r"x\.pt"):
        load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()
