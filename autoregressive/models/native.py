"""Decode steps on a CPU in C++, compiled on first use.

A step of a small batch consists of hundreds of operators on a few rows, whose overhead takes longer than
reading the weights. `native.cpp` does it in one call. Weights in bfloat16 or int8 are widened as they are
read, and activations stay float32, so no processor needs special instructions.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from autoregressive.models.gpt import GPT, KVCache
from common.errors import InputError
from common.files import settle
from common.hardware import cpu_features, warn_absent

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
         "-fopenmp", "-shared", "-fPIC"]
PRECISIONS = {"int8": torch.int8, "bf16": torch.bfloat16, "none": torch.float32}
Pointer, Size = ctypes.c_void_p, ctypes.c_int64


class ModelStruct(ctypes.Structure):
    _fields_ = [*((name, Size) for name in ("layers", "width", "heads", "kv_heads", "channels", "hidden",
                                            "vocabulary", "turns")), ("eps", ctypes.c_float),
                *((name, Pointer) for name in ("cosines", "sines", "linears", "norms"))]


class LinearStruct(ctypes.Structure):
    _fields_ = [("weight", Pointer), ("scales", Pointer)]


class CacheStruct(ctypes.Structure):
    _fields_ = [("keys", Pointer), ("values", Pointer), ("row", Size), ("head", Size)]


class NativeDecoder:
    """`GPT.step` and `GPT.window` of a model whose linear layers are all float32, bfloat16 or `quantise`d.

    The logits of a position do not depend on the other rows, nor on the window's width.
    """

    def __init__(self, model: GPT):
        config, layers = model.config, model.layers
        linears = [linear for layer in layers for linear in (
            layer.attention.wqkv, layer.attention.wo, layer.feed_forward.w1, layer.feed_forward.w3,
            layer.feed_forward.w2)]
        norms = [norm.weight for layer in layers for norm in (layer.attention_norm, layer.ffn_norm)]
        self.linears = [(linear.weight.detach().contiguous(), getattr(linear, "scales", None))
                        for linear in (*linears, model.output)]
        self.norms = [weight.detach().float().contiguous() for weight in (*norms, model.norm.weight)]
        self.tables = [model.cos_LC.contiguous(), model.sin_LC.contiguous()]
        self.arrays = (LinearStruct * len(self.linears))(
            *((weight.data_ptr(), None if scales is None else scales.data_ptr())
              for weight, scales in self.linears)), addresses(self.norms)
        dtype = model.output.weight.dtype
        self.bytes, self.cache_dtype = dtype.itemsize, torch.bfloat16 if dtype == torch.int8 else dtype
        self.vocabulary, self.decode = config.vocab_size, library().decode
        self.model = ModelStruct(
            config.n_layer, config.dim, config.n_head, config.kv_heads, config.head_dim, config.ffn_dim,
            config.vocab_size, len(model.cos_LC), config.norm_eps, *(x.data_ptr() for x in self.tables),
            *(ctypes.cast(array, Pointer) for array in self.arrays))

    def __call__(self, x_RWD: Tensor, positions_RW: Tensor, cache: KVCache) -> Tensor:
        """Activations of W positions of R rows -> logits (R, W, V) float32; fills the slots `positions_RW`.

        The cache is in `cache_dtype`.
        """
        x_RWD, positions_RW = x_RWD.to(torch.float32, copy=True).contiguous(), positions_RW.contiguous()
        logits_RWV = x_RWD.new_empty(*x_RWD.shape[:2], self.vocabulary)
        keys, values, example = addresses(cache.keys), addresses(cache.values), cache.keys[0]
        slots = CacheStruct(ctypes.cast(keys, Pointer), ctypes.cast(values, Pointer), *example.stride()[:2])
        self.decode(
            ctypes.byref(self.model), *map(Size, x_RWD.shape[:2]), Pointer(x_RWD.data_ptr()),
            Pointer(positions_RW.data_ptr()), ctypes.byref(slots), Pointer(logits_RWV.data_ptr()),
            self.bytes, torch.get_num_threads())
        return logits_RWV


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    """The addresses of tensors, which must outlive them."""
    return (Pointer * len(tensors))(*(x.data_ptr() for x in tensors))


def quantise(linear: torch.nn.Linear) -> None:
    """Round a layer's weights to -127 to 127 times a factor of each output, `scales`. Only C++ reads them."""
    weight = linear.weight.detach().float()
    linear.scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo().tiny)
    linear.weight = torch.nn.Parameter((weight / linear.scales[:, None]).round().to(torch.int8), False)


def prepare(model: GPT, dtype: torch.dtype) -> GPT:
    """Convert the weights for decoding in `dtype`; on a CPU also have the steps done in C++ if possible.

    Tables of the rotary embedding, and on a CPU everything but the linear layers, stay in float32. The C++
    needs widths that are multiples of 16, as all models but GPT-3B have them. Raises: `InputError` for int8
    where C++ does not do the steps.
    """
    config = model.config
    fits = not any(width % 16 for width in (config.dim, config.ffn_dim, config.head_dim))
    on_cpu = model.output.weight.device.type == "cpu"
    native = on_cpu and fits and dtype in PRECISIONS.values() and library()
    if dtype == torch.int8 and not native:
        raise InputError("--mixed-precision int8: takes a CPU with a C++ compiler, and widths of 16 k")
    for module in model.modules():
        if dtype == torch.int8:
            if isinstance(module, torch.nn.Linear):
                quantise(module)
        elif not on_cpu or isinstance(module, torch.nn.Linear):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    if native:
        model.native = NativeDecoder(model)
    return model


@cache
def library() -> ctypes.CDLL | None:
    """The compiled native.cpp; None, and a warning with the reason, where it cannot be compiled or loaded."""
    try:
        path = compiled(SOURCE)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged in the cache, if another compilation makes another file
            before = path.read_bytes()
            path.unlink()
            if compiled(SOURCE).read_bytes() == before:
                raise
            return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # also without a home folder
        warn_absent("the decoder in C++", error)
        return None


def compiled(source: Path) -> Path:
    """The shared library of a C++ file, compiled for this processor unless the cache has it."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS]
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    processor = cpu_features() or platform.node()  # unknown: the library is for this machine alone
    key = hashlib.sha256(b"\0".join([source.read_bytes(), repr([command, processor]).encode(), version]))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "endogen"
    path = folder / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / path.name
            subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, check=True)
            settle(made)  # a process that loads half a library ends with a bus error
            made.replace(path)
    return path
