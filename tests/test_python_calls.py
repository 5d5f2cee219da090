"""How many Python functions a call of a network runs: small layers spend their time there."""

import cProfile

import pytest
import torch
from torch import nn

from tandem_cuda import IF, SpikeTrain, TandemLinear, convert, freeze, models
from tandem_cuda.quantisation import quantise
from tensors import generator


def python_calls(f):
    """Count the Python functions that f() runs, itself included, without what only its first calls do."""
    for _ in range(2):
        f()
    profile = cProfile.Profile()
    profile.runcall(f)
    return sum(entry.callcount for entry in profile.getstats() if not isinstance(entry.code, str))  # str: builtins


def test_counts_functions():
    def inner():
        return [len(str(i)) for i in range(3)]

    assert python_calls(lambda: (inner(), inner())) in (3, 5)  # newer interpreters run comprehensions in place


def test_training():
    """Two batch-normed layers of two-phase neurons, with weights of 8 bits."""
    layers = [TandemLinear(64, 64, norm="batch", neuron=IF(two_phase=True)) for _ in range(2)]
    network = nn.Sequential(*layers)
    quantise(network, 8)
    x = SpikeTrain.from_dense(torch.rand(8, 16, 64, generator=generator(1)).round())
    assert network(x).count.requires_grad
    assert python_calls(lambda: network(x)) < 350


@pytest.mark.parametrize(("two_phase", "most"), [(False, 450), (True, 480)])
def test_prediction(two_phase, most):
    network = convert(models.mnist_cnn(), time_steps=8, neuron=IF(two_phase=two_phase))
    frozen = freeze(network.eval())
    x = torch.rand(2, 1, 28, 28, generator=generator(1))
    assert python_calls(lambda: frozen.predict(x, chunk=8)) < most
