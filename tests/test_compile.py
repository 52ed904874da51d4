"""Training that Inductor really compiles has the losses of the plain way: tokenizer, GPT, FSDP."""

import shutil

import pytest
import torch._inductor.config
from training_jobs import run_job, run_jobs

from common.files import read_jsonl

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
STEPS = {"max_steps": 3, "log_every": 1, "eval_every": 0, "sample_every": 0, "global_batch_size": 2,
         "device": "cpu", "mixed_precision": "none"}


@pytest.fixture(autouse=True)
def cheap_compilation():
    """In this process, as others take longer to start than this little takes to compile, and without -O3."""
    with torch._inductor.config.patch({"compile_threads": 1, "aot_inductor.debug_compile": True}):
        yield


def assert_same_losses(compiled, plain):
    records = [read_jsonl(run / "log.jsonl") for run in (compiled, plain)]
    assert len(records[1]) == 3
    for mine, theirs in zip(*records, strict=True):
        for name in theirs.keys() - {"steps_per_s"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_tokenizer_goes_on_when_its_adversary_starts(grids, runtime, tmp_path, capsys):
    job = {"stage": "vq", "data_path": [str(grids)], "ch": 8, "ch_mult": [1], "z_channels": 8,
           "codebook_size": 16, "num_res_blocks": 1, "disc_weight": 0.5, "disc_start": 1, "disc_width": 8,
           **STEPS}
    run_job(runtime, **job, results_dir=str(tmp_path / "plain"))
    run_job(runtime, **job, results_dir=str(tmp_path / "compiled"), compile=True)
    assert_same_losses(tmp_path / "compiled", tmp_path / "plain")
    assert "adversarial" in read_jsonl(tmp_path / "compiled" / "log.jsonl")[1]
    assert "without torch.compile" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_size")
def test_gpt_alone_and_sharded(codes, runtime, tmp_path, capfd):
    job = {"stage": "c2i", "code_path": str(codes), **STEPS}
    run_job(runtime, **job, results_dir=str(tmp_path / "plain"))
    halves = {**job, "results_dir": str(tmp_path / "compiled"), "compile": True}
    run_job(runtime, **halves, gradient_accumulation_steps=2)  # as large as what two processes compile
    sharded = {**job, "results_dir": str(tmp_path / "fsdp"), "compile": True, "data_parallel": "fsdp"}
    run_jobs([sharded])
    for name in ("compiled", "fsdp"):
        assert_same_losses(tmp_path / name, tmp_path / "plain")
    assert "without torch.compile" not in capfd.readouterr().out
