"""The models in the box: small, whole, at one with each other, and named for what they are."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive.models.checkpoint import find_gpt, load_gpt
from autoregressive.sample.pictures import LEAST_PSNR, pictures_of
from autoregressive.sample.sample_c2i import SampleC2IConfig
from autoregressive.sample.sample_c2i import run as sample
from common.image_quality import psnr
from common.presets import find_preset
from common.registry import MODELS_FOLDER, registry
from common.weights import load_checkpoint
from dataset.phantom import CLASS_NAMES, render_clip
from evaluations.probe import load_probe, measure, probe_input
from tokenizer.loading import find_tokenizer

GPT_FILE = MODELS_FOLDER / "endogen_phantom_gpt.safetensors"


@pytest.fixture(scope="module")
def gpt():
    return load_gpt(GPT_FILE)


def test_all_weights_together_are_small_and_name_no_folder():
    files = list(MODELS_FOLDER.glob("*.safetensors"))
    assert len(files) == 3 and sum(file.stat().st_size for file in files) <= 32_000_000
    for file in files:
        facts = {key: value for key, value in load_checkpoint(file).items() if key != "model"}
        assert "/" not in str(facts) and "optimizer" not in facts


def test_gpt_finds_its_tokenizer_and_knows_its_data(gpt):
    model, dataset, wanted = gpt
    tokenizer, path = find_tokenizer(wanted, None, GPT_FILE)
    assert path.parent == MODELS_FOLDER and tokenizer.config.downsample == 16
    assert model.config.block_size == 1024 and dataset["class_names"] == list(CLASS_NAMES)
    preset = find_preset("phantom").facts()
    assert {name: dataset[name] for name in ("rows", "cols", "frame_size", "fps")} == {
        name: preset[name] for name in ("rows", "cols", "frame_size", "fps")}
    assert torch.isfinite(model(torch.zeros(1, 1024, dtype=torch.long), torch.tensor([0]))).all()


def test_tokenizer_draws_the_same_picture_in_bfloat16(gpt):
    tokenizer, _ = find_tokenizer(gpt[2], None, GPT_FILE)
    codes_1hw = torch.randint(1024, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    [exact], [coarse] = (pictures_of(codes_1hw, tokenizer, precision) for precision in ("none", "bf16"))
    assert psnr(coarse.numpy() / 255, exact.numpy() / 255) > LEAST_PSNR


def test_it_is_said_to_be_a_phantom():
    entry = registry()[GPT_FILE.name]
    assert "PHANTOM" in entry["notice"] and "no clinical data" in entry["notice"]
    card = (MODELS_FOLDER / "README.md").read_text()
    assert "no clinical" in card and "CC BY 4.0" in card and "@" not in card.split("## Attribution")[0]
    assert find_gpt(None, "phantom") == GPT_FILE


def test_probe_knows_rendered_clips_it_has_not_seen():
    probe, dataset = load_probe(MODELS_FOLDER / "endogen_phantom_probe.safetensors")
    assert dataset["class_names"] == list(CLASS_NAMES)
    inputs = []
    for label in range(len(CLASS_NAMES)):
        frames_THWC, _ = render_clip(label, 10_000, 16, 128, 12.0, view="octagon")
        inputs.append(probe_input(torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)))
    logits, _ = measure(probe, inputs, torch.device("cpu"))
    assert (logits.argmax(1) == range(len(CLASS_NAMES))).mean() >= 0.75


@pytest.mark.slow
def test_program_in_the_readme_makes_the_clip_of_the_command(tmp_path, runtime, monkeypatch):
    root = MODELS_FOLDER.parent
    monkeypatch.chdir(tmp_path)
    program = (root / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found = {}
    exec(program.replace('"pretrained_models/', f'"{MODELS_FOLDER}/'), found)
    with av.open(str(tmp_path / "ulcer.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 16
    sample(SampleC2IConfig(gpt_ckpt=GPT_FILE, save_folder=tmp_path / "clips", classes=("ulcer",), cfg_scale=4,
                           temperature=0.85, device="cpu"), runtime)
    with Image.open(tmp_path / "clips" / "grids" / "ulcer" / "000000.png") as picture:
        assert np.array_equal(np.array(picture).transpose(2, 0, 1), found["pictures_B3HW"][0].numpy())
