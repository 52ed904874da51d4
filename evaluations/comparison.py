"""Real clips against generated ones: the clips and the features that all metrics share, and their flags."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from common.command import require_at_least
from common.distributed import Runtime
from common.errors import InputError
from dataset.hub_data import data_folder
from dataset.manifest import RESULTS_FOLDER
from evaluations.clips import ANY_SPLIT, ClipSet
from evaluations.extractor import Extractor
from evaluations.features import Extraction, Features, require_comparable
from evaluations.protocols import PROTOCOLS, Protocol

FeatureSets = tuple[Features, Features, Features | None]  # of real, generated and reconstructed clips


@dataclass(frozen=True)
class Comparison:
    """What is compared with what, and how."""

    protocol: Protocol
    class_names: tuple[str, ...]
    real: ClipSet
    generated: ClipSet
    reconstructed: ClipSet | None
    not_generated: tuple[str, ...]
    """Classes of real clips without generated ones, unless the user chose the classes."""
    output: Path
    """Folder of the results."""
    cache: Path
    """Folder of the features."""
    device: torch.device
    batch_size: int
    groups: int
    """Groups of recordings of the jackknife; 0: no standard errors."""
    skip_bad: bool

    def features(self, extractor: Extractor, runtime: Runtime) -> FeatureSets:
        """Features of the real, the generated and, if there are any, the reconstructed clips."""
        extraction = Extraction(extractor, self.device, self.cache, self.batch_size, self.skip_bad,
                                self.protocol)
        sets = {"real": self.real, "generated": self.generated, "reconstructed": self.reconstructed}
        real, generated, reconstructed = (
            clips and extraction.run(clips, runtime, f"{extractor.name} of {name} clips")
            for name, clips in sets.items())
        for other in (generated, reconstructed):
            if other is not None:
                require_comparable(real, other)
        return real, generated, reconstructed

    def facts(self) -> dict[str, Any]:
        """What is compared, JSON-able; results with other facts are not merged with these."""
        real, generated, reconstructed = (
            clips and {**clips.origin, **clip_facts(clips)}
            for clips in (self.real, self.generated, self.reconstructed))
        return {
            "real": real, "generated": generated, "reconstructed": reconstructed,
            "classes": list(self.class_names),
            "protocol": {"name": self.protocol.name, "reference": self.protocol.reference,
                         "ddof": self.protocol.ddof, "frames": self.protocol.window_name,
                         "summary": self.protocol.summary},
            "groups": self.groups,
            "skip_bad": self.skip_bad,
        }

    def state(self) -> str:
        """Hash of names, sizes and modification times of all files; results of other files are not merged."""
        files = [[entry.name, clips.files(entry)] for clips in (self.real, self.generated, self.reconstructed)
                 if clips for entry in clips.entries]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def warnings(self) -> list[str]:
        """What a reader of the results should know first."""
        lines = [f"the {name} clips are compressed video, which changes the scores; keep PNG or npz files"
                 for name, clips in (("real", self.real), ("generated", self.generated)) if clips.lossy]
        if self.protocol.reference == "train":
            lines.append("the reference are the clips that the model was trained on: copies score best")
        if self.protocol.reference == ANY_SPLIT:
            lines.append("the reference contains training clips: copies of them score well")
        if self.not_generated:
            lines.append(f"nothing was generated of {', '.join(self.not_generated)}: left out of all scores")
        reference = self.real.select(split=self.protocol.reference)
        if single := [name for name, count in _recordings(reference).items() if count == 1]:
            lines.append(f"the reference of {', '.join(single)} is one recording: its standard errors do not "
                         "include the variance between recordings")
        return lines


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Flags of every metric."""

    data_path: Path
    """Real clips: a prepared data set, or class folders of frame folders, npz files or videos."""
    sample_path: Path
    """Generated clips: the sampler's output folder, or any of those."""
    reconstruction_path: Path | None = None
    """The real clips after the tokenizer, under the same names; their scores are the tokenizer floor."""
    output: Path | None = None
    """Folder for metrics.json, the table and the page; default "evaluation" in --sample-path."""
    cache_path: Path | None = None
    """Folder for features, which evaluations can share; default "features" in --output."""
    protocol: Literal["held-out", "endogen", "stylegan-v"] = "held-out"
    """Convention: held-out real clips as reference, the released EndoGen script, or fvd2048_16f."""
    reference: Literal["val", "train", "all"] | None = None
    """Split of the real clips to compare with; default that of the protocol (val, train, all)."""
    classes: tuple[str, ...] = ()
    """Classes to compare; default all generated ones."""
    groups: int = 10
    """Groups of recordings of the jackknife for standard errors; 0: no standard errors."""
    batch_size: int | None = None
    """Clips per network call; default 1 on a CPU (more overflow its caches), 16 on a GPU."""
    skip_bad: bool = False
    """Leave out clips that are unreadable or of another size, and list them; otherwise they are an error."""
    unverified_weights: bool = False
    """Accept weight files whose hash is not the published one; the results say so."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, groups=0)
        if self.batch_size is not None:
            require_at_least(self, batch_size=1)
        if self.groups == 1:
            raise InputError("--groups 1: the jackknife needs at least 2 groups; 0 turns it off")

    def open(self, runtime: Runtime) -> Comparison:
        """Read all folders. Raises: `InputError` naming the flag that does not fit the clips."""
        real = ClipSet.read(data_folder(self.data_path, runtime), "--data-path")
        generated = ClipSet.read(self.sample_path, "--sample-path")
        protocol = PROTOCOLS[self.protocol]
        if self.reference and self.reference != protocol.reference:
            protocol = replace(protocol, reference=self.reference,
                               summary=f"{protocol.summary}; but with --reference {self.reference}")
        class_names = tuple(dict.fromkeys(self.classes or sorted(_classes(generated))))
        for flag, clips in (("--data-path", real), ("--sample-path", generated)):
            if missing := [name for name in class_names if name not in _classes(clips)]:
                raise InputError(f"{flag} {clips.origin['path']}: no clip of class {missing[0]}; it has "
                                 f"{', '.join(sorted(_classes(clips)))}")
        rest = () if self.classes else tuple(sorted(_classes(real) - set(class_names)))
        real, generated = real.select(class_names), generated.select(class_names)
        with_reference = _classes(real.select(class_names, protocol.reference))
        if missing := [name for name in class_names if name not in with_reference]:
            raise InputError(f"--reference {protocol.reference}: {self.data_path} has no "
                             f"{protocol.reference} clips of class {missing[0]}; --reference all has all")
        reconstructed = self.reconstruction_path and ClipSet.read(
            self.reconstruction_path, "--reconstruction-path").select(class_names)
        if reconstructed:
            reconstructed.require_counterparts(real, "--reconstruction-path", "--data-path")
        device, output = runtime.device(self.device), self.output or self.sample_path / RESULTS_FOLDER
        return Comparison(protocol, class_names, real, generated, reconstructed, rest, output,
                          self.cache_path or output / "features", device,
                          self.batch_size or (1 if device.type == "cpu" else 16), self.groups, self.skip_bad)


def _classes(clips: ClipSet) -> set[str]:
    """Classes that have clips."""
    return {entry.class_name for entry in clips.entries}


def clip_facts(clips: ClipSet) -> dict[str, Any]:
    """Counts, and a hash of names and file sizes."""
    files = [[entry.name, [size for _, size, _ in clips.files(entry)]] for entry in clips.entries]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    counts = {name: len(clips.select([name]).entries) for name in clips.class_names}
    return {"clips": counts, "recordings": _recordings(clips), "sha256": digest}


def _recordings(clips: ClipSet) -> dict[str, int]:
    """Number of recordings of each class."""
    return {name: len({entry.recording for entry in clips.select([name]).entries})
            for name in clips.class_names}
