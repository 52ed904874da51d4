"""The training loop around a model: compilation, recomputation, dry run, curves, old checkpoints."""

import dataclasses
import signal

import pytest
import torch
from PIL import Image
from torch import nn

from autoregressive.train.train_c2i import GPTTask, TrainC2IConfig, make_task, run
from common.checkpoints import checkpoint_file
from common.files import read_jsonl
from common.recorded import Recorder, mapped, tensors
from common.training.loop import TrainingState
from common.training.optimizers import Muon, load_states, make_optimizers, set_rate, states, take_step
from common.weights import load_checkpoint

pytestmark = pytest.mark.usefixtures("tiny_size")


def small_run(codes, folder, eval_every=2):
    return TrainC2IConfig(code_path=codes, results_dir=folder, gpt_model="tiny", max_steps=4,
                          global_batch_size=4, log_every=1, eval_every=eval_every, sample_every=0, lr=1e-2,
                          mixed_precision="none", device="cpu")


@pytest.fixture
def config(codes, tmp_path):
    return small_run(codes, tmp_path / "run")


@pytest.fixture(scope="module")
def plain_losses(codes, tmp_path_factory, runtime, tiny_size):
    config = small_run(codes, tmp_path_factory.mktemp("plain"), eval_every=0)
    run(config, runtime)
    return losses(config)


def losses(config):
    return [record["loss"] for record in read_jsonl(config.results_dir / "log.jsonl") if "loss" in record]


@pytest.mark.parametrize("wrapping", [
    {"compile": True}, {"compile": True, "activation_checkpointing": True},
    {"activation_checkpointing": True}, {"gradient_accumulation_steps": 4},
])
def test_wrapping_changes_nothing_but_rounding(codes, plain_losses, runtime, tmp_path, monkeypatch, wrapping):
    plain, graphs = torch.compile, []

    def traced(function, **options):  # all of compilation but the compiler, which takes a minute
        return plain(function, backend=lambda graph, _: graphs.append(graph) or graph.forward, **options)

    monkeypatch.setattr(torch, "compile", traced)
    wrapped = dataclasses.replace(small_run(codes, tmp_path, eval_every=0), **wrapping)
    run(wrapped, runtime)
    torch.testing.assert_close(losses(wrapped), plain_losses, rtol=1e-6, atol=0)
    assert bool(graphs) == ("compile" in wrapping)


def test_machine_without_a_compiler_trains_without(config, runtime, monkeypatch, capsys):
    def broken(function, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    run(dataclasses.replace(config, compile=True, max_steps=1), runtime)
    assert "training without torch.compile" in capsys.readouterr().out


@pytest.mark.parametrize("when", [2, 4])
def test_validation_that_a_signal_forestalled_comes_with_the_rerun(config, runtime, monkeypatch, when):
    def optimise_under_a_signal(state, step, batches):
        optimise(state, step, batches)
        if state.step == when:
            signal.raise_signal(signal.SIGTERM)

    optimise = TrainingState.optimise
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "optimise", optimise_under_a_signal)
        assert run(config, runtime) == when
    for _ in range(2):  # the second time nothing is left to do
        run(config, runtime)
    validated = [record["step"] for record in read_jsonl(config.results_dir / "log.jsonl")
                 if any(name.startswith("val_") for name in record)]
    assert validated == [2, 4]


