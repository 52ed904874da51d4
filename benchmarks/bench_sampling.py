"""Speed and memory of sampling against the plain way:  python -m benchmarks.bench_sampling [flags]

The GPT is that of a checkpoint, or has random weights, with which a decode window above 1 means nothing: how
many guesses are right depends on what the weights have learnt. Shapes: B clips, N tokens of a clip.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.decoding import (
    BUCKET,
    Passes,
    Rule,
    compute_dtype,
    decode_in_steps,
    decode_in_windows,
)
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig, KVCache
from autoregressive.models.native import PRECISIONS, prepare
from autoregressive.models.noise import noise_keys
from autoregressive.sample.clip_files import ClipJob, write_clip
from autoregressive.sample.pictures import pictures_of
from autoregressive.sample.sample_c2i import SampleC2IConfig, run
from benchmarks.harness import BenchmarkConfig, main, timed
from benchmarks.plain import FastStep, plain_caches, plain_decode, plain_generate
from common.distributed import Runtime
from common.presets import find_preset
from dataset.grid_images import to_uint8
from tokenizer.loading import load_tokenizer, tokenizer_facts
from tokenizer.vq_model import VQConfig, VQModel

CLASSES, TOP_K = 8, 2000


@dataclass(frozen=True, kw_only=True)
class SamplingBenchmark(BenchmarkConfig):
    """Measure the sampling of clips: in tokens, from tokens to pictures, or from weights to files."""

    work: Literal["tokens", "pictures", "clips"] = "tokens"
    """tokens: of a batch, by the GPT. pictures: of random tokens, by a random VQ-16. clips: by sample_c2i."""
    gpt_ckpt: Path | None = None
    """Checkpoint of the GPT (default: random weights)."""
    gpt_model: str = "GPT-B"
    """Size of the model with random weights."""
    tokens: int = 1024
    """Tokens per clip of the model with random weights."""
    vocab_size: int = 16384
    """Codes of the model with random weights."""
    batch_size: int = 8
    """Clips at once. --work clips makes as many, at least eight."""
    cfg_scale: float = 1.5
    """Scale of classifier-free guidance."""
    steps: int = 0
    """Tokens of a clip that plain and steps sample, from its middle, with the cache there; 0: all."""
    mixed_precision: Literal["int8", "bf16", "none"] = "none"
    """Precision of the GPT and of our pictures, but not of the pictures of --work clips. Plain follows, with
    bf16 for int8."""
    variants: tuple[str, ...] = ("plain", "steps")
    """plain, compiled (gpt-fast's way), steps, or a number: the decode window. Of --work
    pictures: plain, ours."""

    def cases(self) -> list[Sequence[str]]:
        return [self.variants]

    def prepare(self, folder: Path) -> None:
        if self.work == "clips":
            write_models(folder, self.make_gpt(), random_tokenizer())

    def measure(self, case: str) -> dict[str, float]:
        """Times and memory of a batch, and the number of passes."""
        device, dtype = Runtime().device(self.device), PRECISIONS[self.mixed_precision]
        counts: list[int] = []
        with TemporaryDirectory() as clips:
            if self.work == "tokens":
                work = token_work(
                    self.make_gpt(), case, self.batch_size, self.cfg_scale, self.steps, dtype, device)
            elif self.work == "pictures":
                work = picture_work(case, self.batch_size, self.tokens, self.mixed_precision, device)
            elif case == "plain":
                work = partial(plain_clips, self.folder, self.cfg_scale, dtype, Path(clips), device)
            else:
                work = clip_work(self.folder, case, self.batch_size, self.cfg_scale, self.mixed_precision,
                                 Path(clips), device)
            warm = bool(self.steps) or case == "compiled"
            if device.type != "cpu" and self.work != "clips":
                warm = 2  # compiling and recording
            found = timed(lambda: counts.append(work()), device, int(warm))
        return {**found, "passes": counts[-1]}

    def make_gpt(self) -> GPT:
        """The model to sample from."""
        if self.gpt_ckpt:
            return load_gpt(self.gpt_ckpt)[0]
        torch.manual_seed(0)
        model = GPT(GPTConfig(**GPT_SIZES[self.gpt_model], vocab_size=self.vocab_size,
                              block_size=self.tokens, num_classes=CLASSES))
        torch.nn.init.normal_(model.output.weight, std=0.02)
        return model.requires_grad_(False).eval()


def random_tokenizer() -> VQModel:
    """A tokenizer of the shape of VQ-16, in the memory format that checkpoints are loaded in."""
    torch.manual_seed(0)
    return VQModel(VQConfig()).requires_grad_(False).eval().to(memory_format=torch.channels_last)


def window_of(variant: str) -> int:
    """The decode window that a variant stands for."""
    return 1 if variant == "steps" else int(variant)


def token_work(model: GPT, variant: str, batch: int, cfg_scale: float, steps: int, dtype: torch.dtype,
               device: torch.device) -> Callable[[], int]:
    """A function that samples a batch -> its passes; of `steps` only the tokens in the middle of the clips.

    The work at the middle is the mean of the work at all tokens.
    """
    config = model.config
    labels_B = torch.arange(batch, device=device) % config.num_classes
    first = (config.block_size - steps) // 2
    places = range(first, first + steps) if steps else range(config.block_size)
    if variant in ("plain", "compiled"):
        model = model.to(device, torch.bfloat16 if dtype == torch.int8 else dtype)
        caches = plain_caches(model, 2 * batch) if steps or variant == "compiled" else None
        if variant == "compiled":
            step = FastStep(model, caches, cfg_scale, min(TOP_K, config.vocab_size))
            step.compile(fullgraph=True, mode=None if device.type == "cpu" else "reduce-overhead")
            return lambda: some_fast_steps(step, labels_B, places)
        return lambda: len(plain_generate(model, caches or plain_caches(model, 2 * batch), labels_B,
                                          cfg_scale, 1.0, TOP_K, places)[0])
    model = prepare(model.to(device), dtype)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])
    keys_BN2 = noise_keys(range(batch), config.block_size, device)
    clips = (model.cls_embedding.embedding_table.weight[labels_R], keys_BN2,
             torch.full(keys_BN2.shape[:2], -1, device=device))
    rule = Rule(cfg_scale, top_k=TOP_K, guided=config.block_size)
    if variant == "steps" and device.type == "cpu":
        if not steps:
            return cast(lambda: len(decode_in_steps(model, *clips, rule)[0]))
        cache = model.new_cache(2 * batch, compute_dtype(model))
        for stored in (*cache.keys, *cache.values):
            stored.fill_(0)  # memory that nobody has written to would cost nothing to read
        return cast(lambda: some_steps(model, cache, labels_B, keys_BN2, rule, places))
    passes = Passes(model, batch, rule, window_of(variant))
    if steps:
        return cast(lambda: some_passes(passes, places))
    return cast(lambda: decode_in_windows(passes, *clips)[1])


@torch.no_grad()
def some_fast_steps(step: FastStep, tokens_B: Tensor, places: range) -> int:
    """The tokens at these places, one after the other."""
    token_B1 = tokens_B[:, None]
    position_N = torch.arange(places.stop, device=tokens_B.device)
    for i in places:
        next_B1 = step(token_B1, position_N[i : i + 1])
        token_B1 = next_B1.clone()  # the next step reuses its memory
    return len(places)


@torch.no_grad()
def some_steps(
    model: GPT, cache: KVCache, tokens_B: Tensor, keys_BN2: Tensor, rule: Rule, places: range
) -> int:
    """`decode_in_steps` at these places only."""
    position_N = torch.arange(model.config.block_size, device=tokens_B.device)
    for i in places:
        view = cache.first(2 * len(tokens_B), (i // BUCKET + 1) * BUCKET)
        logits_RV = model.step(tokens_B.repeat(2), position_N[i : i + 1], view)
        tokens_B = rule.choose(logits_RV, keys_BN2[:, i], position_N[i : i + 1])
    return len(places)


@torch.no_grad()
def some_passes(passes: Passes, places: range) -> int:
    """The passes of `decode_in_windows` at these places only."""
    passes.done_B1.fill_(places.start)
    for _ in places:
        passes.take(1, 2 * passes.batch, passes.count + 1)
    return len(places)


def picture_work(variant: str, batch: int, tokens: int, precision: str, device: torch.device
                 ) -> Callable[[], int]:
    """A function that decodes a batch of random tokens -> the number of its pictures."""
    model, side = random_tokenizer().to(device), int(tokens**0.5)
    codes_Bhw = torch.randint(model.config.codebook_size, (batch, side, side), device=device)
    if variant == "plain":
        model.to(memory_format=torch.contiguous_format)
        return lambda: len(plain_decode(model, codes_Bhw))
    return lambda: len(pictures_of(codes_Bhw, model, precision))


def write_models(folder: Path, gpt: GPT, vq: VQModel) -> None:
    """Checkpoints gpt.pt and vq.pt for clips of the eight classes of hyperkvasir16."""
    side = int(gpt.config.block_size**0.5)
    frames = 4 if gpt.config.block_size <= 1024 else 8
    dataset = {**find_preset("hyperkvasir16").facts(), "rows": frames, "cols": frames,
               "frame_size": side * vq.config.downsample // frames}
    torch.save({"model": vq.state_dict(), "config": asdict(vq.config)}, folder / "vq.pt")
    torch.save({"model": gpt.state_dict(), "config": asdict(gpt.config), "dataset": dataset,
                "tokenizer": tokenizer_facts(vq, folder / "vq.pt")}, folder / "gpt.pt")


def clip_work(models: Path, variant: str, batch: int, cfg_scale: float, precision: str, folder: Path,
              device: torch.device) -> Callable[[], int]:
    """A function that runs sample_c2i with the checkpoints in `models` -> the number of clips in `folder`."""
    config = SampleC2IConfig(
        gpt_ckpt=models / "gpt.pt", vq_ckpt=models / "vq.pt", save_folder=folder / "clips",
        clips_per_class=max(1, batch // CLASSES), cfg_scale=cfg_scale, decode_window=window_of(variant),
        mixed_precision=precision, device=device.type)
    return lambda: run(config, Runtime()) or CLASSES * config.clips_per_class


def plain_clips(models: Path, cfg_scale: float, dtype: torch.dtype, folder: Path, device: torch.device
                ) -> int:
    """A clip of each class, one stage after the other, all pictures decoded at once in float32."""
    gpt, dataset, _ = load_gpt(models / "gpt.pt")
    gpt = gpt.to(device, torch.bfloat16 if dtype == torch.int8 else dtype)
    vq = load_tokenizer(models / "vq.pt").to(device, memory_format=torch.contiguous_format)
    labels_B = torch.arange(CLASSES, device=device)
    tokens_BN = plain_generate(gpt, plain_caches(gpt, 2 * CLASSES), labels_B, cfg_scale, 1.0, TOP_K,
                               range(gpt.config.block_size))
    side = int(gpt.config.block_size**0.5)
    for label, pixels_3HW in enumerate(plain_decode(vq, tokens_BN.view(-1, side, side))):
        job = ClipJob(dataset["class_names"][label], label, 0)
        write_clip(folder, job, [to_uint8(pixels_3HW).cpu()], dataset)
    return CLASSES


if __name__ == "__main__":
    main(SamplingBenchmark)
