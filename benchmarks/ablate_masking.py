"""Does token masking help? GPTs trained without it, with static and with semantic-aware masking.

All see the same clips in the same order from the same initial weights. The lines of the table are means over
seeds; a difference smaller than that between seeds says nothing. Rerun the same command to continue.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from autoregressive.sample.sample_c2i import SampleC2IConfig
from autoregressive.sample.sample_c2i import run as sample
from autoregressive.train.train_c2i import TrainC2IConfig
from autoregressive.train.train_c2i import run as train
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.files import read_jsonl, write_json
from evaluations.class_consistency import ClassConsistencyConfig
from evaluations.class_consistency import run as check_classes

MASKINGS: dict[str, dict[str, Any]] = {
    "none": {"token_dropout_p": 0.0},
    "static": {"tok_drop_method": "static", "token_dropout_p": 0.1},  # LlamaGen's rate
    "element": {"tok_drop_method": "element", "token_dropout_p": 0.3},  # EndoGen's released code
    "token": {"tok_drop_method": "token", "token_dropout_p": 0.3},  # EndoGen's paper
}


@dataclass(frozen=True, kw_only=True)
class AblateMaskingConfig:
    """Train, sample and judge one GPT per way of masking and seed."""

    data_path: Path
    """Folder of grid pictures, the real clips."""
    code_path: Path
    """Their codes."""
    results_dir: Path
    """Folder for the runs, their clips, and ablation.json."""
    gpt_model: str = "GPT-XS"
    """Size."""
    gpt_ckpt: Path | None = None
    """Weights that every run starts from; default: from nothing."""
    max_steps: int = 1500
    """Optimiser steps of each run."""
    eval_every: int = 250
    """Steps between two validations."""
    global_batch_size: int = 4
    """Clips per step."""
    lr: float = 1e-3
    """Peak learning rate of Muon, falling as a cosine."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of initialisation and data order."""
    clips_per_class: int = 8
    """Clips to sample from each run."""
    cfg_scale: float = 2.0
    """Guidance of these clips."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, max_steps=1, eval_every=1, global_batch_size=1, clips_per_class=1)


def one_run(config: AblateMaskingConfig, masking: str, seed: int, runtime: Runtime) -> dict[str, float]:
    """Validation loss, lowest and at the end, and the check of classes and motion of one run."""
    folder = config.results_dir / f"{masking}-{seed}"
    reached = train(TrainC2IConfig(
        code_path=config.code_path, results_dir=folder / "gpt", gpt_model=config.gpt_model,
        gpt_ckpt=config.gpt_ckpt, optimizer="muon", max_steps=config.max_steps,
        global_batch_size=config.global_batch_size, lr=config.lr,
        lr_schedule="cosine", warmup_steps=min(100, config.max_steps // 10), ema_decay=0.95,
        eval_every=config.eval_every, sample_every=0, global_seed=seed, device=config.device,
        **MASKINGS[masking]), runtime)
    if reached < config.max_steps:
        raise KeyboardInterrupt  # a signal meant for the whole comparison
    sample(SampleC2IConfig(gpt_ckpt=folder / "gpt", save_folder=folder / "samples", device=config.device,
                           clips_per_class=config.clips_per_class, cfg_scale=config.cfg_scale), runtime)
    if not runtime.is_main:
        return {}
    checked = check_classes(ClassConsistencyConfig(data_path=config.data_path,
                                                   sample_path=folder / "samples"), runtime)
    log = read_jsonl(folder / "gpt" / "log.jsonl")
    losses = [record["val_loss"] for record in log if "val_loss" in record]
    return {"lowest_val_loss": min(losses), "last_val_loss": losses[-1],
            "in_class": checked["generated"]["accuracy"],
            "motion": checked["generated"]["motion"] / checked["real train"]["motion"]}


def run(config: AblateMaskingConfig, runtime: Runtime) -> list[dict[str, Any]]:
    """All runs, then a table and ablation.json."""
    runs = [{"masking": masking, "seed": seed, **one_run(config, masking, seed, runtime)}
            for seed in config.seeds for masking in MASKINGS]
    if not runtime.is_main:
        return []
    write_json(config.results_dir / "ablation.json", {"runs": runs})
    names = [name for name in runs[0] if name not in ("masking", "seed")]
    print("masking   " + "  ".join(f"{name:>24}" for name in names))
    for masking in MASKINGS:
        values = [[entry[name] for entry in runs if entry["masking"] == masking] for name in names]
        cells = (f"{mean(own):.4g} ({min(own):.4g} to {max(own):.4g})" for own in values)
        print(f"{masking:10}" + "  ".join(f"{cell:>24}" for cell in cells))
    return runs


if __name__ == "__main__":
    run_command(AblateMaskingConfig, run)
