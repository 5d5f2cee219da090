"""Direct calls of torch.ops.tandem_cuda with arguments that no Python check has seen: errors, never a crash or a hang.

All cases run in a process of their own: one that dies fails its own test and names itself.
"""

import ctypes
import itertools
import math
import mmap
import os
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import tandem_cuda
from cases import raw
from exact import AUTO, CONSTANT, DENSE, EVENT, SERIES
from neurons import EVERY_KIND, raw_neuron
from tandem_cuda import _C

OPS = torch.ops.tandem_cuda
HUGE = 2**62
MOST = 2**63 - 1
LEAST = -(2**63)
NAN = float("nan")
SECONDS = 30  # for a batch of cases that takes about one
BYTES = 32 << 30  # of address space: what is refused for lack of memory is refused at once


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


def product(op, b, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, engine=AUTO, terms=3, **named):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return raw(op, bits=b, weight=w, engine=engine, terms=terms, **geometry, **named)


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


def integrate_and_fire(
    current, steps=8, mode=CONSTANT, neuron=PLAIN.kind, parameters=PLAIN.parameters, want=True, **named
):
    driven = firing(steps, neuron, parameters, want)
    return raw("integrate_and_fire", current=current, mode=mode, **driven, **named)


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


# What a case must end in. Too large for this machine is no mistake of the caller's arguments as such.
REFUSED = "RuntimeError: {op}: .*{argument}"
TOO_LARGE = "(RuntimeError|MemoryError): "
FINE = r"\[.*\]"  # shapes of what was returned

PIXEL, KERNEL = bits(1, 1, 1, 1, 1), floats(1, 1, 1, 1)
ROW, MATRIX = bits(1, 2, 3), floats(4, 3)
CURRENT = floats(2, 3)
INT8 = torch.ones(4, 3, dtype=torch.int8)
PACKED, PACKED_INT8 = OPS.pack_weight(torch.ones(4, 3), 1), OPS.pack_weight(INT8, 1)


