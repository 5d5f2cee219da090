"""Direct calls of torch.ops.tandem_cuda with arguments that no Python check has seen: errors, never a crash or a hang.

All cases run in a process of their own: one that dies fails its own test and names itself.
"""

import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tandem_cuda
from exact import SERIES
from hostile_calls import (
    CURRENT,
    FINE,
    HUGE,
    KERNEL,
    LEAST,
    MATRIX,
    MOST,
    NAN,
    PIXEL,
    PLAIN,
    ROW,
    TOO_LARGE,
    before_a_hole,
    bits,
    count,
    count_conv2d,
    count_linear,
    floats,
    fold_norm,
    integrate_and_fire,
    max_pool,
    pack,
    quantise,
    radix_conv2d,
    radix_linear,
    radix_spikes,
    spiking_conv2d,
    spiking_linear,
    tandem,
    tandem_backward,
    unpack,
    update_statistics,
    with_every_isa,
)
from hostile_products import dense, gradient_cases, operand_cases, pack_weight_cases, product_cases
from neurons import EVERY_KIND, raw_neuron, refused

SECONDS = 30  # for a batch of cases that takes about one
BYTES = 32 << 30  # of address space: what is refused for lack of memory is refused at once


# What a case must end in. Too large for this machine is no mistake of the caller's arguments as such.
REFUSED = "RuntimeError: {op}: .*{argument}"


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
        for i, parameter in enumerate(neuron.KINDS[neuron.kind].parameters):
            values = refused(neuron, parameter)
            for value in (*values, TINY) if neurons else values:
                wrong = [*good[:i], value, *good[i + 1 :]]
                fine = value == TINY and parameter.holds(0) and 0 not in values  # neurons may start at zero
                expected = FINE if fine else parameter.name
                cases[f"{name}-{parameter.name}-{value}"] = expected, of(neuron.kind, wrong)
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


def radix_spikes_at_a_hole():
    """Likewise."""

    def call(channels, steps, dtype):
        current, ones = (before_a_hole(torch.ones(*shape, dtype=dtype)) for shape in ((3, channels), (channels,)))
        return radix_spikes(current, steps, scale=ones, bias=ones)

    choices = (1, 3, 8, 15, 16, 17, 33, 65, 129), (1, 8), (torch.float32, torch.float64)
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
        **{
            f"radix-{radix}": ("radix", lambda radix=radix: count_linear(ROW, MATRIX, radix=radix))
            for radix in (-1, 9, 256, HUGE, MOST, LEAST)
        },
        "radix-of-two-planes": ("bits", lambda: count_linear(bits(2, 2, 3), MATRIX, radix=8)),
        "radix-of-no-plane": ("bits", lambda: count_linear(bits(0, 2, 3), MATRIX, radix=8)),
        "radix-of-huge-planes": ("bits", lambda: count_linear(bits(HUGE, 0, 3), MATRIX, radix=8)),
        "radix-past-the-end": (
            "bits",
            lambda: count_linear(torch.full((1, 2, 3), 16, dtype=torch.uint8), MATRIX, radix=4),
        ),
        "radix-no-batch": (FINE, lambda: count_linear(bits(1, 0, 3), MATRIX, radix=8)),
    }


