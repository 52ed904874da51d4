"""The process group, the device and the sharing of work: the only module that knows torch.distributed.

A stage runs as one process, or under torchrun as many (which sets RANK, WORLD_SIZE and LOCAL_RANK). torch is
imported only where it is needed, so that stages that use no tensors start at once.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Runtime:
    """Who this process is among `world_size` equal ones."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    @contextmanager
    def start(cls) -> Iterator["Runtime"]:
        """Join the process group that torchrun describes, if any; leave it at the end."""
        runtime = cls(*(int(os.environ.get(name, default)) for name, default in
                        (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
        if runtime.world_size == 1:
            yield runtime
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if runtime._cuda() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=7))  # shares of work may differ much
        try:
            yield runtime
        finally:
            dist.destroy_process_group()

    @staticmethod
    def _cuda() -> bool:
        import torch

        return torch.cuda.is_available()

    @property
    def is_main(self) -> bool:
        """True for the one process that prints, logs and writes shared files."""
        return self.rank == 0

    def device(self, name: str = "auto") -> "torch.device":
        """The device "cpu" or "cuda"; "auto" is this process's GPU where there is one, else the CPU."""
        import torch

        if name == "auto":
            name = "cuda" if self._cuda() else "cpu"
        if name not in ("cpu", "cuda"):
            raise ValueError(f"--device {name}: must be auto, cpu or cuda")
        if name == "cpu":
            return torch.device("cpu")
        if not self._cuda():
            raise ValueError("--device cuda: this machine has no usable CUDA device")
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`: every world_size-th one, nothing padded, nothing twice."""
        return items[self.rank :: self.world_size]

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every process, in rank order; also a barrier."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