def product_cases(op, conv2d, linear):
    """Cases of the four products: (name, argument that the message names or an ending, call)."""
    return {
        # geometry
        f"{op}-stride-0": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=(0, 1))),
        f"{op}-stride-negative": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=(1, -1))),
        f"{op}-stride-huge": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=(HUGE, HUGE))),
        f"{op}-stride-most": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=(MOST, LEAST))),
        f"{op}-stride-none": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=())),
        f"{op}-stride-one": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=(1,))),
        f"{op}-stride-three": ("stride", lambda: conv2d(PIXEL, KERNEL, stride=(1, 1, 1))),
        f"{op}-padding-negative": ("padding", lambda: conv2d(PIXEL, KERNEL, padding=(-1, 0))),
        f"{op}-padding-least": ("padding", lambda: conv2d(PIXEL, KERNEL, padding=(LEAST, LEAST))),
        f"{op}-padding-huge": ("padding", lambda: conv2d(PIXEL, KERNEL, padding=(HUGE, HUGE))),
        f"{op}-padding-most": ("padding", lambda: conv2d(PIXEL, KERNEL, padding=(0, MOST))),
        f"{op}-padding-three": ("padding", lambda: conv2d(PIXEL, KERNEL, padding=(0, 0, 0))),
        f"{op}-padding-2^30": (TOO_LARGE, lambda: conv2d(PIXEL, KERNEL, padding=(2**30, 2**30))),
        f"{op}-dilation-0": ("dilation", lambda: conv2d(PIXEL, KERNEL, dilation=(0, 0))),
        f"{op}-dilation-negative": ("dilation", lambda: conv2d(PIXEL, floats(1, 1, 2, 2), dilation=(-1, -1))),
        f"{op}-dilation-huge": ("dilation", lambda: conv2d(PIXEL, floats(1, 1, 3, 3), dilation=(HUGE, HUGE))),
        f"{op}-dilation-none": ("dilation", lambda: conv2d(PIXEL, KERNEL, dilation=())),
        f"{op}-far-apart": (FINE, lambda: conv2d(PIXEL, floats(1, 1, 3, 3), (1, 1), (2**30, 2**30), (2**30, 2**30))),
        f"{op}-far-steps": (FINE, lambda: conv2d(PIXEL, KERNEL, (2**30, 2**30), (2**30, 2**30))),
        f"{op}-does-not-fit": ("kernel", lambda: conv2d(bits(1, 1, 1, 2, 2), floats(1, 1, 3, 1))),
        f"{op}-groups-0": ("groups", lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 2, 1, 1), groups=0)),
        f"{op}-groups-negative": ("groups", lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 2, 1, 1), groups=-1)),
        f"{op}-groups-least": ("groups", lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 2, 1, 1), groups=LEAST)),
        f"{op}-groups-odd": ("groups", lambda: conv2d(bits(1, 1, 4, 1, 1), floats(4, 4, 1, 1), groups=3)),
        f"{op}-groups-wrong": ("weight", lambda: conv2d(bits(1, 1, 4, 1, 1), floats(4, 4, 1, 1), groups=2)),
        # kernels whose packed copy has more bytes, or more elements, than 64 bits can count
        f"{op}-kernel-2^21": (TOO_LARGE, lambda: conv2d(PIXEL, floats(1, 1, 2**21, 2**21), padding=(2**20, 2**20))),
        f"{op}-kernel-2^29": (TOO_LARGE, lambda: conv2d(PIXEL, floats(1, 1, 2**29, 2**29), padding=(2**28, 2**28))),
        f"{op}-kernel-2^30": (TOO_LARGE, lambda: conv2d(PIXEL, floats(1, 1, 2**30, 2**30), padding=(2**29, 2**29))),
        f"{op}-kernel-2^31": (TOO_LARGE, lambda: conv2d(PIXEL, floats(1, 1, 2**31, 2**31), padding=(2**30, 2**30))),
        f"{op}-kernel-tall": (TOO_LARGE, lambda: conv2d(PIXEL, floats(1, 1, 2**31, 1), padding=(2**30, 0))),
        # shapes
        f"{op}-4-dims": ("bits", lambda: conv2d(bits(1, 1, 1, 1), KERNEL)),
        f"{op}-weight-5-dims": ("weight", lambda: conv2d(PIXEL, floats(1, 1, 1, 1, 1))),
        f"{op}-weight-0-dims": ("weight", lambda: conv2d(PIXEL, torch.zeros(()))),
        f"{op}-6-dims": ("bits", lambda: conv2d(bits(1, 1, 1, 1, 1, 1), KERNEL)),
        f"{op}-weight-3-dims": ("weight", lambda: conv2d(PIXEL, floats(1, 1, 1))),
        f"{op}-weight-0-outputs": ("weight", lambda: conv2d(PIXEL, floats(0, 1, 1, 1))),
        f"{op}-weight-0-inputs": ("weight", lambda: conv2d(bits(1, 1, 0, 1, 1), floats(1, 0, 1, 1))),
        f"{op}-weight-0-taps": ("weight", lambda: conv2d(PIXEL, floats(1, 1, 0, 1))),
        f"{op}-0-planes": ("bits", lambda: conv2d(bits(0, 1, 1, 1, 1), KERNEL)),
        f"{op}-conv2d-float-bits": ("bits", lambda: conv2d(floats(1, 1, 1, 1, 1), KERNEL)),
        f"{op}-conv2d-half": (FINE, lambda: conv2d(PIXEL, KERNEL.half())),
        f"{op}-conv2d-half-bias": ("bias", lambda: conv2d(PIXEL, KERNEL.half(), bias=floats(1).half())),
        f"{op}-conv2d-bfloat16-scale": ("scale", lambda: conv2d(PIXEL, KERNEL.bfloat16(), scale=floats(1).double())),
        f"{op}-height-2^41": ("height", lambda: conv2d(bits(1, 1, 1, 2**41, 1), KERNEL)),
        f"{op}-image-huge": (TOO_LARGE, lambda: conv2d(bits(1, 1, 1, 2**31, 2**31), KERNEL)),
        f"{op}-image-huge-no-batch": (FINE, lambda: conv2d(bits(1, 0, 1, 2**40, 2**40), KERNEL)),
        f"{op}-batch-huge": (TOO_LARGE, lambda: conv2d(bits(1, HUGE, 1, 1, 1), KERNEL)),
        f"{op}-channels-huge": (TOO_LARGE, lambda: conv2d(bits(1, 1, HUGE, 1, 1), floats(1, HUGE, 1, 1))),
        f"{op}-depthwise-huge": (
            TOO_LARGE,
            lambda: conv2d(bits(1, 1, 2**59, 1, 1), floats(2**59, 1, 1, 1), groups=2**59),
        ),
        f"{op}-depthwise-far-apart": (
            FINE,
            lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 1, 3, 3), (1, 1), (2**30, 2**30), (2**30, 2**30), 2),
        ),
        f"{op}-depthwise-far-steps": (
            FINE,
            lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 1, 1, 1), (2**30, 2**30), (2**30, 2**30), groups=2),
        ),
        f"{op}-depthwise-padding-2^30": (
            TOO_LARGE,
            lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 1, 1, 1), padding=(2**30, 2**30), groups=2),
        ),
        f"{op}-depthwise-kernel-2^21": (
            TOO_LARGE,
            lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 1, 2**21, 2**21), padding=(2**20, 2**20), groups=2),
        ),
        f"{op}-depthwise-kernel-2^29": (
            TOO_LARGE,
            lambda: conv2d(bits(1, 1, 2, 1, 1), floats(2, 1, 2**29, 2**29), padding=(2**28, 2**28), groups=2),
        ),
        f"{op}-depthwise-image-huge-no-batch": (
            FINE,
            lambda: conv2d(bits(1, 0, 2, 2**40, 2**40), floats(2, 1, 1, 1), groups=2),
        ),
        f"{op}-conv2d-bias": ("bias", lambda: conv2d(PIXEL, KERNEL, bias=floats(HUGE))),
        f"{op}-conv2d-count": ("count", lambda: conv2d(PIXEL, KERNEL, count=floats(1, 1, 1, HUGE))),
        # linear
        f"{op}-linear-stride": ("stride", lambda: linear(ROW, MATRIX, stride=(1, 2))),
        f"{op}-linear-stride-huge": ("stride", lambda: linear(ROW, MATRIX, stride=(HUGE, MOST))),
        f"{op}-linear-stride-none": ("stride", lambda: linear(ROW, MATRIX, stride=())),
        f"{op}-linear-padding": ("padding", lambda: linear(ROW, MATRIX, padding=(0, 1))),
        f"{op}-linear-padding-huge": ("padding", lambda: linear(ROW, MATRIX, padding=(HUGE, HUGE))),
        f"{op}-linear-dilation": ("dilation", lambda: linear(ROW, MATRIX, dilation=(2, 1))),
        f"{op}-linear-dilation-three": ("dilation", lambda: linear(ROW, MATRIX, dilation=(1, 1, 1))),
        f"{op}-linear-groups": ("groups", lambda: linear(ROW, MATRIX, groups=3)),
        f"{op}-linear-groups-least": ("groups", lambda: linear(ROW, MATRIX, groups=LEAST)),
        f"{op}-linear-2-dims": ("bits", lambda: linear(bits(1, 3), MATRIX)),
        f"{op}-linear-0-planes": ("bits", lambda: linear(bits(0, 2, 3), MATRIX)),
        f"{op}-linear-bool-bits": ("bits", lambda: linear(bits(1, 2, 3).bool(), MATRIX)),
        f"{op}-linear-int-weight": ("weight", lambda: linear(ROW, MATRIX.int())),
        f"{op}-linear-complex": ("weight", lambda: linear(ROW, torch.zeros(4, 3, dtype=torch.complex64))),
        f"{op}-weight-1-dim": ("weight", lambda: conv2d(PIXEL, floats(3))),
        f"{op}-linear-weight-0-outputs": ("weight", lambda: linear(ROW, floats(0, 3))),
        f"{op}-linear-weight-0-inputs": ("weight", lambda: linear(bits(1, 2, 0), floats(4, 0))),
        f"{op}-linear-weight-features": ("weight", lambda: linear(ROW, floats(4, 2))),
        f"{op}-linear-bias-size": ("bias", lambda: linear(ROW, MATRIX, bias=floats(3))),
        f"{op}-linear-bias-dims": ("bias", lambda: linear(ROW, MATRIX, bias=floats(4, 1))),
        f"{op}-linear-bias-dtype": ("bias", lambda: linear(ROW, MATRIX, bias=floats(4).double())),
        f"{op}-linear-count-size": ("count", lambda: linear(ROW, MATRIX, count=floats(2, 4))),
        f"{op}-linear-count-dtype": ("count", lambda: linear(ROW, MATRIX, count=floats(2, 3).double())),
        f"{op}-linear-features-huge": (TOO_LARGE, lambda: linear(bits(1, 1, HUGE), floats(1, HUGE))),
        f"{op}-linear-features-huge-no-batch": (FINE, lambda: linear(bits(1, 0, HUGE), floats(1, HUGE))),
        f"{op}-linear-outputs-huge": (TOO_LARGE, lambda: linear(bits(1, 1, 1), floats(HUGE, 1))),
        f"{op}-linear-outputs-2^50": (TOO_LARGE, lambda: linear(bits(1, 1, 1), floats(2**50, 1))),
        f"{op}-linear-outputs-huge-no-batch": (FINE, lambda: linear(bits(1, 0, 1), floats(HUGE, 1))),
        f"{op}-linear-batch-huge": (TOO_LARGE, lambda: linear(bits(1, HUGE, 1), floats(1, 1))),
        f"{op}-linear-batch-overflows": (TOO_LARGE, lambda: linear(bits(1, 2**30, 2**31, 3), MATRIX)),
        f"{op}-linear-batch-overflows-empty": (".*", lambda: linear(bits(1, 0, 2**40, 2**40, 3), MATRIX)),
        f"{op}-linear-last-batch-empty": (".*", lambda: linear(bits(1, 2**40, 2**40, 0, 3), MATRIX)),
    }


