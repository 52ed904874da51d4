"""Codes of the reference's own scripts are read, and trained on."""

import numpy as np
import pytest

from autoregressive.train.train_c2i import TrainC2IConfig
from autoregressive.train.train_c2i import run as train_c2i
from common.checkpoints import checkpoint_file
from common.errors import InputError
from common.files import read_json, write_json
from dataset.codes import Codes, CodesDataset

FACTS = {"class_names": ["a", "b"], "rows": 1, "cols": 2, "frame_size": 32, "fps": 10.0}


def write_reference_codes(folder, tokens=1024, labels=(0, 7, 3)):
    for kind in ("codes", "labels"):
        (folder / f"imagenet512_{kind}").mkdir(parents=True)
    for index, label in enumerate(labels):
        codes = np.random.RandomState(index).randint(0, 16384, (1, 2, tokens))
        np.save(folder / "imagenet512_codes" / f"{index}.npy", codes)
        np.save(folder / "imagenet512_labels" / f"{index}.npy", np.array([label]))


def test_codes_of_the_reference_are_read(tmp_path):
    write_reference_codes(tmp_path, labels=(0, 7, 3, *[1] * 8))
    codes = Codes.read(tmp_path, preset="hyperkvasir16")
    assert codes.codes_CAhw.shape == (11, 2, 32, 32) and codes.labels[:3] == [0, 7, 3]
    assert codes.names[2:4] == ["2.npy", "3.npy"] and codes.names[10] == "10.npy"
    tokens, label = CodesDataset(codes, "train")[3]
    assert label == 7 and tokens.tolist() == np.load(tmp_path / "imagenet512_codes" / "1.npy")[0, 1].tolist()
    assert codes.dataset["class_names"][7] == "varices" and codes.tokenizer["downsample"] == 16


def test_codes_of_own_classes_get_their_facts_from_a_file(tmp_path):
    write_reference_codes(tmp_path / "codes", tokens=32, labels=(0, 1))
    write_json(tmp_path / "dataset.json", FACTS)
    codes = Codes.read(tmp_path / "codes", preset=str(tmp_path / "dataset.json"))
    assert codes.token_grid == (4, 8) and codes.dataset == {**FACTS, "frame_stride": None}
    assert codes.tokenizer["name"] == "vq_ds8_c2i.pt"


def test_codes_of_the_reference_need_a_preset_that_fits(tmp_path):
    write_reference_codes(tmp_path)
    with pytest.raises(ValueError, match="--preset"):
        Codes.read(tmp_path)
    with pytest.raises(ValueError, match="label 7 is no class of surgvisdom16"):
        Codes.read(tmp_path, preset="surgvisdom16")
    write_reference_codes(tmp_path / "odd", tokens=1000)
    with pytest.raises(ValueError, match="1000 tokens, no 4 x 4 grid"):
        Codes.read(tmp_path / "odd", preset="hyperkvasir16")
    with pytest.raises(ValueError, match="neither codes"):
        Codes.read(tmp_path / "nothing", preset="hyperkvasir16")


def test_codes_without_held_out_clips_can_be_trained_on(tmp_path, runtime, tiny_size):
    write_reference_codes(tmp_path, tokens=32, labels=(0, 1))
    preset = str(tmp_path / "dataset.json")
    write_json(tmp_path / "dataset.json", FACTS)
    flags = {"gpt_model": "tiny", "global_batch_size": 1, "max_steps": 1, "sample_every": 0, "device": "cpu"}
    config = TrainC2IConfig(code_path=tmp_path, results_dir=tmp_path / "run", preset=preset, **flags)
    train_c2i(config, runtime)
    assert len(CodesDataset(Codes.read(tmp_path, preset), "val")) == 0
    assert checkpoint_file(tmp_path / "run").stem == "0000001"


@pytest.mark.parametrize("damage", ["clips", "dataset", "tokenizer", "npy"])
def test_damaged_codes_are_named(damage, tmp_path):
    codes = Codes(np.zeros((2, 1, 4, 4), np.uint16), [0, 1], ["train", "val"], ["a/0.png", "b/0.png"],
                  ["a/p", "b/q"], {"class_names": ["a", "b"]}, {"name": "vq.pt"})
    codes.write(tmp_path)
    if damage == "npy":
        (tmp_path / "codes.npy").write_bytes((tmp_path / "codes.npy").read_bytes()[:40])
    else:
        facts = read_json(tmp_path / "codes.json")
        write_json(tmp_path / "codes.json", {key: value for key, value in facts.items() if key != damage})
    with pytest.raises(InputError, match=r"damaged codes .*; run tokenizer.extract_codes again"):
        Codes.read(tmp_path)
