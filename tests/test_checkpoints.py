"""Damaged checkpoints: told from whole ones, passed over by readers, set aside by the run that goes on."""

import shutil
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoregressive.models.checkpoint import start_from
from autoregressive.sample import sample_c2i
from autoregressive.train import export
from common.checkpoints import checkpoint_file, checkpoints, newest_checkpoint, save_checkpoint
from common.checkpoints import damage as damage_of
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_json
from common.weights import load_checkpoint
from evaluations.probe import ProbeConfig, VideoProbe, load_probe
from tokenizer import extract_codes, reconstruct


def cut_short(path):
    path.write_bytes(path.read_bytes()[:1000])


def nuls(path):
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path):
    path.write_bytes(b"")


def spoilt_structure(path):
    path.write_bytes(path.read_bytes().replace(b"storage", b"sto\0age", 1))


def part_lost(path):
    if path.is_dir():
        next(path.iterdir()).unlink()
    else:
        path.write_bytes(b"no checkpoint")


DAMAGES = [cut_short, nuls, emptied, spoilt_structure, part_lost]


def write(path):
    """A checkpoint that holds its own step, in one file or in two parts."""
    checkpoint = {"step": int(path.stem), "model": torch.ones(999)}
    if path.suffix == ".pt":
        save_checkpoint(path.parent, int(path.stem), checkpoint, keep=9)
        return
    path.mkdir(parents=True)
    for part in ("0-of-2.pt", "1-of-2.pt"):
        torch.save(checkpoint, path / part)


def spoil(path, damage):
    damage(path if path.is_file() or damage is part_lost else path / "1-of-2.pt")


@pytest.mark.parametrize("suffix", [".pt", ".shards"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_counts_neither_for_readers_nor_as_kept(tmp_path, capsys, suffix, damage):
    folder = tmp_path / "checkpoints"
    for step in (500, 1000):
        write(folder / f"{step:07d}{suffix}")
    spoil(folder / f"0001000{suffix}", damage)
    before = sorted(folder.rglob("*"))
    assert checkpoint_file(tmp_path).stem == "0000500"
    said = capsys.readouterr().err
    assert said.startswith(f"warning: skipped {folder}/0001000{suffix}: not a readable checkpoint")
    assert said.count("\n") == 1
    assert sorted(folder.rglob("*")) == before  # readers change nothing
    save_checkpoint(folder, 600, {"step": 600}, keep=1)
    assert [path.stem for path in checkpoints(folder)] == ["0000600", "0001000"]
    found, warnings = newest_checkpoint(folder)
    assert found["step"] == 600 and f"it is now called 0001000{suffix}.damaged" in warnings[0]
    save_checkpoint(folder, 1000, {"step": 1000}, keep=1)
    assert {path.name for path in folder.iterdir()} == {"0001000.pt", f"0001000{suffix}.damaged"}


def test_run_looks_at_every_byte_before_it_goes_on(tmp_path):
    for step in (1, 2):
        write(tmp_path / f"{step:07d}.pt")
    path = tmp_path / "0000002.pt"
    content = bytearray(path.read_bytes())
    place = content.find(torch.ones(100).numpy().tobytes())
    content[place : place + 100] = bytes(100)
    path.write_bytes(content)
    assert load_checkpoint(path)["model"].min() == 0  # torch does not notice
    assert newest_checkpoint(tmp_path)[0]["step"] == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_is_renamed_where_no_checkpoint_is_whole(tmp_path, damage):
    write(tmp_path / "checkpoints" / "0000001.pt")
    spoil(tmp_path / "checkpoints" / "0000001.pt", damage)
    with pytest.raises(ValueError, match="none of the checkpoints can be read"):
        newest_checkpoint(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="none of the checkpoints can be read"):
        checkpoint_file(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000001.pt"]


@given(place=st.floats(0, 1), value=st.binary(min_size=1, max_size=64), size=st.floats(0, 1))
def test_damage_of_any_kind_is_told_or_stops_the_loading(tmp_path_factory, place, value, size):
    path = tmp_path_factory.mktemp("one") / "0000001.pt"
    torch.save({"model": torch.arange(50)}, path)
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    content[start : start + len(value)] = value
    path.write_bytes(content[: int(size * len(content)) or None])
    if damage_of(path, thorough=True):
        return
    with suppress(InputError):  # torch minds more of the table of contents, though nothing of the tensors
        assert load_checkpoint(path)["model"].tolist() == list(range(50))


@pytest.fixture
def damaged(tokenizer_run, gpt_file, tmp_path):
    """A function: the run folder of a tokenizer, a GPT or a probe whose newest checkpoint is half a file."""
    def make(kind):
        folder = tmp_path / f"{kind} run" / "checkpoints"
        folder.mkdir(parents=True)
        if kind == "probe":
            probe = VideoProbe(ProbeConfig(num_classes=2))
            facts = {"config": asdict(probe.config), "dataset": {"class_names": ["a", "b"]}}
            torch.save({"model": probe.state_dict(), **facts},
                       folder / "0000001.pt")
        else:
            file = gpt_file if kind == "gpt" else checkpoint_file(tokenizer_run)
            shutil.copy(file, folder / "0000001.pt")
        (folder / "0000002.pt").write_bytes(b"PK half of it")
        return folder.parent

    return make


def sampler(damaged, folder, config, grids, small_gpt):
    config = replace(config, gpt_ckpt=damaged("gpt"), vq_ckpt=damaged("vq"), save_folder=folder)
    sample_c2i.run(config, Runtime())
    facts = read_json(folder / "samples.json")
    return facts["checkpoint"]["name"], facts["tokenizer"]["name"]


def extractor(damaged, folder, config, grids, small_gpt):
    extract_codes.run(extract_codes.ExtractCodesConfig(data_path=grids, code_path=folder,
                                                       vq_ckpt=damaged("vq"), device="cpu"), Runtime())
    return [read_json(folder / "codes.json")["tokenizer"]["name"]]


def reconstructor(damaged, folder, config, grids, small_gpt):
    reconstruct.run(reconstruct.ReconstructConfig(data_path=grids, save_path=folder, vq_ckpt=damaged("vq"),
                                                  device="cpu"), Runtime())
    return [read_json(folder / "reconstruction.json")["inputs"]["tokenizer"]]


def exporter(damaged, folder, config, grids, small_gpt):
    export.run(export.ExportConfig(ckpt=damaged("gpt"), output=folder / "x.safetensors"), Runtime())
    return ["0000001.pt"]


def tuner(damaged, folder, config, grids, small_gpt):
    start_from(small_gpt, damaged("gpt"), ["a", "b"])
    return ["0000001.pt"]


def prober(damaged, folder, config, grids, small_gpt):
    load_probe(damaged("probe"))
    return ["0000001.pt"]


@pytest.mark.parametrize("reader", [sampler, extractor, reconstructor, exporter, tuner, prober])
def test_every_reader_of_a_run_folder_falls_back_and_says_it_once(
        reader, damaged, tmp_path, sample_config, grids, small_gpt, capsys):
    used = reader(damaged, tmp_path / "out", sample_config, grids, small_gpt)
    assert set(used) == {"0000001.pt"}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: skipped ")]
    assert len(said) == len(used) and all("0000002.pt: not a readable checkpoint" in line for line in said)
    assert len(list(tmp_path.glob("*/checkpoints/0000002.pt"))) == len(used)  # readers rename nothing
