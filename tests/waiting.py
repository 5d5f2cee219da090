"""Modes that refuse, without a device, what would wait for one: a CUDA graph could not capture it.

That is reading a value, outputs whose size depends on values, tensors made from Python numbers, and tensors made on no
particular device, which is the host.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators, whatever the overload.
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
SIZES_BY_VALUE = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
FROM_NUMBERS = {"lift_fresh"}

FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye, torch.tensor)
FACTORIES += (torch.as_tensor, torch.scalar_tensor, torch.rand, torch.randn, torch.randint, torch.randperm)
# Methods that no operator stands for where the tensor is on the host already.
METHODS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.new_tensor)


class Refused(Exception):
    """An operator would wait."""


class NeverWait(TorchDispatchMode):
    """Raises where an operator would make the host wait for a device, or copy to it."""

    def __init__(self):
        super().__init__()
        self.launches = 0  # of kernels: what neither views nor allocates

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        self.launches += not func.is_view and not name.startswith(("empty", "new_empty", "detach", "alias"))
        if name in READS | SIZES_BY_VALUE | FROM_NUMBERS:
            raise Refused(name)
        masks = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
        if name in {"index", "index_put_", "index_put"} and masks:
            raise Refused(f"{name} with a mask")
        return func(*args, **kwargs)


class StayOnTheDevice(TorchFunctionMode):
    """Raises where code makes a tensor on no particular device, which is the host, or takes values to or from there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FACTORIES and kwargs.get("device") is None:
            raise Refused(f"{func.__name__} without a device")
        if func in METHODS:
            raise Refused(func.__name__)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            some = args[1] if isinstance(args[1], tuple) else args[1:2]
            if any(isinstance(index, list) for index in some):
                raise Refused("an index of numbers")
        return func(*args, **kwargs)


@contextmanager
def never_waiting():
    with NeverWait() as mode, StayOnTheDevice():
        yield mode


def captured_on_the_host(f):
    """Stands in for the capture of a CUDA graph: what calls f, without waiting, and fills the first call's outputs."""
    out = None

    def replay():
        nonlocal out
        with never_waiting():
            new = f()
        out = new if out is None else out
        for to, x in zip(tree_leaves(out), tree_leaves(new), strict=True):
            if isinstance(to, torch.Tensor):
                to.copy_(x)
        return out

    return replay
