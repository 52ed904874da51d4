"""STAGE: checkpoint -> clips, as grid pictures, frames, mp4 and gif.

A clip is a function of (weights, class, seed, settings). Its grid picture is written last and marks a
complete clip; a rerun makes the missing clips.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from autoregressive.models.decoding import Rule
from autoregressive.models.native import PRECISIONS, prepare
from autoregressive.sample.clip_files import ClipJob, write_clip, write_manifest, write_sheet
from autoregressive.sample.gallery import write_gallery
from autoregressive.sample.pictures import check_bfloat16, suiting_precision
from autoregressive.sample.sampler import ClipSampler, Models, fitting_batch, usual_window
from autoregressive.sample.starts import given_tokens, read_start, read_start_masks, start_facts
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import file_hash, remove_unfinished, write_json
from common.hardware import own_cores
from common.hub import hub_facts
from common.locks import locked
from common.names import without_names
from common.progress import progress
from dataset.masks import clip_length
from dataset.samples import FILE_NAME, FOLDERS, read_samples
from tokenizer.loading import tokenizer_facts


@dataclass(frozen=True, kw_only=True)
class SampleC2IConfig:
    """Sample clips of every class, or of some, from a trained checkpoint."""

    save_folder: Path
    """Output folder for grids, frames, videos and gifs. Existing clips are kept."""
    gpt_ckpt: Path | None = None
    """Checkpoint or run folder, which holds class names, grid and frame rate."""
    model: str | None = None
    """Name of a model in pretrained_models/registry.json, instead of --gpt-ckpt (default: the first
    downloaded model, else the bundled phantom)."""
    preset: str | None = None
    """Data set of a checkpoint that holds weights only: the name of an experiment, or a dataset.json."""
    vq_ckpt: Path | None = None
    """Tokenizer (default: the one named by the checkpoint)."""
    classes: tuple[str, ...] = ()
    """Classes to sample (default: all)."""
    clips_per_class: int = 1
    """Clips of each class, with seeds --seed, --seed + 1 and so on."""
    seed: int = 0
    """First seed."""
    batch_size: int | None = None
    """Clips sampled at once (default: as many as fit the memory, at most 32, on a GPU 128)."""
    cfg_scale: float | None = None
    """Scale of classifier-free guidance; 1: no guidance (default: that of the registered model, else 1)."""
    cfg_interval: int = -1
    """Last decode step under guidance; -1: guide all steps."""
    temperature: float | None = None
    """Divides the logits; 0: take the most likely token (default: that of the registered model, else 1)."""
    top_k: int = 2000
    """Sample among this many most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probability sums to at least this."""
    start_from: Path | None = None
    """Grid picture, picture, folder of frames or video whose frames begin every clip."""
    start_masks: Path | None = None
    """Masks of the first frames of every clip: a picture, folder or video of labels (annotated models)."""
    start_frames: int | None = None
    """Number of frames of --start-from. k: the first k, -k: the last k (default: the first frames, one row of
    the grid). With --start-masks, masks are counted likewise (default: all)."""
    chain: int = 1
    """Number of clips joined to a longer one. Each begins with the last row of frames of the previous one."""
    blend_with: str | None = None
    """Mix the embedding of every class with that of this class; --blend sets the weight."""
    blend: float = 0.5
    """Weight of --blend-with, from 0 (the class itself) to 1 (the other class)."""
    decode_window: int | None = None
    """Tokens of a clip that a pass guesses and checks. The clips do not depend on it. 1: token by token
    (default: 8, on a GPU 16)."""
    mixed_precision: Literal["int8", "bf16", "none"] = "none"
    """Precision of the GPT's weights. bf16 is faster; on a GPU a clip may then depend on the other clips of
    its batch. int8, on a CPU only, is faster still and changes the model slightly."""
    decode_precision: Literal["auto", "bf16", "none"] = "auto"
    """Precision of the tokenizer. bf16 is refused for a tokenizer whose pictures it changes visibly. auto:
    that of the clips in the folder; for new ones bf16 on a CPU that multiplies it, unless refused."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, clips_per_class=1, seed=0, chain=1)
        for name in ("batch_size", "decode_window"):
            if getattr(self, name) is not None:
                require_at_least(self, **{name: 1})
        if not 0 <= self.blend <= 1:
            raise InputError(f"--blend {self.blend}: must be from 0 to 1")
        if self.gpt_ckpt and self.model:
            raise InputError(f"--model {self.model}: not together with --gpt-ckpt")

    def settled(self, best: dict[str, float]) -> "SampleC2IConfig":
        """With a model's best settings for flags that were not given."""
        return replace(self, **{name: value for name, value in best.items() if getattr(self, name) is None})

    def generate_arguments(self) -> dict[str, Any]:
        """The sampling settings as arguments of `generate`."""
        names = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """The flags that change a clip of given weights, class, seed and start frames."""
        facts = {**self.generate_arguments(), "mixed_precision": self.mixed_precision}
        if self.decode_precision != "none":
            facts["decode_precision"] = self.decode_precision
        if self.chain > 1:
            facts["chain"] = self.chain
        if self.blend_with:
            facts |= {"blend_with": self.blend_with, "blend": self.blend}
        return facts


