"""The commands on a device that is none: python fake_device.py GRIDS TOKENIZER GPT FOLDER

`install` adds the device "fake" to PyTorch. Its tensors are computed on the CPU, but it is as strict as any
accelerator, and as MPS: tensors of the CPU and of the device do not mix, and there is no float64. A process
that has it keeps it, so this is a program of its own.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from training_jobs import TINY_GPT

from autoregressive.models.gpt import GPT_SIZES
from autoregressive.sample import sample_c2i
from autoregressive.train import train_c2i
from common import devices
from common.distributed import Runtime
from common.training import loop
from tokenizer import extract_codes, reconstruct, train_vq

COPY = torch.ops.aten.copy_.default
MOVES = {COPY, torch.ops.aten._to_copy.default}
LIBRARIES = []  # which unregister their operators when they are collected


class FakeTensor(torch.Tensor):
    """A tensor on "fake", whose values are those of `held`, on the CPU."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("fake has no float64")
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="fake:0")

    def __init__(self, held):
        self.held = held

    def __reduce_ex__(self, protocol):
        """Saved as what it holds."""
        return self.held.__reduce_ex__(protocol)

    def tolist(self):
        """PyTorch's own refuses subclasses."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if function not in MOVES and any(x.ndim for x in given if not isinstance(x, cls)):
            raise RuntimeError(f"{function}: tensors of fake and of the CPU")
        target = torch.device(kwargs.get("device") or "fake")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        owners = {id(x.held): x for x in given if isinstance(x, cls)}
        out = function(*tree_map(held, args), **tree_map(held, kwargs))
        if target.type == "cpu":
            return out
        return args[0] if function is COPY else tree_map(lambda x: wrapped(x, owners), out)


def held(x):
    return x.held if isinstance(x, FakeTensor) else x


def wrapped(x, owners):
    """A result on the device; of an operator that works in place, its own argument."""
    return owners.get(id(x), FakeTensor(x)) if isinstance(x, torch.Tensor) else x


def install():
    """Add the device, the only one beside the CPU."""
    module = SimpleNamespace(
        is_initialized=lambda: True, is_available=lambda: True, current_device=lambda: 0,
        device_count=lambda: 1, set_device=lambda index: None, _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None, get_amp_supported_dtype=lambda: [torch.bfloat16],
        mem_get_info=lambda device: (1 << 30, 1 << 30))
    _setup_privateuseone_for_python_backend("fake", module)
    aten, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name, maker in {"empty.memory_format": torch.empty, "empty_strided": torch.empty_strided,
                        "arange": torch.arange, "arange.start": torch.arange,
                        "arange.start_step": torch.arange}.items():
        aten.impl(name, lambda *sizes, maker=maker, dtype=None, **_: FakeTensor(
            maker(*sizes, dtype=dtype, device="cpu")), "PrivateUse1")
    aten.impl("_copy_from", lambda x, y, _=False: FakeTensor(held(y).copy_(held(x))), "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    LIBRARIES.extend([aten, every])
    devices.KINDS = ("fake", "cpu")


def run_commands(grids: Path, tokenizer: Path, gpt: Path, folder: Path, device: str) -> None:
    """Extraction, reconstruction, training of tokenizer and GPT, and sampling, each into `folder`."""
    training = dict(max_steps=2, global_batch_size=2, log_every=1, eval_every=2, sample_every=0, val_clips=1,
                    compile=False, mixed_precision="bf16" if device == "auto" else "none", device=device)
    extract_codes.run(extract_codes.ExtractCodesConfig(
        data_path=grids, code_path=folder / "codes", vq_ckpt=tokenizer, check_pictures=1, device=device),
        Runtime())
    reconstruct.run(reconstruct.ReconstructConfig(
        data_path=grids, save_path=folder / "rebuilt", vq_ckpt=tokenizer, clips_per_class=1, device=device),
        Runtime())
    train_vq.run(train_vq.TrainVQConfig(
        data_path=(grids,), results_dir=folder / "vq", ch=4, ch_mult=(1, 1, 1), z_channels=4,
        num_res_blocks=1, codebook_size=64, val_pictures=1,
        **{name: value for name, value in training.items() if name != "val_clips"}), Runtime())
    train_c2i.run(train_c2i.TrainC2IConfig(
        code_path=folder / "codes", results_dir=folder / "gpt", gpt_model="tiny", optimizer="muon",
        vq_ckpt=tokenizer, ema_decay=0.9, **training), Runtime())
    sample_c2i.run(sample_c2i.SampleC2IConfig(
        gpt_ckpt=gpt, vq_ckpt=tokenizer, save_folder=folder / "samples", classes=("red wall",), cfg_scale=2,
        temperature=0, decode_window=32, decode_precision="none", device=device), Runtime())


if __name__ == "__main__":
    GPT_SIZES["tiny"] = TINY_GPT
    loop.draw_curves = lambda folder: None
    torch.set_num_threads(1)
    *inputs, folder = map(Path, sys.argv[1:])
    install()  # before the first backward pass, which starts a thread for each device
    run_commands(*inputs, folder / "cpu", "cpu")
    run_commands(*inputs, folder / "fake", "auto")