def test_dry_run_says_what_the_run_would_take_and_writes_nothing(config, runtime, capsys):
    run(dataclasses.replace(config, dry_run=True, max_steps=54236), runtime)
    said = capsys.readouterr().out
    parameters = sum(p.numel() for p in make_task(config, runtime).model.parameters())
    for fact in (f"{parameters:,} parameters", "(4, 256) int64, (4,) int64", "54,236 of 4 samples", "in all"):
        assert fact in said
    assert not config.results_dir.exists()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_takes_the_steps_of_torchs_own(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (Muon([ours], lr=1e-2, weight_decay=0.05),
                  torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()  # which computes in bfloat16


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_that_is_not_finite_leaves_muon_as_it_was(recorded, config, runtime):
    model = make_task(config, runtime).model
    optimizers = make_optimizers(model, dataclasses.replace(config, optimizer="muon"))
    muon = optimizers[1]
    if recorded:  # which only a GPU can be, but the learning rate is a tensor
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = torch.tensor(1.0)
    set_rate(optimizers, 1e-2)
    for scale, skipped in ((1.0, False), (float("nan"), True)):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        momenta = {id(p): state["momentum_buffer"].clone() for p, state in muon.state.items()}
        for p in model.parameters():
            p.grad = torch.full_like(p, scale)
        take_step(optimizers, torch.tensor(skipped))
        unchanged = [torch.equal(p, before[name]) for name, p in model.named_parameters()]
        assert all(unchanged) if skipped else not any(unchanged)
        if skipped:
            assert all(torch.equal(state["momentum_buffer"], momenta[id(p)])
                       for p, state in muon.state.items())


def test_parts_of_a_batch_draw_the_same_noise(config, runtime, monkeypatch):
    drawn = []

    def loss(self, model, batch, seeds_B):
        drawn.append(float(torch.rand(())))
        return model.loss(*batch, seeds_B), {}

    monkeypatch.setattr(GPTTask, "loss", loss)
    run(dataclasses.replace(config, max_steps=2, gradient_accumulation_steps=2), runtime)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_optimiser_state_from_a_gpu_fits_a_cpu(config, runtime):
    state = TrainingState(make_task(config, runtime), config, runtime)
    saved = states(state.optimizers)
    for group in saved["param_groups"]:
        group.update(lr=torch.tensor(0.5), capturable=True)
    load_states(state.optimizers, saved)
    groups = [(group["lr"], group["capturable"]) for group in state.optimizers[0].param_groups]
    assert groups == [(config.lr, False)] * 2


def as_one(saved):
    """States of AdamW and Muon numbered as one optimiser's, Muon's first, which older checkpoints have."""
    muon = saved["muon"]
    count = len(muon["param_groups"][0]["params"])
    groups = [{**group, "params": [i + count for i in group["params"]]} for group in saved["param_groups"]]
    state = {i + count: entry for i, entry in saved["state"].items()}
    return {"state": {**muon["state"], **state}, "param_groups": muon["param_groups"] + groups}


def test_muon_goes_on_from_checkpoints_that_number_all_parameters_as_one(config, runtime, tmp_path):
    config = dataclasses.replace(config, optimizer="muon")
    run(config, runtime)
    other = dataclasses.replace(config, results_dir=tmp_path / "other")
    run(dataclasses.replace(other, max_steps=2), runtime)
    path = checkpoint_file(other.results_dir)
    old = load_checkpoint(path)
    torch.save({**old, "optimizer": as_one(old["optimizer"])}, path)
    run(other, runtime)
    whole, halves = (load_checkpoint(checkpoint_file(folder))["model"]
                     for folder in (config.results_dir, other.results_dir))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_nested_tensors_are_mapped_in_place_and_in_order():
    nested = [[torch.ones(2), torch.zeros(1)], [[torch.full((1,), 3.0)]]]
    assert [len(x) for x in tensors(nested)] == [2, 1, 1]
    assert mapped(float, [[torch.ones(())], [torch.zeros(())]]) == [[1.0], [0.0]]


def test_a_recorder_first_calls_the_function_as_it_is():
    recorder, x = Recorder(before=2), torch.zeros(2)
    found = [recorder(lambda nested: nested[0] + 1, [x]) for _ in range(2)]
    assert all(torch.equal(one, x + 1) for one in found) and recorder.graph is None


def test_curves_are_drawn_at_the_end(config, runtime, curves):
    run(config, runtime)
    with Image.open(config.results_dir / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 2  # lines, on white paper, with black frames


def test_checkpoint_from_before_these_settings_existed_is_continued(config, runtime, tmp_path):
    run(config, runtime)
    whole = load_checkpoint(checkpoint_file(config.results_dir))
    other = dataclasses.replace(config, results_dir=tmp_path / "other")
    run(dataclasses.replace(other, max_steps=2), runtime)
    path = checkpoint_file(other.results_dir)
    old = load_checkpoint(path)
    for name in ("data_parallel", "compile", "activation_checkpointing", "max_skipped_steps", "dry_run"):
        del old["training"][name]
    del old["meter"], old["skipped"]
    torch.save(old, path)
    run(other, runtime)
    state = load_checkpoint(checkpoint_file(other.results_dir))["model"]
    assert all(torch.equal(state[key], whole["model"][key]) for key in state)
