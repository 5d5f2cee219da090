"""Max pooling in NIR: integrators and gates that count, spike by spike, what the layer counts."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import per_layer
from exact import train
from tandem_cuda import IF, Decode, SpikeTrain, SpikingMaxPool2d, TandemAdd, TandemConv2d, convert, freeze
from tandem_cuda.nn import SpikeCat, SpikeRearrange, SpikingGlobalMaxPool2d

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
pytest.importorskip("nirtorch", reason="pip install tandem_cuda[nir]")

from nir_interpreter import executed  # noqa: E402 (only where the extra is there)
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402
from tandem_cuda.exchange.nir_maximum import stages  # noqa: E402
from tandem_cuda.nn.nir import MaxAxis  # noqa: E402
from test_exchange_layers import IMAGES, Net, behind, exchanged, rules  # noqa: E402

STEPS = 8
SPIKES = train(STEPS, 3, 4, 9, 10, seed=1, rate=0.4).float()
POOLS = {
    "pairs": SpikingMaxPool2d(2),
    "overlapping": SpikingMaxPool2d(3, 2, 1),
    "every place": SpikingMaxPool2d(3, 1, 1),
    "oblong": SpikingMaxPool2d((4, 3), (1, 2), (2, 0)),
    "one row": SpikingMaxPool2d((1, 3), (2, 1), (0, 1)),
    "one column": SpikingMaxPool2d((5, 1), (1, 3)),
    "dilated": SpikingMaxPool2d(3, 1, 1, dilation=(2, 3)),
    "beyond the image": SpikingMaxPool2d(2, ceil_mode=True),
    "far beyond the padding": SpikingMaxPool2d((3, 4), 3, 1, ceil_mode=True),
    "of a half": SpikingMaxPool2d(5, 1, 2),
    "all": SpikingGlobalMaxPool2d(),
    "columns": SpikingGlobalMaxPool2d((2,)),
    "rows": SpikingGlobalMaxPool2d((3,)),
}
DILATED_PAIRS = ("dilated", True)
"""Windows whose places are apart are not written for values of both signs."""
PADDED = {"oblong", "far beyond the padding", "of a half"}
"""Imported with padding of its own, which needs neurons when it is exported again."""


def steps_of(net, x):
    with torch.no_grad():
        return net(x).to_dense()


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize(
    ("name", "signed"),
    [(name, signed) for name in POOLS for signed in (False, True) if (name, signed) != DILATED_PAIRS],
)
def test_every_step_is_the_same(name, signed, groups, tmp_path):
    """Not just the counts: the interpreter's output of each prefix of steps grows as the spikes do.

    Of values of both signs, padding is never the largest one, and pairs are what is read back.
    """
    pool, plain = POOLS[name], SpikeTrain.from_dense(SPIKES)
    x = plain.replace(pair_dim=1) if signed else plain
    graph = to_nir(pool, x, tmp_path / "net.nir", groups=groups)
    want = steps_of(pool, x)
    if signed:
        values = want.sum(0)[:, ::2] - want.sum(0)[:, 1::2]
        assert torch.equal(values, pool.pool_values(Decode()(x)))
        assert len(values.unique()) > 2
    else:
        assert 0 < want.mean() < 0.9
        assert len(want.sum(0).unique()) > 2
    got = [torch.zeros_like(want[0]).double()]
    got += [executed(graph, list(SPIKES[:t])) for t in range(1, STEPS + 1)]
    for t in range(STEPS):
        assert torch.equal(got[t + 1] - got[t], want[t].double()), t
    back = from_nir(tmp_path / "net.nir")
    assert torch.equal(steps_of(back, plain), want)
    assert back(plain).pair_dim is None
    assert torch.equal(freeze(back)(plain).to_dense(), want)
    again = to_nir(back, plain, groups=groups)
    assert torch.equal(executed(again, list(SPIKES)), want.sum(0).double())
    if signed or name not in PADDED:
        assert len(again.nodes) == len(graph.nodes)


def test_negative_values_alone_keep_their_sign(tmp_path):
    """Zeros of a padding would be larger than any of them."""
    spikes = SPIKES.clone()
    spikes[:, :, ::2] = 0
    spikes[:, :, 1::2, ::2, ::3] = 1
    x = SpikeTrain.from_dense(spikes).replace(pair_dim=1)
    pool = SpikingMaxPool2d(3, 2, 1)
    want = steps_of(pool, x)
    assert want[:, :, ::2].sum() == 0 < want[:, :, 1::2].sum()
    graph = to_nir(pool, x, tmp_path / "net.nir")
    assert torch.equal(executed(graph, list(spikes)), want.sum(0).double())
    assert torch.equal(steps_of(from_nir(tmp_path / "net.nir"), x.replace(pair_dim=None)), want)


def test_other_tools_read_the_file(tmp_path):
    """Every node is one of NIR's own."""
    graph = to_nir(SpikingMaxPool2d(2), SpikeTrain.from_dense(SPIKES), tmp_path / "net.nir", groups=False)
    read = nir.read(tmp_path / "net.nir", type_check=False)
    assert {type(node).__name__ for node in read.nodes.values()} == {"Input", "I", "Conv2d", "Threshold", "Output"}
    for name, node in graph.nodes.items():
        for field, value in vars(node).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(read.nodes[name], field)), (name, field)