def depthwise_at_a_hole(conv2d, neurons):
    """Calls of which no argument may be read past its end; with neurons of these models, or [None]."""

    def call(channels, multiplier, dtype, neuron):
        outputs, scales = channels * multiplier, torch.float32 if dtype == torch.int8 else dtype
        b = torch.full((2, 1, 3, 1, channels), 255, dtype=torch.uint8)
        w, ones = torch.ones(outputs, 1, 2, 1, dtype=dtype), torch.ones(outputs, dtype=scales)
        named = {"scale": before_a_hole(ones), "bias": before_a_hole(ones)}
        if neuron is not None:
            state = before_a_hole(torch.ones(neuron.states, 1, 2, 1, outputs, dtype=scales)).permute(0, 1, 4, 2, 3)
            named |= {"state": state, "steps": 16, **raw_neuron(neuron)}
        b, w = before_a_hole(b).permute(0, 1, 4, 2, 3), before_a_hole(w)
        return conv2d(b, w, groups=channels, engine=EVENT, **named)

    dtypes = torch.float32, torch.float64, torch.int8
    return with_every_isa(call, (2, 3, 7, 8, 15, 16, 17, 33), (1, 2, 3, 17), dtypes, neurons)


def operand_cases(op, conv2d, linear):
    """The same of scale, engine and packed weights, through which kernels would read past the end."""

    def packed(wrong, weight=MATRIX):
        return "packed", lambda: linear(ROW, weight, packed=wrong, engine=EVENT)

    def int8(**named):
        return linear(ROW, INT8, **{"scale": torch.ones(4)} | named)

    n = len(PACKED)
    misaligned = torch.zeros(n + 1)[1:]
    depthwise = bits(1, 1, 4, 1, 1), floats(4, 1, 1, 1)

    def packed_depthwise(wrong, engine=AUTO):
        return "packed", lambda: conv2d(*depthwise, groups=4, packed=wrong, engine=engine)

    fitting = OPS.pack_weight(depthwise[1], 4)
    neurons = EVERY_KIND.values() if op == "spiking" else [None]
    return {
        f"{op}-linear-packed-short": packed(PACKED[:-1]),
        f"{op}-linear-packed-empty": packed(PACKED[:0]),
        f"{op}-linear-packed-long": packed(torch.zeros(n + 1)),
        f"{op}-linear-packed-huge": packed(floats(HUGE)),
        f"{op}-linear-packed-2-dims": packed(PACKED[None]),
        f"{op}-linear-packed-0-dims": packed(torch.zeros(())),
        f"{op}-linear-packed-int8": packed(torch.zeros(n, dtype=torch.int8)),
        f"{op}-linear-packed-float64": packed(PACKED.double()),
        f"{op}-linear-packed-expanded": packed(floats(n)),
        f"{op}-linear-packed-every-second": packed(torch.zeros(2 * n)[::2]),
        f"{op}-linear-packed-misaligned": (FINE, packed(misaligned)[1]),
        f"{op}-linear-packed-of-int8": packed(PACKED_INT8),
        f"{op}-linear-packed-of-other": packed(OPS.pack_weight(floats(4, 17), 1)),
        f"{op}-linear-packed-fits": (FINE, packed(PACKED)[1]),
        f"{op}-linear-half-packed-half": packed(PACKED.half(), MATRIX.half()),
        f"{op}-linear-half-packed-fits": (FINE, packed(PACKED, MATRIX.half())[1]),
        f"{op}-linear-int8-packed-short": ("packed", lambda: int8(packed=PACKED_INT8[:-1])),
        f"{op}-linear-int8-packed-float": ("packed", lambda: int8(packed=PACKED)),
        f"{op}-linear-int8-packed-fits": (FINE, lambda: int8(packed=PACKED_INT8)),
        f"{op}-conv2d-packed-other-groups": packed_depthwise(OPS.pack_weight(depthwise[1], 1), EVENT),
        f"{op}-conv2d-packed-other-groups-auto": packed_depthwise(OPS.pack_weight(depthwise[1], 1)),
        f"{op}-conv2d-packed-depthwise-short": packed_depthwise(fitting[:-1]),
        f"{op}-conv2d-packed-depthwise-2-dims": packed_depthwise(fitting[None]),
        f"{op}-conv2d-packed-depthwise-float64": packed_depthwise(fitting.double()),
        f"{op}-conv2d-packed-depthwise-int16": packed_depthwise(fitting.short()),
        f"{op}-conv2d-packed-depthwise-misaligned": (FINE, packed_depthwise(torch.zeros(len(fitting) + 1)[1:])[1]),
        f"{op}-conv2d-packed-depthwise-fits": (FINE, packed_depthwise(fitting)[1]),
        f"{op}-depthwise-at-a-hole": (FINE, lambda: depthwise_at_a_hole(conv2d, neurons)),
        f"{op}-linear-int8-no-scale": ("scale", lambda: int8(scale=None)),
        f"{op}-linear-int8-scale-float64": ("scale", lambda: int8(scale=torch.ones(4).double())),
        f"{op}-linear-int8-dense": ("engine dense cannot serve int8", lambda: int8(engine=DENSE)),
        f"{op}-linear-int8-bias-float64": ("bias", lambda: int8(bias=torch.ones(4).double())),
        f"{op}-linear-int8-features-huge": (TOO_LARGE, lambda: int8_of(linear, 1, HUGE)),
        f"{op}-linear-int8-outputs-huge": (TOO_LARGE, lambda: int8_of(linear, HUGE, 1)),
        f"{op}-linear-scale-short": ("scale", lambda: linear(ROW, MATRIX, scale=torch.ones(3))),
        f"{op}-linear-scale-2-dims": ("scale", lambda: linear(ROW, MATRIX, scale=torch.ones(4, 1))),
        f"{op}-linear-scale-float64": ("scale", lambda: linear(ROW, MATRIX, scale=torch.ones(4).double())),
        f"{op}-conv2d-scale-huge": ("scale", lambda: conv2d(PIXEL, KERNEL, scale=floats(HUGE))),
        f"{op}-linear-terms-0": ("terms", lambda: linear(ROW, MATRIX, terms=0)),
        f"{op}-linear-terms-4": ("terms", lambda: linear(ROW, MATRIX, terms=4)),
        f"{op}-linear-terms-huge": ("terms", lambda: linear(ROW, MATRIX, terms=2**32 + 1)),
        f"{op}-linear-terms-least": ("terms", lambda: linear(ROW, MATRIX, terms=LEAST)),
        f"{op}-linear-engine": ("engine", lambda: linear(ROW, MATRIX, engine=3)),
        f"{op}-conv2d-engine-empty": ("engine", lambda: conv2d(PIXEL, KERNEL, engine=-1)),
    }


