"""Networks of which only the first layers spike."""

import copy

import pytest
import torch
from torch import nn

from anns import (
    Decoder,
    Functional,
    OneDimension,
    Residual,
    TwoHeads,
    assert_no_leak,
    cnn,
    inputs,
    kinds,
    per_layer,
    trained,
    whole,
)
from exact import generator, same
from layers import macs_of
from tandem_cuda import IF, Decode, Encode, SpikeTrain, TandemAdd, TandemConv2d, convert, freeze, synops
from tandem_cuda.analysis import diagnose

CUTS = [
    (cnn, 1),
    (Functional, 2),
    (Residual, 1),
    (Residual, 2),
    (Residual, 3),
    (OneDimension, 1),
    (Decoder, 1),
    (TwoHeads, 2),
]
every_cut = pytest.mark.parametrize(("make", "k"), CUTS, ids=lambda x: getattr(x, "__name__", str(x)))


@every_cut
def test_hybrid_approximates_its_ann(make, k):
    ann = trained(make)
    x = inputs(32)
    want = whole(ann(x)).detach()
    neuron = IF(initial=0.5, two_phase=True)
    snn = convert(ann, 256, calibrate=x, percentile=100, spiking_layers=k, neuron=neuron)
    assert len(snn.spiking_layers) == len(snn.levels) == k
    assert_no_leak(snn)
    with torch.no_grad():
        assert (whole(snn(x)) - want).norm() < 0.02 * want.norm()
        assert_operations(snn, ann, x, k)


def assert_operations(snn, ann, x, k):
    """Spiking layers first, and what is behind them as in the ANN."""
    rows = synops(snn, x)
    assert [row.firing_rate is None for row in rows] == [i >= k for i in range(len(rows))]
    assert sum(row.macs for row in rows) == sum(macs_of(ann.eval(), x))
    assert not rows.not_counted


@every_cut
def test_hybrid_trains_and_has_the_anns_state(make, k):
    ann = trained(make)
    snn = convert(ann, 8, calibrate=inputs(), spiking_layers=k)
    unused = {p for m in ann.modules() if m is getattr(ann, "unused", None) for p in m.parameters()}
    assert set(snn.parameters()) == set(ann.parameters()) - unused
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    whole(snn(inputs())).square().sum().backward()
    for name, p in snn.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any() or name.endswith("bias"), name
    torch.manual_seed(1)
    other = make().eval()
    snn.load_state_dict(other.state_dict())
    x = inputs()
    want = whole(convert(other, 8, calibrate=snn.calibration, spiking_layers=k, example=x)(x)).detach()
    same(whole(snn(x)).detach(), want)
    same(whole(copy.deepcopy(snn)(x)).detach(), want)


def test_all_layers_are_no_hybrid():
    ann, x = trained(Residual), inputs()
    whole_network = convert(ann, 8, calibrate=x)
    assert len(whole_network.spiking_layers) == 5
    same(whole(convert(ann, 8, calibrate=x, spiking_layers=5)(x)).detach(), whole(whole_network(x)).detach())
    assert convert(ann, 8, spiking_layers=5, example=x).levels is None
    for k in (1, 4):  # the next stage begins with the layers of the one before, at their thresholds
        hybrid = convert(ann, 8, calibrate=x, spiking_layers=k)
        assert hybrid.spiking_layers == whole_network.spiking_layers[:k]
        levels = {name: whole_network.levels[name] for name in hybrid.spiking_layers}
        torch.testing.assert_close(hybrid.levels, levels, rtol=0, atol=0)


def test_hybrid_is_the_layers_by_hand():
    ann = trained(cnn)
    x = inputs()
    snn = convert(ann, 8, calibrate=x, spiking_layers=1, **per_layer())
    level = snn.levels["0"]
    layer = TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=IF(level / 8, amplitude=level / 8)).eval()
    layer.load_state_dict({**ann[0].state_dict(), **{f"norm.{k}": v for k, v in ann[1].state_dict().items()}})
    by_hand = nn.Sequential(Encode(8, scale=1 / 8), layer, Decode(), *ann[3:])
    same(snn(x).detach(), by_hand(x).detach())


def test_a_cut_through_a_residual_block():
    """The shortcut's spikes are decoded, the ANN adds; behind the block's second layer the join spikes as a whole."""
    ann = trained(Residual)
    kinds_of = {k: kinds(convert(ann, 8, calibrate=inputs(), spiking_layers=k)) for k in (2, 3, 5)}
    assert kinds_of[2].count(TandemConv2d) == 2
    assert kinds_of[2].count(Decode) == 2
    assert TandemAdd not in kinds_of[2]
    assert kinds_of[3].count(TandemAdd) == kinds_of[3].count(Decode) == 1
    assert kinds_of[5].count(TandemAdd) == 2
    count = ann.blocks[0].conv1.weight  # in-place addition of the ANN leaves the decoded counts as they are
    snn = convert(ann, 8, calibrate=inputs(), spiking_layers=2)
    x = inputs()
    grads = [torch.autograd.grad(snn(x).sum(), count)[0] for _ in range(2)]
    same(grads[0], grads[1])


def test_what_is_behind_the_cut_is_the_anns():
    """It is not analogue: nothing there was to spike."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)
    ann, x = nn.Sequential(*layers), torch.rand(64, 4)
    snn = convert(ann, 256, calibrate=x, percentile=100, spiking_layers=1, analogue=False)
    torch.testing.assert_close(snn(x), ann(x), rtol=0, atol=0.02)
    assert snn.report().analogue == ()
    with pytest.raises(ValueError, match=r"Tanh \(tanh in 3\): "):
        convert(ann, 8, calibrate=x, analogue=False)


def test_hybrid_with_recorded_spikes():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    spikes = (torch.rand(64, 16, 6, generator=generator(1)) < 0.3).float()
    x = SpikeTrain.from_dense(spikes)
    snn = convert(ann, 64, mode="spikes", calibrate=x.count, percentile=100, spiking_layers=1)
    assert (snn(x) - ann(x.count)).norm() < 0.2 * ann(x.count).norm()


def test_hybrids_are_frozen_and_measured():
    ann = trained(Residual)
    x = inputs()
    snn = convert(ann, 8, calibrate=x, spiking_layers=2)
    with torch.no_grad():
        same(freeze(snn)(x), snn.eval()(x))
    table = diagnose(snn, x, lambda y: y.square().sum())
    assert [row.name for row in table] == ["snn.stem", "snn.blocks.0.conv1"]
    assert all(row.gradient_cosine > 0.5 for row in table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spiking_layers": True}, "spiking_layers must be an int, got bool"),
        (
            {"calibrate": {"0": "1"}, "spiking_layers": 1, "example": inputs()},
            r"calibrate\['0'\] must be a number, got str",
        ),
    ],
)
def test_bad_hybrids(arguments, message):
    with pytest.raises(TypeError, match=f"convert: {message}"):
        convert(cnn().eval(), 8, **{"calibrate": inputs(), **arguments})
