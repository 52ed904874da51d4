import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import golden_state
from scipy import stats

import autoregressive.models.decoding as decoding
from autoregressive.models.decoding import Passes, Rule, decode_in_windows, pays, sample
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.noise import gumbel_noise, noise_keys, uniform_noise

torch.set_num_threads(1)  # tensors this small only wait for threads
GOLDENS = Path(__file__).parent / "goldens"
CONFIG = GPTConfig(dim=32, n_layer=2, n_head=4, vocab_size=50, block_size=36, num_classes=3, multiple_of=32)
LABELS = torch.tensor([2, 0, 1])
SEEDS = [7, -3, 2**200]

# Seeds 0, 12345, -1, 2**70 at position 2; uniform noise (in 2**-24) of ids 0, 1, 16383; Gumbel of seed 0.
PINNED_KEYS = [[-562710099, -1797635830], [1470721408, 83499718], [865050756, -2129700171],
               [789175318, -23242791]]
PINNED_UNIFORM = [[6711221, 2095330, 5750633], [557727, 2418613, 14178561], [7693629, 7752795, 13809701],
                  [177133, 15249423, 12301178]]
PINNED_GUMBEL = [[0.671662, 2.014348, 0.868185]]


def build(config: GPTConfig = CONFIG, seed: int = 0) -> GPT:
    model = GPT(config)
    model.load_state_dict(golden_state({key: value.shape for key, value in model.state_dict().items()}, seed))
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "interval"), [(1, -1), (3, -1), (3, 16)])
def test_greedy_samples_are_the_released_models(scale, interval, dtype):
    golden = np.load(GOLDENS / "gpt_small.npz")
    arguments = json.loads(str(golden["args"]))
    del arguments["cls_token_num"]
    model = build(GPTConfig(**arguments), int(golden["seed0"])).to(dtype)
    tokens_BN = generate(model, torch.from_numpy(golden["labels"]), [0] * 3, scale, interval, temperature=0)
    assert tokens_BN.dtype == torch.int64
    assert np.array_equal(tokens_BN, golden[f"greedy_cfg{scale}_interval{interval}"])


@pytest.mark.parametrize("settings", [
    {}, dict(top_k=20), dict(top_p=0.8), dict(cfg_scale=2.0, top_k=20, top_p=0.9, cfg_interval=5),
    dict(decode_window=4, cfg_scale=2.0)])
def test_a_clip_is_the_same_alone_and_in_any_batch(settings):
    model = build()
    together_BN = generate(model, LABELS, SEEDS, **settings)
    reordered_BN = generate(model, LABELS[[1, 2, 0]], [SEEDS[i] for i in (1, 2, 0)], **settings)
    assert torch.equal(reordered_BN, together_BN[[1, 2, 0]])
    for i in range(3):
        alone_1N = generate(model, LABELS[i : i + 1], SEEDS[i : i + 1], **settings)
        assert torch.equal(alone_1N[0], together_BN[i])


def test_seed_and_class_make_the_clip():
    model = build()
    clips = generate(model, torch.tensor([0, 0, 0, 1]), [1, 2, 1, 1])
    assert torch.equal(clips[0], clips[2])
    assert not torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[3])


@pytest.mark.parametrize("bucket", [1, 5, 16])
def test_clips_do_not_depend_on_how_the_cache_is_sliced(bucket, monkeypatch):
    model = build().double()
    settings = dict(cfg_scale=1.5, cfg_interval=7)
    expected = generate(model, LABELS, SEEDS, **settings)
    monkeypatch.setattr(decoding, "BUCKET", bucket)
    assert torch.equal(generate(model, LABELS, SEEDS, **settings), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("scale", "interval", "guided"), [(2.5, -1, 36), (2.5, 0, 2), (2.5, 6, 8), (0.0, 100, 36)])
def test_every_token_is_the_sample_of_its_teacher_forced_guided_logits(scale, interval, guided):
    model = build().double()
    tokens_BN = generate(model, LABELS, SEEDS, scale, interval, temperature=0.8, top_k=30)
    conditional = model(tokens_BN, LABELS)
    unconditional = model(tokens_BN, torch.full_like(LABELS, CONFIG.num_classes))
    logits_BNV = conditional.clone()
    logits_BNV[:, :guided] = (unconditional + scale * (conditional - unconditional))[:, :guided]
    keys_BN2 = noise_keys(SEEDS, CONFIG.block_size)
    for i in range(CONFIG.block_size):
        assert torch.equal(sample(logits_BNV[:, i], keys_BN2[:, i], 0.8, 30, 1.0), tokens_BN[:, i])


