"""Accelerators that PyTorch knows, and where they differ. "cuda" is NVIDIA, and AMD under ROCm.

torch is imported inside functions, as in `common.distributed`.
"""

from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    import torch

KINDS = ("cuda", "xpu", "mps", "cpu")  # in the order in which "auto" takes them
FLOAT64 = ("cpu", "cuda")  # MPS has no float64, and not every Intel GPU has
PINNED = ("cuda", "xpu")  # copy pinned memory while they compute


def is_available(kind: str) -> bool:
    """True if a device of this kind can be used here."""
    import torch

    return (torch.backends.mps if kind == "mps" else torch.get_device_module(kind)).is_available()


def best_kind(world_size: int = 1) -> str:
    """What "auto" means: the first kind that is available; MPS is for one process."""
    return next(kind for kind in KINDS if is_available(kind) and (kind != "mps" or world_size == 1))


def own_device(name: str, local_rank: int = 0, world_size: int = 1) -> "torch.device":
    """The device of a process for a value of --device, made the current one of its kind.

    Raises: `InputError` if there is none.
    """
    import torch

    kind = best_kind(world_size) if name == "auto" else name
    if kind not in KINDS:
        raise InputError(f"--device {kind}: must be auto, {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not is_available(kind):
        raise InputError(f"--device {kind}: this machine has no usable {kind.upper()} device")
    if kind == "mps" and world_size > 1:
        raise InputError(f"--device mps: is for one process, there are {world_size}")
    if kind in ("cpu", "mps"):
        return torch.device(kind)
    module = torch.get_device_module(kind)
    if local_rank >= module.device_count():
        raise InputError(f"--device {kind}: this machine has {module.device_count()}, none is left for its "
                         f"process {local_rank}")
    module.set_device(local_rank)
    return torch.device(kind, local_rank)


def free_memory(device: "torch.device") -> int:
    """Free bytes of an accelerator."""
    import torch

    module = torch.get_device_module(device)
    if device.type == "mps":
        return module.recommended_max_memory() - module.driver_allocated_memory()
    return module.mem_get_info(device)[0]


def peak_memory(device: "torch.device") -> int:
    """Most bytes allocated on an accelerator since `forget_peak`; on MPS those held now."""
    import torch

    module = torch.get_device_module(device)
    return module.driver_allocated_memory() if device.type == "mps" else module.max_memory_allocated(device)


def forget_peak(device: "torch.device") -> None:
    """`peak_memory` counts from now on."""
    import torch

    if device.type not in ("cpu", "mps"):
        torch.get_device_module(device).reset_peak_memory_stats(device)
