"""Run training jobs one after the other, in this process or in several: python training_jobs.py JOBS.json

JOBS.json is a list of {"stage": "c2i", "vq" or "probe", ...flags}. The environment says which process this
is, as under torchrun.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import torch

from autoregressive.models.gpt import GPT_SIZES
from autoregressive.train import train_c2i
from common.checkpoints import checkpoint_file
from common.distributed import Runtime
from common.files import read_json, remove, write_json
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


def run_jobs(jobs, folder, env, world_size=2):
    """Run the jobs in `world_size` processes of one group; returns them, finished."""
    write_json(folder / "jobs.json", jobs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    command = [sys.executable, __file__, str(folder / "jobs.json")]
    group = [subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for rank in range(world_size)]
    outputs = [process.communicate()[0] for process in group]
    assert all(process.returncode == 0 for process in group), "\n".join(outputs)
    return outputs


if __name__ == "__main__":
    torch.set_num_threads(1)
    GPT_SIZES["tiny"] = TINY_GPT
    with Runtime.start() as this_process:
        assert this_process.world_size == int(os.environ["WORLD_SIZE"])
        for job in read_json(Path(sys.argv[1])):
            run_job(this_process, **job)
