"""Reconstruction: what is measured, that it resumes, and that its pictures are a data set again."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import make_grids

from common.checkpoints import checkpoint_file
from common.errors import InputError
from common.files import read_json
from common.perceptual import LPIPSDistance
from dataset.manifest import Manifest
from tokenizer.loading import load_tokenizer
from tokenizer.quality import reconstruct
from tokenizer.reconstruct import ReconstructConfig, compare, mean_lpips, run
from tokenizer.reconstruct_pictures import ReconstructPicturesConfig
from tokenizer.reconstruct_pictures import run as reconstruct_pictures


@pytest.fixture
def config(grids, tokenizer_run, tmp_path):
    return ReconstructConfig(data_path=grids, vq_ckpt=tokenizer_run, save_path=tmp_path / "out", device="cpu")


def clip_of(value, frames=4, size=32):
    return np.full((frames, 3, size, size), value, np.uint8)


def test_identical_clips_are_perfect():
    clip = np.random.RandomState(0).randint(0, 255, (4, 3, 32, 32)).astype(np.uint8)
    measures = compare(clip, clip)
    assert measures["psnr"] == 100 and measures["ssim"] == pytest.approx(1)
    assert np.isnan(measures["flicker"])  # in noise nothing stands still


def test_error_at_the_borders_is_a_seam():
    again = clip_of(100)
    again[..., :4, :], again[..., -4:, :], again[..., :4], again[..., -4:] = 106, 106, 106, 106
    again[..., 4:-4, 4:-4] += 2
    assert compare(clip_of(100), again)["seam_error"] == pytest.approx(3)


def test_flicker_is_change_where_the_original_stands_still():
    original, again = clip_of(100), clip_of(100)
    original[1::2, :, :16], again[1::2, :, :16] = 150, 150  # this half moves in both
    again[1::2, :, 16:] += 5
    assert compare(original, again)["flicker"] == pytest.approx(5)
    assert compare(original, again)["flicker_original"] == 0


def test_pictures_form_a_data_set_and_measures_are_written(config, runtime):
    result = run(config, runtime)
    manifest = Manifest.read(config.save_path)
    assert {clip.split for clip in manifest.clips} == {"val"} and len(manifest.clips) == 4
    assert all(Image.open(config.save_path / clip.name).size == (64, 64) for clip in manifest.clips)
    assert read_json(config.save_path / "reconstruction.json") == result
    assert result["by_class"]["blue wall"]["clips"] == 2 and 0 < result["all"]["psnr"] < 40
    assert Image.open(config.save_path / "sheet.png").height > 3 * 4 * 32


def test_lpips_is_measured_where_its_weights_are_given(config, runtime, vgg):
    result = run(dataclasses.replace(config, vgg_weights=vgg, clips_per_class=1), runtime)
    assert result["all"]["lpips"] > 0
    clip = clip_of(100)
    assert mean_lpips(LPIPSDistance("vgg", vgg, "--vgg-weights"), clip, clip, torch.device("cpu")) == 0


def test_rerun_keeps_pictures_and_another_tokenizer_is_refused(config, runtime, tmp_path):
    first = run(config, runtime)
    kept = config.save_path / Manifest.read(config.save_path).clips[0].name
    stamp = kept.stat().st_mtime_ns
    assert run(config, runtime) == first and kept.stat().st_mtime_ns == stamp
    other = make_grids(tmp_path / "other", rows=1, cols=1)
    with pytest.raises(ValueError, match="holds reconstructions of other inputs"):
        run(dataclasses.replace(config, data_path=other), runtime)
    stills = dataclasses.replace(config, data_path=other, save_path=tmp_path / "stills", clips_per_class=1)
    assert "flicker" not in run(stills, runtime)["all"]  # one frame does not move


def test_pictures_that_have_changed_are_reconstructed_anew(config, grids, runtime, tmp_path):
    config = dataclasses.replace(config, data_path=shutil.copytree(grids, tmp_path / "grids"))
    run(config, runtime)
    clip = Manifest.read(config.save_path).clips[0].name
    before = (config.save_path / clip).read_bytes()
    Image.new("RGB", (64, 64), (90, 60, 60)).save(config.data_path / clip)
    run(config, runtime)
    assert (config.save_path / clip).read_bytes() != before


def test_wrong_folders_are_named(config, runtime, grids):
    with pytest.raises(ValueError, match=r"--save-path .*: is --data-path"):
        run(dataclasses.replace(config, save_path=grids), runtime)


def test_pictures_of_any_size_keep_name_and_size(tokenizer_run, tmp_path, runtime):
    for name, size in (("a.jpg", (40, 30)), ("b/ü.png", (16, 16)), ("note.txt", None)):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if size:
            Image.new("RGB", size, (200, 90, 80)).save(path)
        else:
            path.write_text("no picture")
    config = ReconstructPicturesConfig(picture_path=tmp_path / "pictures", vq_ckpt=tokenizer_run, size=32,
                                       save_path=tmp_path / "out", device="cpu")
    reconstruct_pictures(config, runtime)
    made = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.png")}
    assert {name: Image.open(path).size for name, path in made.items()} == {
        "a.png": (40, 30), "b/ü.png": (16, 16)}
    pixels_HW3 = np.asarray(Image.open(made["b/ü.png"]))
    made["a.png"].unlink()
    there = made["b/ü.png"].stat().st_mtime_ns
    reconstruct_pictures(config, runtime)
    assert made["a.png"].exists() and made["b/ü.png"].stat().st_mtime_ns == there
    grid_3HW = torch.from_numpy(np.tile(np.uint8([[[200, 90, 80]]]), (32, 32, 1))).permute(2, 0, 1)
    model = load_tokenizer(checkpoint_file(tokenizer_run))
    expected_3HW, _ = reconstruct(model, grid_3HW, torch.device("cpu"))
    assert abs(pixels_HW3.mean((0, 1)) - expected_3HW.float().mean((1, 2)).numpy()).max() < 2
    with pytest.raises(InputError, match="another tokenizer or --size"):
        reconstruct_pictures(dataclasses.replace(config, size=64), runtime)
    with pytest.raises(InputError, match="--size 34: must be a multiple of"):
        reconstruct_pictures(dataclasses.replace(config, size=34), runtime)
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "b" / "ü.png")
    with pytest.raises(InputError, match="holds other pictures"):  # one is not what it was
        reconstruct_pictures(config, runtime)
    with pytest.raises(InputError, match="holds other pictures"):  # they may be anybody's
        reconstruct_pictures(dataclasses.replace(config, save_path=shutil.copytree(
            tmp_path / "out", tmp_path / "copy", ignore=shutil.ignore_patterns("pictures.json"))), runtime)
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg has the same name|a\.png has the same name"):
        reconstruct_pictures(dataclasses.replace(config, save_path=tmp_path / "new"), runtime)
    (tmp_path / "none").mkdir()
    for folder, said in (("none", "holds no pictures"), ("nowhere", "no such folder"), ("out", "or in it")):
        with pytest.raises(InputError, match=said):
            reconstruct_pictures(dataclasses.replace(config, picture_path=tmp_path / folder), runtime)


def test_pictures_of_unknown_origin_are_not_touched(config, runtime):
    shutil.copytree(config.data_path, config.save_path)
    with pytest.raises(InputError, match=r"holds pictures but no reconstruction\.json"):
        run(config, runtime)
    assert Manifest.read(config.save_path).clips == Manifest.read(config.data_path).clips
