"""Sampling clips.

A clip depends on the weights, its class, its seed and the settings, and not on the other clips of its batch.

Shapes: B clips, N tokens of a clip, R rows of the model's input: B, or 2 B under guidance.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoregressive.models.decoding import Passes, Rule, compute_dtype, decode_in_steps, decode_in_windows
from autoregressive.models.gpt import GPT, check_labels
from autoregressive.models.noise import noise_keys
from common.errors import InputError


@torch.no_grad()
def generate(
    model: GPT, labels_B: Tensor, seeds: Sequence[int], cfg_scale: float = 1.0, cfg_interval: int = -1,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, given_BN: Tensor | None = None,
    towards: tuple[int, float] | None = None, decode_window: int = 1, frame_width: int = 1,
    caches: dict[tuple, Passes] | None = None, watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Sample one clip per label and seed -> tokens_BN int64 on the model's device.

    cfg_scale      s in the logits uncond + s * (cond - uncond) (Ho and Salimans 2022); 1 is no guidance
    cfg_interval   -1 guides every token; k guides token 0 and decode steps 0 to k (step i makes token i + 1)
    temperature    divides the logits; 0 takes the most likely token (the lowest id of equals)
    top_k          keeps the k largest logits, exactly k of them; 0 keeps all
    top_p          then keeps the fewest tokens whose probability sums to at least p
    given_BN       known tokens, -1 where they are to be sampled
    towards        (label, w): interpolates the class embedding to that class with weight w, 0 to 1
    decode_window  tokens per pass; does not change the clip, see `decode_in_windows`
    frame_width    tokens of a row of a frame: the first guess of a token is the token so far before it
    caches         keeps key and value caches and recorded CUDA graphs for the next batch; not under
                   autocast on a GPU, which frees tensors that a recording reads
    watch          called before every pass with the first tokens (B, n), those final in all clips; what it
                   raises ends the sampling

    Raises: `InputError` that names the flag.
    """
    config, device = model.config, model.output.weight.device
    batch, count = len(labels_B), config.block_size
    if cfg_interval < -1:
        raise InputError(f"--cfg-interval {cfg_interval}: must be -1 (every step) or the last guided step")
    if not 1 <= decode_window <= count:
        raise InputError(f"--decode-window {decode_window}: must be 1 to {count}")
    if len(seeds) != batch:
        raise ValueError(f"seeds: {len(seeds)} seeds for {batch} clips")
    check_labels(labels_B, config.num_classes - 1)
    labels_B = labels_B.to(device)
    guided = 0 if cfg_scale == 1 else count if cfg_interval == -1 else min(cfg_interval + 2, count)
    rule = Rule(cfg_scale, temperature, top_k, top_p, guided)
    rows = 2 * batch if guided else batch
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])[:rows]
    class_RD = _class_embedding(model, labels_R, labels_B, towards)
    if given_BN is None:
        given_BN = torch.full((batch, count), -1)
    elif given_BN.shape != (batch, count) or given_BN.min() < -1 or given_BN.max() >= config.vocab_size:
        raise ValueError(f"given tokens {tuple(given_BN.shape)}: needed are ({batch}, {count}) from -1 to "
                         f"{config.vocab_size - 1}")
    given_BN = given_BN.to(device)
    keys_BN2 = noise_keys(seeds, count, device)
    if device.type == "cpu" and decode_window == 1 and watch is None:
        return decode_in_steps(model, class_RD, keys_BN2, given_BN, rule)
    caches, arguments = {} if caches is None else caches, (model, batch, rule, decode_window, frame_width)
    key = (*arguments, compute_dtype(model))
    if key not in caches:
        caches.clear()  # two may not fit
        caches[key] = Passes(*arguments)
    return decode_in_windows(caches[key], class_RD, keys_BN2, given_BN, watch)[0]


def _class_embedding(
    model: GPT, labels_R: Tensor, labels_B: Tensor, towards: tuple[int, float] | None
) -> Tensor:
    """Embeddings of the class tokens; under guidance the second half of the rows is unconditional."""
    table_KD = model.cls_embedding.embedding_table.weight
    class_RD = table_KD[labels_R]
    if towards:
        label, part = towards
        check_labels(torch.tensor([label]), model.config.num_classes - 1)
        if not 0 <= part <= 1:
            raise InputError(f"--blend {part}: must be from 0 to 1")
        class_RD[: len(labels_B)] = torch.lerp(table_KD[labels_B], table_KD[label], part)
    return class_RD
