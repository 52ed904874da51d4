"""Sampling: its files, a clip as a function of weights, class and seed alone, and continuing a job."""

import base64
import dataclasses
import shutil
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks

from autoregressive.models.checkpoint import find_gpt
from autoregressive.sample.clip_files import write_clip
from autoregressive.sample.sample_c2i import SampleC2IConfig, make_jobs, run
from autoregressive.sample.sampler import fitting_batch
from common.checkpoints import checkpoint_file
from common.distributed import Runtime
from common.files import read_json
from dataset.codes import Codes
from dataset.grid import frames_to_grid
from dataset.manifest import Manifest

CLASSES = ("blue wall", "red wall")


@pytest.fixture
def config(sample_config):
    return sample_config


@pytest.fixture(scope="module")
def made(gpt_file, runtime, tmp_path_factory):
    """The configuration of a job that is done, one clip of every class."""
    folder = tmp_path_factory.mktemp("made") / "clips"
    config = SampleC2IConfig(gpt_ckpt=gpt_file, save_folder=folder, top_k=0, device="cpu")
    run(config, runtime)
    return config


@pytest.fixture
def done(made, tmp_path):
    """A copy of that job, with files of the same times."""
    shutil.copytree(made.save_folder, tmp_path / "done")
    return dataclasses.replace(made, save_folder=tmp_path / "done")


def pictures(folder):
    return {
        path.relative_to(folder / "grids").as_posix(): path.read_bytes()
        for path in sorted((folder / "grids").rglob("*.png"))
    }


def test_every_clip_is_written_as_grid_frames_video_and_gif(made):
    samples = read_json(made.save_folder / "samples.json")
    assert [(clip["class"], clip["seed"]) for clip in samples["clips"]] == [(name, 0) for name in CLASSES]
    for clip in samples["clips"]:
        grid = np.array(Image.open(made.save_folder / clip["grid"])).transpose(2, 0, 1)
        files = sorted((made.save_folder / clip["frames"]).iterdir())
        frames = np.stack([np.array(Image.open(file)).transpose(2, 0, 1) for file in files])
        assert frames.shape == (4, 3, 32, 32) and (frames_to_grid(frames, 2, 2) == grid).all()
        with av.open(str(made.save_folder / clip["video"])) as video:
            stream = video.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
            assert stream.average_rate == 10 and sum(1 for _ in video.decode(stream)) == 4
        with Image.open(made.save_folder / clip["gif"]) as gif:
            assert gif.n_frames == 4 and gif.info["loop"] == 0
    assert Image.open(made.save_folder / "contact_sheet.png").width > 4 * 32
    with Image.open(made.save_folder / "contact_sheet.webp") as film:
        assert film.n_frames == 4 and film.info["loop"] == 0 and film.width >= 2 * 32
    assert not [path for path in made.save_folder.rglob(".*")]


def test_gallery_holds_every_clip_and_what_made_it(made):
    page = (made.save_folder / "index.html").read_text()
    for clip in read_json(made.save_folder / "samples.json")["clips"]:
        assert base64.b64encode((made.save_folder / clip["video"]).read_bytes()).decode() in page
        assert clip["class"] in page
    assert "gpt.pt" in page and "cfg_scale" in page and "http" not in page  # needs nothing from elsewhere


def test_notice_and_settings_of_a_registered_model(config, runtime, gpt_file, monkeypatch, capsys):
    monkeypatch.setattr("autoregressive.sample.sampler.MODELS_FOLDER", gpt_file.parent)
    entry = {"notice": "PHANTOM <b>", "sampling": {"cfg_scale": 2.0, "temperature": 0.5}}
    monkeypatch.setattr("autoregressive.sample.sampler.registry", lambda: {"gpt.pt": entry})
    monkeypatch.chdir(gpt_file.parent)
    run(dataclasses.replace(config, gpt_ckpt=Path("gpt.pt"), temperature=0.9), runtime)
    samples = read_json(config.save_folder / "samples.json")
    assert samples["sampling"]["cfg_scale"] == 2.0 and samples["sampling"]["temperature"] == 0.9
    assert samples["notice"] == "PHANTOM <b>" and "PHANTOM <b>" in capsys.readouterr().out
    assert "PHANTOM &lt;b&gt;" in (config.save_folder / "index.html").read_text()


