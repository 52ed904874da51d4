"""Decode steps in C++ are those of the model, in any batch and window."""

import dataclasses
import os

import pytest
import torch

import autoregressive.models.native as native
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.native import compiled, library, prepare
from common.errors import InputError
from common.hardware import warn_once

CONFIG = GPTConfig(
    dim=64, n_layer=2, n_head=4, vocab_size=50, block_size=36, num_classes=3, multiple_of=16)
SHAPES = {"plain": {}, "shared keys": {"n_kv_head": 2}, "one wide head": {"n_head": 1}}
COUNT = 21


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=SHAPES)
def model(request):
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(CONFIG, **SHAPES[request.param])).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model


def decoded(model, tokens_BN, labels_B, widths):
    """Logits of the first tokens: those of the class, then windows of these widths."""
    cache = model.new_cache(len(tokens_BN))
    logits, done = [model.prefill(labels_B, cache)[:, None]], 1
    for width in widths:
        positions = torch.arange(done, done + width).repeat(len(tokens_BN), 1)
        logits.append(model.window(tokens_BN[:, done - 1 : done - 1 + width], positions, cache))
        done += width
    return torch.cat(logits, 1)


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(50, (9, COUNT), generator=generator), torch.arange(9) % 4  # 3 is no class


def test_logits_are_those_of_the_model(model, clips):
    wanted = model(*clips)
    assert torch.allclose(decoded(prepare(model, torch.float32), *clips, [1, 3, 7, 9]), wanted, atol=1e-5)
    assert model.native


def test_logits_depend_neither_on_the_batch_nor_on_the_window(model, clips, two_threads):
    tokens, labels = clips
    together = decoded(prepare(model, torch.float32), tokens, labels, [20])
    for rows in (slice(0, 1), slice(2, 4), slice(3, 8)):
        assert torch.equal(decoded(model, tokens[rows], labels[rows], [1] * 13 + [2, 5]), together[rows])


def test_half_of_the_bytes_are_read_and_nothing_else_is_rounded(model, clips):
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    wanted = model(*clips)
    got = decoded(prepare(model, torch.bfloat16), *clips, [1] * 20)
    assert model.output.weight.dtype == model.new_cache(1).keys[0].dtype == torch.bfloat16
    assert (got - wanted).abs().mean() < 5e-3 * wanted.std()  # by the cache


def test_int8_is_rounded_by_output(model, clips):
    plain = model(*clips)
    prepare(model, torch.int8)
    cache = model.new_cache(9, model.native.cache_dtype)
    got = model.prefill(clips[1], cache)
    assert model.output.weight.abs().amax(1).eq(127).all()
    error = (got - plain[:, 0]).abs().mean() / plain[:, 0].std()
    assert 1e-3 < error < 3e-2


def test_int8_is_refused_where_nothing_reads_it():
    with pytest.raises(InputError, match="--mixed-precision int8: takes a CPU"):
        prepare(GPT(dataclasses.replace(CONFIG, dim=48)), torch.int8)


@pytest.mark.parametrize("window", [1, 5])
def test_clips_are_the_same(model, window):
    labels, seeds = torch.tensor([0, 1, 1]), [5, 6, 7]
    plain = generate(model, labels, seeds, cfg_scale=2.0)
    assert torch.equal(generate(prepare(model, torch.float32), labels, seeds, cfg_scale=2.0,
                                decode_window=window), plain)
    assert model.native


def test_widths_that_do_not_fit_are_left_to_the_layers():
    model = prepare(GPT(dataclasses.replace(CONFIG, dim=48)), torch.float32)
    assert model.native is None


def test_without_a_compiler_it_is_said_and_steps_go_on(monkeypatch, capfd):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    library.cache_clear()
    model = GPT(CONFIG).eval().requires_grad_(False)
    wanted = generate(model, torch.tensor([1]), [2])
    for _ in range(2):
        prepare(model, torch.float32)
    library.cache_clear()
    assert model.native is None and capfd.readouterr().err.count("the decoder in C++ cannot work") == 1
    assert torch.equal(generate(model, torch.tensor([1]), [2]), wanted)


@pytest.fixture
def library_of(tmp_path, monkeypatch):
    """A function: a small program as native.cpp, in a cache of its own -> what `library` makes of it."""
    def load(program):
        source.write_text(program)
        library.cache_clear()
        return library()

    source = tmp_path / "x.cpp"
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setattr(native, "FLAGS", ["-shared", "-fPIC"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    warn_once.cache_clear()
    yield load
    library.cache_clear()


def test_damaged_library_in_the_cache_is_compiled_again(library_of, tmp_path):
    (tmp_path / "x.cpp").write_text("int x;")
    file = compiled(tmp_path / "x.cpp")
    file.write_bytes(b"")
    assert library_of("int x;") and file.stat().st_size


def test_without_a_cache_it_is_said_and_steps_go_on(library_of, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert library_of("int x;") is None and "NotADirectoryError" in capfd.readouterr().err


def test_warning_holds_the_reason_of_the_compiler(library_of, capfd):
    assert library_of("#error no OpenMP here") is None and "error no OpenMP here" in capfd.readouterr().err


def test_library_is_compiled_once_and_anew_for_other_code(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ["-shared", "-fPIC"])
    source = tmp_path / "x.cpp"
    source.write_text("int x;")
    first, again = compiled(source), compiled(source)
    source.write_text("int y;")
    assert first == again != compiled(source)
    assert len(list((tmp_path / "endogen").iterdir())) == 2
