"""FiringRatePenalty, ActivePenalty and SynOpsPenalty: values and gradients by hand; what they keep; their effect."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from anns import Net
from exact import generator, same
from tandem_cuda import (
    IF,
    ActivePenalty,
    Decode,
    Encode,
    FiringRatePenalty,
    RadixIF,
    SpikeTrain,
    SpikingAvgPool2d,
    SynOpsPenalty,
    TandemAdd,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    convert,
    record_activity,
    synops,
)

PENALTIES = [FiringRatePenalty, ActivePenalty, SynOpsPenalty]


def net(norm="batch"):
    torch.manual_seed(0)
    return nn.Sequential(
        Encode(8),
        TandemConv2d(1, 4, 3, padding=1, norm=norm, neuron=IF(0.5)),
        SpikingAvgPool2d(2),
        nn.Flatten(),
        TandemLinear(64, 16, neuron=IF(0.5)),
        Decode(),
        nn.Linear(16, 3),
    )


def inputs(n=6, seed=0):
    return torch.rand(n, 1, 8, 8, generator=generator(seed))


def test_by_hand():
    """Dyadic weights: a layer of three neurons that fire 8, 4 and 0 of 8 times; one sample silent."""
    layer = TandemLinear(1, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.5], [-1.0]]))
    model = nn.Sequential(Encode(8), layer, Decode())
    x = torch.tensor([[1.0], [0.0]])
    for target, want in ((0.0, 0.25**2), (0.125, 0.125**2), (0.25, 0.0), (0.5, 0.0)):
        with FiringRatePenalty(model, target=target) as penalty:
            assert model(x)[0].tolist() == [8, 4, 0]
            value = penalty()
        assert value.item() == want
        (gradient,) = torch.autograd.grad(value, layer.weight)
        # v = w * 8 x, count' = 1 where v > 0; r is the mean over 6 counts of count / 8: dr/dw = 8 / 48.
        slope = 2 * max(0.0, 0.25 - target) * 8 / 48
        torch.testing.assert_close(gradient, torch.tensor([[slope], [slope], [0.0]]))


@pytest.mark.parametrize("neuron", [IF(two_phase=True), RadixIF(256.0)])
def test_active_neurons_by_hand(neuron):
    """Of three neurons, the first two spike for one of two samples."""
    layer = TandemLinear(1, 3, bias=False, neuron=neuron)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0], [3.0], [-1.0]]))
    model = nn.Sequential(Encode(8, "impulse"), layer, Decode())
    x = torch.tensor([[1.0], [0.0]])
    for target in (0.0, 0.25, 0.5):
        with ActivePenalty(model, target=target) as penalty:
            assert layer(model[0](x)).value[0].tolist() == [7, 3, 0]
            model(x)
            value = penalty()
        excess = max(0.0, 1 / 3 - target)
        torch.testing.assert_close(value.item(), excess**2)
        (gradient,) = torch.autograd.grad(value, layer.weight)
        slope = torch.tensor([[1 / 8**2], [1 / 4**2], [0.0]]) / 6  # of q / (1 + q), for six neurons
        torch.testing.assert_close(gradient, 2 * excess * slope)


def test_synops_by_hand():
    """8 and 4 spikes that reach two neurons each, of which MACs are 3 + 2 * 3 per sample; one sample silent."""
    first, second = TandemLinear(1, 3, bias=False), TandemLinear(3, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [0.5], [-1.0]]))
    model = nn.Sequential(Encode(8), first, second, Decode())
    x = torch.tensor([[1.0], [0.0]])
    for target, want in ((0.0, 4 / 3), (1.0, 1 / 3), (1.5, 0.0)):
        with SynOpsPenalty(model, target=target) as penalty:
            model(x)
            value = penalty()
        torch.testing.assert_close(value.item(), want**2)
        if want > 0:
            (gradient,) = torch.autograd.grad(value, first.weight)
            # count' = 8 x where v > 0, and each count weighs 2 of 18 MACs.
            slope = 2 * want * 8 * 2 / 18
            torch.testing.assert_close(gradient, torch.tensor([[slope], [slope], [0.0]]))


def test_synops_are_those_of_the_table():
    """Strides, padding, groups, transposed convolutions, pooling and joins; a read-out is not counted."""
    torch.manual_seed(0)
    neuron = IF(0.25)

    def run(n, x):
        y = n.grouped(n.conv(n.encode(x)))
        return n.readout(n.decode(n.linear(n.pool(n.larger(n.join(y, y))).flatten(1))))

    model = Net(
        run,
        encode=Encode(8),
        conv=TandemConv2d(1, 8, 3, neuron=neuron),
        grouped=TandemConv2d(8, 8, 3, stride=2, padding=1, groups=2, neuron=neuron),
        join=TandemAdd(TandemConv2d(8, 8, 3, padding=2, dilation=2), nn.Identity(), neuron=neuron),
        larger=TandemConvTranspose2d(8, 4, 2, stride=2, neuron=neuron), pool=SpikingAvgPool2d(2),
        linear=TandemLinear(36, 6, neuron=neuron), decode=Decode(), readout=nn.Linear(6, 3),
    )  # fmt: skip
    for x in (inputs(3), inputs(5, seed=3)):  # what is kept of the first pass is no matter of the batch
        table = [row for row in synops(model, x) if row.name != "readout"]
        assert all(row.synops > 0 for row in table[1:])
        with SynOpsPenalty(model) as penalty:
            for _ in range(2):
                model(x)
                value = penalty()
        want = sum(row.synops for row in table) / sum(row.macs for row in table)
        torch.testing.assert_close(value.item(), want**2)
        value.backward()
        assert model.conv.weight.grad.abs().sum() > 0


def test_without_weights():
    join = TandemAdd(nn.Identity(), nn.Identity())
    train = SpikeTrain.from_dense(torch.ones(8, 5, 4))
    with SynOpsPenalty(join) as penalty:
        join(train, train)
        with pytest.raises(ValueError, match="SynOpsPenalty: model must run a layer with weights"):
            penalty()


def test_all_layers_are_summed():
    model = net()
    with FiringRatePenalty(model, target=0.01) as penalty, record_activity(model) as record:
        model(inputs())
        value = penalty()
    rates = [row.firing_rate for row in record.table() if row.firing_rate is not None]
    assert len(rates) == 2
    torch.testing.assert_close(value.item(), sum(max(0, r - 0.01) ** 2 for r in rates))
    value.backward()
    for name in ("1.weight", "1.norm.weight", "4.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name


def test_joins_are_layers():
    """The branches' own neurons are not used, and not counted."""
    join = TandemAdd(TandemLinear(4, 4), nn.Identity())
    train = SpikeTrain.from_dense((torch.rand(8, 5, 4, generator=generator(1)) < 0.5).float())
    with FiringRatePenalty(join) as penalty:
        count = join(train, train).count
        same(penalty().detach(), (count.detach().mean() / 8).square())


