"""Two processes, with DDP or FSDP2, train what one trains, and each goes on from the others' checkpoints."""

import pytest
import torch
from training_jobs import run_job, run_jobs

from autoregressive.models.checkpoint import load_gpt
from common.checkpoints import checkpoint_file
from common.errors import InputError
from common.files import read_jsonl
from common.weights import load_checkpoint

STEPS = {"max_steps": 5, "log_every": 1, "sample_every": 0, "device": "cpu", "mixed_precision": "none"}
# Gradients are summed in another order: float32 rounding, which Adam makes larger where a gradient is nearly
# nothing but rounding. So weights may differ by a hundredth of the learning rate, losses by 1 in a million.
# (A tokenizer at a higher rate than here soon chooses another code somewhere, and there the runs part.)
LOSS, GPT_WEIGHT = {"rtol": 1e-6, "atol": 0}, {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def jobs(codes, grids):
    """name -> flags; a name says the wrapping, and from whose checkpoint of step 3 the run goes on.

    Those that go on compute a batch in parts, or recompute activations, which changes nothing either.
    """
    gpt = {"stage": "c2i", "code_path": str(codes), "global_batch_size": 4, "eval_every": 5, "ckpt_every": 3,
           "ema_decay": 0.5, "lr": 1e-2, **STEPS}
    vq = {"stage": "vq", "data_path": [str(grids)], "ch": 32, "ch_mult": [1, 1], "z_channels": 32, "lr": 1e-5,
          "codebook_size": 64, "num_res_blocks": 1, "global_batch_size": 4, "eval_every": 3, **STEPS,
          "max_steps": 3}
    judged = {**vq, "disc_weight": 0.5, "disc_start": 1, "disc_width": 8, "entropy_weight": 0.1}
    ddp, fsdp = {**gpt, "data_parallel": "ddp"}, {**gpt, "data_parallel": "fsdp"}
    return {
        "one": gpt,
        "ddp": ddp,
        "fsdp": fsdp,
        "one from fsdp": gpt,
        "ddp from fsdp": {**ddp, "gradient_accumulation_steps": 2},
        "fsdp from one": {**fsdp, "activation_checkpointing": True},
        "ddp bf16": {**ddp, "mixed_precision": "bf16"},
        "fsdp bf16": {**fsdp, "mixed_precision": "bf16", "sample_every": 5},
        "vq": vq,
        "vq parts": {**vq, "gradient_accumulation_steps": 2},
        "vq ddp": vq,
        "vq ddp parts": {**vq, "gradient_accumulation_steps": 2},
        "judged": judged,
        "judged parts": {**judged, "gradient_accumulation_steps": 2},
        "judged ddp": judged,
        "judged ddp parts": {**judged, "gradient_accumulation_steps": 2},
    }


@pytest.fixture(scope="module")
def runs(jobs, tmp_path_factory, runtime, tiny_size):
    """The folder in which every job has been run, in one process or in two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, job in jobs.items():
        job = jobs[name] = {**job, "results_dir": str(folder / name)}
        if " from " in name:
            job["goes_on_from"] = str(folder / name.split(" from ")[1])
    for name in ("one", "vq", "vq parts", "judged", "judged parts"):
        run_job(runtime, **jobs[name])
    run_jobs([job for name, job in jobs.items() if {"ddp", "fsdp"} & set(name.split()) and name[:3] != "one"])
    run_job(runtime, **jobs["one from fsdp"])
    return folder


def losses(run):
    return [record["loss"] for record in read_jsonl(run / "log.jsonl") if "loss" in record]


def assert_same_run(run, reference):
    """Losses of all steps, validation, and weights, averaged weights and moments of the last."""
    torch.testing.assert_close(losses(run), losses(reference), **LOSS)
    assert len(losses(run)) == 5
    validations = [read_jsonl(x / "log.jsonl")[-1]["val_loss"] for x in (run, reference)]
    torch.testing.assert_close(*validations, **LOSS)
    mine, theirs = (load_checkpoint(checkpoint_file(x)) for x in (run, reference))
    assert mine["step"] == theirs["step"] == 5
    for part in {"model", "ema"} & theirs.keys():
        torch.testing.assert_close(mine[part], theirs[part], **GPT_WEIGHT)
    torch.testing.assert_close(mine["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(name, runs):
    assert_same_run(runs / name, runs / "one")


@pytest.mark.parametrize("name", ["one from fsdp", "ddp from fsdp", "fsdp from one"])
def test_run_goes_on_with_another_wrapping_and_number_of_processes(name, runs):
    assert_same_run(runs / name, runs / "one")


@pytest.mark.parametrize("kind", ["vq", "judged"])
@pytest.mark.parametrize("split", ["parts", "ddp", "ddp parts"])
def test_tokenizer_trains_in_parts_and_on_two_processes_as_at_once(kind, split, runs):
    records = [read_jsonl(runs / name / "log.jsonl")[:3] for name in (kind, f"{kind} {split}")]
    for one, other in zip(*records, strict=True):
        for name in one.keys() - {"steps_per_s"}:
            assert other[name] == pytest.approx(one[name], rel=1e-5), name
    one, other = (load_checkpoint(checkpoint_file(runs / name)) for name in (kind, f"{kind} {split}"))
    torch.testing.assert_close(other["model"], one["model"], rtol=0, atol=1e-5)
    assert torch.equal(other["model"]["quantize.codebook_used"], one["model"]["quantize.codebook_used"])
    torch.testing.assert_close(other["task"], one["task"], rtol=0, atol=1e-5)


def test_sharded_checkpoint_holds_parts_and_can_be_sampled_from(runs):
    folder = checkpoint_file(runs / "fsdp")
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) == 2 and set(folder.iterdir()) == {*parts, folder / "facts.pt"}
    sizes = [path.stat().st_size for path in parts]
    assert max(sizes) < 0.6 * checkpoint_file(runs / "one").stat().st_size
    model, dataset, _ = load_gpt(folder)
    assert len(dataset["class_names"]) == model.config.num_classes
    parts[1].rename(runs / "lost")
    with pytest.raises(InputError, match=r"0000005.shards: not a readable checkpoint \(a part of /model/"):
        load_checkpoint(folder)
    parts[1].write_bytes((runs / "lost").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"0000005.shards: not a readable checkpoint"):
        load_checkpoint(folder)
    (runs / "lost").rename(parts[1])


def test_bf16_parts_are_gathered_in_bf16_and_learn_as_copies_do(runs):
    torch.testing.assert_close(losses(runs / "fsdp bf16"), losses(runs / "ddp bf16"), rtol=2e-3, atol=0)
    weights = load_checkpoint(checkpoint_file(runs / "fsdp bf16"))["model"]
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert len(list((runs / "fsdp bf16" / "sheets").iterdir())) == 1
