"""Work on a GPU that is always the same, recorded as a CUDA graph: launched whole, not piece by piece."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recorded:
    """A function of nested lists of tensors, always of the same shapes, that never waits for the device.

    It runs as it is `before` times, in which kernels are compiled, and is then recorded. From then on its
    inputs are copied to where they were, and its outputs overwrite those of the last call.
    """

    def __init__(self, function: Callable[[Any], Any], before: int = 1):
        self.function, self.before = function, before
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Any = ()) -> Any:
        if self.before:
            self.before -= 1
            return self.function(inputs)
        if self.graph is None:
            self.graph, self.inputs = torch.cuda.CUDAGraph(), mapped(Tensor.clone, inputs)
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may go on
                self.outputs = self.function(self.inputs)
        for own, given in zip(tensors(self.inputs), tensors(inputs), strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs


def mapped(function: Callable[[Tensor], Any], nested: Any) -> Any:
    """Nested lists with `function` applied to their tensors."""
    return function(nested) if isinstance(nested, Tensor) else [mapped(function, part) for part in nested]


def tensors(nested: Any) -> list[Tensor]:
    """The tensors of nested lists in order."""
    found: list[Tensor] = []
    mapped(found.append, nested)
    return found
