"""TandemAdd: branches that add their currents."""

import copy
import pickle

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import VANISHING, same, train
from layer_twins import agree, exact, fronts
from neurons import EVERY_KIND
from tandem_cuda import IF
from tandem_cuda import reference as ref


def conv(*arguments, name="TandemConv2d", **named):
    return name, arguments, named


IDENTITY = ("Identity", (), {})


JOINS = {
    "identity": ([conv(5, 5, 3, padding=1), IDENTITY], [(5, 6, 7), (5, 6, 7)]),
    "downsample": ([conv(6, 6, 3, padding=1), conv(4, 6, 1, stride=2, bias=False)], [(6, 3, 4), (4, 6, 8)]),
    "odd downsample": ([conv(6, 6, 3, padding=1), conv(4, 6, 1, stride=2)], [(6, 4, 3), (4, 7, 5)]),
    "bottleneck": ([conv(4, 8, 1), conv(6, 8, 1, stride=2)], [(4, 3, 3), (6, 6, 5)]),
    "two kernels": ([conv(3, 5, 3, padding=1), conv(4, 5, 5, padding=2)], [(3, 6, 6), (4, 6, 6)]),
    "strided": ([conv(3, 5, 3, stride=2, padding=1), IDENTITY], [(3, 7, 8), (5, 4, 4)]),
    "dilated, grouped": ([conv(4, 6, 3, padding=2, dilation=2, groups=2), conv(3, 6, 2)], [(4, 5, 5), (3, 6, 6)]),
    "three": ([conv(5, 5, 3, padding=1), IDENTITY, conv(2, 5, 1)], [(5, 4, 4), (5, 4, 4), (2, 4, 4)]),
    "two strides": ([conv(3, 4, 3, padding=1), conv(3, 4, 3, padding=1, stride=2)], [(3, 4, 4), (3, 8, 8)]),
    "two identities": ([IDENTITY, conv(3, 4, 3, padding=1), IDENTITY], [(4, 5, 5), (3, 5, 5), (4, 5, 5)]),
    "valid": ([conv(3, 4, (2, 3)), conv(3, 4, 1, padding=1)], [(3, 5, 6), (3, 2, 2)]),
    "circular": ([conv(3, 3, 3, padding=1, padding_mode="circular"), IDENTITY], [(3, 4, 5), (3, 4, 5)]),
    "transposed": ([conv(3, 4, 2, stride=2, name="TandemConvTranspose2d"), IDENTITY], [(3, 3, 2), (4, 6, 4)]),
    "1d": ([conv(3, 3, 3, padding=1, name="TandemConv1d"), IDENTITY], [(3, 7), (3, 7)]),
    "linear": ([conv(6, 4, name="TandemLinear"), IDENTITY], [(6,), (4,)]),
    "identities": ([IDENTITY, IDENTITY], [(3, 2, 2), (3, 2, 2)]),
}


def join_twins(branches, time_steps, norm, neuron=IF()):
    made = []
    for package in (tandem_cuda, ref):
        layers = []
        for name, arguments, named in branches:
            if name == "Identity":
                layers.append(nn.Identity())
            else:
                layers.append(getattr(package, name)(*arguments, **named, norm=norm, dtype=torch.float64))
        made.append(package.TandemAdd(*layers, neuron=neuron).eval())
    exact(made[0], time_steps)
    made[1].load_state_dict(made[0].state_dict())
    for module in made[1].modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eps = VANISHING
    return made


def join_inputs(samples, time_steps, batch):
    amplitudes = (1.0, 0.5, 2.0)
    pairs = [
        fronts(train(time_steps, batch, *sample, seed=i, rate=0.4).double(), amplitudes[i])
        for i, sample in enumerate(samples)
    ]
    return [list(side) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize(("branches", "samples"), JOINS.values(), ids=JOINS)
@pytest.mark.parametrize(("time_steps", "batch", "norm"), [(1, 2, None), (9, 3, None), (8, 2, "batch"), (8, 0, None)])
def test_joins(branches, samples, time_steps, batch, norm):
    ours, theirs = join_twins(branches, time_steps, norm)
    agree(ours, theirs, *join_inputs(samples, time_steps, batch))


@pytest.mark.parametrize(
    "neuron", [IF(0.5, clip=True), *(neuron.scaled(0.5) for neuron in EVERY_KIND.values())], ids=str
)
def test_join_with_other_neurons(neuron):
    branches, samples = JOINS["downsample"]
    ours, theirs = join_twins(branches, 8, "batch", neuron)
    agree(ours, theirs, *join_inputs(samples, 8, 3), tolerance=1e-9)


@pytest.mark.parametrize(("branches", "samples"), [JOINS["identity"], JOINS["downsample"]])
def test_join_in_training(branches, samples):
    """Each branch's norm has the statistics of its own pre-activation, moved once."""
    ours, theirs = join_twins(branches, 8, "batch")
    results = []
    for module, inputs in zip((ours, theirs), join_inputs(samples, 8, 4), strict=True):
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
    branches, samples = [conv(3, 4, 3, padding=1)], [(3, 5, 5), (3, 5, 5)]
    ours, theirs = join_twins(branches * 2, 8, None)
    ours.branches[1], theirs.branches[1] = ours.branches[0], theirs.branches[0]
    agree(ours, theirs, *join_inputs(samples, 8, 2))


def test_join_notices_changes():
    branches, samples = JOINS["downsample"]
    ours, theirs = join_twins(branches, 8, "batch")
    inputs, inputs_ref = join_inputs(samples, 8, 3)
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
