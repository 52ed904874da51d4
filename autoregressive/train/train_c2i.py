"""STAGE: codes -> a class-conditional GPT.

Shapes: B clips per batch, N tokens of a clip, V vocabulary, K classes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from autoregressive.models.checkpoint import CLASS_EMBEDDING, start_from
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from autoregressive.train.preview import sampled_clips
from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path
from common.hub import pinned
from common.spread import evenly
from common.training.config import LOST, TrainingConfig
from common.training.data_order import balanced
from common.training.loop import to_device, train
from common.training.task import Task
from dataset.codes import Codes, CodesDataset
from dataset.sheet import contact_sheet
from tokenizer.loading import find_tokenizer
from tokenizer.vq_model import VQModel


@dataclass(frozen=True, kw_only=True)
class TrainC2IConfig(TrainingConfig):
    """Train the class-conditional GPT on extracted codes."""

    code_path: Path
    """Folder written by tokenizer.extract_codes, or by the extraction script of LlamaGen or EndoGen."""
    preset: str | None = None
    """Data set of codes from LlamaGen's or EndoGen's script: the name of an experiment, or a dataset.json."""
    gpt_model: str = "GPT-B"
    """Model size, from GPT-XS and GPT-S (for a CPU) to GPT-XXXL."""
    gpt_ckpt: Path | None = None
    """Fine-tune these weights (of LlamaGen, EndoGen or this project). If the classes differ, the class
    embedding is initialised anew."""
    vq_ckpt: Path | None = None
    """Tokenizer for sample sheets (default: the one named by the codes)."""
    tok_drop_method: Literal["token", "element", "static"] = "token"
    """Token masking. token: semantic-aware, whole tokens (paper). element: semantic-aware, single channels
    (released code). static: whole tokens at a constant rate, for comparison."""
    token_dropout_p: float = 0.3
    """Maximum masking rate; 0: no masking."""
    dropout_p: float = 0.1
    """Dropout rate of the attention and feed-forward outputs."""
    class_dropout_prob: float = 0.1
    """Probability of training on a clip without its class, for classifier-free guidance."""
    first_rows: int = 0
    """Train on this many rows of frames of each clip only; 0: whole clips. A first phase on one row is cheap
    and teaches the classes; --gpt-ckpt starts the next phase from its weights."""
    class_balance: bool = False
    """Draw every class equally often."""
    val_clips: int = 256
    """Number of held-out clips for validation, spread evenly over the set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, val_clips=1)
        if self.gpt_model not in GPT_SIZES:
            raise InputError(f"--gpt-model {self.gpt_model}: must be one of {', '.join(GPT_SIZES)}")
        for name in ("dropout_p", "class_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be in [0, 1)")


class GPTTask(Task):
    """Training of the GPT on the first `first_tokens` tokens of each clip (None: all).

    Sample sheets need a `tokenizer`. Validation and sheets compute `clips_at_once` clips at once.
    """

    methods = ("summed_loss",)
    is_gpt = True
    next_command = ("bash", "scripts/sample_c2i.sh", "--save-folder", "SAMPLES", "--gpt-ckpt")

    def __init__(self, codes: Codes, model: GPT, runtime: Runtime, device: torch.device,
                 first_tokens: int | None, class_balance: bool, val_clips: int, clips_at_once: int,
                 tokenizer: VQModel | None):
        self.codes, self.runtime, self.device = codes, runtime, device
        train_set = CodesDataset(codes, "train", count=first_tokens)
        self.train_set: Dataset = balanced(train_set, train_set.labels_S) if class_balance else train_set
        self.val_set = CodesDataset(codes, "val", variants=1, count=first_tokens)
        self.val_places = evenly(len(self.val_set), val_clips)
        self.clips_at_once, self.tokenizer = clips_at_once, tokenizer
        self.facts: dict[str, Any] = {"config": asdict(model.config), "dataset": codes.dataset,
                                      "tokenizer": codes.tokenizer, "data_hash": train_set.digest()}
        self.model: nn.Module = model
        self.blocks = list(model.layers)
        self.recordable = model.token_masking.mode != "element"  # which uses torch's generator
        self.unigram = unigram_entropy(
            train_set.tokens_SN, self.val_set.tokens_SN[self.val_places], model.config.vocab_size)

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats per token."""
        return model.loss(*batch, seeds_B), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean loss of held-out clips in nats per token, and `unigram_entropy` as a baseline."""
        if not self.val_places:
            return {}
        mine = self.runtime.share(self.val_places)
        batches = DataLoader(self.val_set, self.clips_at_once, sampler=mine)
        total = sum(float(model.loss(*to_device(batch, self.device))) * len(batch[1]) for batch in batches)
        return {"loss": sum(self.runtime.gather(total)) / len(self.val_places), "unigram": self.unigram}

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """Sample one clip of each class, at most 8 classes, with seed 0."""
        clips = sampled_clips(model, self.tokenizer, self.codes.dataset, self.clips_at_once)
        with atomic_path(path) as temporary:
            contact_sheet(clips).save(temporary)


