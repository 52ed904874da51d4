"""The probe learns the classes; its report separates good samples from copies and from swapped classes."""

import dataclasses
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from small_data import make_grids
from torch._dynamo.testing import CompileCounterWithBackend
from training_jobs import run_job, run_jobs

from common.checkpoints import checkpoint_file
from common.files import read_json, read_jsonl, write_json
from common.training.wrapping import wrap_blocks
from common.weights import load_checkpoint, save_safetensors
from dataset.manifest import Manifest
from evaluations.class_consistency import ClassConsistencyConfig
from evaluations.class_consistency import run as report
from evaluations.probe import (
    FRAMES,
    SIZE,
    ProbeConfig,
    TrainProbeConfig,
    VideoProbe,
    augment,
    load_probe,
    probe_input,
)
from evaluations.probe import run as train_probe
from evaluations.scores import nearest_neighbours


@pytest.fixture(scope="module")
def probe_run(grids, tmp_path_factory, runtime):
    folder = tmp_path_factory.mktemp("probe")
    config = TrainProbeConfig(data_path=grids, results_dir=folder, max_steps=24, lr=3e-3, eval_every=24,
                              sample_every=0, device="cpu")
    train_probe(config, runtime)
    return folder


@pytest.fixture
def config(grids, probe_run, tmp_path):
    """The held-out clips stand for their own reconstructions, other clips of the same kind for samples."""
    make_grids(tmp_path / "samples" / "grids", clips_per_class=9)
    write_json(tmp_path / "samples" / "samples.json", {"clips": [{"class": "red wall"}]})
    manifest = Manifest.read(grids)
    held_out = dataclasses.replace(manifest, clips=tuple(manifest.select("val")))
    shutil.copytree(grids, tmp_path / "reconstructed")
    held_out.write(tmp_path / "reconstructed")
    return ClassConsistencyConfig(
        probe=probe_run, data_path=grids, reconstruction_path=tmp_path / "reconstructed",
        sample_path=tmp_path / "samples", device="cpu")


@pytest.mark.parametrize(("frames", "size"), [(16, 128), (4, 64), (1, 70)])
def test_input_has_one_shape_for_clips_of_any_length_and_size(frames, size):
    assert probe_input(torch.zeros(frames, 3, size, size, dtype=torch.uint8)).shape == (FRAMES, 3, SIZE, SIZE)


def test_training_clips_come_in_four_degrees_of_sharpness_and_any_of_colour():
    torch.manual_seed(0)
    clips = torch.rand(1, 2, 3, SIZE, SIZE) - 0.5
    colour = 1023 << 10  # all of it; the gain is 0.75
    made = torch.cat([augment(clips, torch.tensor([colour + (blur << 52)])) for blur in range(4)])
    torch.testing.assert_close(made[0], (clips[0] + 1) * 0.75 - 1)
    faded = augment(clips, torch.tensor([0]))[0]
    torch.testing.assert_close(faded.diff(dim=1), 0.5 * made[0].diff(dim=1))
    torch.testing.assert_close(faded.mean(1), made[0].mean(1))
    torch.testing.assert_close(made.mean((1, 2, 3, 4)), made[0].mean().expand(4), rtol=0, atol=1e-3)
    detail = made.std((1, 2, 3, 4))
    assert (detail[1:] < 0.6 * detail[:-1]).all()


def test_probe_is_small_enough_to_bundle_and_survives_half_precision(tmp_path):
    torch.manual_seed(0)
    probe = VideoProbe(ProbeConfig(num_classes=8)).eval()
    facts = {"config": dataclasses.asdict(probe.config), "dataset": {"class_names": ["a"]}}
    path = tmp_path / "probe.safetensors"
    save_safetensors(path, {key: value.half() for key, value in probe.state_dict().items()}, facts)
    assert path.stat().st_size < 1_000_000
    clips = torch.rand(2, FRAMES, 3, SIZE, SIZE)
    assert torch.allclose(load_probe(path)[0](clips), probe(clips), atol=2e-3)


def test_probe_learns_the_classes(probe_run):
    records = read_jsonl(probe_run / "log.jsonl")
    assert [record["val_accuracy"] for record in records if "val_accuracy" in record][-1] == 1.0


