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
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig
from common.checkpoints import checkpoint_file
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path
from common.spread import evenly
from common.training.config import LOST, TrainingConfig
from common.training.data_order import balanced
from common.training.loop import to_device, train
from common.training.task import Task
from dataset.codes import Codes, CodesDataset
from dataset.grid import grid_to_frames
from dataset.grid_images import to_uint8
from dataset.sheet import contact_sheet
from tokenizer.loading import find_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainC2IConfig(TrainingConfig):
    """Train the class-conditional GPT on extracted codes."""

    code_path: Path
    """Folder written by tokenizer.extract_codes, or codes extracted by the reference's script."""
    preset: str | None = None
    """Experiment behind codes in the reference's layout, which name no classes."""
    gpt_model: str = "GPT-B"
    """Size, from GPT-XS and GPT-S (CPU) to GPT-XXXL."""
    gpt_ckpt: Path | None = None
    """Start from these weights (LlamaGen's, EndoGen's, ours); other classes get a fresh class embedding."""
    vq_ckpt: Path | None = None
    """Tokenizer for sample sheets (--sample-every 0: none); without it the one that the codes name."""
    tok_drop_method: Literal["token", "element", "static"] = "token"
    """Semantic-aware token masking: whole tokens (the paper), or single channels (the released code); static:
    whole tokens at one rate, which is not semantic-aware, for comparison."""
    token_dropout_p: float = 0.3
    """Highest masking rate; 0: no masking."""
    dropout_p: float = 0.1
    """Dropout of the attention's and the feed-forward's output."""
    class_dropout_prob: float = 0.1
    """How often the class is hidden, which guidance needs."""
    first_rows: int = 0
    """Train on the first so many rows of frames of each clip: what it shows is decided there, and the rest is
    most of the work. For a first phase, whose weights --gpt-ckpt then takes up; 0: on whole clips."""
    class_balance: bool = False
    """Draw every class equally often, however few clips it has."""
    val_clips: int = 256
    """Clips that a validation looks at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, val_clips=1)
        if self.gpt_model not in GPT_SIZES:
            raise InputError(f"--gpt-model {self.gpt_model}: must be one of {', '.join(GPT_SIZES)}")
        for name in ("dropout_p", "class_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be in [0, 1)")


class GPTTask(Task):
    """What the training loop needs to know of the GPT."""

    methods = ("summed_loss",)

    def __init__(self, config: TrainC2IConfig, runtime: Runtime):
        self.config, self.runtime, self.device = config, runtime, runtime.device(config.device)
        self.codes = codes = Codes.read(config.code_path, config.preset)
        count = self.first_tokens()
        train_set = CodesDataset(codes, "train", count=count)
        self.train_set: Dataset = train_set
        if config.class_balance:
            self.train_set = balanced(train_set, train_set.labels_S)
        self.val_set = CodesDataset(codes, "val", variants=1, count=count)
        self.val_places = evenly(len(self.val_set), config.val_clips)
        self.at_once = config.samples_at_once(runtime.world_size)
        torch.manual_seed(config.global_seed)
        model = GPT(gpt_config(config, codes))
        self.facts: dict[str, Any] = {"config": asdict(model.config), "dataset": codes.dataset,
                                      "tokenizer": codes.tokenizer, "data_hash": train_set.digest()}
        self.model: nn.Module = model
        self.blocks = list(model.layers)
        self.recordable = config.tok_drop_method != "element"  # which draws from torch's generator
        self.note = ""
        if config.gpt_ckpt:
            fresh = start_from(model, checkpoint_file(config.gpt_ckpt, runtime), codes.dataset["class_names"])
            afresh = f"; {CLASS_EMBEDDING} starts afresh: other classes" if fresh else ""
            self.note = f"starting from {config.gpt_ckpt}{afresh}"
        if config.sample_every:
            given = config.vq_ckpt and checkpoint_file(config.vq_ckpt, runtime)
            tokenizer, _ = find_tokenizer(codes.tokenizer, given, config.code_path)
            self.tokenizer = tokenizer.to(self.device)
        self.unigram = unigram_entropy(
            train_set.tokens_SN, self.val_set.tokens_SN[self.val_places], model.config.vocab_size)

    def first_tokens(self) -> int | None:
        """How many tokens of each clip are trained on; None: all."""
        rows, (height, width) = self.codes.dataset["rows"], self.codes.token_grid
        if not 0 <= self.config.first_rows <= rows:
            raise InputError(f"--first-rows {self.config.first_rows}: the clips have {rows} rows of frames")
        return self.config.first_rows * height * width // rows or None

    def loss(self, model: nn.Module, batch: list[Tensor], seeds_B: Tensor
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats per token."""
        return model.loss(*batch, seeds_B), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss on held-out clips, without token masking, beside what the mere frequency of codes gives."""
        if not self.val_places:
            return {}
        mine = self.runtime.share(self.val_places)
        batches = DataLoader(self.val_set, self.at_once, sampler=mine)
        total = sum(float(model.loss(*to_device(batch, self.device))) * len(batch[1]) for batch in batches)
        return {"loss": sum(self.runtime.gather(total)) / len(self.val_places), "unigram": self.unigram}

    def draw_sheet(self, model: nn.Module, path: Path) -> None:
        """One clip of each class (of 8, if there are more), always from the same seed."""
        dataset, rows = self.codes.dataset, []
        names = dataset["class_names"]
        for labels_B in torch.tensor(evenly(len(names), 8)).split(self.at_once):
            tokens_BN = generate(model, labels_B, [0] * len(labels_B), top_k=2000)
            for label, tokens_N in zip(labels_B, tokens_BN, strict=True):
                picture_3HW = to_uint8(self.tokenizer.decode(tokens_N.view(1, *self.codes.token_grid))[0])
                frames_TCHW = grid_to_frames(picture_3HW, dataset["rows"], dataset["cols"])
                rows.append((names[label], frames_TCHW.permute(0, 2, 3, 1).cpu().numpy()))
        with atomic_path(path) as temporary:
            contact_sheet(rows).save(temporary)


def gpt_config(config: TrainC2IConfig, codes: Codes) -> GPTConfig:
    """The model that fits the codes."""
    height, width = codes.token_grid
    return GPTConfig(
        **GPT_SIZES[config.gpt_model], vocab_size=codes.tokenizer["codebook_size"],
        block_size=height * width, grid_height=height, num_classes=len(codes.dataset["class_names"]),
        token_dropout_p=config.token_dropout_p, token_dropout_mode=config.tok_drop_method,
        token_dropout_segment=segment_length(codes), resid_dropout_p=config.dropout_p,
        ffn_dropout_p=config.dropout_p, class_dropout_prob=config.class_dropout_prob)


def segment_length(codes: Codes) -> int:
    """Tokens of one token row of one frame: the segments of token masking (8 for 128 px at downsample 16)."""
    return max(2, codes.token_grid[1] // codes.dataset["cols"])


def unigram_entropy(train_SN: np.ndarray, val_SN: np.ndarray, vocab_size: int) -> float:
    """Cross-entropy in nats of held-out tokens under the frequencies of training tokens (add-one smoothed).

    A model whose validation loss is not below this has learnt nothing but which codes are common.
    """
    counts_V = np.bincount(train_SN.reshape(-1), minlength=vocab_size) + 1.0
    return float(-np.log(counts_V / counts_V.sum())[val_SN].mean()) if len(val_SN) else float("nan")


def run(config: TrainC2IConfig, runtime: Runtime) -> int:
    """Train until `config.max_steps` or a signal; returns the step that was reached."""
    task = GPTTask(config, runtime)
    if runtime.is_main and task.note:
        print(task.note)
    return train(task, config, runtime)


if __name__ == "__main__":
    run_command(TrainC2IConfig, run, LOST)
