"""A model's repository on the Hugging Face Hub: weights, facts, a preview and a card, in one commit."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.train.preview import MOST, sampled_clips
from common.errors import InputError
from common.files import file_hash, read_jsonl
from common.hub import TOKENIZER, push, write_card
from common.pretrained import save_model
from common.weights import load_checkpoint, save_safetensors
from dataset.codes import Codes
from dataset.hub_data import data_folder
from dataset.manifest import RESULTS_FOLDER, Manifest
from dataset.samples import read_samples
from dataset.sheet import save_film
from tokenizer.loading import find_tokenizer, weights_hash

CARD = Path(__file__).with_name("card.md")
PREVIEW = "preview.webp"
SHOWN = ("global_batch_size", "lr", "lr_schedule", "optimizer", "weight_decay", "ema_decay",
         "token_dropout_p", "tok_drop_method", "mixed_precision")  # settings of a training, in the card
TAGS = ["endoscopy", "video-generation", "endogen"]


def share(path: Path, state: dict[str, Tensor], facts: dict[str, Any], repository: str, licence: str,
          private: bool, vq_ckpt: Path | None, sample_path: Path | None) -> str:
    """Upload an exported model, a GPT with its tokenizer -> the address of the commit.

    `path` is the checkpoint's file. Of `sample_path`, the sampler's folder, come preview, sampling settings
    and the table of an evaluation; without it one clip of each class is sampled, without guidance.

    Raises: `InputError` if the samples are of other weights, or begin with given frames, which may be a
    patient's.
    """
    checkpoint, facts = load_checkpoint(path), dict(facts)
    values: dict[str, Any] = {"sampling": {}, "scores": "", "preview": False}
    with TemporaryDirectory() as name:
        folder = Path(name)
        if "tokenizer" in facts:  # the checkpoint also says where it is
            wanted = checkpoint.get("tokenizer", facts["tokenizer"])
            tokenizer, _ = find_tokenizer(wanted, vq_ckpt, path)
            facts["tokenizer"] = {**facts["tokenizer"], "name": TOKENIZER}
            save_safetensors(folder / TOKENIZER, tokenizer.state_dict(),
                             {"config": asdict(tokenizer.config), **tokenizer.facts})
            if sample_path:
                values |= of_samples(sample_path, path, weights_hash(tokenizer), folder)
            else:
                model = GPT(GPTConfig(**facts["config"])).eval()
                model.load_state_dict({key: value.float() for key, value in state.items()})
                clips = sampled_clips(model, tokenizer, facts["dataset"], MOST)
                save_film(folder / PREVIEW, clips, facts["dataset"]["fps"])
            values["preview"] = True
        elif sample_path:
            raise InputError(f"--sample-path {sample_path}: {path} is no GPT")
        save_model(folder, state, facts)
        training, steps = checkpoint.get("training", {}), checkpoint.get("step", 0)
        values |= {"counts": clip_counts(training), "steps": steps,
                   "training": {key: training[key] for key in SHOWN if key in training},
                   "validation": last_validation(path.parent.parent / "log.jsonl", steps)}
        head = {"license": licence, "tags": TAGS, "library_name": "endogen"}
        write_card(folder, CARD, head, name=repository, facts=facts,
                   parameters=sum(value.numel() for value in state.values()), **values)
        return push(folder, repository, "model", private)


def of_samples(samples: Path, path: Path, tokenizer: str, folder: Path) -> dict[str, Any]:
    """Copy the sampler's film of this checkpoint -> its sampling settings, and scores if there are.

    `tokenizer` is the hash of the tokenizer that goes up.
    """
    record = read_samples(samples)
    if record["checkpoint"]["hash"] != file_hash(path)[:16]:
        raise InputError(f"--sample-path {samples}: was not sampled from {path}")
    if record["tokenizer"]["hash"] != tokenizer:
        raise InputError(f"--sample-path {samples}: was sampled with another tokenizer than goes up")
    if "start" in record["sampling"]:
        raise InputError(f"--sample-path {samples}: begins with given frames, which are not to be published")
    (folder / PREVIEW).write_bytes((samples / "contact_sheet.webp").read_bytes())
    table = samples / RESULTS_FOLDER / "metrics.txt"
    return {"sampling": record["sampling"],
            "scores": table.read_text(encoding="utf-8").rstrip() if table.exists() else ""}


def clip_counts(training: dict[str, Any]) -> dict[str, Counter]:
    """Class -> split -> clips in the folders that a run read, as they are now; empty if they are gone."""
    counts: dict[str, Counter] = {}
    try:
        if "code_path" in training:
            codes = Codes.read(Path(training["code_path"]), training.get("preset"))
            pairs = [(codes.dataset["class_names"][label], split)
                     for label, split in zip(codes.labels, codes.splits, strict=True)]
        else:
            folders = training.get("data_path", [])
            manifests = [Manifest.read(data_folder(Path(folder)))
                         for folder in ([folders] if isinstance(folders, str) else folders)]
            pairs = [(m.class_names[clip.label], clip.split) for m in manifests for clip in m.clips]
    except (InputError, OSError):
        return {}
    for name, split in pairs:
        counts.setdefault(name, Counter())[split] += 1
    return counts


def last_validation(log: Path, steps: int) -> dict[str, float]:
    """The last validation up to step `steps` in the log of a run; empty if there is none."""
    found = [{key: value for key, value in record.items() if key.startswith("val_")}
             for record in read_jsonl(log) if record.get("step", 0) <= steps]
    return next(filter(None, reversed(found)), {})
