import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_state

import autoregressive.models.gpt as gpt_module
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from autoregressive.models.noise import dropout, spread_keys
from autoregressive.models.rope import rotary_tables, rotate

torch.set_num_threads(1)  # tensors this small only wait for threads
GOLDENS = Path(__file__).parent / "goldens"
NO_DROPOUT = dict(token_dropout_p=0.0, resid_dropout_p=0.0, ffn_dropout_p=0.0, class_dropout_prob=0.0)
SMALL = GPTConfig(
    dim=32, n_layer=2, n_head=4, vocab_size=24, block_size=16, num_classes=3, multiple_of=32, **NO_DROPOUT)


def build(config: GPTConfig, seed: int = 0) -> GPT:
    """A float64 model in which every weight, the output's too, does something."""
    model = GPT(config).double()
    model.load_state_dict(golden_state({key: value.shape for key, value in model.state_dict().items()}, seed))
    return model.eval()


def clips(config: GPTConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens_BN = torch.randint(config.vocab_size, (batch, config.block_size), generator=generator)
    return tokens_BN, torch.arange(batch) % config.num_classes


@torch.no_grad()
def teacher_forced_by_steps(model: GPT, tokens_BN: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """The logits of `forward`, from the cache, one position at a time, with as short a view as will do."""
    cache = model.new_cache(len(labels_B))
    rows = [model.prefill(labels_B, cache)]
    for i in range(1, tokens_BN.shape[1]):
        rows.append(model.step(tokens_BN[:, i - 1], torch.tensor([i]), cache.first(len(labels_B), i + 1)))
    return torch.stack(rows, dim=1)


@torch.no_grad()
def test_logits_and_loss_are_the_released_models():
    golden = np.load(GOLDENS / "gpt_small.npz")
    arguments = json.loads(str(golden["args"]))
    assert arguments.pop("cls_token_num") == 1
    model = build(GPTConfig(**arguments), int(golden["seed0"]))
    tokens_BN, labels_B = (torch.from_numpy(golden[name]) for name in ("tokens", "labels"))
    logits_BRV = model(tokens_BN, labels_B)[:, [0, 1, 32, 63]].numpy()
    np.testing.assert_allclose(logits_BRV, golden["logits_rows"], rtol=0, atol=2e-6)  # goldens are float32
    np.testing.assert_allclose(model.loss(tokens_BN, labels_B), golden["loss"], rtol=1e-7)


def test_weights_have_the_released_names_and_shapes():
    released = json.loads((GOLDENS / "state_dict_shapes.json").read_text())["GPT-B (8 classes)"]
    with torch.device("meta"):
        model = GPT(GPTConfig(**GPT_SIZES["GPT-B"], vocab_size=16384, block_size=1024, num_classes=8))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == released


def test_weights_can_be_assigned_to_a_model_built_without_memory():
    model = build(SMALL)
    with torch.device("meta"):
        light = GPT(SMALL)
    light.load_state_dict(model.state_dict(), assign=True)
    light.double().eval()
    assert torch.equal(light(*clips(SMALL)), model(*clips(SMALL)))


def test_logits_see_only_earlier_tokens():
    model, (tokens_BN, labels_B) = build(SMALL), clips(SMALL)
    before = model(tokens_BN, labels_B)
    for j in range(SMALL.block_size - 1):
        changed_BN = tokens_BN.clone()
        changed_BN[:, j] = (changed_BN[:, j] + 1) % SMALL.vocab_size
        same_N = (model(changed_BN, labels_B) == before).all(-1).all(0)
        assert same_N[: j + 1].all()
        assert not same_N[j + 1]


def test_every_row_depends_on_the_class():
    model, (tokens_BN, labels_B) = build(SMALL), clips(SMALL)
    assert (model(tokens_BN, labels_B) != model(tokens_BN, (labels_B + 1) % 3)).any(-1).all()


def test_train_and_eval_mode_are_one_function_without_dropout():
    model, batch = build(SMALL), clips(SMALL)
    assert torch.equal(model.train()(*batch), model.eval()(*batch))


@pytest.mark.parametrize("changes", [{}, dict(n_kv_head=2), dict(n_kv_head=1, grid_height=2)])
def test_decoding_by_steps_is_the_teacher_forced_function(changes):
    config = dataclasses.replace(SMALL, **changes)
    model, (tokens_BN, labels_B) = build(config), clips(config)
    stepped_BNV = teacher_forced_by_steps(model, tokens_BN, labels_B)
    torch.testing.assert_close(stepped_BNV, model(tokens_BN, labels_B), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_decoding_in_bfloat16_is_near_float32(kv_heads):
    config = dataclasses.replace(SMALL, n_kv_head=kv_heads)
    model, (tokens_BN, labels_B) = build(config), clips(config)
    expected_BNV = model(tokens_BN, labels_B)
    model.to(torch.bfloat16)
    by_steps_BNV = teacher_forced_by_steps(model, tokens_BN, labels_B)
    cache = model.new_cache(len(labels_B))
    model.prefill(labels_B, cache)
    places_BW = torch.arange(1, tokens_BN.shape[1]).expand(len(labels_B), -1)
    at_once_BWV = model.window(tokens_BN[:, :-1], places_BW, cache)
    spread = expected_BNV.std()
    assert (by_steps_BNV - expected_BNV).abs().mean() < 0.05 * spread
    assert (at_once_BWV - expected_BNV[:, 1:]).abs().mean() < 0.05 * spread


def test_positions_turn_pairs_by_row_and_column_also_in_grids_that_are_not_square():
    height, width, head_dim = 3, 5, 12
    cos_LC, sin_LC = rotary_tables(height, width, head_dim)
    x_C = torch.randn(head_dim, generator=torch.Generator().manual_seed(0))
    turned_LC = rotate(x_C.expand(1 + height * width, 1, -1), cos_LC[:, None], sin_LC[:, None])[:, 0]
    assert (turned_LC[0] == 0).all()
    for row in range(height):
        for column in range(width):
            angles = [place / 10000 ** (i / 6) for place in (row, column) for i in (0, 2, 4)]
            turn = torch.polar(torch.ones(6), torch.tensor(angles))
            expected_C = torch.view_as_real(torch.view_as_complex(x_C.view(-1, 2)) * turn).flatten()
            torch.testing.assert_close(turned_LC[1 + row * width + column], expected_C)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 48, 1000])
def test_loss_and_its_gradient_do_not_depend_on_the_chunk(chunk_tokens, monkeypatch):
    model, (tokens_BN, labels_B) = build(SMALL), clips(SMALL)
    whole = F.cross_entropy(model(tokens_BN, labels_B).flatten(0, 1), tokens_BN.flatten())
    expected = torch.autograd.grad(whole, list(model.parameters()))
    monkeypatch.setattr(gpt_module, "LOSS_CHUNK", chunk_tokens * SMALL.vocab_size)
    loss = model.loss(tokens_BN, labels_B)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected)