def int8_of(linear, outputs, features):
    weight = torch.zeros(1, dtype=torch.int8).expand(outputs, features)
    return linear(bits(1, 1, features), weight, scale=floats(outputs))


def dense(product):
    return partial(product, engine=DENSE)


def pack_weight_cases():
    def pack(weight, groups=1):
        return OPS.pack_weight(weight, groups)

    def into(out):
        return "out", lambda: OPS.pack_weight_out(MATRIX, 1, out)

    return {
        "out-short": into(PACKED[:-1]),
        "out-empty": into(PACKED[:0]),
        "out-float64": into(PACKED.double()),
        "out-int8": into(PACKED.to(torch.int8)),
        "out-2-dims": into(PACKED[None]),
        "out-expanded": into(floats(len(PACKED))),
        "out-every-second": into(torch.zeros(2 * len(PACKED))[::2]),
        "1-dim": ("weight", lambda: pack(floats(3))),
        "3-dims": ("weight", lambda: pack(floats(3, 3, 3))),
        "0-dims": ("weight", lambda: pack(torch.zeros(()))),
        "empty": ("weight", lambda: pack(floats(0, 3))),
        "no-taps": ("weight", lambda: pack(floats(4, 3, 0, 1))),
        "half": (FINE, lambda: pack(MATRIX.half())),
        "uint8": ("weight", lambda: pack(bits(4, 3))),
        "groups-0": ("groups", lambda: pack(KERNEL, 0)),
        "groups-least": ("groups", lambda: pack(KERNEL, LEAST)),
        "groups-most": ("groups", lambda: pack(KERNEL, MOST)),
        "groups-odd": ("groups", lambda: pack(floats(4, 1, 1, 1), 3)),
        "groups-linear": ("groups", lambda: pack(MATRIX, 2)),
        "outputs-huge": (TOO_LARGE, lambda: pack(floats(HUGE, 1))),
        "outputs-2^40": (TOO_LARGE, lambda: pack(floats(2**40, 1))),
        "features-huge": (TOO_LARGE, lambda: pack(floats(1, HUGE))),
        "taps-huge": (TOO_LARGE, lambda: pack(floats(1, 1, 2**31, 2**31))),
        "groups-huge": (TOO_LARGE, lambda: pack(floats(2**59, 1, 1, 1), 2**59)),
    }


