"""GPT checkpoints: our own hold all their facts, released ones get them from the registry."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from common.checkpoints import checkpoint_file
from common.distributed import Runtime
from common.errors import InputError
from common.layouts import model_state
from common.names import check_classes, check_names
from common.presets import find_preset
from common.registry import MODELS_FOLDER, registry
from common.weights import load_checkpoint, load_strict
from dataset.manifest import check_positive, read_facts
from tokenizer.loading import load_tokenizer, tokenizer_facts

CLASS_EMBEDDING = "cls_embedding"


def find_gpt(given: Path | None, name: str | None = None, runtime: Runtime = Runtime()) -> Path:
    """The `given` checkpoint, the registered model `name`, or the first one in pretrained_models."""
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


def load_gpt(path: Path, preset: str | None = None, vq_ckpt: Path | None = None
             ) -> tuple[GPT, dict[str, Any], dict[str, Any]]:
    """(model in eval mode on the CPU, facts of its data set, facts of its tokenizer).

    Uses averaged weights if the file has them. `preset` and `vq_ckpt` are for files that hold weights only,
    as the released code saves them; see `facts_of_weights`.

    Raises: `InputError` naming the file if it is no GPT checkpoint, or its facts are unknown or given twice.
    """
    checkpoint = load_checkpoint(path)
    state = model_state(checkpoint)
    if "tok_embeddings.weight" not in state:
        raise InputError(f"{path}: holds no GPT")
    if "config" not in checkpoint:
        facts = facts_of_weights(path, checkpoint, preset, vq_ckpt)
    elif preset is None:
        if missing := {"dataset", "tokenizer"} - checkpoint.keys():
            raise InputError(f"{path}: says nothing of its {' and '.join(sorted(missing))}")
        facts = {name: checkpoint[name] for name in ("config", "dataset", "tokenizer")}
    else:
        raise InputError(f"--preset {preset}: {path} itself holds the facts of its data set")
    try:
        check_classes(facts["dataset"]["class_names"], path)
        check_positive(facts["dataset"], path)
        check_names([facts["tokenizer"]["name"]], path)
        with torch.device("meta"):  # initialisation would take longer than reading the file
            model = GPT(GPTConfig(**facts["config"]))
    except (LookupError, TypeError) as error:
        raise InputError(f"{path}: its facts are damaged ({type(error).__name__} {error})") from None
    load_strict(model, state, str(path))
    model.facts = {name: facts[name] for name in ("dataset", "tokenizer")}
    return model.requires_grad_(False).eval(), facts["dataset"], facts["tokenizer"]


def load_model(path: Path) -> GPT:
    """The model of `load_gpt`, in a file, run folder or hf://...; its facts are `model.facts`."""
    return load_gpt(checkpoint_file(path))[0]


def facts_of_weights(path: Path, checkpoint: dict[str, Any], preset: str | None, vq_ckpt: Path | None
                     ) -> dict[str, Any]:
    """Configuration, data set and tokenizer of a checkpoint that holds weights only.

    The data set is that of `preset` (see `dataset.manifest.read_facts`), else of the registry entry with this
    file name. The tokenizer is `vq_ckpt`, else LlamaGen's with the downsampling in the released arguments.

    Raises: `InputError` if the data set is unknown or has another number of classes than the weights.
    """
    entries = registry()
    preset = preset or entries.get(path.name, {}).get("preset")
    if preset is None:
        known = ", ".join(name for name, other in entries.items() if "preset" in other)
        raise InputError(f"{path}: says nothing of its classes and grid, and is none of the released "
                         f"{known}: give --preset, an experiment's name or a dataset.json")
    dataset, state = read_facts(preset), model_state(checkpoint)
    if vq_ckpt:
        tokenizer = tokenizer_facts(load_tokenizer(vq_ckpt), vq_ckpt)
    else:
        downsample = getattr(checkpoint.get("args"), "downsample_size", 16)
        tokenizer = {"name": f"vq_ds{downsample}_c2i.pt", "downsample": downsample,
                     "codebook_size": len(state["tok_embeddings.weight"])}
    config = config_of_weights(state, *(n * dataset["frame_size"] // tokenizer["downsample"]
                                        for n in (dataset["rows"], dataset["cols"])))
    if config.num_classes != len(dataset["class_names"]):
        raise InputError(f"--preset {preset}: has {len(dataset['class_names'])} classes, "
                         f"{path} has {config.num_classes}")
    return {"config": asdict(config), "dataset": dataset, "tokenizer": tokenizer}


def config_of_weights(state: dict[str, Tensor], height: int, width: int) -> GPTConfig:
    """Sizes of a released GPT over a grid of tokens; heads have 64 channels if GPT_SIZES lacks its size."""
    vocab_size, dim = state["tok_embeddings.weight"].shape
    n_layer = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    n_head = next((size["n_head"] for size in GPT_SIZES.values()
                   if (size["dim"], size["n_layer"]) == (dim, n_layer)), max(1, dim // 64))
    key_and_value = len(state["layers.0.attention.wqkv.weight"]) - dim
    return GPTConfig(dim, n_layer, n_head, vocab_size, height * width,
                     len(state[f"{CLASS_EMBEDDING}.embedding_table.weight"]) - 1,
                     n_kv_head=key_and_value * n_head // (2 * dim), grid_height=height)


def start_from(model: GPT, path: Path, class_names: list[str]) -> list[str]:
    """Load weights for fine-tuning (ours, LlamaGen's, EndoGen's); returns the parameters left as they are.

    The class embedding is not loaded if the file is known to have other classes.
    """
    checkpoint = load_checkpoint(checkpoint_file(path))
    state = model_state(checkpoint)
    preset = registry().get(Path(path).name, {}).get("preset")
    known = {"class_names": list(find_preset(preset).class_names)} if preset else {}
    theirs = checkpoint.get("dataset", known).get("class_names", class_names)
    if theirs != class_names:
        state = {key: value for key, value in state.items() if not key.startswith(CLASS_EMBEDDING)}
    return load_strict(model, state, str(path), reinit=(CLASS_EMBEDDING,))
