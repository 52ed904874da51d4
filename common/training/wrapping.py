"""Compilation and activation checkpointing of a model's blocks, from outside the model."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def wrap_blocks(blocks: Sequence[nn.Module], compiled: bool, checkpointing: bool) -> None:
    """Replace the `forward` of each block; its parameters stay.

    Compilation by block is fast, because equal blocks share their code, and works with DDP and FSDP, which
    act between blocks. `checkpointing` keeps only a block's inputs for the backward pass (Chen et al. 2016).
    """
    for block in blocks:
        assert type(block).forward is not nn.Module.forward, "a list of modules is no block"
        forward = torch.compile(block.forward, dynamic=False) if compiled else block.forward
        if checkpointing:  # no command sets attn_dropout_p, which alone draws from torch's generator
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward
