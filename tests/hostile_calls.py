"""Operators, called directly, and the arguments that hostile calls share."""

import ctypes
import itertools
import mmap

import torch

from cases import raw
from exact import AUTO, CONSTANT
from neurons import EVERY_KIND, raw_neuron
from tandem_cuda import _C

OPS = torch.ops.tandem_cuda
HUGE = 2**62
MOST = 2**63 - 1
LEAST = -(2**63)
NAN = float("nan")


def bits(*shape):
    """Zeros of any logical size in one byte of memory."""
    return torch.zeros(1, dtype=torch.uint8).expand(shape)


def floats(*shape):
    return torch.zeros(1).expand(shape)


def before_a_hole(x):
    """The same in memory behind whose last byte nothing may be read."""
    page, size = mmap.PAGESIZE, x.numel() * x.element_size()
    memory = mmap.mmap(-1, size + 2 * page)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    hole = -(-(whole.data_ptr() + size) // page) * page
    start = hole - size - whole.data_ptr()
    out = whole[start : start + size].view(x.dtype).view(x.shape)
    out.copy_(x)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(hole), ctypes.c_size_t(page), 0) == 0  # PROT_NONE
    return out


def with_every_isa(f, *choices):
    """What f returns last, of all combinations of its arguments."""
    for isa in _C.build_info()["cpu_isas_runnable"]:
        _C.set_cpu_isa(isa)
        for arguments in itertools.product(*choices):
            out = f(*arguments)
    return out


def product(op, b, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, engine=AUTO, **named):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return raw(op, bits=b, weight=w, engine=engine, **geometry, **named)


PLAIN = EVERY_KIND["IF"]


def firing(steps=8, neuron=PLAIN.kind, parameters=PLAIN.parameters, want=True):
    return {
        "time_steps": steps, "neuron": neuron, "parameters": parameters, "want_sum": want, "want_state": want
    }  # fmt: skip


def spiking_linear(b, w, steps=8, neuron=PLAIN.kind, parameters=PLAIN.parameters, want=True, **named):
    return product("spiking_product", b, w, **firing(steps, neuron, parameters, want), **named)


def spiking_conv2d(b, w, *geometry, steps=8, neuron=PLAIN.kind, parameters=PLAIN.parameters, **named):
    return product("spiking_product", b, w, *geometry, **firing(steps, neuron, parameters), **named)


def count_linear(b, w, **named):
    return product("count_product", b, w, **named)


def count_conv2d(b, w, *geometry, **named):
    return product("count_product", b, w, *geometry, **named)


RADIX = {"radix": 8, "time_steps": 8, "threshold": 1.0, "initial": 0.5}


def radix_linear(b, w, **named):
    return product("radix_product", b, w, **RADIX | named)


def radix_conv2d(b, w, *geometry, **named):
    return product("radix_product", b, w, *geometry, **RADIX | named)


def integrate_and_fire(
    current, steps=8, mode=CONSTANT, neuron=PLAIN.kind, parameters=PLAIN.parameters, want=True, **named
):
    driven = firing(steps, neuron, parameters, want)
    return raw("integrate_and_fire", current=current, mode=mode, **driven, **named)


def radix_spikes(current, steps=8, threshold=1.0, initial=0.5, want=True, **named):
    numbers = {"threshold": threshold, "initial": initial}
    return raw("radix_spikes", current=current, time_steps=steps, want_state=want, **numbers, **named)


def pack(spikes):
    return OPS.pack_spikes(spikes)


def max_pool(b, kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil=False, steps=8, count=None):
    return OPS.max_pool_spikes(b, count, kernel, stride, padding, dilation, ceil, steps, True)


def unpack(b, steps=8, dtype=torch.float32):
    return OPS.unpack_spikes(b, steps, dtype)


def count(b, dtype=torch.float32):
    return OPS.spike_count(b, dtype)


def tandem_backward(grad, v, threshold=1.0, upper=1.0):
    return OPS.tandem_count_backward(grad, v, threshold, upper)


def tandem(b, v, steps=8, upper=1.0, **named):
    named = raw_neuron(PLAIN) | named
    return raw("tandem_count", bits=b, pre_activation=v, time_steps=steps, upper=upper, **named)


def update_statistics(product, channels=3, running=None, batches=None, **named):
    running = torch.zeros(channels) if running is None else running
    batches = torch.tensor(0) if batches is None else batches
    given = {"running_mean": running, "running_var": torch.zeros(channels), "num_batches_tracked": batches}
    given |= {"mean": floats(channels), "var": floats(channels), "product": product, "momentum": 0.1, "repeats": 1.0}
    raw("update_statistics_", **given | named)
    return running


def fold_norm(channels=3, **named):
    given = {"running_mean": floats(channels), "running_var": floats(channels), "eps": 1e-5, "amplitude": 1.0}
    return raw("fold_norm", **given | {"time_steps": 8} | named)


def quantise(weight, largest=127):
    return OPS.quantise_weight(weight, largest)


TOO_LARGE = "(RuntimeError|MemoryError): "
FINE = r"\[.*\]"  # shapes of what was returned
PIXEL, KERNEL = bits(1, 1, 1, 1, 1), floats(1, 1, 1, 1)
ROW, MATRIX = bits(1, 2, 3), floats(4, 3)
CURRENT = floats(2, 3)
INT8 = torch.ones(4, 3, dtype=torch.int8)
PACKED, PACKED_INT8 = OPS.pack_weight(torch.ones(4, 3), 1), OPS.pack_weight(INT8, 1)