@pytest.mark.parametrize("dt", [1.0, 1e-4, 0.003])
def test_time_steps_of_any_duration(dt):
    pool, x = SpikingMaxPool2d(3), SpikeTrain.from_dense(SPIKES)
    graph = to_nir(pool, x, dt=dt)
    assert torch.equal(executed(graph, list(SPIKES)), steps_of(pool, x).sum(0).double())
    assert torch.equal(steps_of(from_nir(graph), x), steps_of(pool, x))


def test_stages():
    """Windows of n pixels need log2(n) stages, whatever they start at."""
    for kernel, stride, padding, dilation in itertools.product(range(2, 9), (1, 2, 3), (0, 1), (1, 2)):
        outputs = (20 + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        axis, one = MaxAxis(kernel, stride, padding, dilation, outputs), MaxAxis(1, 1, 0, 1, 1)
        found = stages(axis, one, 20, 1)
        assert len(found) == (kernel - 1).bit_length()
        x = torch.rand(1, 1, 20, 1)
        y = x
        for offset, (down, _), (above, _), (height, _) in found:
            behind = (height - 1) * down + offset[0] + 1 - above - y.shape[2]
            padded = F.pad(y, (0, 0, above, max(behind, 0)))
            upper = padded[:, :, ::down][:, :, :height]
            lower = padded[:, :, offset[0] :: down][:, :, :height]
            y = torch.maximum(upper, lower)
        assert torch.equal(y, F.max_pool2d(x, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1)))


def test_pooling_in_a_network(tmp_path):
    """Of concatenated, shuffled and cropped spikes, in front of joins and a read-out."""

    def run(n, x):
        x = n.pool(n.mix(n.cat(x, n.a(x))))
        return n.out(n.flat(n.decode(n.last(n.crop(n.add(x, n.b(x)))))))

    net = behind(
        run, a=TandemConv2d(4, 4, 1, neuron=IF(0.5, amplitude=0.5)), cat=SpikeCat(False, False),
        mix=SpikeRearrange("channel_shuffle", 2), pool=SpikingMaxPool2d(3, 2, 1), b=TandemConv2d(8, 8, 3, padding=1),
        add=TandemAdd(nn.Identity(), TandemConv2d(8, 8, 1), neuron=IF(0.5)),
        crop=SpikeRearrange("zero_pad", -1, 0, 0, -1), last=SpikingGlobalMaxPool2d(), decode=Decode(),
        flat=nn.Flatten(), out=nn.Linear(8, 3),
    )  # fmt: skip
    graph = exchanged(net, IMAGES, tmp_path)
    assert sum(isinstance(node, nir.I) for node in graph.nodes.values()) == 2 * 4 + 4  # both parts; 4 x 4 pixels


def test_windows_of_one_pixel(tmp_path):
    """They select, so they are part of the convolution that reads them."""
    net = behind(
        lambda n, x: n.layer(n.pool(x)), pool=SpikingMaxPool2d(1, (2, 3)), layer=TandemConv2d(4, 5, 3, neuron=IF(0.5))
    )
    graph = exchanged(net, IMAGES, tmp_path)
    assert not any(isinstance(node, nir.I) for node in graph.nodes.values())