def integrate_and_fire_cases():
    return {
        "1-dim": ("current", lambda: integrate_and_fire(floats(3))),
        "0-dims": ("current", lambda: integrate_and_fire(torch.zeros(()))),
        "int": ("current", lambda: integrate_and_fire(CURRENT.int())),
        "complex": ("current", lambda: integrate_and_fire(torch.zeros(2, 3, dtype=torch.complex64))),
        "mode": ("mode", lambda: integrate_and_fire(CURRENT, mode=4)),
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


SUMS = 1, 1, 1, 1
RADIX_PRODUCTS = "radix", radix_conv2d, radix_linear


def without_counts(cases):
    """Cases of a product that takes no count."""
    return {name: case for name, case in cases.items() if "-count" not in name}


def radix_product_cases():
    def call(**named):
        return radix_conv2d(PIXEL, KERNEL, **named)

    return {
        **{f"radix-{n}": ("radix", lambda n=n: call(radix=n)) for n in (-1, 9, MOST, LEAST)},
        **{f"steps-{n}": ("time_steps", lambda n=n: call(time_steps=n)) for n in (0, -1, 9, MOST, LEAST)},
        **{f"threshold-{x}": ("threshold", lambda x=x: call(threshold=x)) for x in (0.0, -1.0, NAN, math.inf, 1e-60)},
        **{f"initial-{x}": ("initial", lambda x=x: call(initial=x)) for x in (-0.1, 1.0, NAN)},
        "planes": ("planes?", lambda: radix_conv2d(bits(2, 1, 1, 1, 1), KERNEL)),
        "added-of-7-steps": ("added", lambda: call(added=floats(7, *SUMS))),
        "added-short": ("added", lambda: call(added=floats(1, 1, 1))),
        "added-float64": ("added", lambda: call(added=floats(*SUMS).double())),
        "added-spikes-of-2-planes": ("added", lambda: call(added=bits(2, *SUMS))),
        "added-spikes-past-the-end": ("added", lambda: call(added=bits(1, *SUMS) + 255, time_steps=7)),
        "amplitude-alone": ("amplitude", lambda: call(amplitude=floats(SUMS[1]))),
        "amplitude-short": ("amplitude", lambda: call(added=bits(1, *SUMS), amplitude=floats(0))),
        "amplitude-nan": ("amplitude", lambda: call(added=bits(1, *SUMS), amplitude=floats(SUMS[1]) + NAN)),
        "added-fits": (FINE, lambda: call(added=floats(*SUMS))),
        "added-spikes-fit": (FINE, lambda: call(added=bits(1, *SUMS), amplitude=floats(SUMS[1]))),
        "counts": (FINE, lambda: radix_conv2d(bits(2, 1, 1, 1, 1), KERNEL, radix=0)),
    }


def radix_spikes_cases():
    tiny, most = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    return {
        "1-dim": ("current", lambda: radix_spikes(floats(3))),
        "0-dims": ("current", lambda: radix_spikes(torch.zeros(()))),
        "int": ("current", lambda: radix_spikes(CURRENT.int())),
        "half": ("current", lambda: radix_spikes(CURRENT.half())),
        **{f"steps-{n}": ("time_steps", lambda n=n: radix_spikes(CURRENT, n)) for n in (0, -1, 9, HUGE, MOST, LEAST)},
        **{f"threshold-{x}": ("threshold", lambda x=x: radix_spikes(CURRENT, threshold=x)) for x in (0.0, -1.0, NAN)},
        "threshold-inf": ("threshold", lambda: radix_spikes(CURRENT, threshold=math.inf)),
        "threshold-vanishes": ("threshold", lambda: radix_spikes(CURRENT, threshold=1e-60)),
        "threshold-vanishes-not": (FINE, lambda: radix_spikes(CURRENT.double(), threshold=1e-60)),
        "threshold-denormal": (FINE, lambda: radix_spikes(CURRENT, threshold=tiny / 8)),
        "threshold-most": (FINE, lambda: radix_spikes(CURRENT, 1, threshold=most)),
        "threshold-most-2": ("threshold", lambda: radix_spikes(CURRENT, 2, threshold=most)),
        **{f"initial-{x}": ("initial", lambda x=x: radix_spikes(CURRENT, initial=x)) for x in (-0.1, 1.0, NAN)},
        "neurons-huge": (TOO_LARGE, lambda: radix_spikes(floats(2**31, 2**31))),
        "neurons-huge-unwanted": (TOO_LARGE, lambda: radix_spikes(floats(2**31, 2**31), want=False)),
        "no-channels": (FINE, lambda: radix_spikes(floats(2, 0), bias=torch.zeros(0))),
        "no-batch": (FINE, lambda: radix_spikes(floats(0, 3), bias=torch.zeros(3))),
        "scale-size": ("scale", lambda: radix_spikes(CURRENT, scale=floats(2))),
        "scale-dims": ("scale", lambda: radix_spikes(CURRENT, scale=floats(3, 1))),
        "scale-dtype": ("scale", lambda: radix_spikes(CURRENT, scale=floats(3).double())),
        "scale-huge": ("scale", lambda: radix_spikes(CURRENT, scale=floats(HUGE))),
        "bias-size": ("bias", lambda: radix_spikes(CURRENT, bias=floats(2))),
        "bias-dtype": ("bias", lambda: radix_spikes(CURRENT, bias=floats(3).double())),
        **radix_spikes_at_a_hole(),
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
        "tandem_count-radix-steps-0": ("time_steps", lambda: tandem(ROW, floats(2, 3), 0, radix=True)),
        "tandem_count-radix-steps-9": ("time_steps", lambda: tandem(bits(2, 2, 3), floats(2, 3), 9, radix=True)),
        "tandem_count-radix-steps-most": ("time_steps", lambda: tandem(ROW, floats(2, 3), MOST, radix=True)),
        "tandem_count-radix-planes": ("planes", lambda: tandem(bits(2, 2, 3), floats(2, 3), 8, radix=True)),
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


def norm_cases():
    """Of batch norm's vectors; here the name begins with the operator."""
    product, half = floats(4, 3), torch.zeros(3).half()
    gaps = torch.zeros(3, 2)[:, 0]
    return {
        "fold_norm-fits": (FINE, fold_norm),
        "fold_norm-empty": (FINE, lambda: fold_norm(0)),
        "fold_norm-one-long-expanded": (TOO_LARGE, lambda: fold_norm(HUGE)),
        "fold_norm-2-dims": ("running_mean", lambda: fold_norm(running_mean=floats(3, 1))),
        "fold_norm-half": ("running_mean", lambda: fold_norm(running_mean=half)),
        "fold_norm-var-longer": ("running_var", lambda: fold_norm(running_var=floats(4))),
        "fold_norm-gamma-shorter": ("gamma", lambda: fold_norm(gamma=floats(2))),
        "fold_norm-beta-0-dims": ("beta", lambda: fold_norm(beta=torch.zeros(()))),
        "fold_norm-bias-double": ("bias", lambda: fold_norm(bias=floats(3).double())),
        "fold_norm-unit-int": ("unit", lambda: fold_norm(unit=torch.ones(3).int())),
        "fold_norm-eps": ("eps", lambda: fold_norm(eps=-1.0)),
        "fold_norm-eps-nan": ("eps", lambda: fold_norm(eps=NAN)),
        "fold_norm-amplitude": ("amplitude", lambda: fold_norm(amplitude=0.0)),
        "fold_norm-amplitude-nan": ("amplitude", lambda: fold_norm(amplitude=NAN)),
        "fold_norm-steps-0": ("time_steps", lambda: fold_norm(time_steps=0)),
        "fold_norm-steps-least": ("time_steps", lambda: fold_norm(time_steps=LEAST)),
        "fold_norm-steps-most": (FINE, lambda: fold_norm(time_steps=MOST)),
        "update_statistics_-fits": (FINE, lambda: update_statistics(product)),
        "update_statistics_-2-dims": ("running_mean", lambda: update_statistics(product, running=floats(3, 1))),
        "update_statistics_-half": ("running_mean", lambda: update_statistics(product, running=half)),
        "update_statistics_-gaps": ("running_mean", lambda: update_statistics(product, running=gaps)),
        "update_statistics_-expanded": ("running_mean", lambda: update_statistics(product, running=floats(3))),
        "update_statistics_-var-gaps": ("running_var", lambda: update_statistics(product, running_var=gaps)),
        "update_statistics_-batches-int32": (
            "num_batches_tracked",
            lambda: update_statistics(product, batches=torch.tensor(0, dtype=torch.int32)),
        ),
        "update_statistics_-batches-1-dim": (
            "num_batches_tracked",
            lambda: update_statistics(product, batches=torch.zeros(1, dtype=torch.int64)),
        ),
        "update_statistics_-mean-shorter": ("mean", lambda: update_statistics(product, mean=floats(2))),
        "update_statistics_-var-longer": ("var", lambda: update_statistics(product, var=floats(4))),
        "update_statistics_-missing-double": (
            "missing",
            lambda: update_statistics(product, missing=floats(3).double()),
        ),
        "update_statistics_-unit-shorter": ("unit", lambda: update_statistics(product, unit=floats(2))),
        "update_statistics_-product-1-dim": ("product", lambda: update_statistics(floats(3))),
        "update_statistics_-product-of-4": ("product", lambda: update_statistics(floats(4, 4))),
        "update_statistics_-product-of-one": ("product", lambda: update_statistics(floats(1, 3))),
        "update_statistics_-product-empty": ("product", lambda: update_statistics(floats(0, 3))),
        "update_statistics_-product-huge": (FINE, lambda: update_statistics(floats(HUGE // 8, 3))),
        "update_statistics_-no-channels": ("product", lambda: update_statistics(floats(4, 0), 0)),
        "update_statistics_-momentum-now": (
            FINE,
            lambda: update_statistics(product, momentum_now=floats(1)[0].double()),
        ),
        "update_statistics_-momentum-now-float32": (
            "momentum",
            lambda: update_statistics(product, momentum_now=floats(1)[0]),
        ),
        "update_statistics_-momentum-now-1-dim": (
            "momentum",
            lambda: update_statistics(product, momentum_now=floats(1).double()),
        ),
        "update_statistics_-repeats": ("repeats", lambda: update_statistics(product, repeats=0.0)),
        "update_statistics_-repeats-nan": ("repeats", lambda: update_statistics(product, repeats=NAN)),
    }


def quantise_weight_cases():
    whole = torch.ones(2, 3)
    return {
        "fits": (FINE, lambda: quantise(whole)),
        "16-bits": (FINE, lambda: quantise(whole, 32639)),
        "largest-128": ("largest", lambda: quantise(whole, 128)),
        "largest-0": ("largest", lambda: quantise(whole, 0)),
        "largest-least": ("largest", lambda: quantise(whole, LEAST)),
        "double": ("weight", lambda: quantise(whole.double())),
        "int8": ("weight", lambda: quantise(whole.to(torch.int8))),
        "1-dim": ("weight", lambda: quantise(whole[0])),
        "0-channels": ("weight", lambda: quantise(whole[:0])),
        "0-inputs": ("weight", lambda: quantise(floats(HUGE, 0))),
        "huge": (TOO_LARGE, lambda: quantise(floats(HUGE, 1))),
        "at-a-hole": (FINE, lambda: [quantise(before_a_hole(torch.ones(3, n)), 127) for n in range(1, 70)][-1]),
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
    if first in ("spiking", "counting", "radix", "radix_product"):
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
    **without_counts({**product_cases(*RADIX_PRODUCTS), **operand_cases(*RADIX_PRODUCTS)}),
    **{f"radix_product-{k}": v for k, v in radix_product_cases().items()},
    **{f"spiking_linear-{k}": v for k, v in spiking_cases().items()},
    **{f"spiking_conv2d-{k}": v for k, v in spiking_conv2d_cases().items()},
    **{f"count_linear-{k}": v for k, v in counting_cases().items()},
    **{f"integrate_and_fire-{k}": v for k, v in integrate_and_fire_cases().items()},
    **{f"radix_spikes-{k}": v for k, v in radix_spikes_cases().items()},
    **{f"pack_weight-{k}": v for k, v in pack_weight_cases().items()},
    **{f"max_pool_spikes-{k}": v for k, v in max_pool_cases().items()},
    **{f"quantise_weight-{k}": v for k, v in quantise_weight_cases().items()},
    **{f"conv2d_weight_gradient-{k}": v for k, v in gradient_cases().items()},
    **train_cases(),
    **norm_cases(),
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
