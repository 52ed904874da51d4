"""A GPU, if there is one, gives what a CPU gives. The kernels are checked without one too."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HAS_GPU
from golden_weights import golden_state

from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.layers import KERNELS
from autoregressive.sample.sample_c2i import SampleC2IConfig
from autoregressive.sample.sample_c2i import run as sample
from autoregressive.train.train_c2i import TrainC2IConfig
from autoregressive.train.train_c2i import run as train
from common.files import read_json, read_jsonl
from common.hardware import kernels_for
from common.weights import load_checkpoint
from tokenizer.vq_model import VQConfig, VQModel

GOLDENS = Path(__file__).parent / "goldens"


def golden_model(kind, config, name):
    golden = np.load(GOLDENS / name)
    model = kind(config)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(golden_state(shapes, int(golden["seed0"])))
    return golden, model.eval()


def golden_gpt():
    arguments = json.loads(str(np.load(GOLDENS / "gpt_small.npz")["args"]))
    del arguments["cls_token_num"]
    return golden_model(GPT, GPTConfig(**arguments), "gpt_small.npz")


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow),
                                    pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_compute_the_same_as_plain_pytorch(device, command_env):
    if not importlib.util.find_spec("triton"):
        pytest.skip("no Triton on this platform")
    if device == "cpu" and HAS_GPU:
        pytest.skip("the GPU itself is checked")
    checks = Path(__file__).with_name("kernel_checks.py")
    env = {**command_env, "TRITON_INTERPRET": "1"} if device == "cpu" else {
        **os.environ, "PYTHONPATH": command_env["PYTHONPATH"]}
    command = [sys.executable, "-W", "ignore", str(checks), device]
    done = subprocess.run(command, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_kernels_are_for_a_gpu():
    assert kernels_for(KERNELS, torch.zeros(1)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "interval"), [(1, -1), (3, -1), (3, 16)])
@pytest.mark.parametrize("window", [1, 6])
def test_greedy_samples_are_the_released_models(scale, interval, dtype, window):
    golden, model = golden_gpt()
    model = model.to("cuda", dtype)
    assert bool(kernels_for(KERNELS, model.output.weight)) == (dtype == torch.float32)
    tokens_BN = generate(model, torch.from_numpy(golden["labels"]), [0] * 3, scale, interval, temperature=0,
                         decode_window=window)
    assert np.array_equal(tokens_BN.cpu(), golden[f"greedy_cfg{scale}_interval{interval}"])


@pytest.mark.gpu
def test_tokenizer_is_the_released_one():
    arguments = json.loads(str(np.load(GOLDENS / "vq_small.npz")["args"]))
    size = arguments.pop("size")
    golden, model = golden_model(VQModel, VQConfig(**arguments), "vq_small.npz")
    model = model.double().cuda()
    x = np.random.RandomState(int(golden["x_seed"])).uniform(-1, 1, (len(golden["x"]), 3, size, size))
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(x).cuda())
        assert np.array_equal(codes.cpu(), golden["codes"])
        np.testing.assert_allclose(model.decode(codes).cpu(), golden["dec"], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("optimizer", "parts", "close"), [
    ("adamw", 1, 1e-4), ("adamw", 2, 1e-4), ("muon", 1, 0.02)])  # on a GPU Muon's updates are in bfloat16
def test_training_has_the_losses_of_a_cpu(codes, tmp_path, runtime, tiny_size, optimizer, parts, close):
    losses = {}
    for name, flags in {"cpu": dict(device="cpu", compile=False), "gpu": dict(device="cuda", compile=False),
                        "compiled": dict(device="cuda", compile=True)}.items():
        train(TrainC2IConfig(
            code_path=codes, results_dir=tmp_path / name, gpt_model="tiny", max_steps=6, lr=1e-3,
            global_batch_size=4, gradient_accumulation_steps=parts, optimizer=optimizer, log_every=1,
            eval_every=0, sample_every=0, mixed_precision="none", **flags), runtime)
        log = read_jsonl(tmp_path / name / "log.jsonl")
        losses[name] = [line["loss"] for line in log if "loss" in line]
    assert losses["cpu"][0] > losses["cpu"][-1]
    np.testing.assert_allclose(losses["gpu"], losses["cpu"], rtol=close)
    np.testing.assert_allclose(losses["compiled"], losses["cpu"], rtol=close)


@pytest.mark.gpu
def test_training_on_a_gpu_goes_on_exactly(codes, tmp_path, runtime, tiny_size):
    for name, steps in (("once", (6,)), ("twice", (3, 6))):
        for step in steps:
            train(TrainC2IConfig(
                code_path=codes, results_dir=tmp_path / name, gpt_model="tiny", max_steps=step, ema_decay=0.9,
                global_batch_size=4, eval_every=0, sample_every=0, device="cuda"), runtime)
    once, twice = (load_checkpoint(tmp_path / name / "checkpoints" / "0000006.pt")
                   for name in ("once", "twice"))
    for key, value in once["ema"].items():
        torch.testing.assert_close(twice["ema"][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_clips_on_a_gpu(precision, gpt_file, tmp_path, runtime):
    folder = tmp_path / precision
    sample(SampleC2IConfig(gpt_ckpt=gpt_file, save_folder=folder, device="cuda", mixed_precision=precision,
                           clips_per_class=3, batch_size=2), runtime)
    assert len(read_json(folder / "samples.json")["clips"]) == 6
    assert len(list((folder / "videos").rglob("*.mp4"))) == 6
