"""The baseline of the training benchmark is the same model, and the benchmark runs."""

import dataclasses
import json

import pytest
import torch

import benchmarks.bench_training as bench
from autoregressive.models.gpt import GPT, GPTConfig
from benchmarks.plain_gpt import PlainGPT

CONFIG = GPTConfig(dim=32, n_layer=2, n_head=2, vocab_size=64, block_size=64, num_classes=2)


def test_plain_model_is_the_same_function():
    torch.manual_seed(0)
    model = GPT(CONFIG)
    torch.nn.init.normal_(model.output.weight)
    plain = PlainGPT(CONFIG)
    plain.load_state_dict(model.state_dict())
    batch = torch.randint(64, (3, 64)), torch.tensor([0, 1, 2])
    torch.testing.assert_close(plain.eval().loss(*batch), model.eval().loss(*batch))


def test_plain_masking_is_the_element_mode():
    config = dataclasses.replace(CONFIG, token_dropout_mode="element", token_dropout_p=0.9)
    model, plain, x_BND = GPT(config), PlainGPT(config), torch.randn(2, 64, 32)
    torch.manual_seed(1)
    masked_BND = plain.mask_segments(x_BND)
    torch.manual_seed(1)
    assert torch.equal(masked_BND, model.token_masking.train()(x_BND))


def test_benchmark_measures_every_variant_in_turn(monkeypatch, capsys):
    order = []

    def child(config, variant, tokens):
        order.append((variant, tokens))
        return {**bench.measure(config, variant, tokens), "peak": len(order)}

    monkeypatch.setitem(bench.GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    monkeypatch.setattr(bench, "run_child", child)
    monkeypatch.setattr(bench, "matmul_rate", lambda device: 1e9)
    config = bench.BenchmarkConfig(gpt_model="tiny", tokens=(64,), batch_size=2, vocab_size=64, steps=1,
                                   variants=("plain", "ours"), rounds=2, threads=1, device="cpu")
    bench.benchmark(config)
    assert order == [("plain", 64), ("ours", 64)] * 2
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["variant"] for row in rows] == ["plain", "ours"]
    assert [row["memory"] for row in rows] == pytest.approx([1, 4 / 3])  # the larger peak of two rounds
    assert rows[0]["speed"] == 1 and all(row["s_per_step"] > 0 for row in rows)
