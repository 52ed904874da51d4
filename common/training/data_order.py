"""The order in which training sees its data, as a function of (seed, step) alone."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from common.distributed import Runtime
from common.errors import InputError


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(size) for one epoch."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()


def mix(seed: int, counter: int) -> int:
    """A 63-bit seed from two integers by splitmix64, so that the seeds of consecutive steps are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + (counter + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


def batch_indices(size: int, batch: int, seed: int, step: int) -> list[int]:
    """The `batch` sample indices of step `step`; a batch may continue into the next epoch."""
    positions = range(step * batch, (step + 1) * batch)
    return [epoch_order(size, seed, position // size)[position % size] for position in positions]


def places(batch: int, part: int, parts: int, runtime: Runtime) -> range:
    """The positions in the global batch that this process computes in part `part` of `parts`."""
    return runtime.share(range(batch)[part::parts])


def in_order(parts: Sequence[Tensor], runtime: Runtime) -> Tensor:
    """This process's share of each part of a batch (b, ...) -> the batch (B, ...); inverse of `places`."""
    return torch.stack([runtime.gather_batch(part) for part in parts], dim=1).flatten(0, 1)


def sample_seeds(batch: int, seed: int, step: int, part: int, parts: int, runtime: Runtime) -> Tensor:
    """One int64 seed for each sample of `places`, a function of (seed, step, place)."""
    mine = places(batch, part, parts, runtime)
    return torch.tensor([mix(mix(seed, 0), step * batch + place) for place in mine])


def step_batches(size: int, batch: int, seed: int, start: int, stop: int, parts: int = 1,
                 runtime: Runtime = Runtime()) -> Iterator[list[int]]:
    """This process's share of the batches of steps start..stop-1, each in `parts` parts: a `batch_sampler`.

    Raises: `InputError` if there are no samples, or parts and processes do not divide the batch.
    """
    if size < 1:
        raise InputError("there is nothing to train on: the train split is empty")
    if batch % parts:
        raise InputError(f"--gradient-accumulation-steps {parts}: does not divide the batch of {batch}")
    if batch // parts % runtime.world_size:
        raise InputError(f"--global-batch-size {batch}: in {parts} parts it cannot be shared equally by "
                         f"{runtime.world_size} processes")
    batches = (batch_indices(size, batch, seed, step) for step in range(start, stop))
    return ([indices[place] for place in places(batch, part, parts, runtime)]
            for indices in batches for part in range(parts))


def mixture(parts: Sequence[Dataset], shares: Sequence[float]) -> Subset:
    """Several data sets as one, with the fraction `shares[k]` of samples from set k; small sets repeat."""
    length = max(len(part) / share for part, share in zip(parts, shares, strict=True))
    starts = accumulate((len(part) for part in parts), initial=0)
    indices = [start + i % len(part) for start, part, share in zip(starts, parts, shares)  # noqa: B905
               for i in range(round(length * share))]
    return Subset(ConcatDataset(parts), indices)


def balanced(samples: Dataset, labels: Sequence[int] | np.ndarray) -> Subset:
    """The same samples, repeated so that every label is equally frequent."""
    places = [np.flatnonzero(np.equal(labels, label)) for label in np.unique(labels)]
    most = max(map(len, places), default=0)
    return Subset(samples, [place for of_label in places for place in np.resize(of_label, most).tolist()])
