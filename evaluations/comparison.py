"""Real clips against generated ones: the flags, the clips and the features that all metrics share."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.command import require_at_least
from common.distributed import Runtime
from common.errors import InputError
from dataset.manifest import RESULTS_FOLDER
from evaluations.clips import ANY_SPLIT, ClipSet
from evaluations.extractor import Extractor
from evaluations.features import Extraction, Features, require_comparable
from evaluations.protocols import PROTOCOLS, Protocol


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Flags of every metric."""

    data_path: Path
    """Real clips: a prepared data set, or class folders of frame folders, npz files or videos."""
    sample_path: Path
    """Generated clips: the sampler's folder, or any of those."""
    reconstruction_path: Path | None = None
    """The real clips after the tokenizer, under the same names: what the best GPT could reach."""
    output: Path | None = None
    """Folder for metrics.json, the table and the page; default "evaluation" in --sample-path."""
    cache_path: Path | None = None
    """Folder for features, to share among evaluations; default "features" in --output."""
    protocol: Literal["held-out", "endogen", "stylegan-v"] = "held-out"
    """Which clips are compared and how: held-out real clips, the released EndoGen script, or fvd2048_16f."""
    reference: Literal["val", "train", "all"] | None = None
    """Real clips to compare with; default what the protocol says (val, train, all)."""
    classes: tuple[str, ...] = ()
    """Classes to compare; none given: all that were generated."""
    groups: int = 10
    """Groups of recordings left out one by one for standard errors; 0: no standard errors."""
    batch_size: int | None = None
    """Clips that the network sees at once; default 1 on a CPU (more overflows its caches), 16 on a GPU."""
    skip_bad: bool = False
    """Leave out clips that are unreadable or of another size, and list them; otherwise they are an error."""
    unverified_weights: bool = False
    """Accept weight files whose hash is not the published one; the results say so."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require_at_least(self, groups=0)
        if self.batch_size is not None:
            require_at_least(self, batch_size=1)
        if self.groups == 1:
            raise InputError("--groups 1: one of at least two is left out; 0: no standard errors")

    @property
    def output_folder(self) -> Path:
        """Where results go."""
        return self.output or self.sample_path / RESULTS_FOLDER


@dataclass(frozen=True)
class Comparison:
    """What is compared with what."""

    config: CompareConfig
    protocol: Protocol
    class_names: tuple[str, ...]
    real: ClipSet
    generated: ClipSet
    rebuilt: ClipSet | None
    not_generated: tuple[str, ...]
    """Classes of real clips that nothing was generated of, if --classes does not leave them out."""

    @classmethod
    def open(cls, config: CompareConfig) -> "Comparison":
        """Read both folders. Raises: `InputError` naming the flag that does not fit the clips."""
        real = ClipSet.read(config.data_path, "--data-path")
        generated = ClipSet.read(config.sample_path, "--sample-path")
        protocol = find_protocol(config)
        class_names = _classes(config, real, generated)
        rest = {entry.class_name for entry in real.entries} - set(class_names)
        not_generated = () if config.classes else tuple(sorted(rest))
        real, generated = real.select(class_names), generated.select(class_names)
        if protocol.reference != ANY_SPLIT:
            _require_split(config, real, protocol.reference)
        rebuilt = None
        if config.reconstruction_path:
            rebuilt = ClipSet.read(config.reconstruction_path, "--reconstruction-path").select(class_names)
            known = {entry.name for entry in real.entries}
            strange = [entry.name for entry in rebuilt.entries if entry.name not in known]
            if not rebuilt.entries:
                raise InputError(f"--reconstruction-path {config.reconstruction_path}: no clips of "
                                 f"{', '.join(class_names)}")
            if strange:
                raise InputError(f"--reconstruction-path {config.reconstruction_path}: {strange[0]} is no "
                                 f"clip of --data-path {config.data_path}")
        return cls(config, protocol, class_names, real, generated, rebuilt, not_generated)

    def features(
        self, extractor: Extractor, runtime: Runtime
    ) -> tuple[Features, Features, Features | None]:
        """Features of the real, the generated and, where they are given, the reconstructed clips."""
        config, device = self.config, runtime.device(self.config.device)
        batch_size = config.batch_size or (16 if device.type == "cuda" else 1)
        extraction = Extraction(
            extractor, device, config.cache_path or config.output_folder / "features", batch_size,
            config.skip_bad, self.protocol.window, self.protocol.window_name)
        sets = {"real": self.real, "generated": self.generated, "reconstructed": self.rebuilt}
        made = [clips and extraction.run(clips, runtime, f"{extractor.name} of {name} clips")
                for name, clips in sets.items()]
        for other in made[1:]:
            if other:
                require_comparable(made[0], other)
        return made[0], made[1], made[2]

    def facts(self) -> dict[str, Any]:
        """What is compared, JSON-able: results of other facts are other results."""
        config = self.config
        return {
            "real": {"path": str(config.data_path), **_clip_facts(self.real)},
            "generated": {"path": str(config.sample_path), **_clip_facts(self.generated),
                          **self.generated.origin},
            "reconstructed": self.rebuilt and {"path": str(config.reconstruction_path),
                                               **_clip_facts(self.rebuilt)},
            "classes": list(self.class_names),
            "protocol": {"name": self.protocol.name, "reference": self.protocol.reference,
                         "ddof": self.protocol.ddof, "frames": self.protocol.window_name,
                         "summary": self.protocol.summary},
            "groups": config.groups,
            "skip_bad": config.skip_bad,
        }

    def state(self) -> str:
        """Stands for the files as they are now: a folder that was filled anew has other results."""
        files = [[entry.name, clips.state(entry)] for clips in (self.real, self.generated, self.rebuilt)
                 if clips for entry in clips.entries]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def _reference_recordings(self) -> dict[str, set[str]]:
        """Class -> recordings that its reference is made of."""
        reference = self.real.select(self.class_names, self.protocol.reference)
        return {name: {entry.recording for entry in reference.entries if entry.class_name == name}
                for name in self.class_names}

    def warnings(self) -> list[str]:
        """What a reader of the results should know first."""
        lines = [f"the {name} clips went through a video codec, which the scores see; keep PNG or npz"
                 for name, clips in (("real", self.real), ("generated", self.generated)) if clips.lossy]
        if self.protocol.reference == "train":
            lines.append("the reference are the clips that the model was trained on: a copy scores best")
        if self.protocol.reference == ANY_SPLIT:
            lines.append("the reference holds training clips: a copy of them scores well")
        if self.not_generated:
            lines.append(f"nothing was generated of {', '.join(self.not_generated)}: left out of all scores")
        single = [name for name, own in self._reference_recordings().items() if len(own) == 1]
        if single:
            lines.append(f"the reference of {', '.join(single)} is one recording: its error bars tell "
                         "nothing of what another recording would change")
        return lines


def find_protocol(config: CompareConfig) -> Protocol:
    """The protocol that the flags ask for."""
    protocol = PROTOCOLS[config.protocol]
    if config.reference and config.reference != protocol.reference:
        summary = f"{protocol.summary}; but with --reference {config.reference}"
        return Protocol(protocol.name, config.reference, protocol.ddof, summary)
    return protocol


def _classes(config: CompareConfig, real: ClipSet, generated: ClipSet) -> tuple[str, ...]:
    there = [{entry.class_name for entry in clips.entries} for clips in (real, generated)]
    wanted = tuple(dict.fromkeys(config.classes or sorted(there[1])))
    for flag, path, names in zip(("--data-path", "--sample-path"), (config.data_path, config.sample_path),
                                 there, strict=True):
        for name in wanted:
            if name not in names:
                raise InputError(f"{flag} {path}: no clip of class {name}; it has {', '.join(sorted(names))}")
    return wanted


def _require_split(config: CompareConfig, real: ClipSet, split: str) -> None:
    """Every class must have clips of the split that is the reference."""
    for name in real.class_names:
        if not any(entry.split == split for entry in real.entries if entry.class_name == name):
            raise InputError(f"--reference {split}: {config.data_path} has no {split} clips of class {name}; "
                             "--reference all compares with all that it has")


def _clip_facts(clips: ClipSet) -> dict[str, Any]:
    """Counts, and a hash of names and file sizes."""
    files = [[entry.name, [size for _, size, _ in clips.state(entry)]] for entry in clips.entries]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    counts = {name: sum(entry.class_name == name for entry in clips.entries) for name in clips.class_names}
    recordings = {name: len({entry.recording for entry in clips.entries if entry.class_name == name})
                  for name in clips.class_names}
    return {"clips": counts, "recordings": recordings, "sha256": digest}