def make_task(config: TrainC2IConfig, runtime: Runtime) -> GPTTask:
    """The task of these flags, its model new or with the weights of --gpt-ckpt."""
    codes = Codes.read(config.code_path, config.preset)
    names, rows, (height, width) = codes.dataset["class_names"], codes.dataset["rows"], codes.token_grid
    if not 0 <= config.first_rows <= rows:
        raise InputError(f"--first-rows {config.first_rows}: the clips have {rows} rows of frames")
    torch.manual_seed(config.global_seed)
    model = GPT(GPTConfig(
        **GPT_SIZES[config.gpt_model], vocab_size=codes.tokenizer["codebook_size"],
        block_size=height * width, grid_height=height, num_classes=len(names),
        token_dropout_p=config.token_dropout_p, token_dropout_mode=config.tok_drop_method,
        token_dropout_segment=segment_length(codes), resid_dropout_p=config.dropout_p,
        ffn_dropout_p=config.dropout_p, class_dropout_prob=config.class_dropout_prob))
    if config.gpt_ckpt:
        file = checkpoint_file(config.gpt_ckpt, runtime)
        fresh = start_from(model, file, names)
        if runtime.is_main:
            print(f"starting from the weights of {pinned(file) or config.gpt_ckpt}" + (
                f"; {CLASS_EMBEDDING} is initialised anew because the classes differ" if fresh else ""))
    device, tokenizer = runtime.device(config.device), None
    if config.sample_every:
        given = config.vq_ckpt and checkpoint_file(config.vq_ckpt, runtime)
        tokenizer = find_tokenizer(codes.tokenizer, given, config.code_path)[0].to(device)
    first_tokens = config.first_rows * height * width // rows or None
    return GPTTask(codes, model, runtime, device, first_tokens, config.class_balance, config.val_clips,
                   config.samples_at_once(runtime.world_size), tokenizer)


def segment_length(codes: Codes) -> int:
    """Segment length of token masking: the tokens of one row of one frame (8 for 128 px, downsample 16)."""
    return max(2, codes.token_grid[1] // codes.dataset["cols"])


def unigram_entropy(train_SN: np.ndarray, val_SN: np.ndarray, vocab_size: int) -> float:
    """Cross-entropy in nats of held-out tokens under the frequencies of training tokens (add-one smoothing).

    A model whose validation loss is not lower has only learnt which codes are frequent.
    """
    counts_V = np.bincount(train_SN.reshape(-1), minlength=vocab_size) + 1.0
    return float(-np.log(counts_V / counts_V.sum())[val_SN].mean()) if len(val_SN) else float("nan")


def run(config: TrainC2IConfig, runtime: Runtime) -> int:
    """Train until `config.max_steps` or a signal; returns the last step."""
    return train(make_task(config, runtime), config, runtime)


if __name__ == "__main__":
    run_command(TrainC2IConfig, run, LOST)
