"""What the sampling benchmark times: the tokens of a batch, their pictures, the demo from weights to files.

Each `..._work` prepares one variant and returns what is to be timed, which returns its passes or pictures.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from autoregressive.models.checkpoint import load_gpt
from autoregressive.models.decoding import Passes, Rule, decode_in_steps, decode_in_windows
from autoregressive.models.gpt import GPT, GPT_SIZES, GPTConfig, KVCache
from autoregressive.models.noise import noise_keys
from autoregressive.models.packing import pack
from autoregressive.sample.clip_files import ClipJob, write_clip
from autoregressive.sample.pictures import pictures_of
from autoregressive.sample.sample_c2i import SampleC2IConfig, run
from benchmarks.plain_decoding import plain_decode
from benchmarks.plain_gpt import PlainGPT
from benchmarks.plain_sampling import plain_caches, plain_generate
from common.distributed import Runtime
from common.presets import find_preset
from dataset.grid_images import to_uint8
from tokenizer.loading import load_tokenizer, tokenizer_facts
from tokenizer.vq_model import VQConfig, VQModel

CLASSES, TOP_K, BUCKET = 8, 2000, 128
DTYPES = {"bf16": torch.bfloat16, "none": torch.float32}


def random_gpt(size: str, tokens: int, vocab_size: int) -> GPT:
    """A model of this shape."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**GPT_SIZES[size], vocab_size=vocab_size, block_size=tokens, num_classes=CLASSES))
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model.requires_grad_(False).eval()


def random_tokenizer() -> VQModel:
    """A tokenizer of the shape of VQ-16, in the memory format that checkpoints are loaded in."""
    torch.manual_seed(0)
    return VQModel(VQConfig()).requires_grad_(False).eval().to(memory_format=torch.channels_last)


def plain_model(model: GPT) -> PlainGPT:
    """The same weights in the plain model."""
    plain = PlainGPT(model.config).eval()
    plain.load_state_dict(model.state_dict())
    return plain


def token_work(
    model: GPT, variant: str, batch: int, cfg_scale: float, steps: int, precision: str, device: torch.device
) -> Callable[[], int]:
    """The tokens of a batch, or `steps` from the middle of the clips, which cost what all do on average."""
    config = model.config
    labels_B = torch.arange(batch, device=device) % config.num_classes
    first = (config.block_size - steps) // 2
    places = range(first, first + steps) if steps else range(config.block_size)
    if variant == "plain":
        plain = plain_model(model).to(device, DTYPES[precision])
        settings = labels_B, cfg_scale, 1.0, TOP_K, places
        caches = plain_caches(plain, 2 * batch) if steps else None
        return lambda: len(plain_generate(plain, caches or plain_caches(plain, 2 * batch), *settings)[0])
    model = pack(model.to(device), DTYPES[precision])
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])
    class_RD = model.cls_embedding.embedding_table.weight[labels_R]
    keys_BN2 = noise_keys(range(batch), config.block_size, device)
    given_BN = torch.full(keys_BN2.shape[:2], -1, device=device)
    rule = Rule(cfg_scale, 1.0, TOP_K, guided=config.block_size)
    if variant == "steps" and device.type == "cpu" and steps:
        cache = model.new_cache(2 * batch)
        for stored in (*cache.keys, *cache.values):
            stored.fill_(0)  # memory that nobody has written to would cost nothing to read
        return cast(lambda: some_steps(model, cache, labels_B, keys_BN2, rule, places))
    clips = class_RD, keys_BN2, given_BN
    if variant == "steps" and device.type == "cpu":
        return cast(lambda: len(decode_in_steps(model, *clips, rule)[0]))
    passes = Passes(model, batch, rule, 1 if variant == "steps" else int(variant))
    if steps:
        return cast(lambda: some_passes(passes, places))
    return cast(lambda: decode_in_windows(passes, *clips)[1])


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


def picture_work(
    variant: str, batch: int, tokens: int, precision: str, device: torch.device
) -> Callable[[], int]:
    """The pictures of a batch of random tokens, with a tokenizer of the shape of VQ-16."""
    model, side = random_tokenizer().to(device), int(tokens**0.5)
    codes_Bhw = torch.randint(model.config.codebook_size, (batch, side, side), device=device)
    if variant == "plain":
        model.to(memory_format=torch.contiguous_format)
        return lambda: len(plain_decode(model, codes_Bhw))
    return lambda: len(pictures_of(codes_Bhw, model, precision))


def write_models(folder: Path, gpt: GPT, vq: VQModel) -> None:
    """Checkpoints gpt.pt and vq.pt of the demo's eight classes."""
    side = int(gpt.config.block_size**0.5)
    frames = 4 if gpt.config.block_size <= 1024 else 8
    dataset = {**find_preset("hyperkvasir16").facts(), "rows": frames, "cols": frames,
               "frame_size": side * vq.config.downsample // frames}
    torch.save({"model": vq.state_dict(), "config": asdict(vq.config)}, folder / "vq.pt")
    torch.save({"model": gpt.state_dict(), "config": asdict(gpt.config), "dataset": dataset,
                "tokenizer": tokenizer_facts(vq, folder / "vq.pt")}, folder / "gpt.pt")


def clip_work(models: Path, variant: str, batch: int, cfg_scale: float, precision: str, folder: Path,
              device: torch.device) -> Callable[[], int]:
    """Clips of each class, from the checkpoints in `models` to files in `folder`; plain: one of each."""
    if variant == "plain":
        return lambda: plain_clips(models, cfg_scale, precision, folder, device)
    window = 1 if variant == "steps" else int(variant)
    config = SampleC2IConfig(
        gpt_ckpt=models / "gpt.pt", vq_ckpt=models / "vq.pt", save_folder=folder / "clips",
        clips_per_class=max(1, batch // CLASSES), cfg_scale=cfg_scale, decode_window=window,
        mixed_precision=precision, device=device.type)
    return lambda: run(config, Runtime()) or CLASSES * config.clips_per_class


def plain_clips(models: Path, cfg_scale: float, precision: str, folder: Path, device: torch.device) -> int:
    """One thing after the other, and every picture of the batch decoded at once, in float32."""
    gpt, dataset, _ = load_gpt(models / "gpt.pt")
    gpt = plain_model(gpt).to(device, DTYPES[precision])
    vq = load_tokenizer(models / "vq.pt").to(device, memory_format=torch.contiguous_format)
    labels_B = torch.arange(CLASSES, device=device)
    tokens_BN = plain_generate(gpt, plain_caches(gpt, 2 * CLASSES), labels_B, cfg_scale, 1.0, TOP_K,
                               range(gpt.config.block_size))
    side = int(gpt.config.block_size**0.5)
    for label, pixels_3HW in enumerate(plain_decode(vq, tokens_BN.view(-1, side, side))):
        job = ClipJob(dataset["class_names"][label], label, 0)
        write_clip(folder, job, [to_uint8(pixels_3HW).cpu()], dataset)
    return CLASSES
