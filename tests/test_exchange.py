"""NIR: what comes back spikes as what went out, and graphs of other libraries are read."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anns import Net
from exact import same, train
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikeTrain,
    TandemConv2d,
    TandemDropout,
    TandemLinear,
    convert,
    quantise,
)
from tandem_cuda.quantisation import quantiser

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")

from nir_networks import IMAGES, foreign, network, randomised, spiking  # noqa: E402
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402 (only where the extra is there)


@pytest.mark.parametrize(("mode", "dtype"), [("constant", torch.float32), ("impulse", torch.float64)])
@pytest.mark.parametrize("steps", [8, 7, 11])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("neuron", [IF(), IF(0.7, clip=True), LIF(0.8, 0.9), LIF(leak=0.7310585786300049)], ids=str)
def test_round_trip(tmp_path: Path, neuron: IF | LIF, norm: str | None, steps: int, mode: str, dtype: torch.dtype):
    net = randomised(network(norm=norm, neuron=neuron, steps=steps, mode=mode)).to(dtype)
    path = tmp_path / "net.nir"
    graph = to_nir(net, IMAGES.to(dtype), path)
    want = spiking(net, IMAGES.to(dtype))
    assert 0.01 < want[2].count_nonzero() / want[2].numel() < 1
    for source in (graph, path, str(path)):
        back = from_nir(source)
        assert not back.training
        assert back[0].time_steps == steps
        assert [getattr(m, "neuron", None) for m in back if hasattr(m, "neuron")] == [
            IF(neuron.threshold) if neuron.leak == 1 else LIF(neuron.threshold, neuron.leak)
        ] * 3
        *spikes, logits = spiking(back, IMAGES.to(dtype))
        same(tuple(spikes), tuple(want[:-1]))
        # The read-out's bias is that of one step in the file, and T of them are it but for rounding.
        exact = steps == 8
        tolerance = 0 if exact else {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
        torch.testing.assert_close(logits, want[-1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("norm", ["batch", None])
def test_quantised_weights_are_written_as_floats(tmp_path: Path, bits: int, norm: str | None):
    """Nodes hold integers * scale, and say so; what comes back has these weights."""
    net = randomised(network(norm=norm))
    assert not any("weight_bits" in node.metadata for node in to_nir(net, IMAGES).nodes.values())
    quantise(net, bits)
    path = tmp_path / "net.nir"
    layers = [m for m in net.modules() if isinstance(m, nn.Module) and quantiser(m) is not None]
    assert len(layers) == 4
    for graph in (to_nir(net, IMAGES, path), nir.read(path, type_check=False)):
        nodes = [graph.nodes[f"layer_{name}"] for name in ("1", "2", "4", "7")]
        for layer, node in zip(layers, nodes, strict=True):
            assert node.metadata["weight_bits"] == bits
            integers, _ = quantiser(layer).integers(layer.parametrizations.weight.original)
            scale = node.metadata["weight_scale"].reshape(-1, *[1] * (integers.dim() - 1))
            assert np.array_equal(np.round(node.weight / scale), integers.numpy())
            np.testing.assert_allclose(node.weight, integers.numpy() * scale, rtol=1e-6)
        back = from_nir(graph)
        for layer, node in zip((m for m in back if hasattr(m, "weight")), nodes, strict=True):
            same(layer.weight.detach(), torch.from_numpy(node.weight))
    # Sums of floats are rounded, so a spike may come a step early or late.
    got, want = spiking(from_nir(path), IMAGES), spiking(net, IMAGES)
    assert all((a != b).float().mean() < 1e-3 for a, b in zip(got[:-1], want[:-1], strict=True))
    torch.testing.assert_close(got[-1], want[-1], rtol=1e-3, atol=1e-2)


def test_second_round_trip_is_the_first():
    first = to_nir(randomised(network(steps=7)), IMAGES)
    second = to_nir(from_nir(first), IMAGES)
    for name, node in first.nodes.items():
        for field in ("weight", "bias", "v_threshold"):
            if hasattr(node, field):
                assert np.array_equal(getattr(node, field), getattr(second.nodes[name], field))


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
        {"kernel_size": 3, "groups": 2, "padding": 1},
        {"kernel_size": (1, 4), "groups": 4},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (3, 5), "padding": "same", "dilation": 2},
        {"kernel_size": 2, "padding": "valid", "bias": False},
    ],
    ids=str,
)
def test_geometry_of_convolutions(tmp_path: Path, geometry):
    net = randomised(nn.Sequential(TandemConv2d(4, 8, **geometry), TandemConv2d(8, 3, 2)))
    x = SpikeTrain.from_dense(train(9, 2, 4, 10, 11, seed=0).float())
    graph = to_nir(net, x, tmp_path / "net.nir")
    back = from_nir(tmp_path / "net.nir")
    want = spiking(net, x)
    same(tuple(spiking(back, x)), tuple(want))
    assert graph.metadata == {"time_steps": 9, "dt": 1e-4, "encoding": "spikes", "reset": "subtract"}
    assert graph.nodes["layer_0"].output_type["output"].tolist() == list(net[0](x).shape[1:])
    assert back[0].extra_repr().split("neuron")[0] == net[0].extra_repr().split("neuron")[0]


def test_a_user_class_with_a_forward_pass(tmp_path: Path):
    net = Net(
        lambda n, x: n.out(torch.flatten(n.decode(n.head(n.body(n.encode(x)).flatten(1))), 1)),
        encode=Encode(8), body=nn.Sequential(TandemConv2d(2, 6, 3, norm="batch"), nn.Identity()),
        head=TandemLinear(252, 12), decode=Decode(), out=nn.Linear(12, 5),
    )  # fmt: skip
    net = randomised(net).train()
    graph = to_nir(net, IMAGES)
    assert net.training
    assert list(graph.nodes) == [
        "input",
        "body_0",
        "body_0_neurons",
        "flatten",
        "head",
        "head_neurons",
        "out",
        "output",
    ]
    net.eval()
    same(from_nir(graph)(IMAGES), net(IMAGES))


def test_a_converted_network(tmp_path: Path):
    """Amplitudes go into the weights behind them; dyadic ones leave everything to the bit."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(432, 9),
        nn.ReLU(),
        nn.Linear(9, 3),
    )
    net = convert(ann.eval(), 8, mode="constant", calibrate=IMAGES)
    assert any(isinstance(module, TandemDropout) for module in net.modules())
    for module in net.modules():
        if isinstance(module, (TandemConv2d, TandemLinear)):
            module.neuron = IF(threshold=0.125, amplitude=0.125)
    to_nir(net, IMAGES, tmp_path / "net.nir")
    with torch.no_grad():
        same(from_nir(tmp_path / "net.nir")(IMAGES), net(IMAGES))
    trains = SpikeTrain.from_dense(train(8, 4, 5, seed=0).float()).replace(amplitude=0.5)
    layer = TandemLinear(5, 7).eval()
    with torch.no_grad():
        same(from_nir(to_nir(layer, trains))(SpikeTrain(trains.bits, 8)).bits, layer(trains).bits)


