"""NIR: what comes back spikes as what went out, and other simulators run the file with the same spike counts."""

import importlib.util
import math
import os
import subprocess
import venv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tandem_cuda
from exact import dyadic, imported_without, same, train
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemLinear,
    convert,
)

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
pytest.importorskip("nirtorch", reason="pip install tandem_cuda[nir]")

from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402 (only where the extra is there)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that make neurons fire, and batch norm with statistics and an affine map of its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for x, low, high in (
                (module.weight, -0.5, 2.0),
                (module.bias, 0.0, 3.0),
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.5, 2.0),
            ):
                x.data.uniform_(low, high, generator=generator)
        elif getattr(module, "weight", None) is not None:
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0.3 / fan_in, 1.2 * fan_in**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(-2, 5, generator=generator)
    return net.eval()


def network(
    *, norm: str | None = "batch", neuron: IF | LIF = IF(), steps: int = 8, mode: str = "constant", bias: bool = True
) -> nn.Sequential:
    named = {"norm": norm, "neuron": neuron, "bias": bias}
    return nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, **named),
        TandemConv2d(6, 8, 3, stride=2, padding=1, **named),
        nn.Flatten(),
        TandemLinear(160, 12, **named),
        Decode(),
        nn.Dropout(),
        nn.Linear(12, 5),
    )


IMAGES = torch.rand(4, 2, 8, 9, generator=torch.Generator().manual_seed(1))


def spiking(net: nn.Sequential, x: Tensor | SpikeTrain) -> list[Tensor]:
    """Spikes of all tandem layers and what the last module returns; with gradients, and so with batch norm folded."""
    kept: list[Tensor] = []
    for module in net:
        x = module(x)
        if isinstance(module, (TandemConv2d, TandemLinear)):
            kept.append(x.bits)
    return [*kept, x.count.detach() if isinstance(x, SpikeTrain) else x.detach()]


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
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = Encode(8)
            self.body = nn.Sequential(TandemConv2d(2, 6, 3, norm="batch"), nn.Identity())
            self.head = TandemLinear(252, 12)
            self.decode = Decode()
            self.out = nn.Linear(12, 5)

        def forward(self, x):
            x = self.body(self.encode(x)).flatten(1)
            return self.out(torch.flatten(self.decode(self.head(x)), 1))

    net = randomised(Net()).train()
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
    net = convert(ann.eval(), 8, calibrate=IMAGES)
    assert any(isinstance(module, TandemDropout) for module in net.modules())
    for module in net.modules():
        if isinstance(module, (TandemConv2d, TandemLinear)):
            module.neuron = IF(threshold=0.125, amplitude=0.125)
    to_nir(net, IMAGES, tmp_path / "net.nir")
    with torch.no_grad():
        same(from_nir(tmp_path / "net.nir")(IMAGES), net(IMAGES))
    trains = SpikeTrain.from_dense(train(8, 4, 5, seed=0).float())
    trains.amplitude = 0.5
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