def test_samples_json_says_where_the_clips_come_from(made, codes):
    samples, read = read_json(made.save_folder / "samples.json"), Codes.read(codes)
    assert samples["dataset"] == read.dataset and samples["tokenizer"]["hash"] == read.tokenizer["hash"]
    assert samples["checkpoint"]["name"] == "gpt.pt" and samples["sampling"]["top_k"] == 0
    assert str(made.save_folder) not in (made.save_folder / "samples.json").read_text()


def test_clip_does_not_depend_on_its_batch(config, runtime, tmp_path):
    run(dataclasses.replace(config, clips_per_class=3), runtime)
    for batch_size in (1, 4):
        other = dataclasses.replace(
            config, clips_per_class=3, batch_size=batch_size, save_folder=tmp_path / str(batch_size)
        )
        run(other, runtime)
        assert pictures(other.save_folder) == pictures(config.save_folder)
    alone = dataclasses.replace(config, classes=("red wall",), seed=2, save_folder=tmp_path / "alone")
    run(alone, runtime)
    assert (
        pictures(alone.save_folder)["red wall/000002.png"]
        == pictures(config.save_folder)["red wall/000002.png"]
    )


def test_batch_fits_memory(small_gpt, runtime, monkeypatch):
    cpu, config = torch.device("cpu"), small_gpt.config
    assert fitting_batch(small_gpt, cpu, runtime) == 32
    clip = 2 * 2 * config.n_layer * config.dim * config.block_size * 4  # keys and values, guided
    monkeypatch.setattr("autoregressive.sample.sampler.free_memory", lambda: 11 * clip)
    assert fitting_batch(small_gpt, cpu, runtime) == 5
    assert fitting_batch(small_gpt, cpu, Runtime(0, 2)) == 2
    assert fitting_batch(small_gpt, cpu, Runtime(0, 50)) == 1


