"""STAGE: real and synthetic clips -> classifiers, and whether synthetic clips make them better on real ones.

Every arm (real clips; real and synthetic ones; synthetic ones alone) trains for equally many steps. It is
tested on the same real clips, of recordings that neither it nor the generator has seen. Each run, one arm on
one fold with one seed, leaves one file; a rerun makes those that are missing. Shapes: n test clips, K
classes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_json, remove, write_json
from common.locks import locked
from common.progress import progress
from common.training.loop import train
from evaluations.arms import ClassificationConfig, Protocol, Run, of_fold
from evaluations.classification_report import write_report
from evaluations.clips import ClipSet
from evaluations.folds import write_folds
from evaluations.frame_classifier import FrameClassifier
from evaluations.probe import SIZE, ClassifierTask, ProbeConfig, VideoProbe, measure, probe_input


def make_model(config: ClassificationConfig, classes: int) -> nn.Module:
    """The network with its first weights; `InputError` naming --network, --weights or --size."""
    if config.network == "probe":
        return VideoProbe(ProbeConfig(classes))
    model = FrameClassifier(config.network, classes, config.size)
    if config.weights != "none":
        model.load(config.weights)
    return model


class Inputs:
    """Inputs of the network, uint8 (T, 3, side, side) with labels; all clips stay in memory."""

    def __init__(self, frames: int, side: int):
        self.frames, self.side = frames, side
        self.kept: dict[Path, list[tuple[Tensor, int]]] = {}

    def of(self, clips: ClipSet) -> list[tuple[Tensor, int]]:
        """In the order of the clips."""
        if clips.folder not in self.kept:
            entries = progress(clips.entries, len(clips.entries), f"read {clips.folder.name}", "clip", True)
            side = min(self.side, clips.grid.frame_size)  # the network enlarges frames itself
            frames = (torch.from_numpy(clips.frames(entry)) for entry in entries)
            self.kept[clips.folder] = [(probe_input(own_T3HW, self.frames, side), int(label))
                                       for own_T3HW, label in zip(frames, clips.labels, strict=True)]
        return self.kept[clips.folder]


def one_run(protocol: Protocol, run: Run, inputs: Inputs, runtime: Runtime) -> None:
    """Train, test, and write the file of the run."""
    config, folder = protocol.config, protocol.config.results_dir / "runs" / run.name
    real, synthetic = protocol.places(run)
    train_set = [inputs.of(protocol.real)[i] for i in real]
    if synthetic:
        of_generator = inputs.of(of_fold(protocol.synthetic, run.fold))
        train_set += [of_generator[i] for i in synthetic]
    torch.manual_seed(run.seed)
    model, settings = make_model(config, len(protocol.class_names)), protocol.settings(run)
    device = runtime.device(config.device)
    task = ClassifierTask(model, {"run": settings}, train_set, [], device, config.strong_augmentation,
                          config.unit == "frames")
    print(f"{run.name}: {len(real)} real and {len(synthetic)} synthetic clips", flush=True)
    alone = Runtime(local_rank=runtime.local_rank)
    if train(task, config.training(folder, run.seed), alone) < config.max_steps:
        raise KeyboardInterrupt  # a signal meant for the whole comparison
    test = protocol.folds[run.fold].test
    logits_nK, _ = measure(model.eval(), (inputs.of(protocol.real)[i][0] for i in test), device)
    names = [protocol.real.entries[i].name for i in test]
    result = {**asdict(run), "real": len(real), "synthetic": len(synthetic), "settings": settings,
              "clips": names, "predicted": logits_nK.argmax(1).tolist()}
    write_json(folder.with_suffix(".json"), result)
    remove(folder / "checkpoints")


def read_run(protocol: Protocol, run: Run) -> dict[str, Any] | None:
    """The result of a finished run, if there is one; `InputError` if it had other settings."""
    path = protocol.config.results_dir / "runs" / f"{run.name}.json"
    if not path.exists():
        return None
    result = read_json(path)
    for name, value in protocol.settings(run).items():
        if (known := result["settings"].get(name)) != value:
            words = "other clips" if isinstance(value, dict) else known
            raise InputError(f"--{name.replace('_', '-')}: {path} was made with {words}; choose another "
                             "--results-dir, or delete its runs")
    return result


def run(config: ClassificationConfig, runtime: Runtime) -> dict[str, Any]:
    """Make the runs that are missing, share them out to the processes, write the report."""
    with locked(config.results_dir, runtime):
        protocol = Protocol(config)
        todo = [run for run in protocol.runs() if not read_run(protocol, run)]
        runtime.gather(None)  # no process writes a run that another one has not looked for yet
        if runtime.is_main and config.folds > 1:
            write_folds(protocol.real, protocol.folds, config.results_dir / "folds")
        side = config.size or (SIZE if config.network == "probe" else make_model(config, 2).size)
        inputs = Inputs(config.frames, side)
        with runtime.together():
            for run in runtime.share(todo):
                one_run(protocol, run, inputs, runtime)
        if not runtime.is_main:
            return {}
        results = [read_run(protocol, run) for run in protocol.runs()]
        return write_report(protocol, results)


if __name__ == "__main__":
    run_command(ClassificationConfig, run)