def test_training_mode_does_not_enter():
    model = build(dataclasses.replace(CONFIG, resid_dropout_p=0.5, class_dropout_prob=0.9))
    assert torch.equal(generate(model.train(), LABELS, SEEDS), generate(model.eval(), LABELS, SEEDS))


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_samples_valid_tokens(autocast):
    model = build() if autocast else build().bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens_BN = generate(model, LABELS, SEEDS, cfg_scale=1.5, cfg_interval=9, top_k=20, top_p=0.9)
    assert tokens_BN.min() >= 0
    assert tokens_BN.max() < CONFIG.vocab_size


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [
    (1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.7), (1.3, 6, 0.8), (1.0, 1, 1.0),
    (1.0, 0, 1e-9), (1.0, 100, 1.0)])
def test_samples_follow_the_filtered_distribution(temperature, top_k, top_p):
    draws, logits_V = 40000, torch.tensor([0.3, -1.0, 2.0, 1.1, -0.4, 0.9, 1.7, -2.5, 0.0, 0.6])
    order = logits_V.argsort(descending=True).numpy()
    mass = np.exp(logits_V.double().numpy()[order] / temperature)
    mass[top_k or len(mass):] = 0
    mass /= mass.sum()
    mass[np.searchsorted(mass.cumsum(), top_p) + 1:] = 0  # the fewest that reach top_p
    mass /= mass.sum()
    key_B2 = noise_keys(range(draws), 1)[:, 0]
    tokens_B = sample(logits_V.expand(draws, -1), key_B2, temperature, top_k, top_p)
    count = np.bincount(tokens_B, minlength=len(mass))[order]
    assert count[mass == 0].sum() == 0
    kept = mass > 0
    assert kept.sum() == 1 or stats.chisquare(count[kept], draws * mass[kept]).pvalue > 1e-3


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.9), (3, 0.9)])
def test_the_smallest_temperature_still_takes_the_likeliest(top_k, top_p):
    logits_BV = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    tokens_B = sample(logits_BV, noise_keys(range(100), 1)[:, 0], 1e-40, top_k, top_p)
    assert torch.equal(tokens_B, logits_BV.argmax(-1))


def test_top_k_keeps_exactly_k_of_equal_logits():
    tokens_B = sample(torch.zeros(2000, 10), noise_keys(range(2000), 1)[:, 0], 1.0, 4, 1.0)
    assert len(tokens_B.unique()) == 4


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits_BV = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert sample(logits_BV, noise_keys([0], 1)[:, 0], 0.0, 0, 1.0).tolist() == [1]


def test_noise_is_pinned():
    """These numbers are every published clip's; a change to them changes all clips of all seeds."""
    key_B2, ids = noise_keys([0, 12345, -1, 2**70], 3)[:, 2], torch.tensor([0, 1, 16383])
    assert key_B2.tolist() == PINNED_KEYS
    assert (uniform_noise(key_B2, ids) * 2**24).long().tolist() == PINNED_UNIFORM
    torch.testing.assert_close(gumbel_noise(key_B2[:1], ids), torch.tensor(PINNED_GUMBEL), rtol=0, atol=2e-6)


def test_noise_of_a_token_depends_on_seed_position_and_id_alone():
    keys_BN2 = noise_keys([5, 6], 40)
    full_BV = gumbel_noise(keys_BN2[:, 9], torch.arange(100))
    some_BM = torch.tensor([[3, 99, 0], [50, 3, 7]])
    assert torch.equal(gumbel_noise(keys_BN2[:, 9], some_BM), full_BV.gather(1, some_BM))
    assert torch.equal(gumbel_noise(noise_keys([6], 10)[:, 9], torch.arange(100))[0], full_BV[1])


def test_noise_is_uniform_and_uncorrelated_between_seeds_positions_and_ids():
    keys_BN2 = noise_keys(range(16), 16)
    u_BNV = torch.stack([uniform_noise(keys_BN2[:, i], torch.arange(4096)) for i in range(16)], 1).double()
    assert u_BNV.min() > 0
    assert u_BNV.max() < 1
    assert stats.chisquare(np.bincount((u_BNV.flatten() * 1024).long())).pvalue > 1e-3
    for dim in range(3):
        first, second = u_BNV.narrow(dim, 1, u_BNV.shape[dim] - 1), u_BNV.narrow(dim, 0, u_BNV.shape[dim] - 1)
        correlation = 12 * ((first - 0.5) * (second - 0.5)).mean() * first.numel() ** 0.5
        assert abs(correlation) < 4  # standard deviations


