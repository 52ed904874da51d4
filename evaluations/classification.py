"""STAGE: real and synthetic clips -> classifiers, and whether synthetic clips make them better on real ones.

Every arm (real clips; real and synthetic ones; synthetic ones alone) trains for equally many steps. It is
tested on the same real clips, of recordings that neither it nor the generator has seen. Each run, one arm on
one fold with one seed, leaves one file; a rerun makes those that are missing. Shapes: n test clips, K
classes.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from common.command import run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import read_json, remove, write_json
from common.locks import locked
from common.training.loop import train
from evaluations.classification_plan import ClassificationConfig, Experiment, Run
from evaluations.classification_report import write_report
from evaluations.folds import write_folds
from evaluations.frame_classifier import FrameClassifier
from evaluations.probe import SIZE, ClassifierTask, Inputs, ProbeConfig, VideoProbe, measure


def make_model(config: ClassificationConfig, classes: int) -> nn.Module:
    """The network with its first weights; `InputError` naming --network, --weights or --size."""
    if config.network == "probe":
        return VideoProbe(ProbeConfig(classes))
    model = FrameClassifier(config.network, classes, config.size)
    if config.weights != "none":
        model.load(config.weights)
    return model


def one_run(experiment: Experiment, run: Run, real_set: Inputs, synthetic_set: Inputs | None, runtime: Runtime
            ) -> None:
    """Train, test, and write the file of the run."""
    config, folder = experiment.config, experiment.config.results_dir / "runs" / run.name
    real, synthetic = experiment.places(run)
    parts = [(real_set, real), (synthetic_set, synthetic)]
    train_set = ConcatDataset([Subset(own, places) for own, places in parts if places])
    torch.manual_seed(run.seed)
    model, settings = make_model(config, len(experiment.class_names)), experiment.settings(run)
    device = runtime.device(config.device)
    task = ClassifierTask(model, {"run": settings}, train_set, [], device, config.strong_augmentation,
                          config.unit == "frames")
    print(f"{run.name}: {len(real)} real and {len(synthetic)} synthetic clips", flush=True)
    alone = Runtime(local_rank=runtime.local_rank)
    if train(task, config.training(folder, run.seed), alone) < config.max_steps:
        raise KeyboardInterrupt  # a signal meant for the whole comparison
    test = experiment.folds[run.fold].test
    logits_nK, _ = measure(model.eval(), (real_set[i][0] for i in test), device)
    names = [experiment.real.entries[i].name for i in test]
    result = {**asdict(run), "real": len(real), "synthetic": len(synthetic), "settings": settings,
              "clips": names, "predicted": logits_nK.argmax(1).tolist()}
    write_json(folder.with_suffix(".json"), result)
    remove(folder / "checkpoints")


def read_run(experiment: Experiment, run: Run) -> dict[str, Any] | None:
    """The result of a finished run, if there is one; `InputError` if it had other settings."""
    path = experiment.config.results_dir / "runs" / f"{run.name}.json"
    if not path.exists():
        return None
    result = read_json(path)
    for name, value in experiment.settings(run).items():
        if (known := result["settings"].get(name)) != value:
            flag = "data-path" if name == "split" else name.replace("_", "-")
            words = ("another split of the clips" if name == "split" else
                     "other clips" if isinstance(value, dict) else known)
            raise InputError(f"--{flag}: {path} was made with {words}; choose another "
                             "--results-dir, or delete its runs")
    return result


def run(config: ClassificationConfig, runtime: Runtime) -> dict[str, Any]:
    """Make the runs that are missing, share them out to the processes, write the report."""
    config = config.settled(runtime.device(config.device).type)
    with locked(config.results_dir, runtime):
        experiment = Experiment(config)
        todo = [run for run in experiment.runs() if not read_run(experiment, run)]
        runtime.gather(None)  # no process writes a run that another one has not looked for yet
        if runtime.is_main and config.folds > 1:
            write_folds(experiment.real, experiment.folds, config.results_dir / "folds")
        side = ((config.size or SIZE) if config.network == "probe" else  # others enlarge frames themselves
                min(make_model(config, 2).size, experiment.real.grid.frame_size))
        real, *synthetic = (Inputs(clips, config.frames, side)
                            for clips in (experiment.real, *experiment.synthetic))
        with runtime.together():
            for run in runtime.share(todo):
                one_run(experiment, run, real, experiment.of(run, synthetic) if synthetic else None, runtime)
        if not runtime.is_main:
            return {}
        results = [read_run(experiment, run) for run in experiment.runs()]
        return write_report(experiment, results)


if __name__ == "__main__":
    run_command(ClassificationConfig, run)
