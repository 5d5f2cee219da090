"""Neurons whose membrane potential starts at a share of the threshold."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import same
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemLinear,
    convert,
    ops,
)


def loop(threshold, initial, currents):
    """Spikes of IF neurons driven by currents [T, ...], one float32 at a time."""
    u, spike = torch.tensor(initial) * threshold, torch.tensor(0.0)
    spikes = []
    for x in currents:
        u = u - threshold * spike + x
        spike = (u >= threshold).float()
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_half_a_threshold_rounds_the_count(threshold):
    v = torch.linspace(0, 8 * threshold, 257)[None]
    bits, _, _ = ops.integrate_and_fire(v / 8, 8, neuron=IF(threshold, initial=0.5))
    same(ops.spike_count(bits), torch.floor(v / threshold + 0.5).clamp(max=8))
    bits, _, _ = ops.integrate_and_fire(v / 8, 8, neuron=IF(threshold))
    same(ops.spike_count(bits), torch.floor(v / threshold))


@pytest.mark.parametrize("initial", [0.25, 0.5])
def test_pooling(initial):
    spikes = (torch.rand(13, 2, 3, 7, 6) < 0.5).float()
    for pool, mean in (
        (SpikingAvgPool2d(3, 2, 1, initial=initial), lambda s: F.avg_pool2d(s, 3, 2, 1)),
        (SpikingAdaptiveAvgPool2d((3, 4), initial=initial), lambda s: F.adaptive_avg_pool2d(s, (3, 4))),
    ):
        unit = math.lcm(*pool.divisors(*pool.windows(7, 6)))  # in which means are whole numbers
        currents = torch.stack([torch.round(mean(s) * unit) for s in spikes])
        same(pool(SpikeTrain.from_dense(spikes)).to_dense(), loop(float(unit), initial, currents))


def test_convert_gives_it_to_every_layer():
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8, 2))  # fmt: skip
    snn = convert(ann, 4, neuron=IF(initial=0.5), example=torch.zeros(1, 1, 10, 10))
    starts = [m.initial if hasattr(m, "initial") else m.neuron.initial for m in snn.modules()
              if hasattr(m, "initial") or hasattr(m, "neuron")]  # fmt: skip
    assert starts == [0.5] * 3


def test_nir_says_that_it_has_no_field_for_it():
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    for model in (IF, LIF):
        net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=model(initial=0.5)), Decode(), nn.Linear(3, 2))
        with pytest.raises(
            ValueError,
            match=rf"initial must be 0, since NIR has no field .* got 0\.5; leave it out, as {model.__name__}\(\) does",
        ):
            to_nir(net, torch.rand(1, 4))
        net[1].neuron = model()
        assert model.__name__ in [type(node).__name__ for node in to_nir(net, torch.rand(1, 4)).nodes.values()]
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    x = torch.rand(1, 1, 6, 6)
    for neuron in (IF(initial=0.5), IF(initial=0.5, two_phase=True)):
        with pytest.raises(ValueError, match=r"got 0\.5; leave it out, as IF\(\) does"):
            to_nir(convert(ann, 4, neuron=neuron, example=x), x)
    assert to_nir(convert(ann, 4, neuron=IF(), example=x), x).nodes


@pytest.mark.parametrize(
    ("value", "error"),
    [*((x, ValueError) for x in (1.0, -0.1, math.nan, 1 - 1e-9)), (True, TypeError), ("0", TypeError)],
)
def test_bad_values_of_a_pooling(value, error):
    with pytest.raises(error, match="SpikingAvgPool2d: initial must be"):
        SpikingAvgPool2d(2, initial=value)
