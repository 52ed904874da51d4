"""The comparison of ways to mask tokens: one run each, on equal terms, and a table."""

from autoregressive.models.config import GPT_SIZES
from benchmarks.ablate_masking import MASKINGS, AblateMaskingConfig, run
from common.files import read_json


def test_every_masking_is_trained_sampled_and_judged(grids, codes, tmp_path, runtime, monkeypatch, capsys):
    monkeypatch.setitem(GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    config = AblateMaskingConfig(data_path=grids, code_path=codes, results_dir=tmp_path, gpt_model="tiny",
                                 max_steps=2, eval_every=1, seeds=(0,), clips_per_class=1, device="cpu")
    runs = run(config, runtime)
    assert [entry["masking"] for entry in runs] == list(MASKINGS) == ["none", "static", "element", "token"]
    assert all(entry["lowest_val_loss"] > 0 and 0 <= entry["in_class"] <= 1 for entry in runs)
    settings = [read_json(tmp_path / f"{name}-0" / "gpt" / "config.json") for name in MASKINGS]
    assert [entry["training"]["token_dropout_p"] for entry in settings] == [0, 0.1, 0.3, 0.3]
    table = capsys.readouterr().out
    assert run(config, runtime) == runs == read_json(tmp_path / "ablation.json")["runs"]
    assert all(f"\n{name} " in table for name in MASKINGS)