def label_of(name: str, class_names: Sequence[str], flag: str) -> int:
    """The label of a class. Raises: `InputError` that names the flag if there is no such class."""
    if name not in class_names:
        raise InputError(f"{flag} {name}: the checkpoint knows {', '.join(class_names)}")
    return list(class_names).index(name)


def make_jobs(classes: Sequence[str], class_names: Sequence[str], seeds: range) -> list[ClipJob]:
    """For every seed a clip of each of `classes`, one of those named twice."""
    labels = {name: label_of(name, class_names, "--classes") for name in classes}
    return [ClipJob(name, label, seed) for seed in seeds for name, label in labels.items()]


def clips_there(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips that samples.json lists, if it exists; deletes temporary files of a killed run.

    A record of a run that ended before it wrote anything does not count. Raises: `InputError` if the folder
    holds clips without a record, or of other weights or settings.
    """
    outputs = [kind for kind in FOLDERS if (folder / kind).exists()]
    if not (folder / FILE_NAME).exists():
        if outputs:
            raise InputError(f"--save-folder {folder}: holds {outputs[0]} but no {FILE_NAME}: "
                             "use another folder")
        return []
    record = read_samples(folder)
    if not (outputs or record["clips"]):
        return []
    recorded = {name: record.get(name) for name in facts}
    if without_names(recorded) != without_names(facts):
        changes = ", ".join(differences(recorded, facts))
        raise InputError(f"--save-folder {folder}: was sampled with {changes}: use another folder")
    remove_unfinished(folder)
    return record["clips"]


def precision_there(folder: Path) -> str | None:
    """The precision of the pictures of the clips in a folder; None if it has no record."""
    if not (folder / FILE_NAME).exists():
        return None
    return read_samples(folder).get("sampling", {}).get("decode_precision", "none")


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """All differences of nested dictionaries, such as "temperature 1.0, now 0.5"."""
    found = []
    for name in {**recorded, **wanted}:
        before, now = recorded.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            prefix = "" if name == "sampling" else f"{name} "
            found += [prefix + change for change in differences(before, now)]
        elif before != now:
            found.append(f"{name} {before}, now {now}")
    return found


def run(config: SampleC2IConfig, runtime: Runtime) -> None:
    """Make the missing clips. Raises: `InputError` if another job uses the folder."""
    with locked(config.save_folder, runtime):
        sample(config, runtime)


def sample(config: SampleC2IConfig, runtime: Runtime) -> None:
    """Make this process's share of the missing clips."""
    device, folder = runtime.device(config.device), config.save_folder
    models = Models.load(config.gpt_ckpt, config.model, config.preset, config.vq_ckpt, runtime)
    gpt, tokenizer, dataset, path = models.gpt, models.tokenizer, models.dataset, models.path
    config, entry = config.settled(models.best_settings), models.entry
    names = dataset["class_names"]
    jobs = make_jobs(config.classes or names, names, range(config.seed, config.seed + config.clips_per_class))
    Rule(config.cfg_scale, config.temperature, config.top_k, config.top_p)  # refuses wrong values
    demanded = config.decode_precision == "bf16"
    if config.decode_precision == "auto":
        config = replace(config, decode_precision=runtime.agree(
            lambda: precision_there(folder) or suiting_precision(tokenizer, dataset, device)))
    towards = config.blend_with and (label_of(config.blend_with, names, "--blend-with"), config.blend)
    settings, start_N = config.settings(), None
    if config.chain > 1 and clip_length(dataset) < 2 * dataset["cols"]:
        raise InputError(f"--chain {config.chain}: the clips of this model have one row of frames")
    if start := config.start_from or config.start_masks:
        frames_T3SS, labels_TSS = (read_start(start, dataset, config.start_masks) if config.start_from
                                   else (None, read_start_masks(start, dataset)))
        start_N = given_tokens(frames_T3SS, config.start_frames, tokenizer, dataset, labels_TSS)
        settings["start"] = {"name": start.name, **start_facts(start_N)}
    digest = runtime.agree(lambda: file_hash(path))[:16]
    vq_facts = {k: v for k, v in tokenizer_facts(tokenizer, models.vq_path).items() if k != "path"}
    facts = {"version": 1,
             "checkpoint": {"name": path.name, "hash": digest, **hub_facts(config.gpt_ckpt, path)},
             "tokenizer": {**vq_facts, **hub_facts(config.vq_ckpt, models.vq_path)},
             "dataset": dataset, "sampling": settings,
             **({"notice": entry["notice"]} if "notice" in entry else {})}
    tokenizer = tokenizer.to(device)
    if demanded:
        check_bfloat16(tokenizer, dataset)
    gpt = prepare(gpt.to(device), PRECISIONS[config.mixed_precision])
    clips = []
    with runtime.together():  # no process writes clips before
        if runtime.is_main:
            print(f"model {path.name}, tokenizer {models.vq_path.name}")
            if "notice" in entry:
                print(entry["notice"])
            clips = clips_there(folder, facts)
            if not clips:
                write_json(folder / FILE_NAME, {**facts, "clips": []})  # the folder is for these settings
    window = config.decode_window or usual_window(gpt, device)
    sampler = ClipSampler(
        gpt, tokenizer, dataset, {**config.generate_arguments(), "towards": towards, "decode_window": window},
        config.chain, start_N, config.mixed_precision == "bf16", config.decode_precision)
    missing = [job for job in runtime.share(jobs) if not (folder / job.path("grids", ".png")).exists()]
    size = config.batch_size or fitting_batch(gpt, device, runtime)
    with progress(None, len(missing), "sample", "clip", runtime.is_main) as bar:
        write_clips(sampler, missing, size, folder, bar)
    runtime.gather(None)  # all clips are there
    if runtime.is_main:
        write_records(folder, facts, clips, jobs, config.chain)


def write_clips(sampler: ClipSampler, jobs: Sequence[ClipJob], size: int, folder: Path, bar: tqdm) -> None:
    """Sample `size` clips at once, while the previous batch is written."""
    writing: list[Future] = []
    with ThreadPoolExecutor(own_cores()) as writers:
        for start in range(0, len(jobs) + size, size):
            batch = jobs[start : start + size]
            pictures = sampler(batch) if batch else []
            for written in writing:
                written.result()
            bar.update(len(writing))  # all at once, so that the rate is that of batches
            writing = [writers.submit(write_clip, folder, job, links, sampler.dataset)
                       for job, links in zip(batch, pictures, strict=True)]


def write_records(folder: Path, facts: dict[str, Any], clips: list[dict[str, Any]], jobs: Sequence[ClipJob],
                  links: int) -> None:
    """Write samples.json, dataset.json of the grids, contact sheet and gallery."""
    records = [job.record(links, bool(facts["dataset"].get("masks"))) for job in jobs]
    clips = clips + [record for record in records if record not in clips]
    clips.sort(key=lambda clip: (clip["seed"], clip["label"]))
    write_json(folder / FILE_NAME, {**facts, "clips": clips})
    write_manifest(folder / "grids", clips, facts["dataset"])
    write_sheet(folder, jobs, facts["dataset"])
    write_gallery(folder, facts, clips)
    print(f"{len(jobs)} clips of {len({job.class_name for job in jobs})} classes in {folder}: open "
          f"{folder / 'index.html'}")


if __name__ == "__main__":
    run_command(SampleC2IConfig, run)
