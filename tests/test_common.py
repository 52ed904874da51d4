"""Files, command lines, data order and the training loop's small parts."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from common.checkpoints import checkpoint_file, checkpoints, newest_checkpoint, save_checkpoint
from common.command import run_command
from common.distributed import Runtime
from common.files import append_jsonl, atomic_path, file_hash, read_json, read_jsonl, write_json
from common.image_quality import frame_quality, psnr, ssim
from common.training.config import TrainingConfig, learning_rate
from common.training.data_order import balanced, batch_indices, mixture, sample_seeds, step_batches
from common.training.optimizers import AveragedWeights
from common.training.run_log import RunLog
from tokenizer.train_vq import TrainVQConfig
from tokenizer.train_vq import run as train_vq


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "out.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert [p.name for p in path.parent.iterdir()] == ["out.txt"] and path.read_text() == "old"


def test_folder_appears_whole_and_replaces_the_one_before(tmp_path):
    for name in ("one", "two"):
        with atomic_path(tmp_path / "out", folder=True) as temporary:
            (temporary / name).touch()
            assert temporary.name.startswith(".")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "two"]


def test_broken_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")


def test_json_refuses_numbers_that_no_reader_accepts(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})


def test_log_line_cut_short_by_a_kill_is_dropped(tmp_path):
    append_jsonl(tmp_path / "log.jsonl", {"step": 1})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2')
    assert read_jsonl(tmp_path / "log.jsonl") == [{"step": 1}]


@pytest.mark.parametrize(("content", "steps"), [
    (b'{"step": 1}\n\0\0\0\0', [1]), (b'{"step": 1}\n\0\0{"step": 2}\n', [1, 2]),
    (b'{"step": 1}\0\0{"step": 2}\n', [1, 2]), (b'{"step": 1}\n{"step": 2, "lo\0\0\0{"step": 3}\n', [1, 3]),
    (b'{"step": 1}\n{"step": 2, "lo{"step": 3}\n', [1, 3]),
    (b'{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n', [1, 3]),
    (b'{"step": 1}\n{"st\xff\xfep": 2}\n{"step": 3}\n', [1, 3]), (b'[1]\nnull\n7\n{"step": 1}\n', [1]),
    (b'\0' * 4096, []), (b'{"step": 1}\n{"step": 2', [1])])
def test_readable_records_of_a_damaged_log_survive_and_it_is_said_once(tmp_path, capsys, content, steps):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    log = RunLog(tmp_path, enabled=True, step=100)
    said = capsys.readouterr().err
    assert said == f"warning: {path}: damaged, {len(steps)} records can be read\n"
    log.record(101, loss=1.0)
    assert [record["step"] for record in read_jsonl(path)] == [*steps, 101] and capsys.readouterr().err == ""


def test_whole_log_is_not_called_damaged(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "of": {"a": [1]}}\r\n\n{"step": 2}')
    assert len(read_jsonl(tmp_path / "log.jsonl")) == 2 and capsys.readouterr().err == ""


def test_threads_that_write_one_file_at_once_leave_one_of_theirs(tmp_path):
    both = Barrier(2)

    def write(text):
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text(text)
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "xy"))
    assert (tmp_path / "a").read_text() in "xy" and len(list(tmp_path.iterdir())) == 1


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")),
                                                   fsync(file)))
    write_json(tmp_path / "a.json", 1)
    with atomic_path(tmp_path / "b", folder=True) as temporary:
        (temporary / "1.png").touch()
    assert [Path(name).name for name in synced] == [f".a.{os.getpid()}.tmp.json", "1.png"]


def test_log_of_a_continued_run_has_no_step_twice(tmp_path):
    log = RunLog(tmp_path, enabled=True, step=0)
    for step in (10, 20, 30):
        log.record(step, loss=1.0)
    RunLog(tmp_path, enabled=True, step=20).record(30, loss=2.0)
    assert [(r["step"], r["loss"]) for r in read_jsonl(tmp_path / "log.jsonl")] == [(10, 1), (20, 1), (30, 2)]


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_every_epoch_holds_every_sample_once():
    order = [i for step in range(6) for i in batch_indices(9, 3, seed=5, step=step)]
    assert sorted(order[:9]) == sorted(order[9:]) == list(range(9)) and order[:9] != order[9:]


def test_batches_depend_on_seed_and_step_alone():
    whole = list(step_batches(7, 4, seed=1, start=0, stop=10))
    assert list(step_batches(7, 4, seed=1, start=6, stop=10)) == whole[6:]
    assert list(step_batches(7, 4, seed=2, start=0, stop=10)) != whole


def test_parts_of_a_batch_are_the_batch():
    parts = list(step_batches(8, 4, seed=0, start=3, stop=4, parts=2))
    assert sorted([*parts[0], *parts[1]]) == sorted(batch_indices(8, 4, 0, 3)) and len(parts) == 2
    with pytest.raises(ValueError, match="--gradient-accumulation-steps 3"):
        step_batches(8, 4, 0, 0, 1, parts=3)


def test_processes_share_every_part_of_a_batch_and_its_seeds():
    for parts in (1, 2):
        whole = list(step_batches(50, 12, seed=0, start=0, stop=2, parts=parts))
        group = [Runtime(rank, world_size=3) for rank in range(3)]
        shares = [list(step_batches(50, 12, 0, 0, 2, parts, runtime)) for runtime in group]
        for k, part in enumerate(whole):
            assert [shares[place % 3][k][place // 3] for place in range(len(part))] == part
    seeds = sample_seeds(12, 0, 5, 0, 1, Runtime())
    assert len(set(seeds.tolist())) == 12 and seeds.dtype == torch.int64
    assert torch.equal(sample_seeds(12, 0, 5, 1, 2, group[2]), seeds[1::2][2::3])
    with pytest.raises(ValueError, match="--global-batch-size 8"):
        step_batches(50, 8, 0, 0, 1, runtime=group[0])
    with pytest.raises(ValueError, match="--data-parallel none: there are 3"):
        group[0].wrap(torch.nn.Linear(1, 1), [], "none", torch.device("cpu"))


def test_learning_rate_warms_up_and_falls_to_a_tenth(tmp_path):
    config = TrainingConfig(
        results_dir=tmp_path, lr=1.0, lr_schedule="cosine", warmup_steps=10, max_steps=111)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[110] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_averaged_weights_are_the_weighted_mean_with_the_models_buffers():
    model = torch.nn.BatchNorm1d(2)
    ema = AveragedWeights(model, 0.75)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(5.0)
    ema.update()
    state = ema.state_dict()
    assert state["weight"].tolist() == [1.5, 1.5] and state["running_mean"].tolist() == [5, 5]
    with ema.in_place():
        assert model.weight.tolist() == [1.5, 1.5]
    assert model.weight.tolist() == [3, 3] and ema.state_dict()["weight"].tolist() == [1.5, 1.5]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 100, 20):
        save_checkpoint(tmp_path / "checkpoints", step, {"step": step}, keep=2)
    assert [path.stem for path in checkpoints(tmp_path / "checkpoints")] == ["0000020", "0000100"]
    assert checkpoint_file(tmp_path).stem == "0000100"
    with pytest.raises(ValueError, match="without checkpoints"):
        checkpoint_file(tmp_path / "checkpoints")


def test_truncated_newest_checkpoint_gives_way_to_the_one_before(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "model": torch.ones(999)}, keep=2)
    newest = tmp_path / "0000002.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    checkpoint, warnings = newest_checkpoint(tmp_path)
    assert checkpoint["step"] == 1 and "0000002.pt" in warnings[0]
    assert newest_checkpoint(tmp_path / "nothing here") == (None, [])
    assert newest_checkpoint(tmp_path)[1] == []  # it is set aside


def test_psnr_and_ssim_match_known_values():
    random = np.random.RandomState(0)
    a = random.rand(3, 64, 64)
    b = np.clip(a + 0.1 * random.randn(3, 64, 64), 0, 1)
    assert psnr(a, b) == pytest.approx(20.595544, abs=1e-6)
    assert ssim(a, b) == pytest.approx(0.947914, abs=1e-6)
    assert psnr(a, a) == 100 and ssim(a, a) == pytest.approx(1)
    frames = (255 * np.stack([a, b])).round().astype(np.uint8)
    found = frame_quality(frames, frames[[0, 0]])
    np.testing.assert_allclose(found, [[100, 1], [psnr(a, b), ssim(a, b)]], rtol=1e-3)


@pytest.mark.parametrize(("flags", "message"), [
    (["--results-dir", "r"], "--data-path"),
    (["--results-dir", "r", "--data-path", "d", "--max-steps", "many"], "--max-steps"),
    (["--results-dir", "r", "--data-path", "d", "--max-steps", "0"], "--max-steps 0"),
    (["--results-dir", "r", "--data-path", "d", "--no-such-flag"], "--no-such-flag"),
    (["--results-dir", "r", "--data-path", "no such folder"], "no such folder"),
])
def test_wrong_value_is_one_line_and_status_2(flags, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_vq", *flags])
    with pytest.raises(SystemExit) as stop:
        run_command(TrainVQConfig, train_vq)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_fault_of_the_program_keeps_its_traceback(python, command_env, tmp_path):
    program = ("from common.command import run_command\nfrom dataset.prepare import PrepareConfig\n"
               "run_command(PrepareConfig, lambda config, runtime: dict(zip([1], [], strict=True)))")
    done = subprocess.run([python, "-c", program, "--video-path", "v", "--data-path", "d"],
                          env=command_env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "zip() argument 2" in done.stderr


def test_registry_names_known_presets_and_tokenizers():
    from common.presets import PRESETS
    from common.registry import registry

    entries = registry()
    json.dumps(entries)
    for entry in entries.values():
        assert entry.get("url", "https://").startswith("https://") and entry["kind"] in ("gpt", "tokenizer")
        assert entry.get("preset", "hyperkvasir16") in PRESETS
        assert entries[entry["tokenizer"]]["kind"] == "tokenizer" if entry["kind"] == "gpt" else True


def test_mixture_holds_every_part_in_its_share_and_all_of_each():
    mixed = mixture([list(range(30)), list(range(100, 104))], [0.75, 0.25])
    samples = [mixed[i] for i in range(len(mixed))]
    assert len(samples) == 40 and sorted(s for s in samples if s < 100) == list(range(30))
    assert set(samples) >= {100, 101, 102, 103} and sum(s >= 100 for s in samples) == 10


def test_balanced_draws_every_label_equally_often():
    samples = ["a", "b", "b", "c", "c", "c", "c", "c"]
    drawn = balanced(samples, [ord(sample) for sample in samples])
    assert [list(drawn).count(label) for label in "abc"] == [5, 5, 5]
