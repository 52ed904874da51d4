"""Tokens of clips, as `tokenizer.extract_codes` writes and GPT training reads them.

Shapes: A variants of each clip (1, or 2 with mirrored ones), h x w tokens per grid picture, N = h*w tokens in
raster order. Own layout: `codes.npy` (clips, A, h, w) and `codes.json`. The layout of LlamaGen and EndoGen,
`<name>_codes/<i>.npy` (1, A, N) beside `<name>_labels/<i>.npy` (1,), is read too.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.names import check_classes, check_paths
from common.presets import PRESETS
from dataset.manifest import read_facts


@dataclass(frozen=True)
class Codes:
    """All codes of a data set with the facts that go with them."""

    codes_CAhw: np.ndarray  # unsigned integers; C clips
    labels: list[int]
    splits: list[str]  # "train" or "val", per clip
    names: list[str]  # of the clips' pictures
    recordings: list[str]  # <class>/<name>, per clip
    dataset: dict[str, Any]  # the facts of dataset.json
    tokenizer: dict[str, Any]  # name, path, hash, downsample, codebook_size

    def write(self, folder: Path) -> None:
        """Write the own layout; `codes.json` is written last, so that it marks complete codes."""
        (Path(folder) / "codes.json").unlink(missing_ok=True)
        with atomic_path(Path(folder) / "codes.npy") as temporary:
            np.save(temporary, self.codes_CAhw)
        clips = [list(clip) for clip in zip(
            self.names, self.labels, self.splits, self.recordings, strict=True)]
        facts = {"version": 1, "dataset": self.dataset, "tokenizer": self.tokenizer, "clips": clips}
        write_json(Path(folder) / "codes.json", facts)

    @classmethod
    def read(cls, folder: Path, preset: str | None = None) -> "Codes":
        """Read either layout; `preset` gives the facts for codes in the reference's layout."""
        folder = Path(folder)
        if not (folder / "codes.json").exists():
            return read_reference(folder, preset)
        file = folder / "codes.json"
        facts = read_json(file)
        try:
            dataset = facts["dataset"]
            check_classes(dataset["class_names"], file)
            names, labels, splits, recordings = map(list, zip(*clips_of(facts), strict=True))
            check_paths(names, file)
            codes_CAhw, tokenizer = np.load(folder / "codes.npy", mmap_mode="r"), facts["tokenizer"]
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, EOFError) as error:
            reason = f"{folder}: damaged codes ({error}); run tokenizer.extract_codes again"
            raise InputError(reason) from None
        if len(codes_CAhw) != len(names):
            raise InputError(f"{folder}: {len(codes_CAhw)} clips in codes.npy, {len(names)} in codes.json")
        return cls(codes_CAhw, labels, splits, names, recordings, dataset, tokenizer)

    @property
    def token_grid(self) -> tuple[int, int]:
        """(h, w) tokens of a grid picture."""
        return self.codes_CAhw.shape[-2], self.codes_CAhw.shape[-1]


def recording_of(name: str) -> str:
    """<class>/<recording> of the clip <class>/<recording>_<start frame>.png."""
    return re.sub(r"_\d+$", "", name.rpartition(".")[0])


def clips_of(facts: dict[str, Any]) -> list[list[Any]]:
    """(name, label, split, recording) of the clips in codes.json, which may lack recordings."""
    return [[*clip, recording_of(clip[0])][:4] for clip in facts["clips"]]


class CodesDataset(Dataset):
    """(tokens (N,) int64, label) of the first `variants` of every clip of one split, in memory.

    `count` limits the tokens of each clip to the first ones.
    """

    def __init__(self, codes: Codes, split: str, variants: int | None = None, count: int | None = None):
        chosen = [i for i, s in enumerate(codes.splits) if s == split]
        codes_CAhw = np.asarray(codes.codes_CAhw[chosen])[:, :variants]
        self.variants = codes_CAhw.shape[1]
        tokens_SN = codes_CAhw.reshape(len(chosen) * self.variants, math.prod(codes_CAhw.shape[2:]))
        self.tokens_SN = tokens_SN[:, :count]
        self.labels_S = np.repeat(np.array(codes.labels, np.int64)[chosen], self.variants)

    def __len__(self) -> int:
        return len(self.tokens_SN)

    def digest(self) -> str:
        """Short hash of all tokens and labels, in order."""
        content = np.ascontiguousarray(self.tokens_SN).tobytes() + self.labels_S.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.tokens_SN[index].astype(np.int64)), int(self.labels_S[index])


def read_reference(folder: Path, preset: str | None) -> Codes:
    """Codes extracted by the script of LlamaGen or EndoGen; every clip is a training clip.

    They hold no class names and no geometry: those come from `preset` (see `read_facts`).
    """
    found = sorted(folder.glob("*_codes")) if folder.is_dir() else []
    if len(found) != 1:
        raise InputError(f"{folder}: neither codes.json nor one folder *_codes in the reference's layout")
    labels_folder = folder / found[0].name.replace("_codes", "_labels")
    if preset is None:
        raise InputError(f"{folder}: codes in the reference's layout name no classes: "
                         f"give --preset ({', '.join(PRESETS)}, or a dataset.json)")
    dataset = read_facts(preset)
    rows, cols = dataset["rows"], dataset["cols"]
    files = sorted(found[0].glob("*.npy"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    if not files:
        raise InputError(f"{found[0]}: holds no .npy files")
    codes_CAN = np.concatenate([load_array(path) for path in files])
    labels = [int(load_array(labels_folder / path.name)[0]) for path in files]
    if max(labels) >= len(dataset["class_names"]):
        raise InputError(f"{labels_folder}: label {max(labels)} is no class of {preset}")
    per_frame = codes_CAN.shape[-1] / (rows * cols)
    side = round(per_frame**0.5)
    if side * side != per_frame:
        raise InputError(f"{found[0]}: {codes_CAN.shape[-1]} tokens, no {rows} x {cols} grid")
    codes_CAhw = codes_CAN.reshape(*codes_CAN.shape[:2], rows * side, cols * side)
    downsample = dataset["frame_size"] // side
    tokenizer = {"name": f"vq_ds{downsample}_c2i.pt", "downsample": downsample, "codebook_size": 16384}
    names = [path.name for path in files]
    return Codes(codes_CAhw, labels, ["train"] * len(files), names, names, dataset, tokenizer)


def load_array(path: Path) -> np.ndarray:
    """An .npy file; `InputError` names one that is missing or broken."""
    try:
        return np.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable array ({error})") from None
