"""How a run ends early: signals take effect after the current step, and divergence is an error."""

import signal
import threading
from time import monotonic
from types import FrameType

import torch
from torch import Tensor

from common.errors import InputError

REPEAT_SECONDS = 10.0  # the terminal and torchrun may both send the same signal within this time


class StopSignals:
    """A block in which the first SIGTERM or SIGINT only sets `name`.

    A further signal after `REPEAT_SECONDS` has its usual effect.
    """

    def __init__(self) -> None:
        self.name, self.since = "", 0.0
        self.before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self.before = {number: signal.signal(number, self._note)
                           for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.name:
            self.name, self.since = signal.Signals(number).name, monotonic()
        elif monotonic() - self.since > REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)


def leave_signals_to_the_parent(_: int) -> None:
    """Ignore signals in processes that read data: the last step still needs their data."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class SkippedSteps:
    """Counts steps with a loss or gradient that is not finite, on the device: in total and consecutively."""

    def __init__(self, device: torch.device, total: int = 0):
        self.total = torch.tensor(total, device=device)
        self.in_row = torch.tensor(0, device=device)

    def add(self, finite: Tensor) -> None:
        self.total += ~finite
        self.in_row = (self.in_row + 1) * ~finite

    def check(self, step: int, limit: int, lr: float) -> int:
        """The total. Waits for the device.

        Raises: `InputError` if the last `limit` steps or more were skipped.
        """
        if self.in_row >= limit:
            raise InputError(f"--lr {lr}: loss or gradient was not finite in the last {int(self.in_row)} "
                             f"steps, up to step {step} (--max-skipped-steps {limit}); these were skipped")
        return int(self.total)
