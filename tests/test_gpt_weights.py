"""Where the GPT's weights come from: other runs, released files with and without facts of their classes."""

import dataclasses
from argparse import Namespace

import pytest
import torch

from autoregressive.models.checkpoint import facts_of_weights, load_gpt, start_from
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from common.errors import InputError
from common.files import write_json
from common.registry import registry
from common.weights import load_checkpoint


def small(num_classes, vocab_size=16):
    return GPT(
        GPTConfig(dim=16, n_layer=1, n_head=1, vocab_size=vocab_size, block_size=16, num_classes=num_classes)
    )


def test_other_class_count_starts_its_embedding_afresh_and_keeps_the_rest(tmp_path):
    torch.save({"model": small(5).state_dict()}, tmp_path / "c2i_B_256.pt")
    theirs = load_checkpoint(tmp_path / "c2i_B_256.pt")["model"]
    model = small(2)
    assert start_from(model, tmp_path / "c2i_B_256.pt", ["a", "b"]) == [
        "cls_embedding.embedding_table.weight"
    ]
    own = model.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.startswith("cls_embedding"))


def test_same_classes_keep_their_embedding_and_other_names_do_not(tmp_path):
    torch.save({"model": small(2).state_dict(), "dataset": {"class_names": ["a", "b"]}}, tmp_path / "own.pt")
    assert start_from(small(2), tmp_path / "own.pt", ["a", "b"]) == []
    assert start_from(small(2), tmp_path / "own.pt", ["a", "c"]) == ["cls_embedding.embedding_table.weight"]


def test_other_vocabulary_is_refused(tmp_path):
    torch.save(small(2, vocab_size=32).state_dict(), tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt: 2 tensors do not fit the model, first tok_embeddings"):
        start_from(small(2), tmp_path / "c.pt", ["a", "b"])


@pytest.mark.parametrize(
    ("name", "classes", "tokens"),
    [("hyperkvasir_model_0054236.pt", 8, 1024), ("surgvisdom_model_0065324.pt", 3, 1024)],
)
def test_released_checkpoint_gets_its_facts_by_name(name, classes, tokens, tmp_path):
    with torch.device("meta"):
        weights = GPT(GPTConfig(**GPT_SIZES["GPT-B"], vocab_size=16384, block_size=256, num_classes=classes))
    facts = facts_of_weights(tmp_path / name, weights.state_dict(), None, None)
    config = GPTConfig(**facts["config"])
    assert (config.num_classes, config.block_size, config.vocab_size, config.dim) == (
        classes,
        tokens,
        16384,
        768,
    )
    assert len(facts["dataset"]["class_names"]) == classes and facts["tokenizer"]["name"] == "vq_ds16_c2i.pt"
    assert registry()[name]["url"].endswith(name)


def test_weights_of_unknown_name_and_no_facts_are_refused(tmp_path):
    torch.save(small(2).state_dict(), tmp_path / "mystery.pt")
    with pytest.raises(ValueError, match=r"mystery\.pt: says nothing of its classes"):
        load_gpt(tmp_path / "mystery.pt")


OWN = {"class_names": ["polyp", "Barrett's"], "rows": 1, "cols": 2, "frame_size": 32, "fps": 10}


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_weights_of_own_classes_get_their_facts_from_a_file(kv_heads, tmp_path):
    model = GPT(GPTConfig(dim=256, n_layer=6, n_head=4, vocab_size=16, block_size=8, num_classes=2,
                          n_kv_head=kv_heads, grid_height=2)).eval()
    torch.save({"model": model.state_dict(), "args": Namespace(downsample_size=16)}, tmp_path / "own.pt")
    write_json(tmp_path / "facts.json", {**OWN, "version": 1})
    loaded, dataset, tokenizer = load_gpt(tmp_path / "own.pt", str(tmp_path / "facts.json"))
    assert dataset == {**OWN, "frame_stride": None}
    assert tokenizer == {"name": "vq_ds16_c2i.pt", "downsample": 16, "codebook_size": 16}
    assert loaded.config == dataclasses.replace(model.config, n_kv_head=kv_heads or 4)
    tokens, labels = torch.arange(8)[None], torch.tensor([1])
    torch.testing.assert_close(loaded(tokens, labels), model(tokens, labels))


@pytest.mark.parametrize(("facts", "message"), [
    ({**OWN, "class_names": ["a"]}, "has 1 classes, .*own.pt has 2"),
    ({**OWN, "class_names": ["a", "../b"]}, "b"),
    ({**OWN, "rows": 0}, "must be positive"),
    ({**OWN, "rows": "1"}, "no facts of a data set"),
    ({"class_names": ["a", "b"]}, "no facts of a data set .*rows"),
    ([1], "no facts of a data set"),
])
def test_wrong_facts_of_own_classes_are_named(facts, message, tmp_path):
    torch.save(small(2).state_dict(), tmp_path / "own.pt")
    write_json(tmp_path / "facts.json", facts)
    with pytest.raises(InputError, match=message):
        load_gpt(tmp_path / "own.pt", str(tmp_path / "facts.json"))
    with pytest.raises(InputError, match="--preset none: neither one of hyperkvasir16"):
        load_gpt(tmp_path / "own.pt", "none")
