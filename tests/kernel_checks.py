"""Checks of the Triton kernels against plain PyTorch: python kernel_checks.py cpu|cuda

A process of their own, because on a CPU Triton's interpreter (TRITON_INTERPRET=1) has to be chosen before
Triton is imported.
"""

import sys
from importlib import import_module

import torch

import autoregressive.models.decoding as decoding
import autoregressive.models.gpt as gpt
from autoregressive.models import kernels
from autoregressive.models.generate import generate
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.noise import gumbel_noise, noise_keys

TOKENS = 256
ROWS = 8  # clips whose next token is chosen


def use_kernels(on):
    """The kernels on any device, or on none."""
    for module in (decoding, gpt):
        module.kernels_for = lambda name, x: import_module(name) if on else None


@torch.no_grad()
def check_attention(device, heads, kv_heads, dim, window, first, dtype=torch.float32, close=1e-5):
    """The same result and the same cache, each row at its own place."""
    model = GPT(GPTConfig(dim=dim, n_layer=1, n_head=heads, n_kv_head=kv_heads, vocab_size=8,
                          block_size=TOKENS, num_classes=1)).to(device)
    attention, channels = model.layers[0].attention.to(dtype), dim // heads
    keys, values = torch.randn(2, 3, kv_heads, TOKENS + window, channels, device=device, dtype=dtype)
    x = torch.randn(3, window, dim, device=device, dtype=dtype)
    places = torch.tensor([[first], [first // 2], [first // 3]], device=device)
    positions = places + torch.arange(window, device=device)
    beyond = torch.arange(TOKENS + window, device=device) > positions[:, None, :, None]
    mask = torch.zeros(beyond.shape, device=device, dtype=dtype).masked_fill_(beyond, -torch.inf)
    rows = positions.clamp(max=TOKENS)
    turn = model.cos_LC[rows][:, :, None], model.sin_LC[rows][:, :, None]
    own = keys.clone(), values.clone()
    expected = attention.window(x, *turn, mask, positions, keys, values)
    found = attention.fused_window(x, kernels, model.cos_LC, model.sin_LC, positions, *own)
    for one, other in ((found, expected), (own[0], keys), (own[1], values)):
        torch.testing.assert_close(one, other, rtol=close, atol=close)


def check_choice(device, top_k, temperature, guided):
    """The token that the plain way chooses, of guided logits and of others."""
    keys = noise_keys(range(ROWS), 3, device)[:, 1]
    logits, position = torch.randn(2 * ROWS, 1000, device=device), torch.arange(ROWS, device=device)
    rule = decoding.Rule(2.5, temperature, top_k, guided=guided)
    found = rule.choose(logits, keys, position)
    use_kernels(False)
    expected = rule.choose(logits, keys, position)
    use_kernels(True)
    assert torch.equal(found, expected), (top_k, temperature, guided)


def check_ties(device):
    """Of equal logits at the last place those with the lowest ids stay."""
    keys = noise_keys(range(ROWS), 1, device)[:, 0]
    position = torch.zeros(ROWS, dtype=torch.long, device=device)
    logits = torch.randint(5, (ROWS, 1000), device=device).float()
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :20]
    kept = torch.full_like(logits, -torch.inf).scatter_(1, order, logits.gather(1, order))
    expected = (kept + gumbel_noise(keys, torch.arange(1000, device=device))).argmax(1)
    assert torch.equal(kernels.choose(logits, keys, position, 0, 1.0, 1.0, 20), expected)


def check_generation(device):
    """Whole clips, in windows and, where graphs are recorded, in steps; the second batch is replayed.

    Triton's interpreter takes long for a pass, so on a CPU there are few clips, all short and of one rule.
    """
    few = device == "cpu"
    model = GPT(GPTConfig(dim=64, n_layer=1 if few else 2, n_head=4, n_kv_head=2, vocab_size=50,
                          block_size=9 if few else 36, num_classes=3)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    batches = [(torch.tensor([2, 0, 1]), [7, -3, 2**200])]
    batches += [] if few else [(torch.tensor([1, 1, 0]), [1, 2, 3])]
    for settings in (dict(cfg_scale=2.0, top_k=20, cfg_interval=3),
                     *([] if few else ({}, dict(cfg_scale=3.0, temperature=0)))):
        use_kernels(False)
        expected = [generate(model.cpu(), *batch, **settings) for batch in batches]
        use_kernels(True)
        for window in (5,) if few else (1, 5):
            caches = {}
            for batch, tokens in zip(batches, expected, strict=True):
                found = generate(model.to(device), *batch, **settings, decode_window=window, caches=caches)
                assert torch.equal(found.cpu(), tokens), (settings, window)


if __name__ == "__main__":
    where = sys.argv[1]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kernels.check(torch.device(where))
    kernels.PROGRAMS = 16  # parts of the cache are split up with few rows too
    use_kernels(True)
    for shape in ((4, 4, 64, 1, 0), (4, 4, 64, 1, 70), (4, 2, 64, 5, 64), (4, 4, 400, 3, 130),
                  (2, 1, 128, 8, TOKENS)):
        check_attention(where, *shape)
        if where == "cuda":
            check_attention(where, *shape, torch.bfloat16, 0.02)
    kernels.PROGRAMS = 1
    check_attention(where, 4, 2, 64, 5, 64)
    for choice in (
            (0, 1.0, 0), (0, 1.0, ROWS), (50, 0.7, 5), (7, 0.0, ROWS), (1, 1.0, ROWS), (2000, 1.0, ROWS)):
        check_choice(where, *choice)
    check_ties(where)
    check_generation(where)
