"""Means over the global batch, for losses that see one part of it on one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from common.distributed import Runtime

Mean = Callable[[str, Callable[[], Tensor]], Tensor]
"""(name, own) -> the mean over the global batch of the result of `own` for a part, without its gradient."""


def alone(name: str, own: Callable[[], Tensor]) -> Tensor:
    """The `Mean` of a loss that sees the whole batch."""
    return own().detach()


class WholeBatch:
    """The `Mean` of the losses of a training step.

    If the batch has several parts, each loss is called twice: in `first_pass`, to compute the means, and to
    train.
    """

    def __init__(self, runtime: Runtime):
        self.runtime, self.parts = runtime, 0  # 0: not within `first_pass`
        self.means: dict[str, Tensor] = {}

    def __call__(self, name: str, own: Callable[[], Tensor]) -> Tensor:
        if not self.parts:
            return self.means[name] if name in self.means else self.runtime.mean(own().detach().clone())
        value = own().detach()
        self.means[name] = self.means.get(name, 0) + value / self.parts
        return value

    @contextmanager
    def first_pass(self, parts: int) -> Iterator[None]:
        """A block in which the losses of all parts are called; the means are then kept until `forget`."""
        self.parts = parts
        yield
        self.parts = 0
        self.means = {name: self.runtime.mean(mean) for name, mean in self.means.items()}

    def forget(self) -> None:
        """Call this before the next batch."""
        self.means = {}
