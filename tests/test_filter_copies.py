"""Near-copies of training clips are left out of the sampler's clips, and nothing else."""

import dataclasses

import numpy as np
import pytest
from eval_data import CLASSES, SIDE, SIZE, make_clips
from PIL import Image

from autoregressive.sample.clip_files import ClipJob, write_manifest
from common.files import read_json, write_json
from dataset.manifest import Manifest
from evaluations import extractor, filter_copies
from evaluations.clips import ClipSet
from evaluations.filter_copies import FilterCopiesConfig, copy_clip, run
from evaluations.memorisation import class_report
from evaluations.segmentation_data import find_pictures

COPIES = {("blue", 1), ("red", 0), ("red", 3)}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Real clips, and the sampler's output with near-copies of training clips among others."""
    monkeypatch.setattr(extractor, "LITE0_SIDE", 32)
    real, out = make_clips(tmp_path / "real", (12, 12)), tmp_path / "samples"
    random = np.random.RandomState(0)
    jobs = [ClipJob(name, label, seed) for label, name in enumerate(CLASSES) for seed in range(5)]
    for job in jobs:
        index = 4 * (job.seed // 2) + job.seed % 2  # of recordings 0 and 1, which are for training
        with Image.open(real / job.class_name / f"rec{job.seed % 2}_{index:06d}.png") as image:
            picture = np.array(image).astype(int)
        if (job.class_name, job.seed) not in COPIES:
            picture = 255 - picture
        noisy = (picture + random.randint(-1, 2, picture.shape)).clip(0, 255).astype(np.uint8)
        for path in (out / job.path("grids", ".png"), out / job.path("frames", "") / "000.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path)
    facts = Manifest.read(real).facts()
    clips = [{k: v for k, v in job.record(1).items() if k not in ("video", "gif")} for job in jobs]
    write_manifest(out / "grids", clips, facts)
    write_json(out / "samples.json", {"dataset": facts, "clips": clips})
    return FilterCopiesConfig(data_path=real, sample_path=out, save_path=tmp_path / "kept", device="cpu",
                              quantile=0.01)


def test_near_copies_go_and_all_files_of_the_others_stay(config, runtime):
    result = run(config, runtime)
    assert {(pair["class"], int(pair["generated"][-10:-4])) for pair in result["removed"]} == COPIES
    assert result["kept"] == 10 - len(COPIES) and result["per_class"]["red"]["removed"] == 2
    thresholds = {name: own["threshold"] for name, own in result["per_class"].items()}
    assert all(pair["distance"] < thresholds[pair["class"]] for pair in result["removed"])
    kept = ClipSet.read(config.save_path, "--sample-path")
    assert {(entry.class_name, int(entry.name[-10:-4])) for entry in kept.entries}.isdisjoint(COPIES)
    assert len(kept.entries) == 7 and kept.frames(kept.entries[0]).shape == (SIDE * SIDE, 3, SIZE, SIZE)
    files = {path.relative_to(config.save_path) for path in config.save_path.rglob("*.png")}
    assert len([path for path in files if path.parts[0] in ("grids", "frames")]) == 14
    assert (config.save_path / "removed.png").exists()
    assert read_json(config.save_path / "copies.json") == result
    assert run(config, runtime) == result


def test_class_of_which_nothing_is_left_is_said(config, runtime, capsys, monkeypatch):
    def strict(real, generated, quantile):
        report, pairs = class_report(real, generated, quantile)
        blue = generated.entries[0].class_name == "blue"
        return {**report, "threshold": 1e9 if blue else report["threshold"]}, pairs

    monkeypatch.setattr(filter_copies, "class_report", strict)
    assert run(config, runtime)["per_class"]["blue"]["removed"] == 5
    assert "warning: no clip of blue is left; sample more" in capsys.readouterr().out


def test_other_settings_need_another_folder(config, runtime):
    run(config, runtime)
    with pytest.raises(ValueError, match=r"--save-path .*: holds clips that were filtered in another way"):
        run(dataclasses.replace(config, quantile=0.5), runtime)


def test_what_cannot_be_filtered_is_refused(config, runtime):
    with pytest.raises(ValueError, match="is --sample-path"):
        dataclasses.replace(config, save_path=config.sample_path)
    with pytest.raises(ValueError, match="not the sampler's output"):
        run(dataclasses.replace(config, sample_path=config.data_path), runtime)


def test_interrupted_run_is_continued_by_its_own_clips_alone(config, runtime, monkeypatch):
    def interrupted(source, target, clip):
        copy_clip(source, target, clip)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filter_copies, "copy_clip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, runtime)
    assert len(list(config.save_path.rglob("*.png"))) == 2  # a grid picture and a frame
    with pytest.raises(ValueError, match=r"--save-path .*: holds clips that were filtered in another way"):
        run(dataclasses.replace(config, quantile=0.5), runtime)
    with pytest.raises(ValueError, match="holds no clips; filter_copies has not ended"):
        find_pictures(config.save_path, "--synthetic-path", False)
    assert run(config, runtime)["kept"] == 7
    assert len(read_json(config.save_path / "samples.json")["clips"]) == 7


def test_files_of_another_origin_are_neither_kept_nor_deleted(config, runtime):
    own = config.save_path / "frames" / "blue" / "000000" / "000.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"of another model")
    with pytest.raises(ValueError, match=r"--save-path .*: holds frames but no samples.json"):
        run(config, runtime)
    assert own.read_bytes() == b"of another model"


def test_other_clips_need_another_folder(config, runtime):
    run(config, runtime)
    for path in (config.sample_path / "grids" / "blue").iterdir():
        with Image.open(path) as image:
            picture = np.array(image)
        Image.fromarray(picture // 2).save(path)
    with pytest.raises(ValueError, match=r"--save-path .*: holds clips that were filtered in another way"):
        run(config, runtime)