def test_a_network_with_values_of_both_signs(tmp_path):
    """Concatenated, and in front of a read-out; a ReLU makes do where dilated windows are padded."""

    def ann(act, features, **settings):
        def run(n, x):
            x = F.relu(n.first(x))
            x = n.b(F.max_pool2d(act(torch.cat([n.a(x), x], 1)), 3, 2, 1, **settings))
            return n.fc(F.max_pool2d(x, 2).flatten(1))

        layers = {"first": nn.Conv2d(2, 4, 3), "a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(8, 4, 1)}
        return Net(run, **layers, fc=nn.Linear(features, 3)).eval()

    def converted(net):
        rules.dyadic(net)
        levels = convert(net, STEPS, calibrate=IMAGES, **per_layer(IF())).levels
        levels = {name: 2.0 ** round(math.log2(level)) for name, level in levels.items()}
        return convert(net, STEPS, neuron=IF(), calibrate=levels)

    def same(x):
        return x

    graph = exchanged(converted(ann(same, 16)), IMAGES, tmp_path)
    assert sum(isinstance(node, nir.I) for node in graph.nodes.values()) == 2 * 4 + 2
    with pytest.raises(ValueError, match=r"\(SpikingMaxPool2d\): windows of values of both signs must have dilation 1"):
        to_nir(converted(ann(same, 4, dilation=2)), IMAGES)
    exchanged(converted(ann(F.relu, 4, dilation=2)), IMAGES, tmp_path)


EDITS = {
    "a weight of the spikes": lambda nodes: nodes["spikes"].weight.__setitem__((0, 0, 0, 0), 7.0),
    "a weight of the counts": lambda nodes: nodes["counts"].weight.__setitem__((1, 0, 0, 0), 1.0),
    "a weight of the last gate": lambda nodes: nodes["either"].weight.__setitem__((0, 0, 0, 0), 2.0),
    "another stride": lambda nodes: nodes["counts"].stride.__setitem__(0, 1),
    "a bias": lambda nodes: nodes["spikes"].bias.__setitem__(0, 1.0),
    "a resistance": lambda nodes: nodes["count"].r.fill(2.0),
    "one resistance": lambda nodes: nodes["count"].r.__setitem__((0, 0, 0), 2.0),
    "a threshold": lambda nodes: nodes["leads"].threshold.fill(9.5),
    "one threshold": lambda nodes: nodes["leads"].threshold.__setitem__((0, 0, 0), 7.5),
    "a whole threshold": lambda nodes: nodes["leads"].threshold.fill(8.0),
    "the last threshold": lambda nodes: nodes["larger"].threshold.fill(1.5),
}


def refused_once_edited(graph, edit):
    nodes = {name.rpartition("_")[2]: node for name, node in graph.nodes.items()}
    for node in nodes.values():
        for name in ("stride", "padding"):
            if hasattr(node, name):
                setattr(node, name, np.array(getattr(node, name)))
    from_nir(graph)
    edit(nodes)
    with pytest.raises(
        ValueError, match=r"_larger \(Threshold\): .*(must be those of a maximum|must grow|must be the same)"
    ):
        from_nir(graph)


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_no_maximum_is_refused(edit):
    graph = to_nir(SpikingMaxPool2d((2, 1)), SpikeTrain.from_dense(SPIKES))
    refused_once_edited(graph, EDITS[edit])


SIGNED_EDITS = {
    **EDITS,
    "a gate that falls": lambda nodes: nodes["spikes"].weight.__setitem__((2, 0, 0, 0), -16.0),
    "a negative neuron": lambda nodes: nodes["counts"].weight.__setitem__((0, 1, 0, 0), 1.0),
    "a threshold of one sign": lambda nodes: nodes["leads"].threshold.fill(8.5),
}


@pytest.mark.parametrize("edit", SIGNED_EDITS)
def test_what_is_no_maximum_of_both_signs_is_refused(edit):
    graph = to_nir(SpikingMaxPool2d((2, 1)), SpikeTrain.from_dense(SPIKES).replace(pair_dim=1))
    refused_once_edited(graph, SIGNED_EDITS[edit])


def test_more_steps_than_it_was_written_for_are_refused():
    graph = to_nir(SpikingMaxPool2d(2), SpikeTrain.from_dense(SPIKES))
    from_nir(graph, time_steps=7)
    with pytest.raises(
        ValueError, match=r"thresholds must be between 0 and 1 and, at least 9, between two whole numbers"
    ):
        from_nir(graph, time_steps=9)


def test_gates_that_others_read_are_refused():
    """They are part of a maximum only if nothing else sees them."""
    graph = to_nir(SpikingMaxPool2d((2, 1)), SpikeTrain.from_dense(SPIKES))
    (leads,) = (name for name in graph.nodes if name.endswith("_leads"))
    graph.edges.append((leads, "output"))
    with pytest.raises(ValueError, match=r"_leads \(Threshold\): this package has no such layer"):
        from_nir(graph)


def test_sums_of_spikes_are_refused():
    """A maximum of two reads one train: a sum may grow by two in a step."""
    graph = to_nir(SpikingMaxPool2d((2, 1)), SpikeTrain.from_dense(SPIKES))
    names = [name for name in graph.nodes if name.endswith(("_count", "_spikes"))]
    graph.nodes["more"] = nir.IF(np.ones((4, 9, 10)), np.ones((4, 9, 10)))
    graph.edges += [("input", "more"), *(("more", name) for name in names)]
    with pytest.raises(ValueError, match=r"_count \(I\): this package has no such layer"):
        from_nir(graph)
