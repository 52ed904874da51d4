"""A name that is read from a file leads nowhere else: it is refused, or all that is written lies below."""

import dataclasses
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import prepare, report, tree
from small_data import make_grids
from synthetic import write_class_videos

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.sample.clip_files import ClipJob, write_clip
from autoregressive.sample.gallery import write_gallery
from autoregressive.sample.sample_c2i import clips_there
from autoregressive.sample.sample_c2i import run as sample
from autoregressive.train.export import ExportConfig
from autoregressive.train.export import run as export
from common.errors import InputError
from common.files import read_json, write_json
from common.names import as_name, inside, is_name, is_path, told_apart
from common.weights import save_safetensors
from dataset.codes import Codes
from dataset.manifest import Manifest, read_released
from dataset.samples import read_samples
from evaluations.class_consistency import ClassConsistencyConfig
from evaluations.class_consistency import run as class_consistency
from evaluations.clips import ClipSet
from evaluations.page import write_page
from evaluations.probe import ProbeConfig, VideoProbe, load_probe
from tokenizer.loading import find_tokenizer
from tokenizer.reconstruct import ReconstructConfig
from tokenizer.reconstruct import run as reconstruct

ESCAPE = "../../../home/project"
SCRAPS = ["..", ".", "/", "\\", "~", "C:", "a", "Ä", " ", "\0", "\n", "\u2028", "é" * 130, "-", "*"]
NAMES = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(SCRAPS), max_size=6).map("".join))
FACTS = {"rows": 1, "cols": 1, "frame_size": 16, "fps": 5.0, "frame_stride": 1, "split_by": {}}


def stays(folder, name):
    """Whether the operating system finds `name` below `folder`, by other means than those under test."""
    return os.path.abspath(os.path.join(folder, name)).startswith(f"{folder}{os.sep}")


@pytest.mark.parametrize("name", [
    "Barrett's", "01", "NaN", "gastric antral", "息肉", "पॉलिप", "a..b", "-x", "%2e", "#?\"<b>&", " a ",
    "12:30", "é" * 127])
def test_real_names_are_allowed(name):
    assert is_name(name)


@pytest.mark.parametrize("name", [
    "", " ", ".", "..", ".. ", ".prepare", "a/b", "/a", "a\\b", "C:", "c:a", "a\nb", "\0", "\x7f", "\x85",
    "\u2028", "\ud800", "é" * 128, 1, None, ["a"]])
def test_what_is_no_name_of_a_file_is_refused(name):
    assert not is_name(name)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder three levels down, with somebody's files above it."""
    top = tmp_path_factory.mktemp("room")
    (top / "a" / "b" / "save").mkdir(parents=True)
    (top / "a" / "thesis.txt").write_text("years of work")
    return top / "a" / "b" / "save"


@given(name=NAMES)
@settings(max_examples=300, deadline=None)
def test_a_name_is_an_entry_of_its_folder(room, name):
    assert is_name(as_name(name)) or len(name) > 60
    if not is_name(name):
        return
    assert stays(room, name)
    inside(room, name).write_text("x")
    assert (room / name).read_text() == "x" and [path.name for path in room.iterdir()] == [name]
    (room / name).unlink()


@given(name=NAMES)
@settings(max_examples=60, deadline=None)
def test_any_class_name_in_a_checkpoint_is_refused_or_stays_below(room, name):
    model = GPT(GPTConfig(dim=8, n_layer=1, n_head=1, vocab_size=4, block_size=4, num_classes=1))
    facts = {"config": dataclasses.asdict(model.config), "dataset": {"class_names": [name], **FACTS},
             "tokenizer": {"name": "vq.pt"}}
    save_safetensors(room.parent / "gpt.safetensors", model.state_dict(), facts)
    try:
        _, dataset, _ = load_gpt(room.parent / "gpt.safetensors")
    except InputError as error:
        assert "gpt.safetensors" in str(error) and repr(name)[:80] in str(error)
        assert not is_name(name)
        return
    job = ClipJob(dataset["class_names"][0], 0, 7)
    assert all(stays(room, job.path(kind, "")) for kind in ("grids", "frames", "videos", "gifs"))
    write_clip(room, job, [torch.zeros(3, 16, 16, dtype=torch.uint8)], dataset)
    elsewhere = {path.name for path in room.parents[1].rglob("*") if room not in (path, *path.parents)}
    assert elsewhere == {"b", "thesis.txt", "gpt.safetensors"}


@given(name=NAMES)
@settings(max_examples=100, deadline=None)
def test_any_name_in_a_record_is_refused_or_stays_below(room, name):
    clip = {"name": name, "label": 0, "recording": name, "split": "val", "start": 0}
    records = {
        "dataset.json": {"version": 1, "class_names": ["a"], **FACTS, "clips": [clip]},
        "samples.json": {"clips": [{"class": "a", "grid": name}]},
        "codes.json": {"dataset": {"class_names": ["a"]}, "clips": [[name, 0, "val"]]}}
    folder = room.parent / "records"
    readers = {"dataset.json": Manifest.read, "samples.json": read_samples, "codes.json": Codes.read}
    for file, record in records.items():
        write_json(folder / file, record)
        try:
            readers[file](folder)
        except InputError as error:
            assert file in str(error) and repr(name)[:80] in str(error) and not is_path(name)
        except FileNotFoundError:  # there is no codes.npy beside a codes.json that is fine
            assert stays(folder, name) and file == "codes.json"
        else:
            assert stays(folder, name)