def gradient_cases():
    """Of conv2d_weight_gradient, with output channels enough for its event-driven half."""
    ones = torch.ones(1, 128, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(128, 1, 1, 1)

    def gradient(grad=ones[0], count=ones[1], weight=ones[2], stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
        return OPS.conv2d_weight_gradient(grad, count, weight, stride, padding, dilation, groups)

    def at_a_hole(outputs, channels, width, dtype):
        grad = before_a_hole(torch.ones(2, 3, width, outputs, dtype=dtype)).permute(0, 3, 1, 2)
        counts = torch.zeros(2, 3, width + 1, channels, dtype=dtype)
        counts[:, ::2, ::3] = 1
        return gradient(grad, before_a_hole(counts).permute(0, 3, 1, 2), floats(outputs, channels, 1, 2).to(dtype))

    return {
        "fits": (FINE, gradient),
        "grad-batch": ("grad", lambda: gradient(floats(2, 128, 1, 1))),
        "grad-channels": ("grad", lambda: gradient(floats(1, 127, 1, 1))),
        "grad-height": ("grad", lambda: gradient(floats(1, 128, 2, 1))),
        "grad-width-0": ("grad", lambda: gradient(floats(1, 128, 1, 0))),
        "grad-0-dims": ("grad", lambda: gradient(torch.zeros(()))),
        "grad-3-dims": ("grad", lambda: gradient(floats(128, 1, 1))),
        "grad-5-dims": ("grad", lambda: gradient(floats(1, 128, 1, 1, 1))),
        "grad-double": ("grad", lambda: gradient(ones[0].double())),
        "grad-int": ("grad", lambda: gradient(ones[0].int())),
        "count-0-dims": ("count", lambda: gradient(count=torch.zeros(()))),
        "count-3-dims": ("count", lambda: gradient(count=floats(1, 1, 1))),
        "count-5-dims": ("count", lambda: gradient(count=floats(1, 1, 1, 1, 1))),
        "count-uint8": ("count", lambda: gradient(count=bits(1, 1, 1, 1))),
        "count-double": ("count", lambda: gradient(count=ones[1].double())),
        "count-channels": ("weight", lambda: gradient(count=floats(1, 2, 1, 1))),
        "count-no-channels": ("weight", lambda: gradient(count=floats(1, 0, 1, 1))),
        "count-no-pixels": ("kernel", lambda: gradient(count=floats(1, 1, 0, 1))),
        "weight-0-dims": ("weight", lambda: gradient(weight=torch.zeros(()))),
        "weight-2-dims": ("weight", lambda: gradient(weight=floats(128, 1))),
        "weight-half": ("weight", lambda: gradient(*(x.half() for x in ones))),
        "weight-int8": ("weight", lambda: gradient(weight=ones[2].to(torch.int8))),
        "weight-0-outputs": ("weight", lambda: gradient(floats(1, 0, 1, 1), weight=floats(0, 1, 1, 1))),
        "weight-0-inputs": ("weight", lambda: gradient(count=floats(1, 0, 1, 1), weight=floats(128, 0, 1, 1))),
        "weight-0-taps": ("weight", lambda: gradient(weight=floats(128, 1, 0, 1))),
        "does-not-fit": ("kernel", lambda: gradient(weight=floats(128, 1, 2, 1))),
        "stride-0": ("stride", lambda: gradient(stride=(0, 1))),
        "stride-none": ("stride", lambda: gradient(stride=())),
        "stride-three": ("stride", lambda: gradient(stride=(1, 1, 1))),
        "stride-most": ("stride", lambda: gradient(stride=(MOST, LEAST))),
        "padding-negative": ("padding", lambda: gradient(padding=(-1, 0))),
        "padding-huge": ("padding", lambda: gradient(padding=(HUGE, HUGE))),
        "padding-one": ("padding", lambda: gradient(padding=(0,))),
        "padding-2^30": (TOO_LARGE, lambda: gradient(padding=(2**30, 2**30))),
        "dilation-0": ("dilation", lambda: gradient(dilation=(0, 0))),
        "dilation-huge": ("dilation", lambda: gradient(weight=floats(128, 1, 3, 3), dilation=(HUGE, HUGE))),
        "groups-0": ("groups", lambda: gradient(groups=0)),
        "groups-least": ("groups", lambda: gradient(groups=LEAST)),
        "groups-wrong": ("weight", lambda: gradient(count=floats(1, 2, 1, 1), weight=floats(128, 2, 1, 1), groups=2)),
        "far-steps": (
            FINE,
            lambda: gradient(floats(1, 128, 3, 3), stride=(2**30, 2**30), padding=(2**30, 2**30)),
        ),
        "far-apart": (
            FINE,
            lambda: gradient(weight=floats(128, 1, 3, 3), padding=(2**30, 2**30), dilation=(2**30, 2**30)),
        ),
        "batch-huge": (TOO_LARGE, lambda: gradient(floats(2**50, 128, 1, 1), floats(2**50, 1, 1, 1))),
        "channels-huge": (TOO_LARGE, lambda: gradient(count=floats(1, 2**50, 1, 1), weight=floats(128, 2**50, 1, 1))),
        "outputs-huge": (TOO_LARGE, lambda: gradient(floats(1, 2**50, 1, 1), weight=floats(2**50, 1, 1, 1))),
        "height-2^41": ("height", lambda: gradient(count=floats(1, 1, 2**41, 1))),
        "image-huge": (
            TOO_LARGE,
            lambda: gradient(floats(1, 128, 2, 2), floats(1, 1, 2**31, 2**31), stride=(2**30, 2**30)),
        ),
        "image-tall": (
            TOO_LARGE,
            lambda: gradient(floats(1, 128, 1024, 3), floats(1, 1, 2**40, 1), ones[2], (2**30, 2**30), (0, 2**30)),
        ),
        "image-huge-no-batch": (".*", lambda: gradient(floats(0, 128, 2**20, 2**20), floats(0, 1, 2**20, 2**20))),
        "kernel-2^20": (
            TOO_LARGE,
            lambda: gradient(weight=floats(128, 1, 2**20 + 1, 2**20 + 1), padding=(2**19, 2**19)),
        ),
        "at-a-hole": (
            FINE,
            lambda: with_every_isa(
                at_a_hole, (128, 129, 200), (1, 3, 17), (1, 7, 16, 33), (torch.float32, torch.float64)
            ),
        ),
    }


# Of every kind, in the order of its parameters: what each is called, and values that it cannot have.
THRESHOLD = ("threshold", (0.0, -0.0, -1.0, NAN, math.inf, -math.inf))
LEAK = ("leak", (0.0, -0.5, 1.0000001, 2.0, NAN, math.inf))
INITIAL = ("initial", (-0.5, 1.0, 1 - 1e-9, 2.0, NAN, math.inf))
REFRACTORY = ("refractory", (0.0, -1.0, 1.5, 2.0**24 + 1, 1e30, -1e30, NAN, math.inf, -math.inf))
BAD_PARAMETERS = {
    "IF": [THRESHOLD, INITIAL],
    "LIF": [THRESHOLD, LEAK, INITIAL],
    "refractory": [THRESHOLD, INITIAL, REFRACTORY],
}
TINY = 1e-320  # zero in float32, which is what potentials are


def neuron_cases(call, *neurons):
    """Kinds that there are not, wrong parameters, and states [S, *neurons] of other models."""

    def of(kind, parameters=PLAIN.parameters, **named):
        return lambda: call(neuron=kind, parameters=parameters, **named)

    cases = {f"kind-{kind}": ("neuron", of(kind)) for kind in (-1, 1000, 2**32, MOST, LEAST)}
    for name, neuron in EVERY_KIND.items():
        good = neuron.parameters
        for wrong in (good[:-1], [*good, 1.0], [], [1.0] * 1000):
            cases[f"{name}-{len(wrong)}-parameters"] = "parameters", of(neuron.kind, wrong)
        for i, (parameter, values) in enumerate(BAD_PARAMETERS[name]):
            for value in (*values, TINY) if neurons else values:
                wrong = [*good[:i], value, *good[i + 1 :]]
                cases[f"{name}-{parameter}-{value}"] = parameter, of(neuron.kind, wrong)
        for states in {neuron.states - 1, neuron.states + 1, 2**58} if neurons else ():
            cases[f"{name}-state-of-{states}"] = "state", of(neuron.kind, good, state=floats(states, *neurons))
    return cases


def integrate_and_fire_at_a_hole():
    """Currents, states and the rest, none of which may be read past its end."""

    def call(channels, neuron, dtype):
        current, state, ones = (
            before_a_hole(torch.ones(*shape, dtype=dtype))
            for shape in ((3, channels), (neuron.states, 3, channels), (channels,))
        )
        return integrate_and_fire(current, 9, state=state, scale=ones, bias=ones, **raw_neuron(neuron))

    channels = 1, 3, 8, 15, 16, 17, 33, 65
    choices = channels, EVERY_KIND.values(), (torch.float32, torch.float64)
    return {"at-a-hole": (FINE, lambda: with_every_isa(call, *choices))}


def spiking_cases():
    return {
        "steps-0": ("time_steps", lambda: spiking_linear(ROW, MATRIX, 0)),
        "steps-negative": ("time_steps", lambda: spiking_linear(ROW, MATRIX, -1)),
        "steps-least": ("time_steps", lambda: spiking_linear(ROW, MATRIX, LEAST)),
        "steps-huge": ("time steps", lambda: spiking_linear(ROW, MATRIX, HUGE)),
        "steps-most": ("time steps", lambda: spiking_linear(ROW, MATRIX, MOST)),
        "steps-9": ("planes", lambda: spiking_linear(ROW, MATRIX, 9)),
        "planes-2": ("planes", lambda: spiking_linear(bits(2, 2, 3), MATRIX, 8)),
        "planes-2^59": (TOO_LARGE, lambda: spiking_linear(bits(2**59, 1, 1), floats(1, 1), HUGE)),
        "planes-2^60": (TOO_LARGE, lambda: spiking_linear(bits(2**60, 1, 1), floats(1, 1), MOST)),
        "planes-2^60-no-batch": (FINE, lambda: spiking_linear(bits(2**60, 0, 1), floats(1, 1), MOST)),
        "state-size": ("state", lambda: spiking_linear(ROW, MATRIX, state=floats(1, 4, 2))),
        "state-dims": ("state", lambda: spiking_linear(ROW, MATRIX, state=floats(2, 4))),
        "state-dtype": ("state", lambda: spiking_linear(ROW, MATRIX, state=floats(1, 2, 4).double())),
        "state-huge": ("state", lambda: spiking_linear(ROW, MATRIX, state=floats(1, 2, HUGE // 2))),
        **neuron_cases(lambda **named: spiking_linear(ROW, MATRIX, **named), 2, 4),
        "outputs-huge-unwanted": (TOO_LARGE, lambda: spiking_linear(bits(1, 1, 1), floats(HUGE, 1), want=False)),
    }


def spiking_conv2d_cases():
    return {
        "steps-0": ("time_steps", lambda: spiking_conv2d(PIXEL, KERNEL, steps=0)),
        "steps-negative": ("time_steps", lambda: spiking_conv2d(PIXEL, KERNEL, steps=-1)),
        "steps-huge": ("time steps", lambda: spiking_conv2d(PIXEL, KERNEL, steps=HUGE)),
        "state-size": ("state", lambda: spiking_conv2d(PIXEL, KERNEL, state=floats(1, 1, 1, 1, 2))),
        "state-dims": ("state", lambda: spiking_conv2d(PIXEL, KERNEL, state=floats(1))),
        **neuron_cases(lambda **named: spiking_conv2d(PIXEL, KERNEL, **named), 1, 1, 1, 1),
    }


def counting_cases():
    return {
        "planes-2^60": (TOO_LARGE, lambda: count_linear(bits(2**60, 1, 1), floats(1, 1))),
        "planes-2^60-no-batch": (".*", lambda: count_linear(bits(2**60, 0, 1), floats(1, 1))),
        "planes-2^62-no-batch": (".*", lambda: count_linear(bits(2**62, 0, 1), floats(1, 1))),
        "planes-most-no-batch": (".*", lambda: count_linear(bits(MOST, 0, 1), floats(1, 1))),
    }


def integrate_and_fire_cases():
    return {
        "1-dim": ("current", lambda: integrate_and_fire(floats(3))),
        "0-dims": ("current", lambda: integrate_and_fire(torch.zeros(()))),
        "int": ("current", lambda: integrate_and_fire(CURRENT.int())),
        "complex": ("current", lambda: integrate_and_fire(torch.zeros(2, 3, dtype=torch.complex64))),
        "mode": ("mode", lambda: integrate_and_fire(CURRENT, mode=3)),
        "mode-empty": ("mode", lambda: integrate_and_fire(CURRENT, mode=-1)),
        "series-2-dims": ("current", lambda: integrate_and_fire(CURRENT, 2, SERIES)),
        "series-other-length": ("current", lambda: integrate_and_fire(floats(2, 2, 3), 3, SERIES)),
        "series-huge": (TOO_LARGE, lambda: integrate_and_fire(floats(HUGE, 1, 1), HUGE, SERIES)),
        "steps-0": ("time_steps", lambda: integrate_and_fire(CURRENT, 0)),
        "steps-least": ("time_steps", lambda: integrate_and_fire(CURRENT, LEAST)),
        "steps-huge": (TOO_LARGE, lambda: integrate_and_fire(CURRENT, HUGE)),
        "steps-most": (TOO_LARGE, lambda: integrate_and_fire(CURRENT, MOST)),
        "steps-huge-no-batch": (FINE, lambda: integrate_and_fire(floats(0, 3), HUGE)),
        "steps-most-no-batch": (".*", lambda: integrate_and_fire(floats(0, 3), MOST)),
        "neurons-huge": (TOO_LARGE, lambda: integrate_and_fire(floats(2**31, 2**31))),
        "neurons-huge-unwanted": (TOO_LARGE, lambda: integrate_and_fire(floats(2**31, 2**31), want=False)),
        "no-channels": (FINE, lambda: integrate_and_fire(floats(2, 0), bias=torch.zeros(0))),
        "scale-size": ("scale", lambda: integrate_and_fire(CURRENT, scale=floats(2))),
        "scale-dims": ("scale", lambda: integrate_and_fire(CURRENT, scale=floats(3, 1))),
        "scale-dtype": ("scale", lambda: integrate_and_fire(CURRENT, scale=floats(3).double())),
        "scale-huge": ("scale", lambda: integrate_and_fire(CURRENT, scale=floats(HUGE))),
        "bias-size": ("bias", lambda: integrate_and_fire(CURRENT, bias=floats(2))),
        "bias-dims": ("bias", lambda: integrate_and_fire(CURRENT, bias=floats(3, 1))),
        "bias-dtype": ("bias", lambda: integrate_and_fire(CURRENT, bias=floats(3).double())),
        "state-size": ("state", lambda: integrate_and_fire(CURRENT, state=floats(1, 3, 2))),
        "state-dims": ("state", lambda: integrate_and_fire(CURRENT, state=CURRENT)),
        "state-dtype": ("state", lambda: integrate_and_fire(CURRENT, state=CURRENT[None].double())),
        **neuron_cases(lambda **named: integrate_and_fire(CURRENT, **named), 2, 3),
        **integrate_and_fire_at_a_hole(),
    }


def train_cases():
    """Of the operators between dense trains, bits and counts; here the name begins with the operator."""
    return {
        "pack_spikes-1-dim": ("spikes", lambda: pack(floats(3))),
        "pack_spikes-0-steps": ("time_steps", lambda: pack(floats(0, 3))),
        "pack_spikes-half": ("spikes", lambda: pack(floats(2, 3).half())),
        "pack_spikes-int": ("spikes", lambda: pack(floats(2, 3).long())),
        "pack_spikes-steps-huge": (TOO_LARGE, lambda: pack(floats(HUGE, 1))),
        "pack_spikes-steps-most": (TOO_LARGE, lambda: pack(floats(MOST, 1))),
        "pack_spikes-steps-huge-no-batch": (FINE, lambda: pack(floats(HUGE, 0))),
        "pack_spikes-steps-most-no-batch": (".*", lambda: pack(floats(MOST, 0))),
        "pack_spikes-neurons-huge": (TOO_LARGE, lambda: pack(floats(1, HUGE))),
        "unpack_spikes-0-planes": ("bits", lambda: unpack(bits(0, 3))),
        "unpack_spikes-1-dim": ("bits", lambda: unpack(bits(3))),
        "unpack_spikes-float-bits": ("bits", lambda: unpack(floats(1, 3))),
        "unpack_spikes-steps-0": ("time_steps", lambda: unpack(bits(1, 3), 0)),
        "unpack_spikes-steps-least": ("time_steps", lambda: unpack(bits(1, 3), LEAST)),
        "unpack_spikes-steps-9": ("planes", lambda: unpack(bits(1, 3), 9)),
        "unpack_spikes-steps-most": ("planes", lambda: unpack(bits(1, 3), MOST)),
        "unpack_spikes-planes-2^59": (TOO_LARGE, lambda: unpack(bits(2**59, 1), HUGE)),
        "unpack_spikes-planes-2^59-no-batch": (FINE, lambda: unpack(bits(2**59, 0), HUGE)),
        "unpack_spikes-neurons-2^60": (TOO_LARGE, lambda: unpack(bits(1, 2**60), 8, torch.bool)),
        "unpack_spikes-int": ("dtype", lambda: unpack(bits(1, 3), 8, torch.int64)),
        "unpack_spikes-complex": ("dtype", lambda: unpack(bits(1, 3), 8, torch.complex64)),
        "unpack_spikes-quantized": ("RuntimeError: ", lambda: unpack(bits(1, 3), 8, torch.qint8)),
        "spike_count-0-planes": ("bits", lambda: count(bits(0, 3))),
        "spike_count-0-dims": ("bits", lambda: count(torch.zeros((), dtype=torch.uint8))),
        "spike_count-1-dim": ("bits", lambda: count(bits(3))),
        "spike_count-int8": ("bits", lambda: count(bits(1, 3).to(torch.int8))),
        "spike_count-int": ("dtype", lambda: count(bits(1, 3), torch.int32)),
        "spike_count-float8": ("dtype", lambda: count(bits(1, 3), torch.float8_e4m3fn)),
        "spike_count-neurons-huge": (TOO_LARGE, lambda: count(bits(1, HUGE))),
        "spike_count-neurons-huge-2": (TOO_LARGE, lambda: count(bits(1, 2**31, 2**31), torch.float64)),
        "spike_count-planes-huge": (TOO_LARGE, lambda: count(bits(HUGE, 1))),
        "spike_count-planes-huge-no-batch": (FINE, lambda: count(bits(HUGE, 0))),
        "spike_count-empty-and-overflowing": (FINE, lambda: count(bits(1, 0, 2**40, 2**40))),
        "tandem_count-v-size": ("pre_activation", lambda: tandem(ROW, floats(3, 2))),
        "tandem_count-v-int": ("pre_activation", lambda: tandem(ROW, floats(2, 3).int())),
        "tandem_count-steps-0": ("time_steps", lambda: tandem(ROW, floats(2, 3), 0)),
        "tandem_count-steps-9": ("planes", lambda: tandem(ROW, floats(2, 3), 9)),
        "tandem_count-steps-huge": ("planes", lambda: tandem(ROW, floats(2, 3), HUGE)),
        **{f"tandem_count-{k}": v for k, v in neuron_cases(lambda **named: tandem(ROW, floats(2, 3), **named)).items()},
        "tandem_count-upper": ("upper", lambda: tandem(ROW, floats(2, 3), upper=-1.0)),
        "tandem_count-upper-nan": ("upper", lambda: tandem(ROW, floats(2, 3), upper=NAN)),
        "tandem_count-neurons-huge": (TOO_LARGE, lambda: tandem(bits(1, HUGE), floats(HUGE))),
        "tandem_count_backward-grad-size": ("grad", lambda: tandem_backward(floats(3, 2), floats(2, 3))),
        "tandem_count_backward-grad-fewer": ("grad", lambda: tandem_backward(floats(2), floats(2, 3))),
        "tandem_count_backward-grad-double": ("grad", lambda: tandem_backward(floats(2, 3).double(), floats(2, 3))),
        "tandem_count_backward-v-half": ("pre_activation", lambda: tandem_backward(floats(3), floats(3).half())),
        "tandem_count_backward-threshold": ("threshold", lambda: tandem_backward(floats(3), floats(3), threshold=0.0)),
        "tandem_count_backward-threshold-nan": ("threshold", lambda: tandem_backward(floats(3), floats(3), NAN)),
        "tandem_count_backward-upper": ("upper", lambda: tandem_backward(floats(3), floats(3), upper=0.0)),
        "tandem_count_backward-upper-nan": ("upper", lambda: tandem_backward(floats(3), floats(3), upper=NAN)),
        "tandem_count_backward-0-dims": (FINE, lambda: tandem_backward(torch.zeros(()), torch.zeros(()))),
        "tandem_count_backward-empty": (FINE, lambda: tandem_backward(floats(0, HUGE), floats(0, HUGE))),
        "tandem_count_backward-neurons-huge": (TOO_LARGE, lambda: tandem_backward(floats(HUGE), floats(HUGE))),
    }


def max_pool_cases():
    image, big = bits(1, 2, 3, 4, 4), 2**30

    def at_a_hole(channels, planes, kernel, counts):
        b = before_a_hole(torch.full((planes, 2, 3, 5, channels), 255, dtype=torch.uint8)).permute(0, 1, 4, 2, 3)
        count = before_a_hole(torch.ones(2, 3, 5, channels, dtype=torch.int32)).permute(0, 3, 1, 2) if counts else None
        return max_pool(b, kernel, (1, 1), (1, 1), ceil=True, steps=8 * planes, count=count)

    return {
        "fits": (FINE, lambda: max_pool(image)),
        "4-dims": ("bits", lambda: max_pool(image[0])),
        "6-dims": ("bits", lambda: max_pool(image[None])),
        "0-planes": ("bits", lambda: max_pool(image[:0])),
        "0-channels": ("bits", lambda: max_pool(bits(1, 2, 0, 4, 4))),
        "0-rows": ("bits", lambda: max_pool(bits(1, 2, 3, 0, 4), padding=(1, 1))),
        "float-bits": ("bits", lambda: max_pool(floats(1, 2, 3, 4, 4))),
        "kernel-0": ("kernel_size", lambda: max_pool(image, (0, 2))),
        "kernel-negative": ("kernel_size", lambda: max_pool(image, (2, -1))),
        "kernel-one": ("kernel_size", lambda: max_pool(image, (2,))),
        "kernel-huge": ("kernel_size", lambda: max_pool(image, (HUGE, HUGE))),
        "kernel-larger": ("the window", lambda: max_pool(image, (5, 5))),
        "kernel-2^30": ("the window", lambda: max_pool(image, (big, big), dilation=(big, big))),
        "kernel-2^30-padded": (FINE, lambda: max_pool(image, (big, big), (big, big), (big // 2, big // 2))),
        "stride-0": ("stride", lambda: max_pool(image, stride=(0, 1))),
        "stride-most": ("stride", lambda: max_pool(image, stride=(MOST, LEAST))),
        "stride-2^30": (FINE, lambda: max_pool(image, stride=(big, big), ceil=True)),
        "padding-negative": ("padding", lambda: max_pool(image, padding=(0, -1))),
        "padding-more-than-half": ("padding", lambda: max_pool(image, padding=(2, 0))),
        "padding-most": ("padding", lambda: max_pool(image, padding=(MOST, MOST))),
        "dilation-0": ("dilation", lambda: max_pool(image, dilation=(1, 0))),
        "dilation-three": ("dilation", lambda: max_pool(image, dilation=(1, 1, 1))),
        "dilation-2^30": ("the window", lambda: max_pool(image, dilation=(big, big))),
        "in-the-padding": (FINE, lambda: max_pool(image[..., :2, :2], (2, 2), (1, 1), (1, 1), (3, 3))),
        "steps-0": ("time_steps", lambda: max_pool(image, steps=0)),
        "steps-9": ("planes", lambda: max_pool(image, steps=9)),
        "steps-most": ("time steps", lambda: max_pool(image, steps=MOST)),
        "steps-2^31": ("time_steps", lambda: max_pool(bits(2**28, 1, 1, 2, 2), steps=2**31)),
        "count-float": ("count", lambda: max_pool(image, count=floats(2, 3, 4, 4))),
        "count-int64": ("count", lambda: max_pool(image, count=torch.zeros(2, 3, 4, 4, dtype=torch.int64))),
        "count-size": ("count", lambda: max_pool(image, count=torch.zeros(2, 3, 4, 3, dtype=torch.int32))),
        "count-dims": ("count", lambda: max_pool(image, count=torch.zeros(2, 3, dtype=torch.int32))),
        "count-extreme": (
            FINE,
            lambda: max_pool(image, count=torch.tensor([-(2**31), 2**31 - 1] * 48, dtype=torch.int32).view(2, 3, 4, 4)),
        ),
        "batch-huge": (TOO_LARGE, lambda: max_pool(bits(1, HUGE, 1, 2, 2))),
        "image-huge": (TOO_LARGE, lambda: max_pool(bits(1, 1, 1, 2**31, 2**31))),
        "image-huge-no-batch": (FINE, lambda: max_pool(bits(1, 0, 1, 2**40, 2**40))),
        "height-2^41": ("height", lambda: max_pool(bits(1, 1, 1, 2**41, 2))),
        "at-a-hole": (
            FINE,
            lambda: with_every_isa(at_a_hole, (1, 3, 16, 17, 33, 64, 65), (1, 2), ((2, 2), (3, 3)), (False, True)),
        ),
    }


def operator_of(name):
    """The operator that a message must name: the case's first word, or its kind of product."""
    first = name.split("-")[0]
    if first in ("spiking", "counting"):
        kind = "linear" if "-linear-" in name else "conv2d"
        return f"{'spiking' if first == 'spiking' else 'count'}_{kind}"
    return first


CASES = {
    **product_cases("spiking", spiking_conv2d, spiking_linear),
    **product_cases("counting", count_conv2d, count_linear),
    **product_cases("spiking-dense", dense(spiking_conv2d), dense(spiking_linear)),
    **product_cases("counting-dense", dense(count_conv2d), dense(count_linear)),
    **operand_cases("spiking", spiking_conv2d, spiking_linear),
    **operand_cases("counting", count_conv2d, count_linear),
    **{f"spiking_linear-{k}": v for k, v in spiking_cases().items()},
    **{f"spiking_conv2d-{k}": v for k, v in spiking_conv2d_cases().items()},
    **{f"count_linear-{k}": v for k, v in counting_cases().items()},
    **{f"integrate_and_fire-{k}": v for k, v in integrate_and_fire_cases().items()},
    **{f"pack_weight-{k}": v for k, v in pack_weight_cases().items()},
    **{f"max_pool_spikes-{k}": v for k, v in max_pool_cases().items()},
    **{f"conv2d_weight_gradient-{k}": v for k, v in gradient_cases().items()},
    **train_cases(),
}
for kind in ("spiking", "counting"):
    del CASES[f"{kind}-dense-kernel-tall"]  # not too large: 2^32 multiplications, in 40 GiB
ENDINGS = (TOO_LARGE, FINE, "RuntimeError: ", ".*")


def run(name):
    """What a case ends in, in one line: the error, or the shapes of what was returned."""
    try:
        out = CASES[name][1]()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return str([list(x.shape) for x in (out if isinstance(out, tuple) else (out,))])


@pytest.fixture(scope="module")
def results():
    """Run all cases in as few processes as their crashes allow."""
    left, ends = list(CASES), {}
    environment = os.environ | {"PYTHONPATH": str(Path(tandem_cuda.__file__).parents[1])}  # the same package
    while left:
        command = [sys.executable, __file__, *left]
        try:
            child = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
            output, end = child.stdout, f"the process ended with {child.returncode}: {child.stderr[-500:]}"
        except subprocess.TimeoutExpired as error:
            output, end = (error.stdout or b"").decode(), f"the process hung for {SECONDS} seconds"
        done = dict(line.split("\t", 1) for line in output.splitlines() if "\t" in line)
        ends |= done
        left = [name for name in left if name not in done]
        if left:
            ends[left.pop(0)] = end
    return ends


@pytest.mark.parametrize("name", CASES)
def test_hostile(results, name):
    expected, _ = CASES[name]
    if expected not in ENDINGS:
        expected = REFUSED.format(op=operator_of(name), argument=expected)
    assert "process" not in results[name], results[name]
    assert re.match(expected, results[name]), results[name]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for case in sys.argv[1:]:
        print(case, run(case), sep="\t", flush=True)
