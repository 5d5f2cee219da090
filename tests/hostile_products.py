"""Hostile calls of the products, their weight gradient and the packing of weights."""

from functools import partial

import torch

from exact import AUTO, DENSE, EVENT
from hostile_calls import (
    FINE,
    HUGE,
    INT8,
    KERNEL,
    LEAST,
    MATRIX,
    MOST,
    OPS,
    PACKED,
    PACKED_INT8,
    PIXEL,
    ROW,
    TOO_LARGE,
    before_a_hole,
    bits,
    floats,
    with_every_isa,
)
from neurons import EVERY_KIND, raw_neuron


def product_cases(op, conv2d, linear):
    """Cases of a product: {name: (argument that the message names or an ending, call)}."""
    return {
        **geometry_cases(op, conv2d),
        **shape_cases(op, conv2d),
        **depthwise_cases(op, conv2d),
        **linear_cases(op, linear),
    }


def geometry_cases(op, conv2d):
    return {
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
    }


def shape_cases(op, conv2d):
    return {
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
        f"{op}-conv2d-bias": ("bias", lambda: conv2d(PIXEL, KERNEL, bias=floats(HUGE))),
        f"{op}-conv2d-count": ("count", lambda: conv2d(PIXEL, KERNEL, count=floats(1, 1, 1, HUGE))),
        f"{op}-weight-1-dim": ("weight", lambda: conv2d(PIXEL, floats(3))),
    }


def depthwise_cases(op, conv2d):
    return {
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
    }


