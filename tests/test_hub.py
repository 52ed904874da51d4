"""Weights and data sets on the Hugging Face Hub: what goes up comes back, and what is wrong is one line."""

import io
import os
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import running_hub
from ranks import run_ranks

from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.sample.sample_c2i import run as sample
from autoregressive.train.export import ExportConfig
from autoregressive.train.export import run as export
from common.checkpoints import checkpoint_file
from common.command import run_command
from common.errors import InputError
from common.files import read_json, write_json
from common.hub import local_file
from common.pretrained import without_path
from dataset.codes import Codes
from dataset.hub_data import data_folder, pack, unpack
from dataset.manifest import Manifest
from dataset.push import PushConfig
from dataset.push import run as push_data
from tokenizer.extract_codes import ExtractCodesConfig
from tokenizer.extract_codes import run as extract_codes
from tokenizer.loading import find_tokenizer, load_tokenizer
from tokenizer.vq_model import VQModel


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server, to which the library talks in this process, with an empty cache.

    The library is imported late, as it reads the environment then.
    """
    import huggingface_hub.utils._cache_assets as assets
    from huggingface_hub import constants

    with running_hub() as hub:
        hub.cache = tmp_path / "cache"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(assets, "HF_ASSETS_CACHE", str(hub.cache / "assets"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


def test_gpt_goes_up_with_its_tokenizer_and_is_sampled_from_by_name(hub, gpt_file, sample_config, runtime,
                                                                    monkeypatch, capsys):
    export(ExportConfig(ckpt=gpt_file, push_to_hub="me/polyps", licence="cc-by-4.0"), runtime)
    files = hub.commits["models/me/polyps"][-1]
    assert set(files) == {"model.safetensors", "tokenizer.safetensors", "config.json", "preview.webp",
                          "README.md"}
    assert hub.created == {"models/me/polyps": "private"} and len(hub.commits["models/me/polyps"]) == 2
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\n") and "hf://me/polyps" in card
    assert "| blue wall |" in card
    machine = str(gpt_file.parents[1]).encode()  # where this test's files lie
    assert not [name for name, content in files.items() if machine in content]

    first = replace(sample_config, classes=("red wall",))
    sample(first, runtime)
    named = replace(first, gpt_ckpt=Path("hf://me/polyps@main"), save_folder=first.save_folder.with_name("b"))
    sample(named, runtime)
    grids = [(config.save_folder / "grids/red wall/000000.png").read_bytes() for config in (first, named)]
    assert grids[0] == grids[1]
    commit = hub.commit("models/me/polyps")
    record = read_json(named.save_folder / "samples.json")
    assert record["checkpoint"]["hub"] == {"asked": "hf://me/polyps@main",
                                           "file": f"hf://me/polyps@{commit}/model.safetensors"}
    assert record["tokenizer"]["hub"] == {"file": f"hf://me/polyps@{commit}/tokenizer.safetensors"}

    hub.put("models/me/polyps", {"README.md": b"another card, the same weights"})
    sample(named, runtime)
    hub.behaviour = "refuse"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    sample(named, runtime)
    assert len(read_json(named.save_folder / "samples.json")["clips"]) == 1 and len(hub.asked) == asked
    with pytest.raises(InputError, match=r"hf://me/other: not in the cache, and HF_HUB_OFFLINE is set"):
        local_file(Path("hf://me/other"))


def test_export_takes_preview_and_settings_from_samples_of_the_same_weights(
        hub, gpt_file, tokenizer_run, sample_config, runtime, tmp_path):
    sample(replace(sample_config, classes=("red wall",)), runtime)
    (sample_config.save_folder / "evaluation").mkdir()
    (sample_config.save_folder / "evaluation/metrics.txt").write_text("fvd 123.4\n")
    config = ExportConfig(ckpt=gpt_file, push_to_hub="me/polyps", licence="mit", private=False,
                          sample_path=sample_config.save_folder)
    export(config, runtime)
    files = hub.commits["models/me/polyps"][-1]
    assert files["preview.webp"] == (sample_config.save_folder / "contact_sheet.webp").read_bytes()
    assert "fvd 123.4" in files["README.md"].decode() and "--cfg-scale 1.0" in files["README.md"].decode()
    assert hub.created == {"models/me/polyps": "public"}
    GPT.from_pretrained(gpt_file).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--sample-path .*was not sampled from"):
        export(replace(config, ckpt=tmp_path / "model.safetensors", vq_ckpt=tokenizer_run), runtime)
    record = read_json(sample_config.save_folder / "samples.json")
    for part, change, reason in (("sampling", {"start": {"name": "patient.mp4"}}, "begins with given frames"),
                                 ("tokenizer", {"hash": "another"}, "another tokenizer")):
        changed = {**record, part: {**record[part], **change}}
        write_json(sample_config.save_folder / "samples.json", changed)
        with pytest.raises(InputError, match=f"--sample-path .*{reason}"):
            export(config, runtime)
    for other in ({"average_with": gpt_file}, {"averaged": False}):
        with pytest.raises(InputError, match="--sample-path: is for"):
            replace(config, **other)
    with pytest.raises(InputError, match="is no GPT"):
        export(replace(config, ckpt=tokenizer_run), runtime)
    assert len(hub.commits["models/me/polyps"]) == 2
    with pytest.raises(InputError, match="needs --licence"):
        ExportConfig(ckpt=gpt_file, push_to_hub="me/polyps")
    with pytest.raises(InputError, match="--push-to-hub"):
        ExportConfig(ckpt=gpt_file, push_to_hub="polyps", licence="mit")


def test_programs_save_and_load_models_by_folder_and_by_name(hub, gpt_file, tokenizer_run, tmp_path):
    model = GPT.from_pretrained(gpt_file)
    model.save_pretrained(tmp_path / "gpt")
    tokenizer = VQModel.from_pretrained(checkpoint_file(tokenizer_run))
    tokenizer.save_pretrained(tmp_path / "vq")
    hub.put("models/me/gpt", {name: (tmp_path / "gpt" / name).read_bytes()
                              for name in ("model.safetensors", "config.json")})
    old = hub.put("models/me/vq", {"model.safetensors": (tmp_path / "vq/model.safetensors").read_bytes()})
    hub.put("models/me/vq", {"model.safetensors": b"no weights"})
    for again in (GPT.from_pretrained(tmp_path / "gpt"), GPT.from_pretrained("me/gpt"),
                  GPT.from_pretrained("hf://me/gpt")):
        assert again.config == model.config
        assert again.facts == {name: without_path(fact) for name, fact in model.facts.items()} != model.facts
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    for again in (VQModel.from_pretrained(tmp_path / "vq"), VQModel.from_pretrained(f"me/vq@{old}")):
        assert all(map(torch.equal, again.state_dict().values(), tokenizer.state_dict().values()))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        VQModel.from_pretrained("me/vq")
    for nowhere in (tmp_path / "nowhere", "./nowhere", "~/nowhere"):
        with pytest.raises(InputError, match="nowhere: no such file"):
            VQModel.from_pretrained(nowhere)
    with pytest.raises(InputError, match="needs dataset and tokenizer"):
        GPT(GPTConfig(32, 1, 2, 64, 16, 2)).save_pretrained(tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_tokenizer_is_found_in_the_next_place_if_the_first_is_gone(hub, tokenizer_run, tmp_path):
    load_tokenizer(tokenizer_run).save_pretrained(tmp_path / "vq")
    content = (tmp_path / "vq" / "model.safetensors").read_bytes()
    commit = hub.put("models/me/gpt", {"model.safetensors": b"a GPT", "tokenizer.safetensors": content})
    facts = {"name": "tokenizer.safetensors", "path": f"hf://me/gone@{commit}/tokenizer.safetensors"}
    near = local_file(Path("hf://me/gpt"))
    _, path = find_tokenizer(facts, None, near)
    assert path.parent == near.parent
    hub.put("models/me/bare", {"model.safetensors": b"a GPT"})
    with pytest.raises(InputError, match=r"--vq-ckpt: not given, .*hf://me/gone.*no such repository"):
        find_tokenizer(facts, None, local_file(Path("hf://me/bare")))


def test_what_comes_from_there_runs_no_code_and_names_no_folder_outside(hub, gpt_file, tmp_path):
    torch.save({"model": Path}, tmp_path / "code.pt")
    model = GPT.from_pretrained(gpt_file)
    for number, dataset in enumerate(({"class_names": ["../up", "b"]}, {"class_names": ["a", "b"]}, [])):
        model.save_pretrained(tmp_path / str(number), dataset=dataset)
    hub.put("models/me/bad", {path.relative_to(tmp_path).as_posix(): path.read_bytes()
                              for path in [tmp_path / "code.pt", *tmp_path.glob("*/*")]})
    with pytest.raises(InputError, match="refused, loading it would run code"):
        VQModel.from_pretrained("hf://me/bad/code.pt")
    for number, reason in enumerate(("cannot name a file or folder", "damaged", "damaged")):
        with pytest.raises(InputError, match=reason):
            GPT.from_pretrained(f"hf://me/bad/{number}/model.safetensors")


@pytest.mark.parametrize(("behaviour", "name", "reason"), [
    ("truncate", "me/vq", "Consistency check failed"), ("corrupt", "me/vq", "not .* as on the Hub"),
    ("refuse", "me/vq", r"no access to it.*\(status 401\)"), ("good", "me/nothing", "no such repository"),
    ("good", "me/vq@v2", "no such revision"), ("good", "me/vq/other.pt", "holds no such file"),
])
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(hub, behaviour, name, reason, grids, tokenizer_run,
                                                           tmp_path, monkeypatch, capsys):
    load_tokenizer(tokenizer_run).save_pretrained(tmp_path / "vq")
    hub.put("models/me/vq", {"model.safetensors": (tmp_path / "vq/model.safetensors").read_bytes()})
    hub.behaviour = behaviour
    flags = ["--data-path", grids, "--code-path", tmp_path / "codes", "--vq-ckpt", f"hf://{name}"]
    monkeypatch.setattr(sys, "argv", ["extract_codes", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        run_command(ExtractCodesConfig, extract_codes)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(said) == 1 and said[0].startswith(f"error: hf://{name}: ")
    assert re.search(reason, said[0])
    assert not (tmp_path / "codes").exists()
    assert not [path for path in hub.cache.rglob("*") if path.parent.name == "blobs" or path.is_symlink()]


def test_refused_upload_is_one_line_and_changes_nothing(hub, tokenizer_run, grids, runtime):
    hub.put("models/me/polyps", {"README.md": b"mine"})
    hub.put("datasets/me/grids", {"README.md": b"mine"})
    hub.behaviour = "refuse uploads"
    model = ExportConfig(ckpt=tokenizer_run, push_to_hub="me/polyps", licence="mit")
    data = PushConfig(data_path=grids, push_to_hub="me/grids", licence="mit")
    for upload in (lambda: export(model, runtime), lambda: push_data(data, runtime)):
        with pytest.raises(InputError, match=r"^me/(polyps|grids): no such repository, or no access.* 403"):
            upload()
    assert [len(states) for states in hub.commits.values()] == [2, 2]
    assert not list(grids.glob(".*"))


def test_data_set_goes_up_and_comes_back(hub, grids, tokenizer_run, codes, runtime, tmp_path, capsys):
    hub.put("datasets/me/grids", {"train-00007.tar": b"of an earlier upload"})
    push_data(PushConfig(data_path=grids, push_to_hub="me/grids", licence="cc-by-4.0"), runtime)
    assert capsys.readouterr().out.endswith(
        "\nnext: bash scripts/train_vq.sh --results-dir RUN --data-path hf://datasets/me/grids\n")
    files = hub.commits["datasets/me/grids"][-1]
    assert set(files) == {"dataset.json", "train-00000.tar", "val-00000.tar", "README.md"}
    assert "| blue wall | 4 | 2 | 6 | recording |" in files["README.md"].decode()
    folder = data_folder(Path("hf://datasets/me/grids"), runtime)
    assert Manifest.read(folder) == Manifest.read(grids)
    for clip in Manifest.read(grids).clips:
        assert (folder / clip.name).read_bytes() == (grids / clip.name).read_bytes()
    marked = folder / Manifest.read(grids).clips[0].name
    inode = marked.stat().st_ino
    extract_codes(ExtractCodesConfig(data_path=Path("hf://datasets/me/grids"), code_path=tmp_path / "codes",
                                     vq_ckpt=tokenizer_run, flip=True), runtime)
    assert (tmp_path / "codes/codes.npy").read_bytes() == (codes / "codes.npy").read_bytes()
    assert Codes.read(tmp_path / "codes").names == Codes.read(codes).names and marked.stat().st_ino == inode


def test_shards_hold_every_picture_once_and_the_same_bytes_each_time(grids, tmp_path):
    manifest = Manifest.read(grids)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pack(grids, manifest, tmp_path / name, 3000)
    shards = sorted((tmp_path / "a").glob("*.tar"))
    assert len(shards) > 4
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in shards)
    unpack(shards, manifest, tmp_path / "out")
    assert Manifest.read(tmp_path / "out") == manifest


def hostile(entries, grids, folder):
    """A data set in tar files whose first shard holds `entries` before its own."""
    folder.mkdir()
    pack(grids, Manifest.read(grids), folder, 10**9)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return folder


def entry(name, kind=tarfile.REGTYPE, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
    return made


@pytest.mark.parametrize(("case", "reason"), [
    ("outside", "is no picture"), ("absolute", "is no picture"), ("link", "is no picture"),
    ("twice", "is no picture"), ("missing", "which no tar file holds"), ("cut", "not a readable tar file"),
])
def test_hostile_or_damaged_shards_are_refused_and_leave_nothing(grids, tmp_path, case, reason):
    clip = Manifest.read(grids).clips[0].name
    entries = {"outside": [entry("../../evil.png")], "absolute": [entry(str(tmp_path / "evil.png"))],
               "link": [entry(clip, tarfile.SYMTYPE, "/etc/hostname")], "twice": [entry(clip)] * 2}
    folder = hostile(entries.get(case, []), grids, tmp_path / "shards")
    if case == "missing":
        (folder / "val-00000.tar").unlink()
    if case == "cut":
        os.truncate(folder / "train-00000.tar", 3000)
    with pytest.raises(InputError, match=reason):
        unpack(sorted(folder.glob("*.tar")), Manifest.read(folder), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"shards"}


def test_pictures_with_holes_are_refused(grids, tmp_path):
    manifest = Manifest.read(grids)
    picture = entry(manifest.clips[0].name)
    picture.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": str(1 << 20)}
    folder = hostile([picture], grids, tmp_path / "shards")
    with pytest.raises(InputError, match="is no picture"):
        unpack([folder / "a.tar"], replace(manifest, clips=manifest.clips[:1]), tmp_path / "out")


def test_processes_take_the_same_commit(hub):
    hub.put("models/me/x", {"model.safetensors": b"weights"})

    def fetch(runtime):
        assert local_file(Path("hf://me/x"), runtime).read_bytes() == b"weights"

    assert run_ranks(fetch, 2) == [0, 0]
    assert [path for command, path in hub.asked if path.startswith("api/")].count("api/models/me/x") == 1
