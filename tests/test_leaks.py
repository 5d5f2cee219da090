"""No operator and no layer keeps memory from call to call: a few bytes next to large tensors keep their heap from
being used again, so that a training grows by gigabytes."""

import ctypes
import gc

import pytest
import torch

from exact import dyadic, planes
from tandem_cuda import Encode, SpikeTrain, TandemConv2d, TandemLinear, ops

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


BITS, ROW = planes(9, 2, 6, 5, 4, seed=0), planes(9, 2, 7, seed=0)
WEIGHT, MATRIX = dyadic(8, 6, 3, 3, seed=1).requires_grad_(), dyadic(4, 7, seed=1).requires_grad_()
CURRENT, BIAS = dyadic(2, 8, 5, 4, seed=2), dyadic(8, seed=3)
PACKED = ops.pack_weight(WEIGHT.detach())


def evaluated(layer, x):
    with torch.no_grad():
        return layer.eval()(x)


def trained(layer, x):
    return backward(lambda: layer.train()(x).count, *layer.parameters())


TIMES = 30
CONV = TandemConv2d(6, 8, 3, norm="batch")
LINEAR = TandemLinear(7, 4, norm="batch")
CALLS = {
    "pack_spikes": lambda: ops.pack_spikes(CURRENT > 0),
    "unpack_spikes": lambda: ops.unpack_spikes(BITS, 9),
    "spike_count": lambda: ops.spike_count(BITS),
    "max_pool_spikes": lambda: ops.max_pool_spikes(BITS, 2, time_steps=9, want_count=True),
    "pack_weight": lambda: ops.pack_weight(WEIGHT),
    "pack_weight, out": lambda: ops.pack_weight(WEIGHT, out=PACKED),
    "integrate_and_fire": lambda: ops.integrate_and_fire(CURRENT, 9, BIAS, mode="impulse"),
    "count_conv2d": backward(lambda: ops.count_conv2d(BITS, WEIGHT, BIAS, packed=PACKED), WEIGHT),
    "count_linear": backward(lambda: ops.count_linear(ROW, MATRIX, engine="dense"), MATRIX),
    "spiking_conv2d": backward(lambda: ops.spiking_conv2d(BITS, WEIGHT, BIAS, time_steps=9, want_sum=True)[1], WEIGHT),
    "spiking_linear": backward(
        lambda: ops.spiking_linear(ROW, MATRIX, time_steps=9, engine="event", want_sum=True)[1], MATRIX
    ),
    "convolution, eval": lambda: evaluated(CONV, SpikeTrain(BITS, 9)),
    "convolution, training": trained(CONV, SpikeTrain(BITS, 9)),
    "linear layer, training": trained(LINEAR, SpikeTrain(ROW, 9)),
    "real input, training": trained(CONV, Encode(9)(dyadic(2, 6, 5, 4, seed=4))),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_is_kept(in_use, call):
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
