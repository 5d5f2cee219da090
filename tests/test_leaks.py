"""No operator and no layer keeps memory from call to call: a few bytes next to large tensors keep their heap from
being used again, so that a training grows by gigabytes."""

import ctypes
import gc
import weakref
from functools import partial

import pytest
import torch

from cases import CASES
from layer_cases import named, of_each_kind
from tandem_cuda import Encode, SpikeTrain, TandemLinear, ops
from tensors import dyadic

FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


@pytest.fixture(scope="module")
def in_use():
    """Bytes that malloc has given out, in this thread's arena."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc's mallinfo2")
    libc.mallinfo2.restype = Mallinfo
    gc.collect()
    gc.freeze()  # what earlier tests left need not be looked through at every collection
    return lambda: libc.mallinfo2().uordblks


def backward(f, *leaves):
    def call():
        f().sum().backward()
        for leaf in leaves:
            leaf.grad = None

    return call


def evaluated(case):
    layer, inputs = case.make().eval(), case.inputs()

    def call():
        with torch.no_grad():
            layer(*inputs)

    return call


def trained(case):
    """Forward and, where a gradient arrives, backward."""
    layer, inputs = case.make(), case.inputs()
    return backward_of(layer, *inputs) if any(True for _ in layer.parameters()) else lambda: layer(*inputs)


def backward_of(layer, *inputs):
    return backward(lambda: layer(*inputs).count, *layer.parameters())


TIMES = 30


def called(case, optional):
    """A call of an operator, forward and where it has a gradient backward."""
    arguments = case.arguments(case.dtypes[0], optional=optional)
    if optional:
        arguments |= case.packed(arguments)
    leaves = [arguments[name].requires_grad_() for name in case.differentiable if name in arguments]
    if not leaves:
        return lambda: case.run(**arguments)
    return backward(lambda: case.with_gradient(case.run(**arguments)), *leaves)


def packed_into_the_same_memory():
    weight = dyadic(8, 6, 3, 3, seed=1)
    packed = ops.pack_weight(weight)
    return lambda: ops.pack_weight(weight, out=packed)


# Each makes its call when its test runs.
CALLS = {
    **{str(case): partial(called, case, optional=True) for case in CASES},
    **{f"{case}, without": partial(called, case, optional=False) for case in CASES if "_linear" in case.name},
    "pack_weight, out": packed_into_the_same_memory,
    **{f"{case}, eval": partial(evaluated, case) for case in of_each_kind()},
    **{f"{case}, training": partial(trained, case) for case in (*of_each_kind(), named("batch norm"))},
    "real input, training": lambda: backward_of(named("batch norm").make(), Encode(9)(dyadic(2, 4, 7, 6, seed=4))),
}


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
def test_nothing_is_kept(in_use, make):
    call = make()
    for _ in range(10):
        call()
    grown = []
    for _ in range(5):  # caches of Python or torch may grow at times, a leak grows at all
        gc.collect()
        before = in_use()
        for _ in range(TIMES):
            call()
        gc.collect()
        grown.append(in_use() - before)
    assert min(grown) < TIMES * 8, f"bytes that {TIMES} calls kept, five times: {grown}"


def test_an_error_keeps_no_arguments():
    """A caller that catches an error, such as one of memory, can free what the failed call got."""
    layer, x = TandemLinear(5, 4), SpikeTrain.from_dense(torch.ones(3, 2, 6))
    bits = weakref.ref(x.bits)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="spiking_linear: weight must be"):
            layer(x)
        del x
        assert bits() is None
    finally:
        gc.enable()