def test_noise_stays_finite_at_the_ends_of_the_unit_interval(monkeypatch):
    ends = torch.tensor([[0, 2**31 - 1]], dtype=torch.int32)
    monkeypatch.setattr("autoregressive.models.noise._random_bits", lambda key_B2, ids: ends.clone())
    u = uniform_noise(ends, ends)
    assert u.min() > 0
    assert u.max() < 1
    assert gumbel_noise(ends, ends).isfinite().all()


@pytest.mark.parametrize(("settings", "flag"), [
    (dict(temperature=-0.1), "--temperature"), (dict(temperature=float("nan")), "--temperature"),
    (dict(top_k=-1), "--top-k"), (dict(top_p=0.0), "--top-p"), (dict(top_p=1.1), "--top-p"),
    (dict(cfg_interval=-2), "--cfg-interval"), (dict(cfg_scale=float("inf")), "--cfg-scale"),
    (dict(seeds=[1]), "1 seeds for"), (dict(labels_B=LABELS + 1), "label 3")])
def test_wrong_settings_are_named(settings, flag):
    with pytest.raises(ValueError, match=flag):
        generate(build(), **{"labels_B": LABELS, "seeds": SEEDS, **settings})


@pytest.mark.parametrize("settings", [
    {"cfg_scale": 2.0}, {"cfg_scale": 1.5, "cfg_interval": 40, "top_k": 9}, {"top_k": 20, "top_p": 0.8},
    {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize(("window", "dtype"), [(2, torch.float32), (5, torch.float64), (32, torch.float32)],
                         ids=str)
def test_window_of_any_size_gives_the_sequential_tokens(small_gpt, window, settings, dtype):
    model, labels, seeds = small_gpt.to(dtype), torch.tensor([0, 1, 1]), [5, 6, 7]
    given = torch.full((3, 256), -1)
    given[0, 20:60], given[:, 100] = 3, 9
    settings = {**settings, "given_BN": given}
    plain = generate(model, labels, seeds, **settings)
    assert torch.equal(generate(model, labels, seeds, decode_window=window, **settings), plain)


def test_caches_are_kept_for_the_next_batch_of_the_same_model(tiny_gpt):
    labels, caches, other = torch.tensor([0, 1]), {}, copy.deepcopy(tiny_gpt)
    torch.nn.init.normal_(other.output.weight, std=0.5)
    settings = dict(decode_window=5, cfg_scale=2.0)
    passes = []
    for model, seeds in ((tiny_gpt, [1, 2]), (tiny_gpt, [3, 4]), (other, [3, 4])):
        expected = generate(model, labels, seeds, **settings)
        assert torch.equal(generate(model, labels, seeds, **settings, caches=caches), expected)
        passes += caches.values()
    assert passes[0] is passes[1] is not passes[2] and len(caches) == 1


def test_windows_are_left_where_they_gain_little(small_gpt):
    assert pays(2.7, 16, 8) and not pays(2.6, 16, 8) and pays(1, 1, 8)
    with torch.no_grad():
        _, passes = decode_in_windows(  # guesses among 64 codes are hardly ever right
            Passes(small_gpt, 2, rule=Rule(), window=16),
            small_gpt.cls_embedding.embedding_table.weight[:2], noise_keys([1, 2], 256),
            torch.full((2, 256), -1))
    assert 230 < passes <= 256


def test_good_guesses_save_passes(small_gpt):
    """A model that always says the same token is guessed right from the second window on."""
    torch.nn.init.zeros_(small_gpt.output.weight)
    with torch.no_grad():
        tokens, passes = decode_in_windows(
            Passes(small_gpt, 2, rule=Rule(temperature=0.0), window=16),
            small_gpt.cls_embedding.embedding_table.weight[:2], noise_keys([1, 2], 256),
            torch.full((2, 256), -1))
    assert (tokens == 0).all() and passes == 1 + 16  # 255 tokens after the first, 16 at a time


def test_guidance_is_summed_in_float32_whatever_the_weights():
    logits_RV = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    rule, keys, first = Rule(4.0, 0.0, guided=1), torch.zeros(2, 2, dtype=torch.int32), torch.zeros(1).long()
    conditional, unconditional = logits_RV.float().chunk(2)
    wanted = (unconditional + 4 * (conditional - unconditional)).argmax(-1)
    assert torch.equal(rule.choose(logits_RV, keys, first), wanted)


@pytest.mark.parametrize("frame_width", [1, 2, 4])
def test_first_guesses_change_no_clip(small_gpt, frame_width):
    labels, seeds = torch.tensor([0, 1]), [3, 4]
    plain = generate(small_gpt, labels, seeds)
    assert torch.equal(generate(small_gpt, labels, seeds, decode_window=4, frame_width=frame_width), plain)
