"""Training jobs {"stage": "c2i", "vq" or "probe", ...flags}, in this process or in several."""

import shutil
from pathlib import Path

from ranks import run_ranks

from autoregressive.train import train_c2i
from common.checkpoints import checkpoint_file
from common.files import remove
from evaluations import probe
from tokenizer import train_vq

TINY_GPT = {"n_layer": 2, "n_head": 2, "dim": 32}


def run_job(runtime, stage, goes_on_from=None, **flags):
    """One training run, maybe going on from the last but one checkpoint of another; paths may be strings."""
    if goes_on_from and runtime.is_main:
        shutil.copytree(goes_on_from, flags["results_dir"])
        remove(checkpoint_file(flags["results_dir"]))
    runtime.gather(None)  # the others wait for the copy
    paths = {name: Path(flags[name]) for name in ("results_dir", "code_path") if name in flags}
    if stage == "c2i":
        train_c2i.run(train_c2i.TrainC2IConfig(**{**flags, **paths, "gpt_model": "tiny"}), runtime)
    elif stage == "probe":
        grids = Path(flags["data_path"])
        probe.run(probe.TrainProbeConfig(**{**flags, **paths, "data_path": grids}), runtime)
    else:
        sources = {"data_path": tuple(map(Path, flags["data_path"]))}
        train_vq.run(train_vq.TrainVQConfig(**{**flags, **paths, **sources}), runtime)


def run_jobs(jobs, world_size=2):
    """Run the jobs one after the other in `world_size` processes of one group."""
    statuses = run_ranks(lambda runtime: [run_job(runtime, **job) for job in jobs], world_size)
    assert statuses == [0] * world_size
