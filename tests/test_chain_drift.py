"""Links of a chain are measured one by one; a change put into one link shows in its line only."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.chain_drift import ChainDriftConfig, line, run
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


def test_distance_is_that_of_equally_many_clips():
    random = np.random.RandomState(0)

    def found(clips):
        return {"label": np.zeros(clips), "motion": np.ones(clips), "energy": np.ones((clips, 1)),
                "colour": np.ones((clips, 3)), "lite0": random.randn(3 * clips, 8)}

    train, many = found(200), found(60)
    some = many["lite0"].reshape(60, 3, 8)[[0, 20, 39, 59]]
    few = {**many, "label": np.zeros(4), "lite0": some.reshape(-1, 8)}
    distances = [line("", own, [0] * len(own["label"]), train, 4)["Lite0"] for own in (many, few)]
    assert distances[0] == distances[1] > line("", many, [0] * 60, train, 60)["Lite0"]


def test_probe_of_other_classes_is_refused(grids, gpt_file, tmp_path, runtime):
    probe = write_probe(tmp_path / "probe.pt", ("a", "b"))
    with pytest.raises(InputError, match=r"--probe .*differ in their classes"):  # before a clip is sampled
        run(ChainDriftConfig(data_path=grids, results_dir=tmp_path / "drift", links=2, clips_per_class=1,
                             gpt_ckpt=gpt_file, probe=probe, device="cpu"), runtime)
    assert not (tmp_path / "drift").exists()
