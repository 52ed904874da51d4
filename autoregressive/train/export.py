"""STAGE: checkpoint -> files to share: safetensors with config, or the layout of the released checkpoints.

Both hold the weights that sampling uses (averaged ones if there are any), and no paths of this machine. The
first also goes to the Hugging Face Hub, with a model card (`share`).
"""

import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from autoregressive.models.checkpoint import CLASS_EMBEDDING, load_gpt
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from autoregressive.train.share import share
from common.checkpoints import checkpoint_file, write_tensors
from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, write_json
from common.hub import check_repository
from common.layouts import STATE_KEYS, model_state
from common.names import check_classes
from common.pretrained import without_path
from common.weights import load_checkpoint, save_safetensors
from tokenizer.loading import USAGE_BUFFER, load_tokenizer

OF_THE_RUN = {*STATE_KEYS, "optimizer", "training", "step", "meter", "skipped", "task", "data_hash",
              "pictures_hash", "vgg_weights"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export the weights of a GPT, a tokenizer or a video classifier."""

    ckpt: Path
    """Run folder or checkpoint."""
    output: Path | None = None
    """NAME.safetensors, with config and data set inside and in NAME.json; or NAME.pt, the format of
    LlamaGen's and EndoGen's code."""
    push_to_hub: str | None = None
    """Repository on the Hugging Face Hub, owner/name, made if it is missing; with or instead of --output."""
    licence: str | None = None
    """Licence of the weights for --push-to-hub, by the Hub's name for it: mit, cc-by-nc-4.0, other, ..."""
    private: bool = True
    """Whether a new repository is private; one that exists stays as it is."""
    sample_path: Path | None = None
    """Sampler's folder of this checkpoint for --push-to-hub: preview, sampling settings and scores of the
    card (default: a preview without guidance). Its clips must not begin with given frames."""
    preset: str | None = None
    """Data set of a GPT checkpoint that holds weights only: the name of an experiment, or a dataset.json."""
    vq_ckpt: Path | None = None
    """Tokenizer of such a GPT (default: LlamaGen's); with --push-to-hub the one that goes along
    with a GPT (default: its own)."""
    averaged: bool = True
    """Export averaged weights, if there are any."""
    average_with: Path | None = None
    """Export the mean with this checkpoint of the same shape, such as the one that training started from:
    often better than both (Wortsman et al. 2022, arXiv 2109.01903)."""
    share: float = 0.5
    """Weight of --ckpt in that mean, 0 to 1."""
    precision: Literal["float", "half"] = "float"
    """half: float16, for safetensors files of half the size."""

    def __post_init__(self) -> None:
        if not (self.output or self.push_to_hub):
            raise InputError("--output or --push-to-hub: one of them is needed")
        if self.output and self.output.suffix not in (".safetensors", ".pt"):
            raise InputError(f"--output {self.output}: must end in .safetensors or .pt")
        if self.output and self.output.suffix == ".pt" and self.precision == "half":
            raise InputError("--precision half: the released layout is in float32")
        if not 0 <= self.share <= 1:
            raise InputError(f"--share {self.share}: must be 0 to 1")
        if self.sample_path and (self.average_with or not self.averaged or not self.push_to_hub):
            raise InputError("--sample-path: is for --push-to-hub of the weights that were sampled from, "
                             "without --average-with and --no-averaged")
        if self.push_to_hub:
            check_repository(self.push_to_hub, "--push-to-hub")
            if not self.licence:
                raise InputError("--push-to-hub: needs --licence, the terms for those who use the weights")


def run(config: ExportConfig, runtime: Runtime) -> None:
    """Write the files, read them back and compare, on the main process."""
    if not runtime.is_main:
        return
    path = checkpoint_file(config.ckpt)
    own, facts = weights_and_facts(path, config.averaged, config.preset, config.vq_ckpt)
    state = own
    if config.average_with:
        other = checkpoint_file(config.average_with)
        state = mean(weights_and_facts(other, config.averaged, config.preset, config.vq_ckpt)[0], state,
                     config.share, f"--average-with {other}")
    if config.precision == "half":
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if "ch_mult" in facts["config"] and not same_codes(own, state):
        facts.pop("same_codes", None)
        print(f"warning: makes other codes than {path}, whose GPTs refuse it: extract codes with it, or "
              "export without --precision half and --average-with", file=sys.stderr, flush=True)
    if config.output:
        write(config.output, path, state, facts)
    if config.push_to_hub:
        address = share(path, state, facts, config.push_to_hub, config.licence, config.private,
                        config.vq_ckpt, config.sample_path)
        print(f"uploaded: open {address}")


def write(file: Path, path: Path, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write `file` from the checkpoint at `path`; `OSError` unless it reads back with the same weights."""
    if file.suffix == ".safetensors":
        save_safetensors(file, state, facts)
        write_json(file.with_suffix(".json"), facts)
    else:
        with atomic_path(file) as temporary:
            write_tensors(temporary, released_layout(load_checkpoint(path), state, facts))
    again = model_state(load_checkpoint(file))
    if again.keys() != state.keys() or not all(torch.equal(state[key], again[key]) for key in state):
        raise OSError(f"{file}: reads back with other weights than were written")
    values = sum(value.numel() for value in state.values())
    print(f"{file}: {len(state)} tensors of {values:,} values, read back and found equal")


def mean(a: dict[str, Tensor], b: dict[str, Tensor], share: float, origin: str) -> dict[str, Tensor]:
    """(1 - share) a + share b of every tensor; `InputError` that begins with `origin` if they do not fit."""
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        raise InputError(f"{origin}: has other weights than --ckpt, or of other shapes")
    return {name: torch.lerp(a[name].float(), b[name].float(), share) for name in a}


def same_codes(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """True if two tokenizers differ at most in what comes after the codes."""
    after = ("decoder.", "post_quant_conv.", USAGE_BUFFER)
    return all(torch.equal(a[name].float(), b[name].float()) for name in a if not name.startswith(after))


def weights_and_facts(path: Path, averaged: bool, preset: str | None, vq_ckpt: Path | None
                      ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and the facts that are needed to use them; arguments and errors as in `load_gpt`."""
    checkpoint = load_checkpoint(path)
    state = model_state(checkpoint if averaged else {**checkpoint, "ema": None})
    if "config" in checkpoint:
        if preset:
            raise InputError(f"--preset {preset}: {path} itself holds the facts of its data set")
        if "dataset" in checkpoint:
            check_classes(checkpoint["dataset"]["class_names"], path)
        kept = checkpoint.keys() - OF_THE_RUN
        return state, {name: without_path(checkpoint[name]) for name in sorted(kept)}
    if "tok_embeddings.weight" not in state:  # weights alone, as released
        tokenizer = load_tokenizer(path)
        return tokenizer.state_dict(), {"config": asdict(tokenizer.config)}
    model, dataset, tokenizer_facts = load_gpt(path, preset, vq_ckpt and checkpoint_file(vq_ckpt))
    return model.state_dict(), {"config": asdict(model.config), "dataset": dataset,
                                "tokenizer": without_path(tokenizer_facts)}


def released_layout(checkpoint: dict[str, Any], state: dict[str, Tensor], facts: dict[str, Any]
                    ) -> dict[str, Any]:
    """{"model", "steps", "args"} as the reference saves it, and "optimizer" of our own AdamW training.

    Without "optimizer" for averaged weights, because its moments do not belong to them.
    """
    released = {"model": {name: state[name] for name in released_order(state)},
                "steps": checkpoint.get("step", checkpoint.get("steps", 0)), "args": Namespace()}
    if "tokenizer" not in facts:  # a tokenizer itself
        return released
    released["args"] = reference_arguments(facts, checkpoint.get("training", {}))
    adamw = checkpoint.get("training", {}).get("optimizer", "adamw") == "adamw"
    if "training" in checkpoint and adamw and "ema" not in checkpoint:
        released["optimizer"] = released_optimizer(checkpoint["optimizer"], facts)
    return released


def released_order(names: Iterable[str]) -> list[str]:
    """The released model registers the class embedding first, ours second."""
    return sorted(names, key=lambda name: not name.startswith(CLASS_EMBEDDING))


def reference_arguments(facts: dict[str, Any], training: dict[str, Any]) -> Namespace:
    """Settings under the names that the reference uses."""
    model, dataset, tokenizer = facts["config"], facts["dataset"], facts["tokenizer"]
    sizes = {name: size for name, size in GPT_SIZES.items() if size.items() <= model.items()}
    kept = ("global_batch_size", "lr", "weight_decay", "beta1", "beta2", "max_grad_norm", "global_seed",
            "mixed_precision")
    return Namespace(
        gpt_model=next(iter(sizes), None), gpt_type="c2i", cls_token_num=1, vocab_size=model["vocab_size"],
        num_classes=model["num_classes"], image_size=dataset["rows"] * dataset["frame_size"],
        downsample_size=tokenizer["downsample"], token_dropout_p=model["token_dropout_p"],
        **{name: training[name] for name in kept if name in training})


def released_optimizer(optimizer: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """AdamW's state, numbered in the released order of the parameters."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**facts["config"]))
    groups = [[name for name, p in model.named_parameters() if (p.ndim >= 2) == matrices]
              for matrices in (True, False)]
    ours = [name for group in groups for name in group]
    theirs = [name for group in groups for name in released_order(group)]
    return {**optimizer, "state": {i: optimizer["state"][ours.index(name)] for i, name in enumerate(theirs)}}


if __name__ == "__main__":
    run_command(ExportConfig, run)
