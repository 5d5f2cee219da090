"""TandemNetwork.set_time_steps: one set of weights in any number of steps."""

import copy

import pytest
import torch
from torch import nn

from exact import same
from pairwise import each, pairs
from tandem_cuda import IF, Encode, RadixIF, SpikeTrain, convert, freeze
from tensors import generator

NEURON = IF(0.5, initial=0.5, two_phase=True)


def ann(pool):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        *([pool] if pool is not None else []),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def inputs(mode, steps, seed=1):
    real = torch.rand(3, 2, 8, 8, generator=generator(seed))
    if mode != "spikes":
        return real
    return SpikeTrain.from_dense((torch.rand(steps, 3, 2, 8, 8, generator=generator(seed)) < real).float())


POOLS = {"none": None, "folded": nn.AvgPool2d(2), "with neurons": nn.AvgPool2d(3, 2, ceil_mode=True)}


@pairs(mode=["constant", "impulse", "spikes"], pool=list(POOLS))
def test_is_a_new_conversion_of_the_same_levels(mode, pool):
    net = ann(POOLS[pool]).eval()
    sample = torch.rand(4, 2, 8, 8) * (8 if mode == "spikes" else 1)
    net(sample)
    made = convert(net, 8, mode=mode, neuron=NEURON, calibrate=sample)
    found = made.calibration
    for steps in (3, 16, 8):
        made.set_time_steps(steps)
        assert made.time_steps == steps
        x, again = inputs(mode, steps), convert(net, steps, mode=mode, neuron=NEURON, calibrate=found, example=sample)
        same(made(x), again(x))
        torch.testing.assert_close(made.levels, again.levels, rtol=0, atol=0)
        same(freeze(made)(x), made(x).detach())


@each(mode=["impulse", "radix"], pool=POOLS, calibrated=["not", "by layer", "by channel"])
def test_radix_neurons_keep_their_levels(mode, pool, calibrated):
    """There and back, all is as before."""
    net = ann(pool).eval()
    sample = torch.rand(4, 2, 8, 8)
    net(sample)
    how = {"mode": mode, "neuron": RadixIF(0.5), "example": sample}
    found = {"calibrate": sample, "per_channel": calibrated == "by channel"} if calibrated != "not" else {}
    made, x = convert(net, 4, **how, **found), inputs(mode, 4)
    if found:
        found = {"calibrate": made.calibration}

    def levels():
        layers = [made.snn.get_submodule(name) for name in made.spiking_layers]
        factors = [torch.ones(1) if layer.thresholds is None else layer.thresholds for layer in layers]
        return torch.cat([layer.neuron.level * factor for layer, factor in zip(layers, factors, strict=True)])

    before, want = levels(), made(x).detach()
    for steps in (8, 4):
        made.set_time_steps(steps)
        same(levels(), before)
        again = convert(net, steps, **how, **found)
        same(made(x), again(x))
        same(freeze(made)(x), made(x).detach())
        assert torch.equal(made(x), want) == (steps == 4)


def test_spikes_of_another_T_are_refused():
    """Unless thresholds do not depend on T."""
    net = ann(None).eval()
    net(torch.rand(4, 2, 8, 8))
    made = convert(net, 8, mode="spikes", neuron=NEURON, calibrate=8 * torch.rand(4, 2, 8, 8))
    with pytest.raises(ValueError, match=r"input must have T = 8, which calibrated thresholds are for .*, got T = 4"):
        made(inputs("spikes", 4))
    made.set_time_steps(4)
    assert made(inputs("spikes", 4)).shape == (3, 3)
    assert convert(net, 8, mode="spikes", example=torch.rand(4, 2, 8, 8))(inputs("spikes", 4)).shape == (3, 3)