def job(grids, folder, **flags):
    return {"stage": "probe", "data_path": str(grids), "results_dir": str(folder), "max_steps": 2,
            "global_batch_size": 4, "log_every": 1, "eval_every": 1, "sample_every": 0, "ckpt_every": 1,
            "device": "cpu", "compile": False, **flags}


@pytest.fixture(scope="module")
def plain_run(grids, tmp_path_factory, runtime):
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_job(runtime, **job(grids, folder))
    return folder


def assert_same_run(run, reference):
    mine, theirs = ([{name: value for name, value in record.items() if name != "steps_per_s"}
                     for record in read_jsonl(folder / "log.jsonl")] for folder in (run, reference))
    assert len(theirs) == 4  # losses of two steps, two validations
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)
    mine, theirs = (load_checkpoint(checkpoint_file(folder))["model"] for folder in (run, reference))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_compiled_probe_is_one_graph_and_learns_the_same(plain_run, grids, tmp_path, runtime, monkeypatch):
    backend = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    run_job(runtime, **job(grids, tmp_path / "run", compile=True))
    convolutions = [sum("conv2d" in str(node.target) for node in graph.graph.nodes)
                    for graph in backend.graphs]
    assert [count for count in convolutions if count] == [5]  # one more graph tries the compiler
    assert_same_run(tmp_path / "run", plain_run)


def test_list_of_modules_is_no_block():
    with pytest.raises(AssertionError, match="no block"):
        wrap_blocks([torch.nn.ModuleList([torch.nn.Linear(2, 2)])], compiled=True, checkpointing=False)


def test_sharded_probe_learns_the_same(plain_run, grids, tmp_path):
    shared = {"data_parallel": "fsdp"}
    jobs = [job(grids, tmp_path / "run", **shared),
            job(grids, tmp_path / "rest", goes_on_from=str(tmp_path / "run"), **shared)]
    run_jobs(jobs)
    for name in ("run", "rest"):
        assert_same_run(tmp_path / name, plain_run)


def test_good_samples_are_in_their_class(config, runtime):
    result = report(config, runtime)
    assert result["generated"]["accuracy"] == 1.0 and result["generated"]["clips"] == 18
    assert result["frechet"]["reconstructed val"] == pytest.approx(result["frechet"]["real val"])
    assert result["distance_of_a_copy"] == 0
    assert read_json(config.sample_path / "class_consistency.json").items() > result.items()


def test_one_held_out_clip_has_no_frechet_distance_but_a_report(config, runtime):
    folder = config.reconstruction_path
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, clips=manifest.clips[:1]).write(folder)
    result = report(config, runtime)
    assert result["frechet"] == {"clips": 1,
                                 "reason": "a covariance needs more than 1 features, there is 1"}
    assert read_json(config.sample_path / "class_consistency.json").items() > result.items()


def test_mixed_up_classes_are_seen(config, runtime):
    folder = config.sample_path / "grids"
    manifest = Manifest.read(folder)
    clips = tuple(dataclasses.replace(clip, label=1 - clip.label) for clip in manifest.clips)
    dataclasses.replace(manifest, clips=clips).write(folder)
    result = report(config, runtime)
    assert result["generated"]["accuracy"] == 0.0
    assert result["generated"]["by_class"]["red wall"]["taken_for"] == [9, 0]


def test_nearest_training_clip_of_a_copy_is_itself():
    train = np.random.RandomState(0).randn(20, 8)
    distances, places = nearest_neighbours(train[3:5], train)
    np.testing.assert_allclose(distances, 0, atol=1e-6)  # squares of sums are rounded
    assert places.tolist() == [3, 4]
    lengths = np.linalg.norm(train, axis=1)
    assert nearest_neighbours(np.zeros((1, 8)), train)[0] == pytest.approx(lengths.min())


def test_other_classes_are_refused(config, runtime, tmp_path):
    shutil.copytree(config.data_path, tmp_path / "renamed")
    for folder in (tmp_path / "renamed", config.sample_path / "grids"):
        dataclasses.replace(Manifest.read(folder), class_names=("other", "red wall")).write(folder)
    with pytest.raises(ValueError, match=r"--probe .*: its classes are not those of the clips"):
        report(dataclasses.replace(config, data_path=tmp_path / "renamed", reconstruction_path=None), runtime)
    with pytest.raises(ValueError, match="holds no probe"):
        torch.save({"model": {}}, tmp_path / "no_probe.pt")
        load_probe(tmp_path / "no_probe.pt")
