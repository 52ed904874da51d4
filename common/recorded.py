"""A function on a GPU, recorded as a CUDA graph and launched as one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recorder:
    """Calls a function of nested lists of tensors; function and shapes must be the same in every call.

    The function must not wait for the device. The first `before` calls run it directly, so that kernels are
    compiled; the next one records it. From then on inputs are copied to the recorded addresses, and outputs
    overwrite those of the last call. Other tensors that it uses must keep their addresses.
    """

    def __init__(self, before: int = 1):
        self.before = before
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[Any], Any], inputs: Any = ()) -> Any:
        if self.before:
            self.before -= 1
            return function(inputs)
        if self.graph is None:
            graph, self.inputs = torch.cuda.CUDAGraph(), mapped(Tensor.clone, inputs)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
                self.outputs = function(self.inputs)
            self.graph = graph  # of a whole recording; after one that failed the next call tries again
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
