"""Small things that many tests share: a prepared data set, a tokenizer, codes, a GPT."""

import dataclasses
import os
from functools import cache

import pytest
import torch
from forked import ready_python
from small_data import make_grids
from training_jobs import TINY_GPT

from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from autoregressive.sample import pictures
from autoregressive.sample.sample_c2i import SampleC2IConfig
from common.checkpoints import save_checkpoint
from common.distributed import Runtime
from common.hardware import avoid_broken_amx
from common.training import config, loop
from common.training.curves import draw_curves
from dataset.codes import Codes
from evaluations import page
from evaluations.page import chart
from tokenizer.extract_codes import ExtractCodesConfig
from tokenizer.extract_codes import run as extract_codes
from tokenizer.vq_model import VQConfig, VQModel

torch.set_num_threads(1)  # small tensors, and other processes beside them
avoid_broken_amx()
HAS_GPU = torch.cuda.is_available()
for kind in (torch.cuda, torch.xpu, torch.backends.mps):
    kind.is_available = cache(lambda: False)  # the tests are of the CPU, but for those marked "gpu"
config.cpu_has_bf16 = pictures.cpu_has_bf16 = lambda: False  # the same numbers on any processor
loop.draw_curves = lambda folder: None  # takes longer than a tiny run
page.chart = lambda scores: b"<svg/>"  # likewise

SLOWEST = ("test_scripts.py", "test_surroundings.py", "test_compile.py", "test_survival.py")


def pytest_configure(config):  # pytest's
    config.option.loadscopereorder = False  # but the order below


def pytest_collection_modifyitems(items):
    """The slowest files come first, so that no worker is left with one at the end."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def gpu_if_marked(request, monkeypatch):
    """Tests marked "gpu" see the GPU, and are skipped where there is none."""
    if request.node.get_closest_marker("gpu"):
        if not HAS_GPU:
            pytest.skip("no GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def curves(monkeypatch):
    """Training draws its curves."""
    monkeypatch.setattr(loop, "draw_curves", draw_curves)


@pytest.fixture
def charts(monkeypatch):
    """Results are drawn."""
    monkeypatch.setattr(page, "chart", chart)


@pytest.fixture(scope="session")
def runtime():
    return Runtime()


@pytest.fixture(scope="session")
def command_env():
    """Environment for commands run as their own processes, one thread each, without a GPU."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="session", autouse=True)
def ready():
    """An environment for scripts whose Python starts at once: forked before there are threads of any test."""
    with ready_python() as folder:
        yield folder


@pytest.fixture(scope="session")
def python(ready):
    """In place of `sys.executable` for `-m MODULE` and `-c PROGRAM`, in processes that need not be killed."""
    return str(ready / "bin" / "python")


@pytest.fixture(scope="session")
def grids(tmp_path_factory):
    return make_grids(tmp_path_factory.mktemp("data") / "grids")


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory):
    """A run folder with an untrained tokenizer of downsample factor 4 and 64 codes."""
    torch.manual_seed(0)
    model = VQModel(VQConfig(ch=32, ch_mult=(1, 1, 1), z_channels=32, codebook_size=64, num_res_blocks=1))
    folder = tmp_path_factory.mktemp("tokenizer")
    save_checkpoint(folder / "checkpoints", 1, {"model": model.state_dict()}, keep=1)
    return folder


@pytest.fixture(scope="session")
def vgg(tmp_path_factory):
    """A file with the keys and shapes of torchvision's VGG-16, untrained."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def codes(grids, tokenizer_run, tmp_path_factory, runtime):
    folder = tmp_path_factory.mktemp("codes")
    config = ExtractCodesConfig(data_path=grids, code_path=folder, vq_ckpt=tokenizer_run, flip=True)
    extract_codes(config, runtime)
    return folder


@pytest.fixture(scope="module")
def tiny_size():
    """The size "tiny", for training that takes no time."""
    GPT_SIZES["tiny"] = TINY_GPT
    yield
    del GPT_SIZES["tiny"]


def make_gpt(tokens=256):
    """A GPT for clips of 64 codes, whose output layer is not zero as it is when training starts."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(dim=32, n_layer=2, n_head=2, vocab_size=64, block_size=tokens, num_classes=2))
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model.eval()


@pytest.fixture
def small_gpt():
    return make_gpt()


@pytest.fixture
def tiny_gpt():
    return make_gpt(36)


@pytest.fixture(scope="session")
def gpt_file(codes, tmp_path_factory):
    model, read = make_gpt(), Codes.read(codes)
    path = tmp_path_factory.mktemp("gpt") / "gpt.pt"
    torch.save({"model": model.state_dict(), "config": dataclasses.asdict(model.config),
                "dataset": read.dataset, "tokenizer": read.tokenizer}, path)
    return path


@pytest.fixture
def sample_config(gpt_file, tmp_path):
    return SampleC2IConfig(gpt_ckpt=gpt_file, save_folder=tmp_path / "clips", top_k=0, device="cpu")
