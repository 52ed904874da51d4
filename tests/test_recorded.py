"""Training steps and decoding passes keep the rules of CUDA graphs: a replay does what a call does."""

import pytest
import torch
from fake_graph import FakeGraph, recording

from autoregressive.models.decoding import Passes, Rule, decode_in_windows
from autoregressive.models.generate import generate
from autoregressive.models.noise import noise_keys
from autoregressive.train.train_c2i import TrainC2IConfig, make_task
from common.recorded import Recorder
from common.training.loop import TrainingState
from common.training.optimizers import make_optimizers


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """The graphs that are recorded."""
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(FakeGraph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return made


def test_fake_notices_what_a_graph_cannot_repeat(graphs):
    recorder, total, calls = Recorder(before=0), torch.zeros(2), []

    def work(inputs):
        calls.append(1)
        total.add_(inputs[0] * 2)
        return total + 1

    found = [recorder(work, [torch.full((2,), float(i))]).clone() for i in range(3)]
    assert [x.tolist() for x in found] == [[1, 1], [3, 3], [7, 7]] and len(calls) == 1
    with pytest.raises(RuntimeError, match="waits for the device"):
        Recorder(before=0)(lambda _: total.sum().item())
    scaled, factors = Recorder(before=0), [1]
    for factors[0] in (1, 2):  # a number is recorded as it is
        assert scaled(lambda _: total * factors[0])[0] == 6


def test_recording_that_failed_is_made_again():
    recorder, full = Recorder(before=0), [True]

    def work(inputs):
        if full.pop():
            raise torch.OutOfMemoryError
        return inputs[0] + 1

    with pytest.raises(torch.OutOfMemoryError):
        recorder(work, [torch.ones(2)])
    full.append(False)
    assert recorder(work, [torch.ones(2)]).tolist() == [2, 2]


@pytest.mark.parametrize("flags", [
    {}, {"optimizer": "muon", "gradient_accumulation_steps": 2, "ema_decay": 0.5, "max_grad_norm": 0.1}],
    ids=["adamw", "muon in parts"])
def test_recorded_steps_train_as_others_do(flags, codes, tmp_path, runtime, tiny_size, graphs):
    config = TrainC2IConfig(
        code_path=codes, results_dir=tmp_path, gpt_model="tiny", max_steps=8, global_batch_size=4, lr=1e-2,
        lr_schedule="cosine", warmup_steps=3, dropout_p=0, token_dropout_p=0, device="cpu",
        mixed_precision="none", **flags)
    weights = []
    for recorded in (False, True):
        torch.manual_seed(0)
        state = TrainingState(make_task(config, runtime), config, runtime)
        if recorded:
            state.recorder, state.optimizers = Recorder(before=3), make_optimizers(state.model, config)
            for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                group["lr"] = torch.tensor(config.lr)  # as with recorded=True, which CPUs do not have
        batches = iter(state.batches())
        for step in range(config.max_steps):
            state.optimise(step, batches)
        weights.append({"loss": state.meter.read(), "model": dict(state.model.state_dict()),
                        "ema": dict(state.ema.averages) if state.ema else {}})
    [graph] = graphs
    assert graph.replays == config.max_steps - 3
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "settings"), [
    (1, {}), (5, {"cfg_scale": 2.0, "top_k": 20}), (5, {"cfg_scale": 2.0, "cfg_interval": 6})], ids=str)
def test_recorded_passes_make_the_same_clips(window, settings, tiny_gpt, graphs, monkeypatch):
    monkeypatch.setattr(Passes, "_run", lambda self, function, *arguments: self.recorders.setdefault(
        (function.__name__, *arguments), Recorder())(lambda _: function(*arguments)))
    monkeypatch.setattr("autoregressive.models.decoding.pass_overhead", lambda device, rows: 100)
    guided = 8 if "cfg_interval" in settings else 36 if settings else 0
    rule = Rule(settings.get("cfg_scale", 1.0), top_k=settings.get("top_k", 0), guided=guided)
    passes, table = Passes(tiny_gpt, 2, rule, window), tiny_gpt.cls_embedding.embedding_table.weight
    for seeds in ([1, 2], [3, 4]):  # the second batch is replayed from its first pass on
        labels = torch.tensor([0, 1])
        rows = torch.cat([labels, torch.full_like(labels, 2)]) if guided else labels
        with torch.no_grad():
            tokens, _ = decode_in_windows(passes, table[rows], noise_keys(seeds, 36), torch.full((2, 36), -1))
            assert torch.equal(tokens, generate(tiny_gpt, labels, seeds, **settings))
    assert graphs and sum(graph.replays for graph in graphs) > 10
