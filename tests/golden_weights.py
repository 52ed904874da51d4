"""Weights that anyone can rebuild from a seed; the released models' golden values were computed with them."""

import math

import numpy as np
import torch


def golden_state(state_dict_shapes: dict[str, tuple[int, ...]], seed0: int) -> dict[str, torch.Tensor]:
    """One float64 tensor per key; sorted key i draws r = RandomState(seed0 + i).standard_normal(shape).

    Matrices and kernels are r / sqrt(fan in), embeddings r / 2, norm scales 1 + r / 10, biases r / 10, and
    the codebook's usage buffer is zero.
    """
    state = {}
    for i, key in enumerate(sorted(state_dict_shapes)):
        shape = tuple(state_dict_shapes[key])
        r = np.random.RandomState(seed0 + i).standard_normal(shape)
        if "codebook_used" in key:
            value = np.zeros(shape)
        elif len(shape) >= 2:
            value = 0.5 * r if "embedding" in key else r / math.sqrt(math.prod(shape[1:]))
        else:
            value = 1 + 0.1 * r if key.endswith(".weight") else 0.1 * r
        state[key] = torch.from_numpy(np.asarray(value))
    return state