@pytest.fixture
def victim(tmp_path):
    """Somebody's folder, where the hostile class name leads from tmp_path/x/y/clips/frames."""
    folder = tmp_path / "x" / "home" / "project" / "000000"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    yield folder
    assert (folder / "thesis.txt").read_text() == "years of work" and len(list(folder.parent.rglob("*"))) == 2


def test_checkpoint_cannot_replace_a_folder_elsewhere(sample_config, runtime, victim, tmp_path):
    checkpoint = torch.load(sample_config.gpt_ckpt)
    checkpoint["dataset"] = {**checkpoint["dataset"], "class_names": ["blue wall", ESCAPE]}
    torch.save(checkpoint, tmp_path / "gpt.pt")
    save_folder = tmp_path / "x" / "y" / "clips"
    with pytest.raises(InputError, match=rf"gpt.pt: '{ESCAPE}' cannot name a file or folder"):
        sample(dataclasses.replace(sample_config, gpt_ckpt=tmp_path / "gpt.pt", save_folder=save_folder),
               runtime)
    assert not save_folder.exists()
    with pytest.raises(InputError, match=r"gpt\.pt"):
        export(ExportConfig(ckpt=tmp_path / "gpt.pt", output=tmp_path / "out.safetensors"), runtime)


@pytest.mark.parametrize("classes", [["a", "a"], "ab", None, ["a", 1], [["a"]]])
def test_class_names_are_distinct_text(tmp_path, classes):
    model = VideoProbe(ProbeConfig(2))
    facts = {"config": dataclasses.asdict(model.config), "dataset": {"class_names": classes}}
    save_safetensors(tmp_path / "probe.safetensors", model.state_dict(), facts)
    with pytest.raises(InputError, match=r"probe.safetensors: "):
        load_probe(tmp_path / "probe.safetensors")
    write_json(tmp_path / "dataset.json", {"version": 1, "class_names": classes, **FACTS, "clips": []})
    with pytest.raises(InputError, match=r"dataset.json: "):
        Manifest.read(tmp_path)
    record = {"dataset": {"class_names": classes}, "clips": [["a/0.png", 0, "val"]]}
    write_json(tmp_path / "codes.json", record)
    with pytest.raises(InputError, match=r"codes.json: "):
        Codes.read(tmp_path)


def test_reconstruction_stays_in_its_folder(grids, tokenizer_run, runtime, tmp_path, victim):
    data = make_grids(tmp_path / "data" / "grids")
    record = read_json(data / "dataset.json")
    picture = data / record["clips"][-1]["name"]
    picture.rename(data.parent / "000000.png")
    record["clips"][-1]["name"] = "../000000.png"
    write_json(data / "dataset.json", record)
    out = tmp_path / "x" / "out"
    config = ReconstructConfig(data_path=data, vq_ckpt=tokenizer_run, save_path=out, device="cpu")
    with pytest.raises(InputError, match=r"dataset.json: '../000000.png'"):
        reconstruct(config, runtime)
    out.mkdir()
    for name in Manifest.read(grids).class_names:
        (out / name).symlink_to(victim)
    with pytest.raises(InputError, match="a link leads out of"):
        reconstruct(dataclasses.replace(config, data_path=grids), runtime)


