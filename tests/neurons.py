"""The neuron models that the tests of operators and layers draw: one more entry here, and a model joins them all."""

import pytest
import torch
from hypothesis import strategies as st

from tandem_cuda import IF, LIF
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
}
EVERY_KIND = {name: neuron for name, neuron in NEURONS.items() if "," not in name}
"""One neuron of every kind that the compiled library knows."""

every_kind = pytest.mark.parametrize("neuron", EVERY_KIND.values(), ids=EVERY_KIND)


def any_neuron(thresholds=THRESHOLDS):
    """Any of them, of any threshold."""
    chosen = st.sampled_from([*NEURONS.values()]), st.sampled_from(thresholds)
    return st.builds(lambda neuron, threshold: neuron.scaled(threshold), *chosen)


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