def linear_cases(op, linear):
    return {
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
            added = torch.full((2, 1, 2, 1, outputs), 255, dtype=torch.uint8)
            named |= {"amplitude": before_a_hole(torch.ones(outputs, dtype=scales))}
            if channels % 2:
                added = torch.ones(16, 1, 2, 1, outputs, dtype=scales)
            named |= {"state": state, "steps": 16, "added": before_a_hole(added).permute(0, 1, 4, 2, 3)}
            named |= raw_neuron(neuron)
        else:
            radix = 8 if multiplier != 2 else 0
            b, named = b[: 1 if radix else 2], named | {"radix": radix}
        b, w = before_a_hole(b).permute(0, 1, 4, 2, 3), before_a_hole(w)
        return conv2d(b, w, groups=channels, engine=EVENT, **named)

    dtypes = torch.float32, torch.float64, torch.int8
    return with_every_isa(call, (2, 3, 7, 8, 15, 16, 17, 33), (1, 2, 3, 17), dtypes, neurons)


def values_at_a_hole(conv2d):
    """Products with the values of radix spikes, which no engine copies, of bits behind which nothing may be read."""

    def call(channels, groups, dtype, engine):
        outputs = 2 * groups if groups < 3 else groups
        scales = {"scale": torch.ones(outputs)} if dtype in (torch.int8, torch.int16) else {}
        values = before_a_hole(torch.full((1, 1, 3, 1, groups * channels), 255, dtype=torch.uint8))
        weight = before_a_hole(torch.ones(outputs, channels, 2, 1, dtype=dtype))
        return conv2d(values.permute(0, 1, 4, 2, 3), weight, groups=groups, engine=engine, radix=8, **scales)

    dtypes = torch.float32, torch.float64, torch.int8, torch.int16
    return with_every_isa(call, (1, 2, 3, 4, 17, 62, 64, 65, 128), (1, 2, 33), dtypes, (AUTO, EVENT, DENSE))


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

    def added(*shape, dtype=torch.float32):
        wrong = torch.zeros(1, dtype=dtype).expand(shape)
        return "added", lambda: linear(ROW, MATRIX, added=wrong)

    def amplitude(*shape, dtype=torch.float32):
        wrong = torch.ones((), dtype=dtype).expand(shape)
        return "amplitude", lambda: linear(ROW, MATRIX, added=bits(1, 2, 4), amplitude=wrong)

    of_spiking = {
        "spiking-linear-added-1-dim": added(8),
        "spiking-linear-added-of-7-steps": added(7, 2, 4),
        "spiking-linear-added-of-2-planes": added(2, 2, 4, dtype=torch.uint8),
        "spiking-linear-added-short": added(8, 2, 3),
        "spiking-linear-added-huge": added(8, 2, 2**50),
        "spiking-linear-added-spikes-huge": added(1, 2**50, 4, dtype=torch.uint8),
        "spiking-linear-added-float64": added(8, 2, 4, dtype=torch.float64),
        "spiking-linear-added-int8": added(8, 2, 4, dtype=torch.int8),
        "spiking-linear-amplitude-short": amplitude(3),
        "spiking-linear-amplitude-0-dims": amplitude(),
        "spiking-linear-amplitude-huge": amplitude(HUGE),
        "spiking-linear-amplitude-float64": amplitude(4, dtype=torch.float64),
        "spiking-linear-amplitude-fits": (FINE, amplitude(4)[1]),
        "spiking-linear-added-fits": (FINE, added(8, 2, 4)[1]),
        "spiking-linear-added-spikes-fit": (FINE, added(1, 2, 4, dtype=torch.uint8)[1]),
    }
    of_counting = {"counting-values-at-a-hole": (FINE, lambda: values_at_a_hole(conv2d))}
    return {
        **(of_spiking if op == "spiking" else of_counting),
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
        f"{op}-linear-int8-dense": (FINE, lambda: int8(engine=DENSE)),
        f"{op}-linear-int8-bias-float64": ("bias", lambda: int8(bias=torch.ones(4).double())),
        f"{op}-linear-int8-features-huge": (TOO_LARGE, lambda: int8_of(linear, 1, HUGE)),
        f"{op}-linear-int8-outputs-huge": (TOO_LARGE, lambda: int8_of(linear, HUGE, 1)),
        f"{op}-linear-scale-short": ("scale", lambda: linear(ROW, MATRIX, scale=torch.ones(3))),
        f"{op}-linear-scale-2-dims": ("scale", lambda: linear(ROW, MATRIX, scale=torch.ones(4, 1))),
        f"{op}-linear-scale-float64": ("scale", lambda: linear(ROW, MATRIX, scale=torch.ones(4).double())),
        f"{op}-conv2d-scale-huge": ("scale", lambda: conv2d(PIXEL, KERNEL, scale=floats(HUGE))),
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


ONES = torch.ones(1, 128, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(128, 1, 1, 1)  # gradient, count, weight


def gradient(grad=ONES[0], count=ONES[1], weight=ONES[2], stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return OPS.conv2d_weight_gradient(grad, count, weight, stride, padding, dilation, groups)


def gradient_at_a_hole(outputs, channels, width, dtype):
    grad = before_a_hole(torch.ones(2, 3, width, outputs, dtype=dtype)).permute(0, 3, 1, 2)
    counts = torch.zeros(2, 3, width + 1, channels, dtype=dtype)
    counts[:, ::2, ::3] = 1
    return gradient(grad, before_a_hole(counts).permute(0, 3, 1, 2), floats(outputs, channels, 1, 2).to(dtype))


def gradient_cases():
    """Of conv2d_weight_gradient, with output channels enough for its event-driven half."""
    return {
        "fits": (FINE, gradient),
        "grad-batch": ("grad", lambda: gradient(floats(2, 128, 1, 1))),
        "grad-channels": ("grad", lambda: gradient(floats(1, 127, 1, 1))),
        "grad-height": ("grad", lambda: gradient(floats(1, 128, 2, 1))),
        "grad-width-0": ("grad", lambda: gradient(floats(1, 128, 1, 0))),
        "grad-0-dims": ("grad", lambda: gradient(torch.zeros(()))),
        "grad-3-dims": ("grad", lambda: gradient(floats(128, 1, 1))),
        "grad-5-dims": ("grad", lambda: gradient(floats(1, 128, 1, 1, 1))),
        "grad-double": ("grad", lambda: gradient(ONES[0].double())),
        "grad-int": ("grad", lambda: gradient(ONES[0].int())),
        "count-0-dims": ("count", lambda: gradient(count=torch.zeros(()))),
        "count-3-dims": ("count", lambda: gradient(count=floats(1, 1, 1))),
        "count-5-dims": ("count", lambda: gradient(count=floats(1, 1, 1, 1, 1))),
        "count-uint8": ("count", lambda: gradient(count=bits(1, 1, 1, 1))),
        "count-double": ("count", lambda: gradient(count=ONES[1].double())),
        "count-channels": ("weight", lambda: gradient(count=floats(1, 2, 1, 1))),
        "count-no-channels": ("weight", lambda: gradient(count=floats(1, 0, 1, 1))),
        "count-no-pixels": ("kernel", lambda: gradient(count=floats(1, 1, 0, 1))),
        "weight-0-dims": ("weight", lambda: gradient(weight=torch.zeros(()))),
        "weight-2-dims": ("weight", lambda: gradient(weight=floats(128, 1))),
        "weight-half": ("weight", lambda: gradient(*(x.half() for x in ONES))),
        "weight-int8": ("weight", lambda: gradient(weight=ONES[2].to(torch.int8))),
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
            lambda: gradient(floats(1, 128, 1024, 3), floats(1, 1, 2**40, 1), ONES[2], (2**30, 2**30), (0, 2**30)),
        ),
        "image-huge-no-batch": (".*", lambda: gradient(floats(0, 128, 2**20, 2**20), floats(0, 1, 2**20, 2**20))),
        "kernel-2^20": (
            TOO_LARGE,
            lambda: gradient(weight=floats(128, 1, 2**20 + 1, 2**20 + 1), padding=(2**19, 2**19)),
        ),
        "at-a-hole": (
            FINE,
            lambda: with_every_isa(
                gradient_at_a_hole, (128, 129, 200), (1, 3, 17), (1, 7, 16, 33), (torch.float32, torch.float64)
            ),
        ),
    }
