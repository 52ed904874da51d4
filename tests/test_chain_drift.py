"""Links of a chain are measured one by one; a change put into one link shows in its line only."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.chain_drift import ChainDriftConfig, run
from common.errors import InputError
from common.files import read_json
from dataset.manifest import Manifest
from evaluations import extractor
from evaluations.probe import ProbeConfig, VideoProbe


def write_probe(path, class_names):
    probe = VideoProbe(ProbeConfig(len(class_names), 8, 8))
    torch.save({"model": probe.state_dict(), "config": dataclasses.asdict(probe.config),
                "dataset": {"class_names": list(class_names)}}, path)
    return path


def test_drift_is_measured_by_link(grids, gpt_file, tmp_path, runtime, monkeypatch, capsys):
    monkeypatch.setattr(extractor, "LITE0_SIDE", 32)
    probe = write_probe(tmp_path / "probe.pt", Manifest.read(grids).class_names)
    config = ChainDriftConfig(data_path=grids, results_dir=tmp_path / "drift", links=3, clips_per_class=1,
                              gpt_ckpt=gpt_file, probe=probe, device="cpu")
    first = run(config, runtime)
    assert [line["link"] for line in first] == ["real", "1", "2", "3"]
    assert 0.8 < first[0]["motion"] < 1.2 and first[0]["Lite0"] < min(line["Lite0"] for line in first[1:])
    for path in (tmp_path / "drift" / "samples" / "grids").glob("*/*_1.png"):
        Image.fromarray(np.full_like(Image.open(path), (200, 100, 50))).save(path)  # the second link
    again = run(config, runtime)
    assert again[:2] == first[:2] and again[3] == first[3]
    assert [again[2][name] for name in ("red", "green", "blue", "motion")] == [200, 100, 50, 0]
    assert again[2]["2-4 px"] < 1e-6 < first[2]["2-4 px"]
    assert read_json(tmp_path / "drift" / "drift.json")["lines"] == again
    assert Image.open(tmp_path / "drift" / "drift.png").width > 500
    assert capsys.readouterr().out.count("Lite0") == 2


def test_probe_of_other_classes_is_refused(grids, gpt_file, tmp_path, runtime):
    probe = write_probe(tmp_path / "probe.pt", ("a", "b"))
    with pytest.raises(InputError, match=r"--probe .*differ in their classes"):
        run(ChainDriftConfig(data_path=grids, results_dir=tmp_path / "drift", links=2, clips_per_class=1,
                             gpt_ckpt=gpt_file, probe=probe, device="cpu"), runtime)
