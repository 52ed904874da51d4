"""Which losses make a tokenizer sharp? Tokenizers with and without an adversary and a perceptual loss.

All see the same crops in the same order from the same initial weights, for the same time on this machine: a
dearer loss gets fewer steps. They are judged on held-out clips. Rerun the same command to continue.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.spread import evenly
from dataset.grid_images import load_grid
from dataset.manifest import Manifest
from dataset.masks import shown_frames
from dataset.sheet import contact_sheet
from evaluations.evaluate import EvaluateConfig
from evaluations.evaluate import run as evaluate
from tokenizer.reconstruct import ReconstructConfig
from tokenizer.reconstruct import run as reconstruct
from tokenizer.train_vq import TrainVQConfig
from tokenizer.train_vq import run as train

ADVERSARY: dict[str, Any] = {"disc_weight": 0.5, "disc_width": 32, "disc_start": 0}
PERCEPTUAL: dict[str, Any] = {"perceptual": "lite0", "perceptual_weight": 0.5}
LOSSES: dict[str, dict[str, Any]] = {
    "pixels": {}, "adversary": ADVERSARY, "perceptual": PERCEPTUAL, "both": {**ADVERSARY, **PERCEPTUAL}}
SMALL = {"ch": 16, "ch_mult": (1, 2, 4, 4), "z_channels": 64, "num_res_blocks": 1, "codebook_size": 1024}
TRIAL_STEPS = 12  # that are timed
PICTURES = 8  # held-out clips of a data set that are shown
SCORES = {"sharpness": ("energy_2_4px", "energy_4_8px", "energy_8_16px", "c2st"),
          "temporal": ("reversal_ratio",), "lite0": ("frechet_lite0", "c2st")}


@dataclass(frozen=True, kw_only=True)
class AblateLossesConfig:
    """Train and judge one tokenizer per set of losses."""

    data_path: Path
    """Folder of grid pictures; the held-out ones judge."""
    other_path: tuple[Path, ...] = ()
    """More folders whose held-out pictures judge, such as stills of real tissue."""
    results_dir: Path
    """Folder for the runs, their reconstructions, ablation.json and pictures.png."""
    vq_ckpt: Path | None = None
    """Tokenizer of which every run trains the decoder; default: a small one from nothing."""
    minutes: float = 10.0
    """Time of each run; on a CPU that of the processor."""
    global_batch_size: int = 8
    """Crops per step."""
    window: int = 1
    """Side of a crop in frames."""
    lr: float = 5e-4
    """Peak learning rate, falling as a cosine."""
    clips_per_class: int | None = None
    """Held-out clips that judge (default: all)."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, global_batch_size=1, window=1)
        if len({path.name for path in (self.data_path, *self.other_path)}) <= len(self.other_path):
            raise InputError("--other-path: two folders have the same name, which results go by")
        if self.minutes <= 0:
            raise InputError(f"--minutes {self.minutes}: must be more than 0")


