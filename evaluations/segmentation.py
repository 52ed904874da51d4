"""STAGE: real, unlabelled and synthetic pictures -> what synthetic ones are good for in segmentation.

A small network is trained with N real labels alone (the arm "real"), with strong augmentation, and with M
added pictures: reconstructions of the N, synthetic ones with their masks, synthetic or real ones that a
teacher labels. Two arms have no network: one mask for all pictures ("constant"), and the mask of the nearest
labelled picture ("copy"). All arms of a seed have the same N pictures, initial weights and number of steps.
Every result is a file of the output folder, so that a rerun continues. Shapes: n pictures of S x S pixels.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from common.command import run_command
from common.distributed import Runtime
from common.files import atomic_path, file_hash
from common.locks import locked
from common.progress import progress
from common.spread import evenly
from evaluations.arms import Job, kept, not_shown, write_report
from evaluations.scores import nearest_neighbours
from evaluations.segmentation_data import Picture, digest, load
from evaluations.segmentation_plan import (
    OF_GENERATORS,
    WITHOUT_NETWORK,
    Plan,
    SegmentationConfig,
    job_pictures,
    make_plan,
    plan_jobs,
)
from evaluations.segmentation_scores import SCORES, mean_dice, overlay_sheet, score_all
from evaluations.segmentation_split import directions, features
from evaluations.segmenter import Added, SegmenterConfig, Training, check_network, constant_labels, predict

SHOWN = 6  # test pictures on the sheet


@dataclass(frozen=True)
class Bench:
    """What all jobs of a process share; validation and test pictures in memory as (pixels, labels)."""

    config: SegmentationConfig
    plan: Plan
    device: torch.device
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @cached_property
    def split(self) -> str:
        """Hash of all pictures that are not added ones."""
        return digest([*self.plan.train, *self.plan.val, *self.plan.test])

    def settings(self, job: Job) -> dict[str, Any]:
        """What the result of a job depends on."""
        weights = Path(self.config.encoder_weights)
        network = {field.name: getattr(self.config, field.name) for field in fields(SegmenterConfig)}
        return {**network, "encoder_weights": file_hash(weights) if weights.is_file() else str(weights),
                "split": self.split,
                "added pictures": digest(job_pictures(job, self.config, self.plan)[1])}

    def done(self, job: Job) -> dict[str, Any]:
        """The result of a finished job, else of a new training."""
        file = self.config.output / "jobs" / f"{job.name}.json"
        if not self.shown_file(job).exists():
            file.unlink(missing_ok=True)
        return kept(file, self.settings(job), partial(self.result, job))

    def result(self, job: Job) -> dict[str, Any]:
        """Train and test: scores of every test picture; the label maps that are shown become a PNG file."""
        began = time.monotonic()
        predicted_nSS, facts = self._predict(job)
        with atomic_path(self.shown_file(job)) as temporary:
            Image.fromarray(np.concatenate(predicted_nSS[self.shown])).save(temporary)
        return {**facts, **score_all(self.test[1].numpy(), predicted_nSS),
                "seconds": round(time.monotonic() - began, 1)}

    def _predict(self, job: Job) -> tuple[np.ndarray, dict[str, Any]]:
        """(label maps of the test pictures, number of added pictures and Dice at every validation)."""
        labelled, added = job_pictures(job, self.config, self.plan)
        pixels, labels = load(labelled, self.config.size, self.config.classes)
        facts = {"added": len(added), "validation_dice": []}
        if job.arm == "constant":
            def score(map_SS: np.ndarray) -> float:
                return mean_dice(labels.numpy(), np.broadcast_to(map_SS, labels.shape))

            map_SS = constant_labels(labels, self.config.classes, score)
            return np.broadcast_to(map_SS, self.test[1].shape), facts
        if job.arm == "copy":
            return labels.numpy()[self._nearest(labelled)], facts
        extra = None
        if added:
            extra = Added(*load(added, self.config.size, self.config.classes), taught=added[0].mask is None)
        training = Training(self.config, pixels, labels, extra, job.arm == "strong", job.seed, self.device)
        model, facts["validation_dice"] = training.run(self._validate)
        return predict(model, self.test[0], self.device), facts

    @cached_property
    def test_features(self) -> np.ndarray:
        """Lite0 features (n, D) of the test pictures."""
        return features(self.plan.test, self.device, "test pictures")

    def _nearest(self, labelled: Sequence[Picture]) -> np.ndarray:
        """The place of the labelled picture that is most like each test picture, by their cosines."""
        own_mD = features(labelled, self.device, "labelled pictures")
        centre_D = own_mD.mean(0)
        return nearest_neighbours(directions(self.test_features, centre_D), directions(own_mD, centre_D))[1]

    def _validate(self, model: nn.Module) -> float:
        return mean_dice(self.val[1].numpy(), predict(model, self.val[0], self.device))

    @property
    def shown(self) -> list[int]:
        """Places of the test pictures on the sheet."""
        return evenly(len(self.plan.test), SHOWN)

    def shown_file(self, job: Job) -> Path:
        """The label maps of the pictures on the sheet, one below the other."""
        return self.config.output / "jobs" / f"{job.name}.png"

    def sheet(self, jobs: Sequence[Job]) -> Image.Image:
        """Outlines of one job of each arm."""
        maps = {}
        for job in jobs:
            with Image.open(self.shown_file(job)) as image:
                maps[job.arm] = np.stack(np.split(np.array(image), len(self.shown)))
        names = [self.plan.test[place].name for place in self.shown]
        return overlay_sheet(names, *(part[self.shown].numpy() for part in self.test), maps)


def run(config: SegmentationConfig, runtime: Runtime) -> list[dict[str, Any]]:
    """Run the missing jobs, this process its share, and write the report -> its rows, on the main process."""
    config, device = config.filled(), runtime.device(config.device)
    with locked(config.output, runtime):
        with runtime.together():
            check_network(config)  # so that a wrong flag is found before the work
        plan = runtime.agree(lambda: make_plan(config, device))
        with runtime.together():
            jobs, left_out = plan_jobs(config, plan)
            val, test = (load(part, config.size, config.classes) for part in (plan.val, plan.test))
            bench, own = Bench(config, plan, device, val, test), runtime.share(jobs)
            done = {job: bench.done(job)
                    for job in progress(own, len(own), "trainings", "training", runtime.is_main)}
        results = {job: result for part in runtime.gather(done) for job, result in part.items()}
        if not runtime.is_main:
            return []
        return report(bench, {job: results[job] for job in jobs}, [*plan.notes, *left_out])


def report(bench: Bench, results: dict[Job, dict[str, Any]], notes: Sequence[str]) -> list[dict[str, Any]]:
    """The part of the main process at the end."""
    config, labels = bench.config, max(job.labels for job in results)
    with atomic_path(config.output / "overlays.png") as temporary:
        bench.sheet([job for job in results if job.labels == labels and job.seed == 0
                     and job.arm not in WITHOUT_NETWORK]).save(temporary)
    caption = f"Test pictures, {labels} real labels, first seed: truth green, prediction magenta."
    facts = {"config": json.loads(json.dumps(asdict(config), default=str))}
    notes = [*notes, *not_shown(config.output / "jobs", (job.name for job in results))]
    generators = {arm: len(config.synthetic_path) for arm in OF_GENERATORS}
    return write_report(config.output, "Synthetic pictures for segmentation", SCORES, results,
                        bench.plan.clusters, notes, facts, {"overlays.png": caption}, generators)


if __name__ == "__main__":
    run_command(SegmentationConfig, run)
