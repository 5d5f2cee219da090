"""The neuron models that the tests of operators and layers draw: one more entry here, and a model joins them all."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st

from tandem_cuda import IF, LIF, AdaptiveIF
from tandem_cuda.neuron import RadixIF
from tensors import dyadic, planes

THRESHOLDS = (0.25, 1.0, 2.5, 0.7)
# Every model with the parameters that matter and a threshold of 1.
NEURONS = {
    "IF": IF(),
    "LIF": LIF(leak=0.5),
    "LIF, leak 0.75": LIF(leak=0.75),
    "LIF, leak 0.9": LIF(leak=0.9),
    "LIF, leak 1": LIF(leak=1.0),  # no leak, by the kernels of the leaky model
    "IF, initial": IF(initial=0.5),
    "LIF, initial": LIF(leak=0.75, initial=0.25),
    "refractory": IF(refractory=2),
    "refractory, 9 steps, initial": IF(initial=0.5, refractory=9),
    "AdaptiveIF": AdaptiveIF(decay=0.5),
    "AdaptiveIF, decay 0.9, initial": AdaptiveIF(adaptation=0.5, decay=0.9, initial=0.5),
    "AdaptiveIF, decay 0": AdaptiveIF(decay=0.0),
}
EVERY_KIND = {name: neuron for name, neuron in NEURONS.items() if "," not in name}
"""One neuron of every kind that the compiled library knows."""
EVERY_MODEL = {**EVERY_KIND, "RadixIF": RadixIF(2.0)}
"""The same, and neurons that have an operator of their own."""

ERRORS = [
    (IF(), 8, 0.5 / 8, 1 / 8),
    (IF(), 64, 0.5 / 64, 1 / 64),
    (LIF(leak=0.9), 8, 0.055, 0.153),
    (LIF(leak=0.9), 64, 0.024, 0.060),
    (LIF(leak=0.5), 8, 0.103, 0.258),
    (LIF(leak=0.5), 64, 0.102, 0.256),
    (LIF(leak=1.0), 8, 0.5 / 8, 1 / 8),
    (IF(refractory=1), 8, 0.25 / 8, 0.89 / 8),
    (IF(refractory=4), 64, 0.26 / 64, 0.94 / 64),
    (AdaptiveIF(decay=0.5), 8, 0.033, 0.125),
    (AdaptiveIF(decay=0.9), 8, 0.031, 0.125),
    (AdaptiveIF(decay=0.9), 64, 0.003, 0.015),
]
"""Neuron, T, mean and largest error of activation / T against simulated counts / T, as the docstrings state them.

A count has a largest value, which bounds the activation here.

The activation of an IF neuron is less than a spike above the count.
"""

every_kind = pytest.mark.parametrize("neuron", EVERY_KIND.values(), ids=EVERY_KIND)


def any_neuron(thresholds=THRESHOLDS):
    """Any of them, of any threshold."""
    chosen = st.sampled_from([*NEURONS.values()]), st.sampled_from(thresholds)
    return st.builds(lambda neuron, threshold: neuron.scaled(threshold), *chosen)


def steps_of(neuron, time_steps):
    """So many time steps; of radix spikes 8 at most."""
    return min(time_steps, 8) if neuron.radix else time_steps


def state_of(neuron, *shape, draw=dyadic, **named):
    """A state [S, N, ...], as an earlier call might have left it; `draw` makes such tensors."""
    return draw(neuron.states, *shape, **named)


BRANCHES = (None, None, "spikes", "currents")
"""What may join a product before its neurons."""


def joining(branch, time_steps, *shape, axis=1, seed, dtype=torch.float32):
    """Arguments of a product that another branch joins, of neurons [N, ...] with channels in dimension ``axis``."""
    if branch is None:
        return {}
    if branch == "currents":
        return {"added": dyadic(time_steps, *shape, seed=seed, dtype=dtype) / 4}
    amplitude = dyadic(shape[axis], seed=seed, dtype=dtype) if seed % 2 else None
    return {"added": planes(time_steps, *shape, seed=seed), "amplitude": amplitude}


def raw_neuron(neuron):
    """A neuron as the operators themselves take it."""
    return {"neuron": neuron.kind, "parameters": neuron.parameters}


def edges(parameter):
    """Values in the range of a parameter and outside, the ends of the range among them, and no numbers."""
    low, high = parameter.low, parameter.high
    beside = [math.nextafter(low, -math.inf), math.nextafter(low, math.inf), math.nextafter(high, math.inf)]
    some = [-1e30, -1.0, -0.5, -0.0, 0.0, 0.5, 1 - 1e-9, 1.0, 1.5, 2.0, 1e30]
    return [float(low), float(high), high + 1.0, *beside, *some, math.nan, math.inf, -math.inf]


def refused(neuron, parameter):
    """Values that a parameter of the neuron's kind cannot have: they are out of its range, or make another kind."""
    bad = [value for value in edges(parameter) if not parameter.holds(value)]
    if parameter.optional and replace(neuron, **{parameter.name: 0}).kind != neuron.kind:
        bad.append(0.0)
    return bad


def near_thresholds(radix, steps, dtype):
    """Inputs with which the potential is a multiple of theta, or next to one; and numbers that are odd or far away."""
    theta = torch.tensor(radix.threshold_at(steps), dtype=dtype)
    at = torch.arange(-3, 2**steps + 4, dtype=dtype) * theta
    at = torch.cat([at, at - torch.tensor(radix.initial, dtype=dtype) * theta])
    limits = torch.tensor([math.inf, -math.inf], dtype=dtype)
    beside = [torch.nextafter(at, limit) for limit in limits]
    tiny, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    odd = torch.tensor([math.nan, 0.0, -0.0, tiny, tiny / 8, -tiny / 8, most, -most], dtype=dtype)
    return torch.cat([at, *beside, limits, odd])