def foreign(threshold: float = 1.0, **edits: object) -> nir.NIRGraph:
    """A graph as another library may have made it: nothing but what NIR knows is in it."""
    weight = np.random.default_rng(0).normal(0.2, 0.5, (4, 6)).astype(np.float32)
    nodes = {
        "in": nir.Input(np.array([6])),
        "fc": nir.Affine(weight, np.zeros(4, np.float32)),
        "lif": nir.IF(np.ones(4), np.full(4, threshold)),
        "out": nir.Output(np.array([4])),
    }
    return nir.NIRGraph({**nodes, **edits}, list(pairwise(nodes)), type_check=False)


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


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_named():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = TandemLinear(4, 4), TandemLinear(4, 4)

        def forward(self, x):
            return self.b(self.a(x)), self.a(x)

    def refused(net, x, *lines):
        with pytest.raises(ValueError, match=r"^to_nir: model must be made of Encode") as caught:
            to_nir(net, x)
        got = str(caught.value).split("\n")[1:]
        assert len(got) == len(lines), got
        for line, want in zip(got, lines, strict=True):
            assert line.startswith(f"  {want}"), got

    x = SpikeTrain.from_dense(torch.ones(8, 1, 4))
    refused(Skip(), x, "output: it must be a single value")
    net = nn.Sequential(Encode(8), TandemConv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Softmax(1), nn.Linear(4, 2))
    refused(net, IMAGES, "2 (MaxPool2d): NIR has no node for it", "4 (Softmax): NIR has no node for it")
    net = nn.Sequential(TandemLinear(4, 4), nn.Linear(4, 4))
    refused(net, x, "1 (Linear): its input must be current, got spikes; put it after Decode")
    net = nn.Sequential(TandemLinear(4, 4), Decode(), Encode(8), TandemLinear(4, 4))
    refused(net, x, "2 (Encode): its input must be real, got current")
    net = nn.Sequential(Encode(8), TandemConv2d(2, 2, 3, padding=1), SpikingMaxPool2d(2), Decode())
    refused(net, IMAGES, "2 (SpikingMaxPool2d): NIR has no max pooling; use average pooling or a strided convolution")
    net = nn.Sequential(Encode(8), TandemConvTranspose2d(2, 2, 3, stride=2))
    refused(net, IMAGES, "1 (TandemConvTranspose2d): its stride must be 1 (NIR has no transposed convolution)")
    refused(TandemAdd(TandemLinear(4, 4), nn.Identity()), x, "tandemadd (TandemAdd): it must have 2 inputs, got 1")
    net = nn.Sequential(Encode(8), TandemConv2d(2, 2, 3, padding=1, padding_mode="circular"))
    refused(net, IMAGES, "1 (TandemConv2d): padding_mode must be 'zeros', got 'circular'")
    net = nn.Sequential(Encode(8), TandemConv2d(2, 2, 3), SpikingAdaptiveAvgPool2d(4), TandemConv2d(2, 2, 3))
    refused(net, IMAGES, "3 (TandemConv2d): the pooling before it has windows of different sizes")
    refused(nn.Sequential(Encode(8), nn.Flatten()), IMAGES, "output: it must depend on a tandem layer")
    wide = SpikeTrain.from_dense(torch.ones(8, 1, 3, 4))
    refused(nn.Sequential(TandemLinear(4, 4)), wide, "0 (TandemLinear): its input must be [N, F], got [1, 3, 4]")
    layer = TandemLinear(4, 4)
    nn.init.constant_(layer.bias[1:2], math.nan)
    refused(layer, x, "tandemlinear (TandemLinear): weights and bias must be finite, got NaN or infinite values")
    with pytest.raises(ValueError, match=r"to_nir: sample must be \[N, ...\] and not empty, got \[0, 2, 8, 9\]"):
        to_nir(network(), IMAGES[:0])


