"""The baseline of the training benchmark is the same model, and the benchmark runs."""

import dataclasses
import json

import pytest
import torch

import benchmarks.bench_features as features
import benchmarks.bench_sampling as sampling
import benchmarks.bench_training as training
import benchmarks.harness as harness
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPTConfig
from benchmarks.plain import FastStep, plain_caches, plain_decode, plain_generate, plain_loss, plain_masking
from tokenizer.vq_model import VQConfig, VQModel

CONFIG = GPTConfig(dim=32, n_layer=2, n_head=2, vocab_size=64, block_size=64, num_classes=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    torch.nn.init.normal_(model.output.weight)
    return model


@pytest.fixture
def measured(monkeypatch):
    """The cases that were measured, in order, all in this process; the n-th one takes a peak of n MB."""
    cases = []

    def run_child(config, case):
        cases.append(case)
        return {**config.measure(case), "peak_mb": len(cases)}

    monkeypatch.setattr(harness, "run_child", run_child)
    return cases


def rows_of(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


def test_plain_model_is_the_same_function(model):
    batch = torch.randint(64, (3, 64)), torch.tensor([0, 1, 2])
    torch.testing.assert_close(plain_loss(model, *batch), model.loss(*batch))


def test_plain_masking_is_the_element_mode():
    config = dataclasses.replace(CONFIG, token_dropout_mode="element", token_dropout_p=0.9)
    masking, x_BND = GPT(config).token_masking.train(), torch.randn(2, 64, 32)
    torch.manual_seed(1)
    masked_BND = plain_masking(x_BND, config.token_dropout_segment, config.token_dropout_p)
    torch.manual_seed(1)
    assert torch.equal(masked_BND, masking(x_BND))


def test_plain_sampling_makes_the_same_tokens(model):
    labels_B = torch.tensor([0, 1])
    expected = generate(model, labels_B, [0, 1], cfg_scale=1.5, temperature=0)
    greedy, drawn = (plain_generate(model, plain_caches(model, 4), labels_B, 1.5, *rule, range(64))
                     for rule in ((0, 0), (1.0, 5)))
    assert torch.equal(greedy, expected)
    assert drawn.shape == expected.shape and not torch.equal(drawn, expected)


def test_the_step_to_compile_makes_the_same_token(model):
    labels_B, caches = torch.tensor([0, 1]), plain_caches(model, 4)
    tokens_BN = plain_generate(model, plain_caches(model, 4), labels_B, 1.5, 0, 0, range(64))
    plain_generate(model, caches, labels_B, 1.5, 0, 0, range(8))
    step = FastStep(model, caches, 1.5, top_k=1)
    for i in range(8, 16):
        assert torch.equal(step(tokens_BN[:, i - 1 : i], torch.tensor([i])), tokens_BN[:, i : i + 1])


def test_plain_decoder_makes_the_same_pictures():
    torch.manual_seed(0)
    model = VQModel(VQConfig(32, (1, 2), 32, 64, num_res_blocks=1)).eval().double()
    codes = torch.randint(64, (2, 8, 8))
    torch.testing.assert_close(plain_decode(model, codes), model.decode(codes).detach())


def test_training_benchmark_measures_every_variant_in_turn(measured, monkeypatch, capsys):
    monkeypatch.setitem(training.GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    monkeypatch.setattr(training, "matmul_rate", lambda device, dtype: 1e9)
    config = training.TrainingBenchmark(
        gpt_model="tiny", tokens=(64,), batch_size=2, vocab_size=64, steps=1, variants=("plain", "ours"),
        rounds=2, threads=1, device="cpu")
    harness.benchmark(config)
    assert measured == ["plain:64", "ours:64"] * 2
    rows = rows_of(capsys)
    assert [row["case"] for row in rows] == ["plain:64", "ours:64"]
    assert [row["memory"] for row in rows] == pytest.approx([1, 4 / 3])  # the larger peak of two rounds
    assert rows[0]["speed"] == 1 and all(row["s"] > 0 and row["utilisation"] > 0 for row in rows)


@pytest.fixture
def tiny_sampling(measured, monkeypatch):
    """The sampling benchmark with small models."""
    monkeypatch.setitem(sampling.GPT_SIZES, "tiny", {"n_layer": 1, "n_head": 2, "dim": 32})
    small = VQConfig(32, (1, 1, 1, 1, 1), 32, 64, num_res_blocks=1)
    monkeypatch.setattr(sampling, "VQConfig", lambda: small)
    monkeypatch.setattr(sampling.FastStep, "compile", lambda self, **options: None)
    return sampling.SamplingBenchmark(gpt_model="tiny", tokens=64, vocab_size=64, batch_size=2, rounds=2,
                                      threads=1, device="cpu")


@pytest.mark.parametrize(("changes", "passes"), [
    ({"variants": ("plain", "steps", "4")}, None),
    ({"steps": 8, "variants": ("plain", "compiled", "steps")}, [8, 8, 8]),
    ({"work": "pictures", "variants": ("plain", "ours")}, [2, 2]),
    ({"work": "clips", "rounds": 1}, [8, 8])], ids=str)
def test_sampling_benchmark_compares_with_its_first_variant(tiny_sampling, changes, passes, capsys):
    config = dataclasses.replace(tiny_sampling, **changes)
    harness.benchmark(config)
    rows = rows_of(capsys)
    assert [row["case"] for row in rows] == list(config.variants) and rows[0]["speed"] == 1
    assert passes is None or [row["passes"] for row in rows] == passes
    if passes is None:
        assert rows[1]["passes"] == 64 and 16 <= rows[2]["passes"] <= 64


def test_features_benchmark_compares_times_and_memory(measured, monkeypatch, capsys):
    def plain_pass(clips, network, device):
        return torch.zeros(len(clips.entries), 400)

    monkeypatch.setattr(features, "plain_pass", plain_pass)
    cases = [["plain"], ["memory:2", "memory:3"]]
    monkeypatch.setattr(features.FeaturesBenchmark, "cases", lambda self: cases)
    harness.benchmark(features.FeaturesBenchmark(clips=2, memory_clips=(2, 3), rounds=1, device="cpu"))
    rows = rows_of(capsys)
    assert [row["case"] for row in rows] == measured == ["plain", "memory:2", "memory:3"]
    assert [row["memory"] for row in rows] == [1, 1, 1.5]


def test_child_is_a_process_with_the_same_flags(tmp_path):
    config = sampling.SamplingBenchmark(
        gpt_model="GPT-XS", tokens=4, vocab_size=8, batch_size=1, device="cpu", threads=1,
        variants=("steps", "2"), folder=tmp_path)
    assert harness.run_child(config, "steps")["passes"] == 4
