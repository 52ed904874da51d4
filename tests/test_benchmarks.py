"""The baseline of the training benchmark is the same model, and the benchmark runs."""

import dataclasses
import json

import pytest
import torch

import benchmarks.bench_sampling as sampling
import benchmarks.bench_training as bench
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPTConfig
from benchmarks.plain_decoding import plain_decode
from benchmarks.plain_gpt import PlainGPT
from benchmarks.plain_sampling import plain_caches, plain_generate
from tokenizer.vq_model import VQConfig, VQModel

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

    def child(module, config, name):
        variant, tokens = name.split(":")
        order.append(name)
        return {**bench.measure(config, variant, int(tokens)), "peak": len(order)}

    monkeypatch.setitem(bench.GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    monkeypatch.setattr(bench, "run_child", child)
    monkeypatch.setattr(bench, "matmul_rate", lambda device, dtype: 1e9)
    config = bench.BenchmarkConfig(gpt_model="tiny", tokens=(64,), batch_size=2, vocab_size=64, steps=1,
                                   variants=("plain", "ours"), rounds=2, threads=1, device="cpu")
    bench.benchmark(config)
    assert order == ["plain:64", "ours:64"] * 2
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["variant"] for row in rows] == ["plain", "ours"]
    assert [row["memory"] for row in rows] == pytest.approx([1, 4 / 3])  # the larger peak of two rounds
    assert rows[0]["speed"] == 1 and all(row["s_per_step"] > 0 for row in rows)


def test_plain_sampling_makes_the_same_tokens():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    torch.nn.init.normal_(model.output.weight)
    plain = PlainGPT(CONFIG).eval()
    plain.load_state_dict(model.state_dict())
    labels_B = torch.tensor([0, 1])
    expected = generate(model, labels_B, [0, 1], cfg_scale=1.5, temperature=0)
    greedy, drawn = (plain_generate(plain, plain_caches(plain, 4), labels_B, 1.5, *rule, range(64))
                     for rule in ((0, 0), (1.0, 5)))
    assert torch.equal(greedy, expected)
    assert drawn.shape == expected.shape and not torch.equal(drawn, expected)


def test_plain_decoder_makes_the_same_pictures():
    torch.manual_seed(0)
    model = VQModel(VQConfig(32, (1, 2), 32, 64, num_res_blocks=1)).eval().double()
    codes = torch.randint(64, (2, 8, 8))
    torch.testing.assert_close(plain_decode(model, codes), model.decode(codes).detach())


@pytest.fixture
def tiny_sampling(monkeypatch):
    """The sampling benchmark with small models and all in this process."""
    monkeypatch.setitem(sampling.work.GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    small = VQConfig(32, (1, 1, 1, 1, 1), 32, 64, num_res_blocks=1)
    monkeypatch.setattr(sampling.work, "VQConfig", lambda: small)
    monkeypatch.setattr(sampling, "run_child",
                        lambda module, config, name: {**sampling.measure(config, name), "peak": 1})
    return sampling.BenchmarkConfig(gpt_model="tiny", tokens=64, vocab_size=64, batch_size=2, rounds=2,
                                    threads=1, device="cpu")


@pytest.mark.parametrize(("changes", "passes"), [
    ({"variants": ("plain", "steps", "4")}, None), ({"steps": 8}, [8, 8]), ({"work": "pictures"}, [2, 2]),
    ({"work": "clips"}, [8, 8])], ids=str)
def test_sampling_benchmark_compares_with_its_first_variant(tiny_sampling, changes, passes, capsys):
    config = dataclasses.replace(tiny_sampling, **changes)
    sampling.benchmark(config)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["variant"] for row in rows] == list(config.variants) and rows[0]["speed"] == 1
    assert passes is None or [row["passes"] for row in rows] == passes
    if passes is None:
        assert rows[1]["passes"] == 64 and 16 <= rows[2]["passes"] <= 64