def test_parameters_of_neurons():
    """They are those of the equations in the docstring, at any dt."""
    for dt in (1e-4, 1e-3, 1.0):
        graph = to_nir(TandemLinear(3, 2, neuron=LIF(0.5, 0.75)), SpikeTrain.from_dense(torch.ones(8, 1, 3)), dt=dt)
        node = graph.nodes["tandemlinear_neurons"]
        assert isinstance(node, nir.LIF)
        assert node.tau.tolist() == [4 * dt] * 2
        assert node.r.tolist() == [4.0] * 2
        assert node.v_threshold.tolist() == [0.5] * 2
        assert node.v_leak.tolist() == [0.0] * 2
        np.testing.assert_allclose(node.v_reset, [0.5 - 0.5 / 0.75] * 2)
        assert from_nir(graph)[0].neuron == LIF(0.5, 0.75)
        graph = to_nir(TandemLinear(3, 2, neuron=IF(0.5)), SpikeTrain.from_dense(torch.ones(8, 1, 3)), dt=dt)
        node = graph.nodes["tandemlinear_neurons"]
        assert isinstance(node, nir.IF)
        assert node.r.tolist() == [1 / dt] * 2
        assert node.v_reset.tolist() == [0.0] * 2


def test_foreign_graph():
    """Resistances other than one step's go into the weights; sum pooling becomes a layer; T is the caller's."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 2, 3, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)

    def neurons(*shape, r=1.0):
        return nir.IF(r=np.full(shape, r), v_threshold=np.ones(shape))

    graph = nir.NIRGraph(
        {
            "in": nir.Input(np.array([2, 8, 8])),
            "a.conv": nir.Conv2d((8, 8), weight, 1, 1, 1, 1, bias),
            "a.if": neurons(4, 8, 8, r=0.25),
            "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            "pool.if": neurons(4, 4, 4),
            "out": nir.Output(np.array([4, 4, 4])),
        },
        [("in", "a.conv"), ("a.conv", "a.if"), ("a.if", "pool"), ("pool", "pool.if"), ("pool.if", "out")],
    )
    x = SpikeTrain.from_dense(train(8, 3, 2, 8, 8, seed=0, rate=0.5).float())
    net = from_nir(graph, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")
    assert [name for name, _ in net.named_children()] == ["a_conv", "pool"]
    first = TandemConv2d(2, 4, 3, padding=1)
    first.load_state_dict({"weight": torch.from_numpy(weight) / 4, "bias": torch.from_numpy(bias) / 4 * 8})
    second = TandemConv2d(4, 4, 2, 2, groups=4, bias=False)
    nn.init.ones_(second.weight)
    want = spiking(nn.Sequential(first, second), x)
    assert want[1].any()
    same(tuple(spiking(net, x)), tuple(want))


@pytest.mark.parametrize("neuron", ["IF", "LIF"])
def test_the_reset_is_never_guessed(tmp_path: Path, neuron: str):
    """NIR's own reset is to v_reset: what another library wrote says nothing of a reset that subtracts."""
    graph = foreign()
    if neuron == "LIF":
        graph.nodes["lif"] = nir.LIF(np.full(4, 2.0), np.full(4, 2.0), np.zeros(4), np.ones(4), np.full(4, -1.0))
    nir.write(tmp_path / "net.nir", graph)
    for source in (graph, tmp_path / "net.nir"):
        with pytest.raises(ValueError, match=r'from_nir: reset must be given, .* got None(.|\n)*reset="subtract"'):
            from_nir(source, time_steps=8, encoding="spikes", dt=1.0)
        with pytest.raises(ValueError, match=r"from_nir: reset must be 'subtract', .* got 'zero'"):
            from_nir(source, time_steps=8, encoding="spikes", dt=1.0, reset="zero")
        net = from_nir(source, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")
        assert net[0].neuron == (IF() if neuron == "IF" else LIF(leak=0.5))
    graph.metadata = {"time_steps": 8, "encoding": "spikes", "dt": 1.0}
    with pytest.raises(ValueError, match="reset must be given"):
        from_nir(graph)
    graph.metadata["reset"] = "hard"
    with pytest.raises(ValueError, match=r"reset must be 'subtract', .* got 'hard'"):
        from_nir(graph)


def test_graphs_in_memory_hold_whatever_their_library_put_there():
    """Parameters as Tensors that want gradients, as numbers and lists; shapes as tuples, Tensors, or not at all."""
    settings = {"time_steps": 8, "encoding": "spikes", "dt": 1.0, "reset": "subtract"}
    x = SpikeTrain.from_dense(train(8, 5, 6, seed=0).float())
    want = from_nir(foreign(), **settings)(x).bits
    assert want.any()
    weight = foreign().nodes["fc"].weight
    for parameters in (nn.Parameter(torch.from_numpy(weight)), weight.tolist()):
        graph = foreign()
        graph.nodes["fc"].weight = parameters
        graph.nodes["fc"].bias = torch.zeros(4, requires_grad=True)
        graph.nodes["lif"].r, graph.nodes["lif"].v_threshold = torch.ones(4), 1
        graph.nodes["lif"].v_reset = None
        for shape in ((6,), {"input": (6,)}, {"input": torch.tensor([6])}, {"input": None}, None, {}, [6.0]):
            graph.nodes["in"].input_type = shape
            graph.nodes["out"].output_type = None if shape is None else {"output": [4]}
            same(from_nir(graph, **settings)(x).bits, want)


def test_unknown_shapes_come_from_what_is_behind_them():
    rng = np.random.default_rng(0)
    weight = rng.normal(0.2, 0.5, (4, 2, 3, 3)).astype(np.float32)
    nodes = {
        "in": nir.Input(None),
        "conv": nir.Conv2d(None, weight, 1, 0, 1, 1, np.zeros(4, np.float32)),
        "if": nir.IF(np.ones((4, 6, 6)), np.ones((4, 6, 6))),
        "pool": nir.SumPool2d(2, 2, 0),
        "pooled": nir.IF(np.ones((4, 3, 3)), np.ones((4, 3, 3))),
        "flat": nir.Flatten(None, 0, -1),
        "fc": nir.Linear(rng.normal(0.2, 0.5, (3, 36))),
        "out": nir.Output(None),
    }
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False)
    net = from_nir(graph, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")
    assert {x.dtype for x in net.parameters()} == {torch.float64}  # that of the widest
    assert net(SpikeTrain.from_dense(train(8, 5, 2, 8, 8, seed=0).double())).shape == (5, 3)
    graph.nodes["fc"].weight = np.ones((3, 35))
    with pytest.raises(ValueError, match=r"fc \(Linear\): its input must be \[N, 35\], got \[N, 36\]"):
        from_nir(graph, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")