def test_a_new_model_knows_nothing():
    model = GPT(dataclasses.replace(SMALL, class_dropout_prob=0.1))
    torch.testing.assert_close(model.loss(*clips(SMALL)), torch.tensor(SMALL.vocab_size).log())
    assert abs(model.layers[0].feed_forward.w1.weight.std() - 0.02) < 0.001


def test_class_is_dropped_at_its_rate_and_only_with_a_key():
    embedding = GPT(dataclasses.replace(SMALL, class_dropout_prob=0.25)).cls_embedding
    labels_B, none = torch.full((20000,), 1), embedding.embedding_table.weight[3]
    key_B2 = spread_keys(torch.arange(20000), 1)[:, 0]
    assert abs((embedding(labels_B, key_B2) == none).all(-1).float().mean() - 0.25) < 0.02
    assert not (embedding(labels_B) == none).all(-1).any()


DROPOUTS = ["token_dropout_p", "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "class_dropout_prob"]


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_in_training_only(name):
    model, batch = build(dataclasses.replace(SMALL, **{name: 0.9})), clips(SMALL)
    reference = build(SMALL)(*batch)
    assert torch.equal(model(*batch), reference)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(*batch), reference)


def test_what_is_dropped_from_a_clip_depends_on_its_seed_alone():
    dropping = {name: 0.3 for name in DROPOUTS if name != "attn_dropout_p"}
    model, (tokens_BN, labels_B) = build(dataclasses.replace(SMALL, **dropping)).train(), clips(SMALL, 6)
    seeds_B = torch.tensor([3, 2**40, 7, 3, 0, 9])
    whole = model.hidden(tokens_BN, labels_B, seeds_B)
    torch.testing.assert_close(model.hidden(tokens_BN[4:], labels_B[4:], seeds_B[4:]), whole[4:])
    assert not torch.allclose(model.hidden(tokens_BN, labels_B, seeds_B + 1), whole)


def test_dropout_drops_at_its_rate_keeps_the_mean_and_is_not_correlated():
    keys_B32 = spread_keys(torch.arange(8), 3)
    kept_3BLD = torch.stack([dropout(torch.ones(8, 64, 128), 0.3, key_B2) for key_B2 in keys_B32.unbind(1)])
    assert kept_3BLD.unique().tolist() == pytest.approx([0, 1 / 0.7], abs=1e-4)
    assert abs(kept_3BLD.mean() - 1) < 5 * (0.3 / 0.7 / kept_3BLD.numel()) ** 0.5
    centred = kept_3BLD.double() - kept_3BLD.mean()
    limit = 5 * (centred**2).mean() / kept_3BLD.numel() ** 0.5
    for dim in range(4):  # between layers, clips, positions and channels
        for shift in (1, 2):
            assert abs((centred * centred.roll(shift, dim)).mean()) < limit
    assert dropout(centred, 0.3, None) is centred


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, n_kv_head=2, grid_height=2)])
def test_config_survives_json(config):
    assert GPTConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_trains_and_stays_near_float64(autocast):
    model, batch = build(SMALL), clips(SMALL)
    expected = model.loss(*batch)
    model = model.float() if autocast else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(*batch)
    loss.backward()
    assert abs(loss / expected - 1) < 0.02
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("changes", "fact"), [
    (dict(block_size=15), "15 tokens"), (dict(grid_height=3), "3 rows"), (dict(dim=36), "width 36"),
    (dict(n_kv_head=3), "3 key and value heads")])
def test_config_that_cannot_be_built_is_refused(changes, fact):
    with pytest.raises(ValueError, match=fact):
        dataclasses.replace(SMALL, **changes)


def test_wrong_tokens_and_labels_are_refused():
    model, (tokens_BN, labels_B) = build(SMALL), clips(SMALL)
    for tokens, labels, fact in [
        (tokens_BN.repeat(1, 2), labels_B, "32"), (tokens_BN, labels_B[:2], "one per clip"),
        (tokens_BN, labels_B - 1, "label -1"), (tokens_BN, labels_B + 2, "label 4"),
    ]:
        with pytest.raises(ValueError, match=fact):
            model(tokens, labels)