def test_clip_is_not_written_through_a_link_nor_over_other_files(tmp_path, victim):
    clip, job = [torch.zeros(3, 16, 16, dtype=torch.uint8)], ClipJob("polyps", 0, 0)
    (tmp_path / "save" / "frames").mkdir(parents=True)
    (tmp_path / "save" / "frames" / "polyps").symlink_to(victim.parent)
    with pytest.raises(InputError, match="a link leads out of"):
        write_clip(tmp_path / "save", job, clip, FACTS)
    notes = tmp_path / "own" / "frames" / "polyps" / "000000" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.touch()
    with pytest.raises(InputError, match=r"notes\.txt: would be lost"):
        write_clip(tmp_path / "own", job, clip, FACTS)
    assert [path.name for path in notes.parents[1].rglob("*")] == ["000000", "notes.txt"]
    (tmp_path / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far").mkdir()
    write_clip(tmp_path / "link", job, clip, FACTS)  # the folder itself may be a link
    assert (tmp_path / "far" / "grids" / "polyps" / "000000.png").exists()


def test_folder_of_frames_that_the_sampler_did_not_make_is_refused(sample_config, runtime):
    (sample_config.save_folder / "frames" / "blue wall").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds frames but no samples\.json"):
        sample(sample_config, runtime)


@pytest.mark.parametrize("clip", [
    {"class": ESCAPE}, {"grid": "../x.png"}, {"video": "/etc/passwd"}, {"grids": ["a", "../b"]},
    {"frames": 1}, {"gif": "a//b"}, {"class": ...}, {"grids": 1}])
def test_samples_of_others_are_read_from_their_folder_only(grids, runtime, tmp_path, clip):
    record = {"class": "a", "grid": "grids/a/000000.png"} | clip
    clips = [{name: value for name, value in record.items() if value is not ...}]
    write_json(tmp_path / "samples.json", {"dataset": FACTS, "clips": clips})
    compare = ClassConsistencyConfig(data_path=grids, sample_path=tmp_path)
    for read in (lambda: clips_there(tmp_path, {}), lambda: ClipSet.read(tmp_path, "--sample-path"),
                 lambda: class_consistency(compare, runtime)):
        with pytest.raises(InputError, match=r"samples\.json: "):
            read()


def test_prepare_touches_nothing_outside_of_its_folder(tmp_path, victim):
    write_class_videos(tmp_path / "videos", ("a",), recordings=1, frames=8, size=32)
    data = tmp_path / "x" / "data"
    prepare(tmp_path / "videos", data)
    before = tree(data)
    (plan,) = (data / ".prepare").iterdir()
    stale = plan.with_name("stale.json")
    (data / "out").symlink_to(victim)
    for name, reason in (("../home/project/000000/thesis.txt", "stale.json: '../home"),
                         ("out/thesis.txt", "a link leads out of")):
        write_json(stale, {"names": [name]})
        with pytest.raises(InputError, match=reason):
            prepare(tmp_path / "videos", data)
    (data / "out").unlink()
    stale.unlink()
    write_json(plan, {**read_json(plan), "names": ["../a.png"]})
    with pytest.raises(InputError, match=rf"{plan.name}: '../a.png'"):
        prepare(tmp_path / "videos", data)
    assert tree(data).keys() == before.keys()
    (tmp_path / "x" / "other").mkdir()
    (tmp_path / "x" / "other" / "a").symlink_to(victim)
    with pytest.raises(InputError, match="a link leads out of"):
        prepare(tmp_path / "videos", tmp_path / "x" / "other")


def test_names_on_disk_that_are_no_names_elsewhere(tmp_path):
    videos, released = tmp_path / "videos", tmp_path / "released"
    video, _ = write_class_videos(videos, ("a", "b\\.."), recordings=1, frames=8, size=32)
    video.rename(video.parent / "x\\..\nx.mp4")
    manifest = prepare(videos, tmp_path / "data")
    assert {clip.name for clip in manifest.clips} == {"a/x-..-x_000000.png", "a/x-..-x_000004.png"}
    assert Manifest.read(tmp_path / "data") == manifest and manifest.class_names == ("a",)
    assert [entry["file"] for entry in report(tmp_path / "data")["unusable"]] == ["b\\.."]
    (released / "b\\..").mkdir(parents=True)
    (released / "b\\.." / "x.png").touch()
    with pytest.raises(InputError, match=r"released: .* cannot name"):
        read_released(released)


def test_tokenizer_is_looked_for_by_a_name_alone(tmp_path):
    for name in ("../vq.pt", "/vq.pt", "", "a\\b", 3):
        with pytest.raises(InputError, match=r"gpt.pt: .* cannot name"):
            find_tokenizer({"name": name}, None, tmp_path / "gpt.pt")
    with pytest.raises(InputError, match="--vq-ckpt: not given"):
        find_tokenizer({"name": "[*] **.pt"}, None, tmp_path / "gpt.pt")  # is no pattern


def test_pages_show_any_class_name_as_it_is_and_link_to_nothing(tmp_path):
    name = "<script>alert('1')&\"#%?$x_{$"
    assert is_name(name)
    video = tmp_path / "videos" / name / "000000.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"video")
    weights = {"name": name, "hash": ""}
    facts = {"checkpoint": weights, "tokenizer": weights, "sampling": {}, "dataset": FACTS, "notice": name}
    write_gallery(tmp_path, facts, [{"class": name, "seed": 0, "video": f"videos/{name}/000000.mp4"}])
    (video.parent / "000001.mp4").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="a link leads out of"):
        write_gallery(tmp_path, facts, [{"class": name, "seed": 1, "video": f"videos/{name}/000001.mp4"}])
    record = {"value": 1.0, "stderr": None, "floor": None, "tokenizer": None}
    scores = {"fid": {"better": "lower", "per_class": {name: record}, "macro": record, "pooled": record}}
    section = {"scores": scores, "lines": [name], "bad_clips": {"real": [name]}}
    write_page(tmp_path, {"comparison": {"protocol": {"name": "", "summary": name}, "classes": [name]},
                          "warnings": [name], "sections": {name: section}})
    for page in ("index.html", "report.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert "<script" not in text and "&lt;script&gt;alert(" in text
        assert "href" not in text and text.count("src=") == text.count('src="data:')
    section["sheet"] = "../../secret.png"
    with pytest.raises(InputError, match="cannot name"):
        write_page(tmp_path, {"comparison": {}, "warnings": [], "sections": {name: section}})


def test_equal_names_are_told_apart():
    assert told_apart(["run (1)", "run (1)", "a", "a", "a (2)"]) == [
        "run (1)", "run (1) (2)", "a", "a (2)", "a (2) (2)"]
