"""TandemAdd: branches that add their currents."""

import copy
import pickle

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import ISAS, dyadic, generator, same, train
from layer_cases import JOINS, every, image, join, named
from layer_twins import agree, fronts, twins
from neurons import NEURONS
from tandem_cuda import _C, IF, RadixIF, ops, reference


def join_inputs(case, time_steps, batch):
    amplitudes = (1.0, 0.5, 2.0)
    pairs = [
        fronts(train(time_steps, batch, *sample, seed=i, rate=0.4).double(), amplitudes[i])
        for i, sample in enumerate(case.samples)
    ]
    return [list(side) for side in zip(*pairs, strict=True)]


@every(JOINS)
@pytest.mark.parametrize(("time_steps", "batch", "norm"), [(1, 2, None), (9, 3, None), (8, 2, "batch"), (8, 0, None)])
def test_joins(case, time_steps, batch, norm):
    ours, theirs = twins(case, time_steps, norm=norm)
    agree(ours, theirs, *join_inputs(case, time_steps, batch))


@pytest.mark.parametrize("neuron", [IF(0.5, clip=True), *(neuron.scaled(0.5) for neuron in NEURONS.values())], ids=str)
def test_join_with_other_neurons(neuron):
    case = named("sum, downsample")
    ours, theirs = twins(case, 8, norm="batch", neuron=neuron)
    agree(ours, theirs, *join_inputs(case, 8, 3), tolerance=1e-9)


@every([named("sum, identity"), named("sum, downsample")])
@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_join_in_training(case, initial):
    """Each branch's norm has the statistics of its own pre-activation, moved once."""
    ours, theirs = twins(case, 8, norm="batch", neuron=IF(initial=initial))
    results = []
    for module, inputs in zip((ours, theirs), join_inputs(case, 8, 4), strict=True):
        module.train()
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps = 1e-5
        y = module(*inputs)
        leaves = [*(x.count for x in inputs), *module.parameters()]
        results.append((y.to_dense(), *torch.autograd.grad(y.count.square().sum(), leaves), *module.buffers()))
    same(results[0][0], results[1][0])
    assert results[0][0].any()
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-9, atol=1e-9)


def test_one_layer_as_two_branches():
    branch = image("", 3, 4, 3, padding=1, of=(3, 5, 5))
    case = join("one layer", branch, branch)
    ours, theirs = twins(case, 8)
    ours.branches[1], theirs.branches[1] = ours.branches[0], theirs.branches[0]
    agree(ours, theirs, *join_inputs(case, 8, 2))


def test_join_notices_changes():
    case = named("sum, downsample")
    ours, theirs = twins(case, 8, norm="batch")
    inputs, inputs_ref = join_inputs(case, 8, 3)
    seen = set()
    for name, _ in ours.named_parameters():
        with torch.no_grad():
            got = ours(*inputs).to_dense()
            same(got, theirs(*inputs_ref).spikes)
            seen.add(got.sum().item())
            for module in (ours, theirs):
                module.get_parameter(name).neg_()
    assert len(seen) > 2
    copied = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    with torch.no_grad():
        same(copied(*inputs).bits, ours(*inputs).bits)


def test_join_refuses():
    x, y = (fronts(train(8, 2, 3, size, 4, seed=0).double())[0] for size in (4, 5))
    layer = tandem_cuda.TandemConv2d(3, 3, 3, padding=1, dtype=torch.float64)
    with pytest.raises(ValueError, match="branches must agree in shape"):
        tandem_cuda.TandemAdd(layer, nn.Identity())(x, y)
    other = fronts(train(9, 2, 3, 4, 4, seed=0).double())[0]
    with pytest.raises(ValueError, match=r"same number of time steps, got \[8, 9\]"):
        tandem_cuda.TandemAdd(layer, nn.Identity())(x, other)
    with pytest.raises(TypeError, match="inputs must be SpikeTrains, got Tensor"):
        tandem_cuda.TandemAdd(layer, nn.Identity())(x, torch.ones(1))


@pytest.mark.parametrize("isa", ISAS)
def test_threads_share_neurons_that_another_branch_joins(isa):
    """Where a thread's neurons begin with any channel."""
    bits = torch.randint(0, 16, (1, 1, 3, 41, 40), generator=generator(0), dtype=torch.uint8)
    values = torch.randint(0, 16, (1, 1, 13, 41, 40), generator=generator(1), dtype=torch.uint8)
    weight, amplitude = dyadic(13, 3, 1, 1, seed=2), dyadic(13, seed=3)
    firing = {"neuron": RadixIF(2.0), "time_steps": 4, "radix": 4, "added": values, "amplitude": amplitude}
    _C.set_cpu_isa(isa)
    torch.set_num_threads(3)
    same(ops.count_conv2d(bits, weight, **firing), reference.count_conv2d(bits, weight, **firing))


def test_amplitude_belongs_to_spikes():
    bits, weight = torch.zeros(1, 2, 3, dtype=torch.uint8), dyadic(4, 3, seed=0)
    firing = {"neuron": RadixIF(2.0), "time_steps": 4, "radix": 4, "added": torch.ones(2, 4)}
    with pytest.raises(ValueError, match="amplitude must be None where added is no spikes of uint8, got a tensor"):
        ops.count_linear(bits, weight, amplitude=torch.ones(4), **firing)