@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_thresholds_of_the_user_stay(mode):
    """The currents of all steps add up to the same."""
    net = ann(None).eval()
    net(torch.rand(4, 2, 8, 8))
    made, x = convert(net, 8, mode=mode, neuron=NEURON, example=inputs(mode, 8)), inputs(mode, 8)
    want = made(x).detach()
    encode = made.snn.get_submodule("encode")
    for steps in (4, 3, 16):
        made.set_time_steps(steps)
        assert all(made.snn.get_submodule(name).neuron == NEURON for name in made.spiking_layers)
        assert encode.time_steps == steps
        assert encode.scale == (8 / steps if mode == "constant" else 1)
    made.set_time_steps(8)
    same(made(x).detach(), want)


def test_scales_of_the_user_stay():
    net = ann(None).eval()
    net(torch.rand(4, 2, 8, 8))
    made = convert(net, 8, neuron=NEURON, calibrate=torch.rand(4, 2, 8, 8))
    made.snn.get_submodule("encode").scale = 0.5
    for steps in (2, 3, 8):
        made.set_time_steps(steps)
        assert made.snn.get_submodule("encode").scale == 4 / steps
    made.snn.set_submodule("encode", Encode(8, scale=0.25))
    made.set_time_steps(2)
    assert (made.snn.get_submodule("encode").scale, made.snn.get_submodule("encode").time_steps) == (1, 2)


def test_the_first_number_of_steps_leaves_no_rounding():
    """(1 / 49) * 49 < 1."""
    net = ann(None).eval()
    net(torch.rand(4, 2, 8, 8))
    made = convert(net.double(), 49, neuron=NEURON, calibrate=torch.rand(4, 2, 8, 8).double())
    made.set_time_steps(2)
    assert made.snn.get_submodule("encode").scale == 0.5


def test_copies_go_their_own_way():
    net = ann(None).eval()
    net(torch.rand(4, 2, 8, 8))
    made = convert(net, 8, neuron=NEURON, calibrate=torch.rand(4, 2, 8, 8))
    x = inputs("constant", 8)
    want = made(x).detach()
    copied = copy.deepcopy(made)
    copied.set_time_steps(2)
    assert copied.snn.get_submodule("encode").time_steps == 2
    same(made(x).detach(), want)


def test_training_with_many_steps_moves_the_same_parameters():
    net = ann(None)
    net(torch.rand(4, 2, 8, 8))
    made = convert(net, 8, neuron=NEURON, calibrate=torch.rand(4, 2, 8, 8))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for steps in (2, 8, 4):
        made.set_time_steps(steps)
        optimizer.zero_grad()
        made(inputs("constant", steps)).square().sum().backward()
        optimizer.step()
    moved = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert {*before} - {*moved} <= {"0.bias"}  # batch norm cancels it


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_values(steps, error):
    net = ann(None).eval()
    net(torch.rand(4, 2, 8, 8))
    made = convert(net, 8, example=torch.rand(4, 2, 8, 8))
    with pytest.raises(error, match="set_time_steps: time_steps must be"):
        made.set_time_steps(steps)
    assert made.time_steps == 8


def test_more_than_8_steps_of_radix_spikes_are_refused():
    ann, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.rand(16, 6)
    snn = convert(ann, 4, calibrate=x)
    message = r"^set_time_steps: time_steps of radix spikes must be from 1 to 8, .* got 9; convert the ANN with neuron="
    with pytest.raises(ValueError, match=message):
        snn.set_time_steps(9)
    assert snn.time_steps == 4
    convert(ann, 4, calibrate=x, neuron=IF(initial=0.5, two_phase=True)).set_time_steps(9)  # the advice
    with pytest.raises(ValueError, match=r"^convert: time_steps of radix .* got 9; pass mode='impulse' for more"):
        convert(ann, 9, mode="radix", neuron=IF(two_phase=True), example=x)
    convert(ann, 9, mode="impulse", neuron=IF(two_phase=True), example=x)(x)  # likewise


def test_pixels_out_of_range_in_a_conversion():
    ann, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 4 * torch.rand(16, 6) - 1
    with pytest.raises(ValueError, match=r"^Encode: input must be from 0 to 1, got .*; pass images / 255, or"):
        convert(ann, 8, mode="radix", calibrate=x)
    convert(ann, 8, mode="impulse", calibrate=x)(x)  # the advice
