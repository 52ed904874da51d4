"""The comparison of ways to mask tokens: one run each, on equal terms, and a table."""

import signal

import pytest

from autoregressive.models.config import GPT_SIZES
from benchmarks.ablate_masking import MASKINGS, AblateMaskingConfig, run
from common.files import read_json
from common.training.loop import TrainingState


def tiny_config(grids, codes, folder, monkeypatch, **changes) -> AblateMaskingConfig:
    monkeypatch.setitem(GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    settings = {"gpt_model": "tiny", "max_steps": 2, "eval_every": 1, "seeds": (0,), "clips_per_class": 1}
    return AblateMaskingConfig(data_path=grids, code_path=codes, results_dir=folder, device="cpu",
                               **settings | changes)


def test_every_masking_is_trained_sampled_and_judged(grids, codes, tmp_path, runtime, monkeypatch, capsys):
    config = tiny_config(grids, codes, tmp_path, monkeypatch)
    runs = run(config, runtime)
    assert [entry["masking"] for entry in runs] == list(MASKINGS) == ["none", "static", "element", "token"]
    assert all(entry["lowest_val_loss"] > 0 and 0 <= entry["in_class"] <= 1 for entry in runs)
    settings = [read_json(tmp_path / f"{name}-0" / "gpt" / "config.json") for name in MASKINGS]
    assert [entry["training"]["token_dropout_p"] for entry in settings] == [0, 0.1, 0.3, 0.3]
    table = capsys.readouterr().out
    assert run(config, runtime) == runs == read_json(tmp_path / "ablation.json")["runs"]
    assert all(f"\n{name} " in table for name in MASKINGS)


def test_signal_ends_the_comparison_and_a_rerun_continues_it(grids, codes, tmp_path, runtime, monkeypatch):
    config = tiny_config(grids, codes, tmp_path, monkeypatch, max_steps=3)
    optimise = TrainingState.optimise

    def optimise_under_a_signal(state, step, batches):
        optimise(state, step, batches)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "optimise", optimise_under_a_signal)
        with pytest.raises(KeyboardInterrupt):
            run(config, runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["none-0"]
    assert not (tmp_path / "none-0" / "samples").exists()
    assert len(run(config, runtime)) == len(MASKINGS)