def test_clip_that_cannot_be_written_ends_the_run_and_a_rerun_makes_it(config, runtime, monkeypatch):
    config, write = dataclasses.replace(config, clips_per_class=2, batch_size=1), write_clip

    def full(folder, job, *rest):
        if job.seed == 1:
            raise OSError(28, "No space left on device")
        write(folder, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("autoregressive.sample.sample_c2i.write_clip", full)
        with pytest.raises(OSError, match="No space left"):
            run(config, runtime)
    assert len(pictures(config.save_folder)) == 2
    run(config, runtime)
    assert len(pictures(config.save_folder)) == 4


def test_pictures_in_bfloat16_are_refused_where_they_change(config, runtime, monkeypatch):
    config = dataclasses.replace(config, decode_precision="bf16")
    with monkeypatch.context() as patch:
        patch.setattr("autoregressive.sample.pictures.LEAST_PSNR", 101.0)
        with pytest.raises(ValueError, match=r"--decode-precision bf16: .* dB from those in float32, 101"):
            run(config, runtime)
    assert not config.save_folder.exists()
    run(config, runtime)
    assert read_json(config.save_folder / "samples.json")["sampling"]["decode_precision"] == "bf16"


def test_precision_of_pictures_suits_the_processor_and_stays_in_a_folder(config, runtime, monkeypatch):
    def precision(folder):
        return read_json(folder / "samples.json")["sampling"].get("decode_precision")

    assert config.decode_precision == "auto"
    other = dataclasses.replace(config, save_folder=config.save_folder.with_name("other"))
    for folder, fast in ((config.save_folder, True), (other.save_folder, False)):
        monkeypatch.setattr("autoregressive.sample.pictures.cpu_has_bf16", lambda fast=fast: fast)
        run(dataclasses.replace(config, save_folder=folder), runtime)
        monkeypatch.setattr("autoregressive.sample.pictures.cpu_has_bf16", lambda fast=fast: not fast)
        run(dataclasses.replace(config, save_folder=folder, clips_per_class=2), runtime)  # on another machine
        assert precision(folder) == ("bf16" if fast else None)
    monkeypatch.setattr("autoregressive.sample.pictures.LEAST_PSNR", 101.0)
    third = dataclasses.replace(config, save_folder=config.save_folder.with_name("third"))
    monkeypatch.setattr("autoregressive.sample.pictures.cpu_has_bf16", lambda: True)
    run(third, runtime)
    assert precision(third.save_folder) is None


def test_seeds_and_classes_give_different_clips(config, runtime):
    run(dataclasses.replace(config, clips_per_class=2), runtime)
    assert len(set(pictures(config.save_folder).values())) == 4


def test_rerun_makes_only_what_is_missing(done, runtime):
    first, second = (done.save_folder / "grids" / name / "000000.png" for name in CLASSES)
    content, stamp = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    run(done, runtime)
    assert first.read_bytes() == content and second.stat().st_mtime_ns == stamp
    run(dataclasses.replace(done, seed=7, classes=("red wall",)), runtime)
    clips = read_json(done.save_folder / "samples.json")["clips"]
    assert [(clip["class"], clip["seed"]) for clip in clips] == [
        *((name, 0) for name in CLASSES),
        ("red wall", 7),
    ]


def test_folder_with_clips_of_other_settings_is_refused(done, runtime):
    with pytest.raises(ValueError, match=r"done: was sampled with temperature 1.0, now 0.5: use another"):
        run(dataclasses.replace(done, temperature=0.5), runtime)


def test_failed_command_does_not_reserve_the_folder(config, runtime, monkeypatch):
    with pytest.raises(ValueError, match=r"--top-p 1\.5"):
        run(dataclasses.replace(config, top_p=1.5), runtime)
    assert not config.save_folder.exists()

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("autoregressive.sample.sample_c2i.write_clips", fail)
        with pytest.raises(MemoryError):
            run(config, runtime)
    run(dataclasses.replace(config, temperature=0.5), runtime)
    assert read_json(config.save_folder / "samples.json")["sampling"]["temperature"] == 0.5


def test_grids_of_unknown_origin_are_refused(done, runtime):
    (done.save_folder / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"holds grids but no samples\.json"):
        run(done, runtime)


def test_rank_that_looks_later_takes_no_clip_from_another(done):
    class Alone(Runtime):
        def gather(self, value):
            return [value]

        def agree(self, function):
            return function()

    for rank in (1, 0):  # one has finished before the other looks
        run(dataclasses.replace(done, clips_per_class=3), Alone(rank=rank, world_size=2))
    assert len(pictures(done.save_folder)) == 6


def test_two_processes_make_what_one_makes(config, runtime, tmp_path):
    config = dataclasses.replace(config, clips_per_class=2)
    run(config, runtime)
    shared = dataclasses.replace(config, save_folder=tmp_path / "two")
    assert run_ranks(partial(run, shared), 2) == [0, 0]
    assert pictures(tmp_path / "two") == pictures(config.save_folder)
    assert read_json(tmp_path / "two" / "samples.json") == read_json(config.save_folder / "samples.json")


def test_generated_grids_are_a_data_set_again(made):
    manifest = Manifest.read(made.save_folder / "grids")
    assert manifest.class_names == CLASSES and (manifest.rows, manifest.frame_size) == (2, 32)
    assert [(clip.name, clip.label) for clip in manifest.clips] == [
        (f"{name}/000000.png", label) for label, name in enumerate(CLASSES)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": ("green wall",)}, "--classes green wall: the checkpoint knows blue wall, red wall"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_k": -1}, "--top-k"),
        ({"vq_ckpt": "gone.pt"}, "gone.pt: no such file"),
    ],
)
def test_wrong_value_is_named(config, runtime, wrong, message, tmp_path):
    if "vq_ckpt" in wrong:
        wrong = {"vq_ckpt": tmp_path / wrong["vq_ckpt"]}
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(config, **wrong), runtime)


def test_queue_holds_every_class_for_every_seed():
    jobs = make_jobs(CLASSES, CLASSES, range(3, 5))
    assert [(job.label, job.seed) for job in jobs] == [(0, 3), (1, 3), (0, 4), (1, 4)]
    assert make_jobs(CLASSES[:1] * 2, CLASSES, range(1)) == make_jobs(CLASSES[:1], CLASSES, range(1))


def test_model_is_the_named_one_or_the_first_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr("autoregressive.models.checkpoint.MODELS_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"no model is in pretrained_models: .*download_models.sh hyperkv"):
        find_gpt(None)
    (tmp_path / "endogen_phantom_gpt.safetensors").touch()
    assert find_gpt(None).name == "endogen_phantom_gpt.safetensors"
    (tmp_path / "surgvisdom_model_0065324.pt").touch()
    assert find_gpt(None).name == "surgvisdom_model_0065324.pt"  # the bundled one comes last
    assert find_gpt(None, "phantom").name == "endogen_phantom_gpt.safetensors"
    with pytest.raises(ValueError, match=r"--model hyperkvasir: hyperkvasir_model_0054236.pt is not in"):
        find_gpt(None, "hyperkvasir")
    with pytest.raises(ValueError, match=r"--model nonsense: unknown, choose from hyperkvasir"):
        find_gpt(None, "nonsense")
    assert find_gpt(tmp_path / "own.pt") == checkpoint_file(tmp_path / "own.pt")
