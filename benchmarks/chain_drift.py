"""How far a chain drifts, link by link: each goes on from frames that are generated themselves.

    python -m benchmarks.chain_drift --data-path out/grids --results-dir out/drift

Beside the links stand held-out real clips; all are compared with the training clips. Rerun the same command
to continue. Shapes: n clips, T frames, F of them for Lite0, K octaves, D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoregressive.sample.sample_c2i import SampleC2IConfig
from autoregressive.sample.sample_c2i import run as sample
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, write_json
from common.progress import progress
from common.registry import MODELS_FOLDER
from common.spread import evenly
from dataset.samples import read_samples
from evaluations import probe as probes
from evaluations.clips import ClipSet
from evaluations.extractor import Lite0Frames
from evaluations.frechet import gaussian_distance, gaussian_of_few
from evaluations.results import aligned
from evaluations.sharpness import FINEST, OctaveEnergy
from evaluations.temporal import FrameDifferences

EVERY = 4  # frames from one that Lite0 sees to the next


@dataclass(frozen=True, kw_only=True)
class ChainDriftConfig:
    """Sample chains and measure them link by link."""

    data_path: Path
    """Folder of grid pictures: the real clips, of train and val."""
    results_dir: Path
    """Folder for the chains, drift.json and drift.png."""
    links: int = 20
    """Clips of a chain."""
    clips_per_class: int = 2
    """Chains of each class."""
    classes: tuple[str, ...] = ()
    """Classes (default: all)."""
    gpt_ckpt: Path = MODELS_FOLDER / "endogen_phantom_gpt.safetensors"
    """Checkpoint or run folder."""
    probe: Path = MODELS_FOLDER / "endogen_phantom_probe.safetensors"
    """Checkpoint or run folder of evaluations.probe, of the same classes."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, links=2, clips_per_class=1)


def measured(clips: ClipSet, names: list[str], probe: probes.VideoProbe, lite0: Lite0Frames,
             device: torch.device) -> dict[str, np.ndarray]:
    """Labels by the probe (n,), motion (n,), energy (n, K), colour (n, 3), features (n F, D) of clips."""
    entries, parts = {entry.name: entry for entry in clips.entries}, []
    for name in names:
        frames_1T3HW = torch.from_numpy(np.ascontiguousarray(clips.frames(entries[name])))[None]
        logits_1K = torch.from_numpy(probes.measure(probe, [probes.probe_input(frames_1T3HW[0])], device)[0])
        features_FD = lite0.features(frames_1T3HW[:, ::EVERY].to(device))[0].cpu()
        parts.append((logits_1K.argmax(1), FrameDifferences().features(frames_1T3HW)[:, 0, 0],
                      OctaveEnergy().features(frames_1T3HW)[:, 0], frames_1T3HW.float().mean((1, 3, 4)),
                      features_FD))
    kinds = ("label", "motion", "energy", "colour", "lite0")
    joined: list[Tensor] = [torch.cat(part) for part in zip(*parts, strict=True)]
    return {kind: part.double().numpy() for kind, part in zip(kinds, joined, strict=True)}


def line(title: str, found: dict[str, np.ndarray], labels: list[int], real: dict[str, np.ndarray], clips: int
         ) -> dict[str, Any]:
    """One line of the table. Motion and energies are divided by those of the real clips.

    The Fréchet distance, which depends on their number, is that of so many `clips`.
    """
    ratio_K = found["energy"].mean(0) / real["energy"].mean(0)
    features_nFD = found["lite0"].reshape(len(labels), -1, found["lite0"].shape[-1])
    some = features_nFD[evenly(len(labels), clips)].reshape(-1, features_nFD.shape[-1])
    gaussians = [gaussian_of_few(features, 1) for features in (some, real["lite0"])]
    return {"link": title, "in class": float((found["label"] == labels).mean()),
            "motion": float(found["motion"].mean() / real["motion"].mean()),
            **{f"{FINEST << k}-{FINEST << (k + 1)} px": float(ratio) for k, ratio in enumerate(ratio_K)},
            **dict(zip(("red", "green", "blue"), found["colour"].mean(0).tolist(), strict=True)),
            "Lite0": gaussian_distance(*gaussians[0], *gaussians[1])}


def draw(path: Path, lines: list[dict[str, Any]]) -> None:
    """Every column against the link; real clips, which come first, as dotted lines."""
    from matplotlib.figure import Figure

    octaves = [name for name in lines[0] if name.endswith("px")]
    panels = {"share in class": ["in class"], "over real clips": ["motion", *octaves],
              "mean colour, 0 to 255": ["red", "green", "blue"], "Fréchet distance": ["Lite0"]}
    axes = Figure(figsize=(11, 2.6), layout="constrained").subplots(1, len(panels))
    for panel, (title, names) in zip(axes, panels.items(), strict=True):
        for i, name in enumerate(names):
            colour = name if "colour" in title else f"C{i}"
            panel.plot(range(1, len(lines)), [link[name] for link in lines[1:]], color=colour, label=name)
            panel.axhline(lines[0][name], color=colour, linestyle=":", linewidth=0.8)
        panel.set(title=title, xlabel="link", ylim=(0, None))
        panel.legend(fontsize="x-small")
    with atomic_path(path) as temporary:
        axes[0].figure.savefig(temporary, dpi=80)


def run(config: ChainDriftConfig, runtime: Runtime) -> list[dict[str, Any]]:
    """Sample, measure, print a table, write drift.json and drift.png."""
    folder, device = config.results_dir / "samples", runtime.device(config.device)
    probe, dataset = probes.load_probe(config.probe)
    real = ClipSet.read_grids(config.data_path, "--data-path")
    names = list(real.class_names)
    if dataset["class_names"] != names:
        raise InputError(f"--probe {config.probe}: probe and --data-path differ in their classes")
    train, val = (real.select(config.classes or names, split).entries for split in ("train", "val"))
    if min(len(train), len(val)) < 2:
        raise InputError(f"--data-path {config.data_path}: needs two clips of train and two of val")
    sample(SampleC2IConfig(gpt_ckpt=config.gpt_ckpt, save_folder=folder, chain=config.links,
                           classes=config.classes, clips_per_class=config.clips_per_class,
                           device=config.device), runtime)
    if not runtime.is_main:
        return []
    record, generated = read_samples(folder), ClipSet.read_grids(folder / "grids", "--results-dir")
    if record["dataset"]["class_names"] != names:
        raise InputError(f"--gpt-ckpt {config.gpt_ckpt}: model and --data-path differ in their classes")
    tools, chains = (probe.to(device), Lite0Frames(device), device), record["clips"]
    count = min(len(chains), len(val))
    reference = measured(real, [entry.name for entry in train], *tools)
    lines = [line("real", measured(real, [entry.name for entry in val], *tools),
                  [names.index(entry.class_name) for entry in val], reference, count)]
    for k in progress(range(config.links), config.links, "measure", "link", True):
        found = measured(generated, [chain["grids"][k].removeprefix("grids/") for chain in chains], *tools)
        lines.append(line(str(k + 1), found, [chain["label"] for chain in chains], reference, count))
    write_json(config.results_dir / "drift.json", {
        "chains": len(chains), "train": len(train), "val": len(val), "clips of Lite0": count, "lines": lines})
    draw(config.results_dir / "drift.png", lines)
    print("\n".join(aligned([list(lines[0]), *([f"{value:.3g}" if isinstance(value, float) else value
                                                for value in own.values()] for own in lines)])))
    return lines


if __name__ == "__main__":
    run_command(ChainDriftConfig, run)
