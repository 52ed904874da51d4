"""GPT checkpoints: our own carry all their facts, the released ones get them from the registry."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from common.checkpoints import checkpoint_file
from common.distributed import Runtime
from common.errors import InputError
from common.layouts import model_state
from common.names import check_classes
from common.presets import find_preset
from common.registry import MODELS_FOLDER, registry
from common.weights import load_checkpoint, load_strict

CLASS_EMBEDDING = "cls_embedding"


def find_gpt(given: Path | None, name: str | None = None, runtime: Runtime = Runtime()) -> Path:
    """The checkpoint given, the registered model `name`, or the first one there is in pretrained_models."""
    if given:
        return checkpoint_file(given, runtime)
    models = {entry["name"]: file for file, entry in registry().items() if entry.get("clips")}
    if name is not None and name not in models:
        raise InputError(f"--model {name}: unknown, choose from {', '.join(models)}")
    for model in models if name is None else [name]:
        if (MODELS_FOLDER / models[model]).is_file():
            return MODELS_FOLDER / models[model]
    missing = f"--model {name}: {models[name]} is not" if name else "no model is"
    raise InputError(f"{missing} in pretrained_models: get it with bash scripts/download_models.sh "
                     f"{name or '|'.join(models)}, or give --gpt-ckpt")


def load_gpt(path: Path) -> tuple[GPT, dict[str, Any], dict[str, Any]]:
    """(model in eval mode on the CPU, facts of its data set, facts of its tokenizer).

    Averaged weights are taken where the file has them.

    Raises: `InputError` naming the file if it is no GPT checkpoint or its facts are unknown.
    """
    checkpoint = load_checkpoint(path)
    state = model_state(checkpoint)
    if "tok_embeddings.weight" not in state:
        raise InputError(f"{path}: holds no GPT")
    if "config" in checkpoint:
        facts = {name: checkpoint[name] for name in ("config", "dataset", "tokenizer")}
    else:
        facts = released_facts(Path(path))
    check_classes(facts["dataset"]["class_names"], path)
    model = GPT(GPTConfig(**facts["config"]))
    load_strict(model, state, str(path))
    return model.requires_grad_(False).eval(), facts["dataset"], facts["tokenizer"]


def released_facts(path: Path) -> dict[str, Any]:
    """Model, data set and tokenizer of a checkpoint that holds weights only, by its file name."""
    entries = registry()
    entry = entries.get(path.name, {})
    if "preset" not in entry:
        known = ", ".join(name for name, other in entries.items() if "preset" in other)
        raise InputError(f"{path}: says nothing of its classes and grid, and is none of the released {known}")
    preset, tokenizer = find_preset(entry["preset"]), entries[entry["tokenizer"]]
    rows, cols = (n * preset.frame_size // tokenizer["downsample"] for n in (preset.rows, preset.cols))
    config = GPTConfig(**GPT_SIZES[entry["gpt_model"]], vocab_size=tokenizer["codebook_size"],
                       block_size=rows * cols, num_classes=len(preset.class_names), grid_height=rows)
    tokenizer_facts = {"name": entry["tokenizer"], "downsample": tokenizer["downsample"],
                       "codebook_size": tokenizer["codebook_size"]}
    return {"config": asdict(config), "dataset": preset.facts(), "tokenizer": tokenizer_facts}


def start_from(model: GPT, path: Path, class_names: list[str]) -> list[str]:
    """Load weights to fine-tune from (ours, LlamaGen's, EndoGen's); returns the parameters that start afresh.

    The class embedding starts afresh unless the file's classes are these, as far as the file says.
    """
    checkpoint = load_checkpoint(checkpoint_file(path))
    state = model_state(checkpoint)
    preset = registry().get(Path(path).name, {}).get("preset")
    known = {"class_names": list(find_preset(preset).class_names)} if preset else {}
    theirs = checkpoint.get("dataset", known).get("class_names", class_names)
    if theirs != class_names:
        state = {key: value for key, value in state.items() if not key.startswith(CLASS_EMBEDDING)}
    return load_strict(model, state, str(path), reinit=(CLASS_EMBEDDING,))
