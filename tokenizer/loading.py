"""Tokenizers on disk: found, loaded, and told apart by a hash of their weights."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from common.checkpoints import checkpoint_file
from common.errors import InputError
from common.hub import beside, is_hub, pinned
from common.layouts import model_state
from common.names import check_names
from common.registry import MODELS_FOLDER
from common.weights import load_checkpoint, load_strict
from tokenizer.vq_model import VQConfig, VQModel

USAGE_BUFFER = "quantize.codebook_used"  # changes with use, not with training; some released files lack it


def load_tokenizer(path: Path) -> VQModel:
    """A tokenizer from any checkpoint with LlamaGen's parameter names, in eval mode on the CPU."""
    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    state = model_state(checkpoint)
    try:
        known = isinstance(checkpoint.get("config"), dict) and "ch_mult" in checkpoint["config"]
        model = VQModel(VQConfig(**checkpoint["config"])) if known else VQModel.from_state(state)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    load_strict(model, state, str(path), reinit=(USAGE_BUFFER,))
    model.same_codes = tuple(checkpoint.get("same_codes", ()))
    model.facts = {"same_codes": list(model.same_codes)} if model.same_codes else {}
    return model.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # faster on CPU and GPU


def weights_hash(model: VQModel) -> str:
    """A hash that tells tokenizers apart."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key != USAGE_BUFFER:
            digest.update(value.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_facts(model: VQModel, path: Path) -> dict[str, Any]:
    """What later stages carry along to find the same tokenizer again, JSON-able."""
    path = checkpoint_file(path)
    return {"name": path.name, "path": pinned(path) or str(path.resolve()), "hash": weights_hash(model),
            "downsample": model.config.downsample, "codebook_size": model.config.codebook_size}


def find_tokenizer(facts: dict[str, Any], given: Path | None, near: Path) -> tuple[VQModel, Path]:
    """The tokenizer that codes were made with: the file given, or where it was, near `near`, or bundled.

    Last come names on the Hub: where it was, and in the repository that `near` was fetched from.

    Raises: `InputError` if it is nowhere, or if the file has other weights (by hash, where the facts hold
    one).
    """
    if given:
        path = checkpoint_file(given)
        return check_tokenizer(path, facts), path
    name = facts["name"]
    check_names([name], near)
    folder = near.resolve().parent
    around = [place / name for base in (folder, folder.parent.parent)
              for place in (base, *base.glob("*"), *base.glob("*/checkpoints"))]
    places = [Path(facts.get("path", "")), folder / name, MODELS_FOLDER / name, *around, *beside(near, name)]
    reasons = []
    for path in sorted(places, key=is_hub):
        if is_hub(path) or os.path.isfile(path):  # also false where one may not look
            try:
                file = checkpoint_file(path)
                return check_tokenizer(file, facts), file
            except (InputError, OSError) as error:  # another file of that name, or the Hub does not give it
                reasons += [f" ({error})"] if is_hub(path) else []
    raise InputError(f"--vq-ckpt: not given, and {name} is neither {facts.get('path', 'where it was')}, nor "
                     f"beside the model or in a folder near it, nor in pretrained_models{''.join(reasons)}")


def check_tokenizer(path: Path, facts: dict[str, Any]) -> VQModel:
    """Load a tokenizer; `InputError` unless it is the one that `facts` speak of."""
    model = load_tokenizer(path)
    found = tokenizer_facts(model, path)
    for name in ("hash", "codebook_size", "downsample"):
        if facts.get(name) not in (None, found[name], *(model.same_codes if name == "hash" else ())):
            raise InputError(f"{path}: the model was trained with a tokenizer of {name} {facts[name]}, "
                             f"this file's is {found[name]}")
    return model