def training(config: AblateLossesConfig, losses: str, folder: Path, steps: int) -> TrainVQConfig:
    """The run of one set of losses."""
    start = {"vq_ckpt": config.vq_ckpt, "trained_part": "decoder"} if config.vq_ckpt else SMALL
    return TrainVQConfig(
        data_path=(config.data_path,), results_dir=folder, max_steps=steps, window=config.window,
        global_batch_size=config.global_batch_size, lr=config.lr, lr_schedule="cosine",
        warmup_steps=min(50, steps // 10), weight_decay=0.01, ema_decay=0.99, colour_weight=1.0,
        eval_every=0, sample_every=0, log_every=20, device=config.device, **start, **LOSSES[losses])


def planned_steps(config: AblateLossesConfig, runtime: Runtime) -> dict[str, int]:
    """Steps of each run that take `config.minutes` here; measured once and kept in plan.json.

    On a CPU processor time counts, which other work beside it hardly changes.
    """
    path = config.results_dir / "plan.json"
    clock = process_time if runtime.device(config.device).type == "cpu" else perf_counter
    if not runtime.agree(path.exists):
        steps = {}
        for losses in LOSSES:
            seconds = []
            for last in (2, 2 + TRIAL_STEPS):  # the difference is without start and end
                folder, start = config.results_dir / "trials" / f"{losses}-{last}", clock()
                train(training(config, losses, folder, last), runtime)
                seconds.append(clock() - start)
            steps[losses] = max(1, round(config.minutes * 60 * TRIAL_STEPS / (seconds[1] - seconds[0])))
        if runtime.is_main:
            write_json(path, steps)
    return runtime.agree(lambda: read_json(path))


def held_out(config: AblateLossesConfig, data_path: Path, runtime: Runtime) -> Path:
    """The clips that judge, as a data set of links; features of all others would take too long."""
    folder, manifest = config.results_dir / "held_out" / data_path.name, Manifest.read(data_path)
    clips = manifest.choose("val", config.clips_per_class)
    with runtime.together():
        if runtime.is_main:
            for clip in clips:
                (folder / clip.name).parent.mkdir(parents=True, exist_ok=True)
                if not (folder / clip.name).exists():
                    (folder / clip.name).symlink_to((data_path / clip.name).resolve())
            replace(manifest, clips=tuple(clips)).write(folder)
    return folder


def reconstructions(config: AblateLossesConfig, losses: str, data_path: Path) -> Path:
    """Folder of the held-out clips after the tokenizer of these losses."""
    return config.results_dir / losses / f"reconstructed_{data_path.name}"


def judge(config: AblateLossesConfig, losses: str, data_path: Path, runtime: Runtime) -> dict[str, float]:
    """Scores of held-out clips after a tokenizer, against the clips themselves."""
    output = reconstructions(config, losses, data_path)
    quality = reconstruct(ReconstructConfig(data_path=data_path, vq_ckpt=output.parent / "run",
                                            save_path=output, device=config.device), runtime)
    moving = Manifest.read(data_path).rows > 1
    sections = evaluate(EvaluateConfig(
        data_path=data_path, sample_path=output, cache_path=config.results_dir / "features", groups=0,
        metrics=("temporal", "sharpness", "lite0") if moving else ("sharpness", "lite0"),
        device=config.device), runtime)
    if not runtime.is_main:
        return {}
    scores = {name: quality["all"][name] for name in ("psnr", "ssim")}
    for section, names in SCORES.items():
        found = sections["sections"].get(section, {"scores": {}})["scores"]
        scores |= {f"{section}/{name}": found[name]["pooled"]["value"] for name in names if name in found}
    return scores


def draw(config: AblateLossesConfig, folders: list[Path]) -> None:
    """pictures.png: a frame of each of some held-out clips as it is, then after each tokenizer."""
    rows = []
    for data_path in folders:
        manifest = Manifest.read(data_path)
        clips = [manifest.clips[i] for i in evenly(len(manifest.clips), PICTURES)]
        for title in ("original", *LOSSES):
            folder = data_path if title == "original" else reconstructions(config, title, data_path)
            grids = [load_grid(folder, clip, manifest) for clip in clips]
            frames = [shown_frames(grid, manifest.facts())[0] for grid in grids]
            rows.append((f"{data_path.name}: {title}", frames))
    with atomic_path(config.results_dir / "pictures.png") as temporary:
        contact_sheet(rows).save(temporary)


def run(config: AblateLossesConfig, runtime: Runtime) -> list[dict[str, Any]]:
    """All runs, then a table per data set, ablation.json and pictures.png."""
    steps, rows = planned_steps(config, runtime), []
    folders = [held_out(config, path, runtime) for path in (config.data_path, *config.other_path)]
    for losses in LOSSES:
        folder = config.results_dir / losses / "run"
        if train(training(config, losses, folder, steps[losses]), runtime) < steps[losses]:
            raise KeyboardInterrupt  # a signal meant for the whole comparison
        rows += [{"data": path.name, "losses": losses, "steps": steps[losses],
                  **judge(config, losses, path, runtime)} for path in folders]
    if runtime.is_main:
        write_json(config.results_dir / "ablation.json", {"runs": rows})
        draw(config, folders)
        for row in rows:
            print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                            for key, value in row.items()))
    return rows


if __name__ == "__main__":
    run_command(AblateLossesConfig, run)