@pytest.mark.parametrize("kind", PENALTIES)
def test_the_latest_pass_alone(kind):
    model = net(norm=None)
    with kind(model) as penalty:
        model(inputs(seed=1))
        model(inputs(seed=2))
        got = penalty().detach()
        with pytest.raises(ValueError, match="must run in training mode before each call"):
            penalty()
        model.eval()(inputs())
        with pytest.raises(ValueError, match="must run in training mode"):
            penalty()
        model.train()(inputs(seed=2))
        same(penalty().detach(), got)
    model(inputs())
    with pytest.raises(ValueError, match="must run in training mode"):
        penalty()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", PENALTIES)
def test_nothing_is_kept(kind):
    model = net()
    counts = []
    model[4].register_forward_hook(lambda module, x, output: counts.append(weakref.ref(output.count)))
    with kind(model) as penalty:
        for _ in range(3):
            (model(inputs()).sum() + penalty()).backward()
        gc.collect()
        assert [count() for count in counts] == [None] * 3
        model(inputs())  # not asked for; the next pass lets go of it
        model(inputs())
        gc.collect()
        assert counts[3]() is None
    gc.collect()
    assert counts[4]() is None


@pytest.mark.parametrize("kind", PENALTIES)
def test_checkpointed_layers(kind):
    """What is computed again in the backward pass is not counted again."""
    results = []
    for use in (False, True):
        model = net()
        run = (lambda n, x: checkpoint(n.inner, x, use_reentrant=False)) if use else (lambda n, x: n.inner(x))
        outer = Net(run, inner=model)
        with kind(outer) as penalty:
            y = outer(inputs())
            (y.sum() + penalty()).backward()
            with pytest.raises(ValueError, match="must run"):
                penalty()
        results.append([p.grad for p in model.parameters()])
    same(tuple(results[1]), tuple(results[0]))


def trained(kind, weight):
    """What a network does after 60 steps with a penalty: its table of activity."""
    torch.manual_seed(0)
    x, y = inputs(48), torch.arange(48) % 3
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with kind(model, target=0.05) as penalty:
        for _ in range(60):
            loss = F.cross_entropy(model(x), y) + weight * penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with record_activity(model) as record, torch.no_grad():
        model(x)
    return record.table()


def test_it_lowers_rates():
    free, held = (
        [row.firing_rate for row in trained(FiringRatePenalty, weight) if row.firing_rate is not None]
        for weight in (0.0, 100.0)
    )
    assert all(0 < low < 0.6 * high for low, high in zip(held, free, strict=True))


def test_it_lowers_synops():
    tables = [trained(SynOpsPenalty, weight)[:2] for weight in (0.0, 100.0)]  # without the read-out
    free, held = (sum(row.synops for row in table) / sum(row.macs for row in table) for table in tables)
    assert free > 0.2
    assert 0 < held < 0.1


@pytest.mark.parametrize("kind", PENALTIES)
def test_converted_networks(kind):
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    model = convert(ann, 8, calibrate=inputs(), spiking_layers=1)
    with kind(model) as penalty:
        model(inputs())
        value = penalty()
    if kind is SynOpsPenalty:  # one spiking layer, which reads real numbers
        assert value == 0
        return
    value.backward()
    assert ann[0].weight.grad.abs().sum() > 0
    assert ann[3].weight.grad is None


@pytest.mark.parametrize("kind", PENALTIES)
def test_bad_arguments(kind):
    name = kind.__name__
    with pytest.raises(TypeError, match=rf"{name}: model must be an nn\.Module, got list"):
        kind([])
    with pytest.raises(ValueError, match=f"{name}: model must have tandem layers, got Linear without"):
        kind(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=f"{name}: target must be a number, got str"):
        kind(net(), "0.1")
    end = float("inf") if kind is SynOpsPenalty else 1.0
    for target in (-0.1, end, float("nan")):
        model = net()
        with pytest.raises(ValueError, match=rf"{name}: target must be in \[0, {end:g}\), got"):
            kind(model, target)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
