"""The order in which training sees its data, as a function of (seed, step) alone."""

from collections.abc import Iterator
from functools import lru_cache

import torch


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(size) for one epoch."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()


def mix(seed: int, counter: int) -> int:
    """One 63-bit seed from two integers, mixed (splitmix64) so that neighbouring steps share nothing."""
    z = (seed * 0x9E3779B97F4A7C15 + (counter + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


def batch_indices(size: int, batch: int, seed: int, step: int) -> list[int]:
    """The `batch` sample indices of global step `step`; epochs follow each other without a short batch."""
    positions = range(step * batch, (step + 1) * batch)
    return [epoch_order(size, seed, position // size)[position % size] for position in positions]


class StepBatches:
    """A batch sampler for a torch `DataLoader`: the batches of steps start..stop-1, `parts` per step."""

    def __init__(self, size: int, batch: int, seed: int, start: int, stop: int, parts: int = 1):
        if size < 1:
            raise ValueError("there is nothing to train on: the train split is empty")
        if batch % parts:
            raise ValueError(f"--gradient-accumulation-steps {parts}: does not divide the batch of {batch}")
        self.size, self.batch, self.seed, self.parts = size, batch, seed, parts
        self.steps = range(start, stop)

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            indices = batch_indices(self.size, self.batch, self.seed, step)
            for part in range(self.parts):
                yield indices[part :: self.parts]
