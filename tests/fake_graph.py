"""CUDA graphs on a CPU: the operators of a recording are noted, and a replay runs them on the same tensors.

What Python does during the recording is not repeated, as on a GPU: a number that changes from call to call, a
new tensor in place of an old one, or a wait for the device shows.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
         torch.ops.aten.equal.default}


class FakeGraph(TorchDispatchMode):
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.replays = [], {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITS:
            raise RuntimeError(f"{function} waits for the device")
        kwargs = kwargs or {}
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info and argument.alias_info.is_write:
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                for x in tensors_in(written):
                    self.before.setdefault(address(x), (x.untyped_storage(), x.untyped_storage().clone()))
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        return out

    def undo(self):
        """Nothing is computed while a GPU records."""
        for storage, content in self.before.values():
            storage.copy_(content)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, out in self.calls:
            given = {address(x) for x in tensors_in((args, kwargs))}
            for old, new in zip(tensors_in(out), tensors_in(function(*args, **kwargs)), strict=True):
                if address(old) not in given:  # else it is a view, or was written in place
                    old.copy_(new)


def address(x):
    return x.untyped_storage().data_ptr()


def tensors_in(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@contextlib.contextmanager
def recording(graph, **options):
    """In place of `torch.cuda.graph`."""
    with graph:
        yield
    graph.undo()
