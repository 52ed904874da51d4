"""The comparison of tokenizer losses: one run each for the same time, judged on held-out clips."""

import pytest
from PIL import Image

from benchmarks import ablate_losses
from benchmarks.ablate_losses import AblateLossesConfig, run
from common.files import read_json
from dataset.manifest import Manifest
from evaluations import extractor, results


def test_losses_are_trained_with_and_judged_and_a_rerun_keeps_all(grids, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(extractor, "LITE0_SIDE", 32)
    monkeypatch.setattr(ablate_losses, "TRIAL_STEPS", 1)
    monkeypatch.setattr(results, "write_page", lambda *_: None)  # charts take longer than all the rest
    assert list(ablate_losses.LOSSES) == ["pixels", "adversary", "perceptual", "both"]
    monkeypatch.setattr(ablate_losses, "LOSSES", {n: ablate_losses.LOSSES[n] for n in ("pixels", "both")})
    config = AblateLossesConfig(data_path=grids, results_dir=tmp_path, minutes=1e-4, global_batch_size=1,
                                clips_per_class=1, device="cpu")
    runs = run(config, runtime)
    assert [row["losses"] for row in runs] == ["pixels", "both"]
    assert all(row["psnr"] > 5 and row["lite0/frechet_lite0"] > 0 for row in runs)
    assert all(row["sharpness/energy_2_4px"] > 0 for row in runs)
    settings = [read_json(tmp_path / name / "run" / "config.json")["training"] for name in ("pixels", "both")]
    assert [(entry["disc_weight"] > 0, entry["perceptual"]) for entry in settings] == [
        (False, "none"), (True, "lite0")]
    with Image.open(tmp_path / "pictures.png") as sheet:
        assert sheet.height >= 3 * Manifest.read(grids).frame_size  # originals, and after two tokenizers
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    assert run(config, runtime) == runs == read_json(tmp_path / "ablation.json")["runs"]
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}


def test_folders_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--other-path: two folders have the same name"):
        AblateLossesConfig(data_path=tmp_path / "a" / "grids", other_path=(tmp_path / "b" / "grids",),
                           results_dir=tmp_path)
