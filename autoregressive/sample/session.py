"""Clips for somebody who watches: one link of a chain after the other, with what is done so far.

Shapes: T frames of H x W pixels, N tokens of a clip, n of them done.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoregressive.models.native import PRECISIONS, prepare
from autoregressive.sample.gallery import RESEARCH, STARTED
from autoregressive.sample.pictures import suiting_precision
from autoregressive.sample.sample_c2i import SampleC2IConfig, label_of
from autoregressive.sample.sampler import LINK_SEED, ClipSampler, Models, usual_window
from autoregressive.sample.starts import continued, given_tokens, read_start, start_facts
from common.errors import InputError
from common.files import file_hash
from dataset.masks import clip_length, shown_frames

Report = Callable[[float, np.ndarray | None], None]
MOST_BYTES = 1 << 29  # of the frames of an upload


@dataclass(frozen=True)
class Wish:
    """What a clip shall be."""

    class_name: str
    seed: int = 0
    cfg_scale: float = 1.0
    temperature: float = 1.0
    blend_with: str | None = None
    blend: float = 0.0


@dataclass(frozen=True)
class Link:
    """A clip of a chain."""

    tokens_1N: Tensor
    number: int
    """Links before it."""
    frames_THWC: np.ndarray
    """Without the row of frames that it shares with the link before."""
    start: dict[str, Any] | None
    """`start_facts` of what the chain begins with, if that was given."""


@dataclass
class Session:
    """A model in memory that samples one clip at a time, whoever asks."""

    models: Models
    device: torch.device
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        gpt = prepare(self.models.gpt.to(self.device), PRECISIONS["none"])
        self.dataset = self.models.dataset
        self.hash = file_hash(self.models.path)[:16]
        always = {"top_k": SampleC2IConfig.top_k, "decode_window": usual_window(gpt, self.device)}
        tokenizer = self.models.tokenizer.to(self.device)
        self.sampler = ClipSampler(gpt, tokenizer, self.dataset, always,
                                   decode_precision=suiting_precision(tokenizer, self.dataset, self.device))

    def start(self, path: Path) -> Tensor:
        """(N,): tokens of a clip that begins with the last row of frames of a video, or with a picture.

        Raises: `InputError` without a path if the file is neither, or holds too much.
        """
        try:
            frames_T3SS, _ = read_start(path, self.dataset, most_bytes=MOST_BYTES)
        except (InputError, OSError):
            raise InputError("This file is no picture or short video that can be read.") from None
        last = min(len(frames_T3SS), self.dataset["cols"], max(1, clip_length(self.dataset) - 1))
        return given_tokens(frames_T3SS, -last, self.sampler.tokenizer, self.dataset)

    def link(self, wish: Wish, before: Link | None, start_N: Tensor | None, report: Report) -> Link:
        """The clip that follows `before`, or the first of a chain, which may begin with given tokens.

        The links of a chain are those of `sample_c2i --chain`. `report(part, frames)` is called with the part
        of the tokens that are done, 0 to 1, and the first frames once a row of them is there, decoded row by
        row; of a link after the first only with the part. What it raises ends the sampling.

        Raises: `InputError` for a wrong wish.
        """
        number = before.number + 1 if before else 0
        given_BN, start = (None, None) if start_N is None else (start_N[None], start_facts(start_N))
        if before:
            if clip_length(self.dataset) < 2 * self.dataset["cols"]:
                raise InputError("Clips of this model have one row of frames: none can follow.")
            start = before.start
            given_BN = continued(before.tokens_1N, clip_length(self.dataset) // self.dataset["cols"])
        names = self.dataset["class_names"]
        labels_B = torch.tensor([label_of(wish.class_name, names, "--classes")])
        arguments = {"cfg_scale": wish.cfg_scale, "temperature": wish.temperature}
        if wish.blend_with:
            arguments["towards"] = label_of(wish.blend_with, names, "--blend-with"), wish.blend
        sampler = replace(self.sampler, generate_arguments={**self.sampler.generate_arguments, **arguments})
        with self.lock:
            watch = self.watcher(report, preview=not before and not self.dataset.get("masks"))
            tokens_1N = sampler.tokens(labels_B, [wish.seed + number * LINK_SEED], given_BN, watch)
            [picture_3HW] = sampler.pictures(tokens_1N)
        frames_THWC = shown_frames(picture_3HW, self.dataset)
        return Link(tokens_1N, number, frames_THWC[self.dataset["cols"] if before else 0 :], start)

    def watcher(self, report: Report, preview: bool) -> Callable[[Tensor], None]:
        """The argument `watch` of `generate` that calls `report`."""
        rows, cols, count = self.dataset["rows"], self.dataset["cols"], self.sampler.gpt.config.block_size
        shown: list[np.ndarray] = []

        def watch(tokens_1n: Tensor) -> None:
            done = tokens_1n.shape[1]
            if preview and done >= (len(shown) + 1) * count // rows:
                row_1n = tokens_1n[:, len(shown) * count // rows : (len(shown) + 1) * count // rows]
                [picture_3HW] = self.sampler.pictures(row_1n)
                shown.append(shown_frames(picture_3HW, {"rows": 1, "cols": cols}))
            report(done / count, np.concatenate(shown) if shown else None)

        return watch

    def record(self, wish: Wish, link: Link) -> dict[str, Any]:
        """What makes the clip again, and what it is, as JSON values."""
        return {"checkpoint": {"name": self.models.path.name, "hash": self.hash},
                "tokenizer": self.models.vq_path.name, **asdict(wish), "link": link.number,
                **({"start": link.start} if link.start else {}),
                "fps": self.dataset["fps"], "notice": self.notice(link)}

    def notice(self, link: Link | None = None) -> str:
        """What everybody who sees a clip, or any clip of the model, must know."""
        research = STARTED if link and link.start else RESEARCH
        return " ".join(filter(None, [self.models.entry.get("notice"), research]))

