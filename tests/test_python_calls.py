"""How many Python functions a call of a network runs: small layers spend their time there."""

import cProfile
import gc
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tandem_cuda import IF, RadixIF, SpikeTrain, TandemConv2d, TandemLinear, convert, freeze, models
from tandem_cuda.quantisation import quantise
from tensors import generator


def python_calls(f):
    """Count the Python functions that f() runs, itself included, without what only its first calls do.

    What earlier tests have left behind is not its own: a garbage collection runs the callbacks of weak references.
    """
    for _ in range(2):
        f()
    profile = cProfile.Profile()
    enabled = gc.isenabled()
    gc.disable()
    try:
        profile.runcall(f)
    finally:
        if enabled:
            gc.enable()
    return sum(entry.callcount for entry in profile.getstats() if not isinstance(entry.code, str))  # str: builtins


def test_counts_functions():
    def inner():
        return [len(str(i)) for i in range(3)]

    assert python_calls(lambda: (inner(), inner())) in (3, 5)  # newer interpreters run comprehensions in place


def test_counts_no_callbacks_of_collections():
    enabled = []
    python_calls(lambda: enabled.append(gc.isenabled()))
    assert enabled == [True, True, False]
    assert gc.isenabled()


def test_training():
    """Two batch-normed layers of two-phase neurons, with weights of 8 bits."""
    layers = [TandemLinear(64, 64, norm="batch", neuron=IF(two_phase=True)) for _ in range(2)]
    network = nn.Sequential(*layers)
    quantise(network, 8)
    x = SpikeTrain.from_dense(torch.rand(8, 16, 64, generator=generator(1)).round())
    assert network(x).count.requires_grad
    assert python_calls(lambda: network(x)) < 370


@pytest.mark.parametrize("two_phase", [False, True])
def test_prediction(two_phase):
    x = torch.rand(2, 1, 28, 28, generator=generator(1))
    network = convert(models.mnist_cnn(), time_steps=8, neuron=IF(two_phase=two_phase), example=x)
    frozen = freeze(network.eval())
    assert python_calls(lambda: frozen.predict(x, chunk=8)) < 420


@pytest.mark.parametrize(("neuron", "most"), [(RadixIF(level=3), 135), (IF(), 220)])
def test_frozen(neuron, most):
    """Eight layers whose calls are ready."""
    x = torch.rand(2, 1, 28, 28, generator=generator(1))
    snn = convert(models.mnist_cnn(), time_steps=4, mode="impulse", neuron=neuron, weights="int8", example=x)
    frozen = freeze(snn.eval())
    assert python_calls(lambda: frozen(x)) < most


# --- layers leave checks to C++, and Python says what was wrong ----------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(4, 6), ValueError, "weight must be [O, C/groups, kH, kW], got [4, 6]"),
        (torch.ones(4, 2, 1, 1), ValueError, "weight must be [O, 3, kH, kW] for 3 input channels in 1 groups, got"),
        (torch.ones(4, 3, 1, 1, device="meta"), ValueError, "weight must be on the device of bits, cpu, got meta"),
    ],
)
@pytest.mark.parametrize("neuron", [IF(), IF(two_phase=True)])
def test_wrong_weights(neuron, weight, error, message):
    layer, x = TandemConv2d(3, 4, 1, bias=False, neuron=neuron), torch.ones(8, 2, 3, 6, 6)
    operator = "count_conv2d" if neuron.two_phase else "spiking_conv2d"
    with pytest.raises(error, match=re.escape(f"{operator}: {message}")):
        functional_call(layer, {"weight": weight}, SpikeTrain.from_dense(x))


def test_weights_that_are_not_finite():
    """What only C++ checks comes from C++."""
    layer = TandemLinear(3, 2)
    with pytest.raises(RuntimeError, match="weight must be finite"):
        functional_call(layer, {"weight": torch.full((2, 3), torch.inf)}, SpikeTrain.from_dense(torch.ones(8, 2, 3)))