def test_what_cannot_be_imported_is_named():
    shape = np.ones(3)

    def graph(**nodes):
        names = ["in", *nodes, "out"]
        ends = {"in": nir.Input(np.array([3])), **nodes, "out": nir.Output(np.array([3]))}
        return nir.NIRGraph(ends, list(pairwise(names)), type_check=False)

    weights = nir.Linear(np.eye(3, dtype=np.float32))
    cases = {
        r"cuba \(CubaLIF\): .*\n  li \(LI\)": graph(
            w=weights,
            cuba=nir.CubaLIF(shape, shape, shape, shape, shape),
            li=nir.LI(shape, shape, shape),
        ),
        r"n \(IF\): there must be weights before it": graph(n=nir.IF(shape, shape)),
        r"v \(Linear\): w before it must be followed by neurons": graph(w=weights, v=weights, n=nir.IF(shape, shape)),
        r"n \(IF\): v_threshold must be the same for all neurons, got 3 values": graph(
            w=weights, n=nir.IF(shape, np.arange(1.0, 4.0))
        ),
        r"n \(IF\): v_reset must be .* = 0, .* got -1": graph(w=weights, n=nir.IF(shape, shape, -shape)),
        r"n \(LIF\): v_reset must be": graph(w=weights, n=nir.LIF(4 * shape, shape, 0 * shape, shape)),
        r"n \(LIF\): v_leak must be 0, got 1": graph(w=weights, n=nir.LIF(4 * shape, shape, shape, shape)),
        r"n \(LIF\): tau must be greater than dt = 1.0, got 1": graph(
            w=weights, n=nir.LIF(shape, shape, 0 * shape, shape)
        ),
        r"d \(Delay\)": graph(d=nir.Delay(shape)),
    }
    for message, bad in cases.items():
        with pytest.raises(ValueError, match=r"from_nir: source must be made of(.|\n)*" + message):
            from_nir(bad, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")
    looped = graph(w=weights, n=nir.IF(shape, shape))
    looped.edges.append(("n", "w"))
    with pytest.raises(ValueError, match=r"  n, out, w: on a cycle or after one"):
        from_nir(looped, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")


def test_bad_arguments(tmp_path: Path):
    x = SpikeTrain.from_dense(torch.ones(8, 1, 4))
    net = TandemLinear(4, 4)
    with pytest.raises(TypeError, match=r"to_nir: model must be an nn\.Module, got int"):
        to_nir(3, x)
    with pytest.raises(TypeError, match="to_nir: sample must be a Tensor or a SpikeTrain, got list"):
        to_nir(net, [1])
    with pytest.raises(ValueError, match="to_nir: dt must be positive and finite, got 0"):
        to_nir(net, x, dt=0)
    with pytest.raises(TypeError, match="to_nir: dt must be a number, got str"):
        to_nir(net, x, dt="1")
    with pytest.raises(TypeError, match=r"from_nir: source must be a nir\.NIRGraph or a path, got int"):
        from_nir(3)
    with pytest.raises(FileNotFoundError, match="from_nir: source must be an existing file"):
        from_nir(tmp_path / "none.nir")
    (tmp_path / "text.nir").write_text("no HDF5")
    with pytest.raises(ValueError, match="from_nir: source must be a NIR file"):
        from_nir(tmp_path / "text.nir")
    whole = tmp_path / "whole.nir"
    graph = to_nir(net, x, whole)
    (tmp_path / "cut.nir").write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(ValueError, match="from_nir: source must be a NIR file"):
        from_nir(tmp_path / "cut.nir")
    with pytest.raises(ValueError, match="from_nir: encoding must be one of constant, impulse, spikes, got 'rate'"):
        from_nir(graph, encoding="rate")
    with pytest.raises(ValueError, match="time_steps must be at least 1, got 0"):
        from_nir(graph, time_steps=0)
    graph.metadata.clear()
    with pytest.raises(ValueError, match="from_nir: time_steps must be given"):
        from_nir(graph)


@pytest.mark.parametrize("place", ["weight", "bias", "v_threshold", "r"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(place: str, value: float):
    graph = foreign()
    node = "fc" if place in ("weight", "bias") else "lif"
    getattr(graph.nodes[node], place)[1] = value
    with pytest.raises(ValueError, match=rf"{node} \(.*\): {place} must be finite, got NaN or infinite values"):
        from_nir(graph, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")


def test_files_that_cannot_be_written(tmp_path: Path):
    x, net = SpikeTrain.from_dense(torch.ones(8, 1, 4)), TandemLinear(4, 4)
    with pytest.raises(FileNotFoundError, match="to_nir: path cannot be written: No such file or directory") as caught:
        to_nir(net, x, tmp_path / "no folder" / "net.nir")
    assert caught.value.filename == str(tmp_path / "no folder" / "net.nir")
    with pytest.raises(IsADirectoryError, match="to_nir: path cannot be written"):
        to_nir(net, x, tmp_path)
    with pytest.raises(IsADirectoryError):
        from_nir(tmp_path)
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="to_nir: path cannot be written: No space left on device"):
            to_nir(net, x, "/dev/full")


@pytest.mark.parametrize(("version", "good"), [("1.0.4", False), ("0.9", False), ("1.0.7", True), ("1.1.dev3", True)])
def test_versions_of_nir(monkeypatch: pytest.MonkeyPatch, version: str, good: bool):
    """Older graphs have other fields, and every error would be about these."""
    path = Path(tandem_cuda.__file__).parent / "exchange" / "nir_format.py"
    spec = importlib.util.spec_from_file_location("tandem_cuda.nir_format_again", path)
    monkeypatch.setattr(nir, "__version__", version)
    if good:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    else:
        with pytest.raises(ImportError, match=rf"needs nir >= 1\.0\.7 and nirtorch \(got nir {version}.*pip install"):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[nir\]"):
        _ = imported_without(monkeypatch, "tandem_cuda.exchange", "nir").to_nir


# --- other simulators ------------------------------------------------------------------------------------------------

# Both take NIR's v_reset for a hard reset, the only one they know from it, so the scripts say "subtract" to their
# neurons; everything else comes from the file.
SPIKINGJELLY = """
import sys, numpy as np, torch
from spikingjelly.activation_based import base, neuron
from spikingjelly.activation_based.nir_exchange import import_from_nir

path, inputs, outputs, dtype = sys.argv[1:]
net = import_from_nir(path, dt=1e-4, dtype=getattr(torch, dtype))
for module in net.modules():
    if isinstance(module, neuron.IFNode):
        module.v_reset = None
x, state, total = torch.from_numpy(np.load(inputs)), None, 0
with torch.no_grad():
    for step in x:
        y, state = net(step, state)
        total = total + y
np.save(outputs, total.numpy())
"""

SNNTORCH = """
import sys, nir, numpy as np, torch, snntorch
from snntorch.import_nir import import_from_nir

path, inputs, outputs, dtype = sys.argv[1:]
net = import_from_nir(nir.read(path)).to(getattr(torch, dtype))
for name, module in list(net.named_modules()):
    if isinstance(module, snntorch.Leaky):
        net.set_submodule(name, snntorch.Leaky(
            beta=module.beta, threshold=module.threshold, reset_mechanism="subtract", init_hidden=True,
            spike_grad=lambda u: (u >= 0).to(u.dtype),
        ))
x, total = torch.from_numpy(np.load(inputs)), 0
with torch.no_grad():
    for step in x:
        y, _ = net(step)
        total = total + y
np.save(outputs, total.numpy())
"""


@pytest.fixture(scope="module")
def simulators(tmp_path_factory) -> Path:
    """The Python of an environment of its own, with both simulators; it borrows torch from this one."""
    folder = tmp_path_factory.mktemp("simulators")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    (Path(site) / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    reached = subprocess.run(
        [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "nir"], check=False
    )
    if reached.returncode:
        pytest.skip("the package index cannot be reached")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "spikingjelly[nir]==2.0.0", "snntorch==1.0.0", "nir", "nirtorch"],
        check=True,
        timeout=900,
    )
    return python


def executed(python: Path, folder: Path, script: str, net: nn.Module, x: Tensor, steps: Tensor) -> Tensor:
    """Sums over time of what another simulator makes of the exported network, given its input at each step."""
    path, inputs, outputs = folder / "net.nir", folder / "in.npy", folder / "out.npy"
    to_nir(net, x, path)
    np.save(inputs, steps.numpy())
    dtype = str(x.dtype).removeprefix("torch.")
    done = subprocess.run(
        [python, "-c", script, path, inputs, outputs, dtype], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(outputs))


@pytest.mark.slow
@pytest.mark.parametrize("neuron", [IF(), IF(0.75)], ids=str)
@pytest.mark.parametrize("norm", ["batch", None])
def test_spikingjelly_counts_the_same_spikes(simulators: Path, tmp_path: Path, neuron: IF, norm: str | None):
    """A convolutional network in float64, where no potential is so near its threshold that rounding tells."""
    net = randomised(network(norm=norm, neuron=neuron)).double()
    x = IMAGES.double()
    spikes = nn.Sequential(*net[:5])
    got = executed(simulators, tmp_path, SPIKINGJELLY, spikes, x, x.expand(8, *x.shape))
    with torch.no_grad():
        want, logits = spikes(x).count, net(x)
    assert 0 < want.mean() < 8
    assert len(want.unique()) > 3
    same(got, want)
    got = executed(simulators, tmp_path, SPIKINGJELLY, net, x, x.expand(8, *x.shape))
    torch.testing.assert_close(got, logits, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_spikingjelly_runs_recorded_spikes(simulators: Path, tmp_path: Path):
    """In float32 with dyadic weights, where all sums are exact."""
    net = nn.Sequential(
        TandemConv2d(2, 6, 3, padding=1), TandemConv2d(6, 5, 3, stride=2), nn.Flatten(), TandemLinear(60, 9)
    )
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(dyadic(*parameter.shape, seed=i))
    spikes = train(8, 4, 2, 8, 9, seed=0).float()
    x = SpikeTrain.from_dense(spikes)
    path, inputs, outputs = tmp_path / "net.nir", tmp_path / "in.npy", tmp_path / "out.npy"
    to_nir(net, x, path)
    np.save(inputs, spikes.numpy())
    subprocess.run([simulators, "-c", SPIKINGJELLY, path, inputs, outputs, "float32"], check=True, timeout=300)
    want = net(x).count.detach()
    assert 0 < want.mean() < 8
    same(torch.from_numpy(np.load(outputs)), want)


@pytest.mark.slow
def test_spikingjelly_adds_branches_and_pools(simulators: Path, tmp_path: Path):
    """A shortcut whose spikes weigh 0.5, means of 2 x 2 and sums of 5 x 5 pixels; dyadic weights, float64."""
    from test_exchange_graphs import IMAGES as images
    from test_exchange_graphs import Residual, filled
    from test_exchange_graphs import images as behind_a_convolution

    x = images.double()
    for net in (Residual(0.5), behind_a_convolution(SpikingAvgPool2d(2), TandemConv2d(4, 6, 3))):
        net = filled(net).double()
        got = executed(simulators, tmp_path, SPIKINGJELLY, net, x, x.expand(8, *x.shape))
        with torch.no_grad():
            want = net(x)
        want = want.count if isinstance(want, SpikeTrain) else want
        assert len(want.unique()) > 2
        same(got, want)


@pytest.mark.slow
def test_graphs_that_spikingjelly_holds_in_memory(simulators: Path):
    """They say nothing of the reset; with it said, they count here what they count there."""
    code = """
import sys, torch
from torch import nn
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir
from tandem_cuda.exchange import from_nir
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), neuron.IFNode(0.5), nn.Flatten(), nn.Linear(360, 8), neuron.IFNode())
graph = export_to_nir(net.double(), torch.rand(1, 2, 9, 10).double())
try:
    from_nir(graph, time_steps=8, encoding="constant")
except ValueError as error:
    assert "reset must be given" in str(error)
else:
    raise AssertionError
ours = from_nir(graph, time_steps=8, encoding="constant", reset="subtract")
for module in net:
    if isinstance(module, neuron.IFNode):
        module.reset()
        module.v_reset = None
x = torch.rand(16, 2, 9, 10).double()
with torch.no_grad():
    want = sum(net(x) for _ in range(8))
    assert len(want.unique()) > 2
    assert torch.equal(ours(x).count, want)
"""
    root = str(Path(tandem_cuda.__file__).parents[1])
    done = subprocess.run(
        [simulators, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("neuron", [LIF(leak=0.75), LIF(0.5, 0.9)], ids=str)
def test_snntorch_counts_the_same_spikes(simulators: Path, tmp_path: Path, neuron: LIF):
    """Leaky neurons, in float64."""
    net = randomised(
        nn.Sequential(
            Encode(16),
            TandemLinear(20, 30, norm="batch", neuron=neuron),
            TandemLinear(30, 25, neuron=neuron),
            TandemLinear(25, 12, neuron=neuron),
        )
    ).double()
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)).double()
    got = executed(simulators, tmp_path, SNNTORCH, net, x, x.expand(16, *x.shape))
    with torch.no_grad():
        want = net(x).count
    assert 0 < want.mean() < 16
    assert len(want.unique()) > 3
    same(got, want)
