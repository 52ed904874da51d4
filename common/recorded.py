"""Work on a GPU that is always the same, recorded as a CUDA graph: launched whole, not piece by piece."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recorder:
    """Calls a function of nested lists of tensors, always the same one and of the same shapes.

    The function never waits for the device. It runs as it is `before` times, in which kernels are compiled,
    and is then recorded. From then on its inputs are copied to where they were, and its outputs overwrite
    those of the last call. What it works on beside its inputs has to stay where it is.
    """

    def __init__(self, before: int = 1):
        self.before = before
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[Any], Any], inputs: Any = ()) -> Any:
        if self.before:
            self.before -= 1
            return function(inputs)
        if self.graph is None:
            self.graph, self.inputs = torch.cuda.CUDAGraph(), mapped(Tensor.clone, inputs)
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may go on
                self.outputs = function(self.inputs)
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
