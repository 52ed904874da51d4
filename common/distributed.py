"""The process group, the device, and the distribution of work: the only module that uses torch.distributed.

A stage runs as one process, or as many under torchrun (which sets RANK, WORLD_SIZE and LOCAL_RANK). torch is
imported inside functions, so that stages without tensors start quickly.

Data parallelism wraps a model: with "ddp" every process holds a copy, with "fsdp" (FSDP2, `fully_shard`) a
shard of each tensor, a `DTensor` split along its first dimension.
"""

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from common.devices import best_kind, own_device
from common.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Item = TypeVar("Item")

SHARES_DIFFER = timedelta(days=7)  # timeout of stages whose processes have different amounts of work
MEETING = timedelta(minutes=10)  # timeout for all processes of a group to have started
PR_SET_PDEATHSIG = 1  # of Linux
LINGER = 2.0  # seconds that the main process waits for others that fail with the same error


def end_with_launcher() -> None:
    """If torchrun is killed, so is this process, on Linux: nobody else would end it, and it holds locks."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Runtime:
    """Rank of this process, on all machines and on its own, and the number of processes."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    @contextmanager
    def start(cls, timeout: timedelta = SHARES_DIFFER) -> Iterator["Runtime"]:
        """Join the process group of torchrun, if any; leave it at the end.

        A process that waits longer than `timeout` for another one considers it lost.
        """
        runtime = cls(*(int(os.environ.get(name, default)) for name, default in
                        (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))
        if runtime.world_size == 1:
            yield runtime
            return
        import torch.distributed as dist

        kind, backend = best_kind(runtime.world_size), "gloo"
        if kind == "cuda":
            backend = "cpu:gloo,cuda:nccl"
        elif kind == "xpu" and dist.is_xccl_available():
            backend = "cpu:gloo,xpu:xccl"
        end_with_launcher()
        store, rank, size = next(dist.rendezvous("env://", timeout=MEETING))
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        try:
            yield runtime
        finally:
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """True for the process that prints, logs and writes shared files."""
        return self.rank == 0

    def device(self, name: str = "auto") -> "torch.device":
        """This process's device of a kind of `devices.KINDS`; "auto" is the first kind that is available."""
        import torch

        device = own_device(name, self.local_rank, self.world_size)
        if device.type == "cpu":
            from common.hardware import avoid_broken_amx

            avoid_broken_amx()
        torch.backends.cudnn.allow_tf32 = False  # full float32 precision, as for matrix products
        return device

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`: every world_size-th one, without padding."""
        return items[self.rank :: self.world_size]

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every process, in rank order. A barrier; does not wait for a GPU."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_batch(self, x: "Tensor") -> "Tensor":
        """The shares (B / world_size, ...) of a batch in their order: (B, ...); inverse of `share`."""
        if self.world_size == 1:
            return x
        import torch
        import torch.distributed as dist

        shares = [torch.empty_like(x) for _ in range(self.world_size)]
        dist.all_gather(shares, x.detach().contiguous())
        return torch.stack(shares, dim=1).flatten(0, 1)

    def mean(self, x: "Tensor") -> "Tensor":
        """The mean of `x` over the processes; does not wait for a GPU."""
        if self.world_size == 1:
            return x
        import torch.distributed as dist

        dist.all_reduce(x)
        return x / self.world_size

    def new_group(self) -> Any:
        """A separate gloo group, for communication in the background; None for one process."""
        if self.world_size == 1:
            return None
        import torch.distributed as dist

        return dist.new_group(backend="gloo")

    def any(self, flag: bool) -> bool:
        """True on all processes if `flag` is true on one; a third of the time of `gather`, for every step."""
        if self.world_size == 1:
            return flag
        import torch
        import torch.distributed as dist

        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails on every process if it fails on one, so that no process waits forever.

        All raise the same `InputError` or `OSError`; it names the ranks unless all met the same one.
        """
        mine = None
        try:
            yield
        except (InputError, OSError) as error:
            mine = error
        found = self.gather(None if mine is None else (isinstance(mine, InputError), str(mine)))
        failed = {rank: error for rank, error in enumerate(found) if error}
        if not failed:
            return
        if len(failed) < self.world_size or len(set(failed.values())) > 1:
            words = "; ".join(f"process {rank}: {text}" for rank, (_, text) in failed.items())
            kind = InputError if any(is_input for is_input, _ in failed.values()) else OSError
            cause, mine = mine, kind(words)
            mine.__cause__ = cause
        mine.met_by_all = True  # so one process may print it, see `says`
        raise mine

    def agree(self, function: Callable[[], Item]) -> Item:
        """The result of `function`, which only the main process calls, or the error that it raises."""
        value = None
        with self.together():
            if self.is_main:
                value = function()
        return self.gather(value)[0]

    def says(self, error: Exception) -> str:
        """The message that this process prints when it ends with `error`: empty if another prints the same.

        Processes may fail at different places, where none can wait for the others: the first one prints.
        """
        text = str(error)
        if self.world_size == 1:
            return text
        if getattr(error, "met_by_all", False):
            return text if self.is_main else ""
        import torch.distributed as dist

        try:
            store = dist.distributed_c10d._get_default_store()
            first = store.add(f"said {text}", 1) == 1
            store.add("ended", 1)
            until = monotonic() + LINGER
            while self.is_main and store.add("ended", 0) < self.world_size and monotonic() < until:
                sleep(0.05)  # the store may end with this process, and the others still need it
        except RuntimeError:  # it is gone
            first = True
        return f"process {self.rank}: {text}" if first else ""

    def wrap(self, module: "nn.Module", blocks: Sequence["nn.Module"], kind: str,
             device: "torch.device", half: bool = False) -> "nn.Module":
        """`module` on `device`, with several processes wrapped by DDP or FSDP2 (`kind` "ddp" or "fsdp").

        FSDP2 gathers each of `blocks` only for its forward and backward pass, with `half` in bfloat16;
        gradients are summed in float32.

        Raises: `InputError` for "none" on several processes.
        """
        if self.world_size == 1:
            return module.to(device)
        if kind == "none":
            raise InputError(f"--data-parallel none: there are {self.world_size} processes, take ddp or fsdp")
        if kind == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            own = None if device.type == "cpu" else [device.index]
            with warnings.catch_warnings():  # 2.14 has another name for broadcast_buffers
                warnings.simplefilter("ignore", FutureWarning)
                return DistributedDataParallel(module.to(device), device_ids=own, broadcast_buffers=False,
                                               gradient_as_bucket_view=True)
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(device.type, (self.world_size,))
        for part in blocks:
            fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(
                torch.bfloat16 if half else None, torch.float32 if half else None, cast_forward_inputs=False))
        fully_shard(module, mesh=mesh)  # the rest, embeddings and output, in float32, as under DDP
        return module

    @contextmanager
    def whole(self, module: "nn.Module") -> Iterator[None]:
        """A block in which a module sharded by `wrap` is unsharded on every process."""
        if self.world_size == 1:
            yield
            return
        from torch.distributed.fsdp import FSDPModule

        parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(part is not module, recurse=False)


def own_part(tensor: "Tensor") -> "Tensor":
    """This process's shard of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_tensor(tensor: "Tensor") -> "Tensor":
    """The full tensor, gathered from the processes if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(whole: "Tensor", example: "Tensor") -> "Tensor":
    """The full tensor `whole`, sharded as `example` is, if at all."""
    if not hasattr(example, "to_local"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)


def lost_contact(error: BaseException) -> bool:
    """True if `error` means that another process of the group is gone or does not answer."""
    import torch

    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error))
