"""What a loss needs to know of the whole global batch, though a call of it sees one part on one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from common.distributed import Runtime

Mean = Callable[[str, Callable[[], Tensor]], Tensor]
"""(name, own) -> the mean over the global batch of what `own` gives for a part, without its gradient."""


def alone(name: str, own: Callable[[], Tensor]) -> Tensor:
    """The `Mean` of a loss that sees the whole batch."""
    return own().detach()


class WholeBatch:
    """The `Mean` of the losses of a training step.

    Where the batch comes in several parts their losses are called twice: once within `first_pass`, which adds
    up the means, and once to train.
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
        """Within it the losses of all parts are called, after which the means are known until `forget`."""
        self.parts = parts
        yield
        self.parts = 0
        self.means = {name: self.runtime.mean(mean) for name, mean in self.means.items()}

    def forget(self) -> None:
        """The next loss is of another batch."""
        self.means = {}
