"""What cannot be written to NIR or read from it is named."""

import importlib.util
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tandem_cuda
from anns import Net, Pair
from exact import imported_without
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingGlobalMaxPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
)
from tandem_cuda.nn import SpikeCat, SpikeRearrange, SpikeWindows, TandemInterpolate

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
h5py = pytest.importorskip("h5py")

from nir_networks import IMAGES, foreign, network  # noqa: E402
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402 (only where the extra is there)


def refused(net, x, *lines):
    """Each line of the error begins with one of these."""
    with pytest.raises(ValueError, match=r"^to_nir: model must be made of Encode") as caught:
        to_nir(net, x)
    got = str(caught.value).split("\n")[1:]
    assert len(got) == len(lines), got
    for line, want in zip(got, lines, strict=True):
        assert line.startswith(f"  {want}"), got


SPIKES = SpikeTrain.from_dense(torch.ones(8, 1, 4))


def behind(*layers):
    """Layers behind a layer of 4 channels and 8 x 9 pixels."""
    return nn.Sequential(Encode(8), TandemConv2d(2, 4, 3, padding=1), *layers)


MOVES = "NIR has no node that concatenates, moves, selects or pads spikes"
WINDOWS = "NIR has only windows of one size and divisor, with padding only in front of neurons"
IN_FRONT = "NIR has pooling without neurons only in front of weights"
NO_NODE = "NIR has no node for it"
REFUSED = [
    ((SpikingMaxPool2d(2),), "2 (SpikingMaxPool2d): NIR has no max pooling; use average pooling"),
    ((SpikingGlobalMaxPool2d(),), "2 (SpikingGlobalMaxPool2d): NIR has no max pooling"),
    ((SpikeRearrange("channels", 0, 2),), f"2 (SpikeRearrange): {MOVES}"),
    ((TandemInterpolate(4, 4, 4, scale_factor=[2.0, 2.0]),), "2 (TandemInterpolate): NIR has no interpolation"),
    ((TandemConvTranspose2d(4, 2, 2, stride=2),), "2 (TandemConvTranspose2d): NIR has no transposed convolution"),
    (
        (TandemConv2d(4, 2, 3, padding=1, padding_mode="circular"),),
        "2 (TandemConv2d): padding_mode must be 'zeros', got",
    ),
    ((TandemConv2d(4, 4, 1, neuron=IF(initial=0.5)),), "2 (TandemConv2d): initial must be 0, since NIR has no field"),
    ((SpikingAvgPool2d(3, 1, 1, count_include_pad=False),), f"2 (SpikingAvgPool2d): {WINDOWS}"),
    ((SpikingAvgPool2d(2, ceil_mode=True, divisor_override=4),), f"2 (SpikingAvgPool2d): {WINDOWS}"),
    ((SpikingAdaptiveAvgPool2d((3, 5)),), f"2 (SpikingAdaptiveAvgPool2d): {WINDOWS}"),
    ((SpikingAvgPool2d(2, two_phase=True),), "2 (SpikingAvgPool2d): two_phase must be False"),
    ((SpikeWindows(3, 1, 1), TandemConv2d(36, 2, 1)), f"2 (SpikeWindows): {WINDOWS}"),
    (
        (SpikeWindows(2), TandemConv2d(16, 2, 1)),
        "3 (TandemConv2d): its weights must be the same for all positions of a",
    ),
    ((SpikeWindows(2), SpikingAvgPool2d(2)), f"3 (SpikingAvgPool2d): {IN_FRONT}"),
    ((SpikeWindows(2), Decode()), f"3 (Decode): {IN_FRONT}"),
    ((SpikeWindows(2),), f"output: {IN_FRONT}"),
    ((Decode(signed=True),), "2 (Decode): NIR has no word for values of both signs after the last neurons"),
    ((Decode(), nn.AvgPool2d(3, 1, 1)), f"3 (AvgPool2d): {WINDOWS}"),
    ((Decode(), nn.AvgPool2d(3, divisor_override=2)), f"3 (AvgPool2d): {WINDOWS}"),
    ((Decode(), nn.AdaptiveAvgPool2d((8, 5))), f"3 (AdaptiveAvgPool2d): {WINDOWS}"),
    ((Decode(), nn.MaxPool2d(2)), f"3 (MaxPool2d): {NO_NODE}"),
    (
        (Decode(), nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")),
        "3 (Conv2d): padding_mode must be 'zeros', got",
    ),
    (
        (Decode(), nn.Flatten(2), nn.Linear(72, 2)),
        "4 (Linear): its input must be [N, F], got [N, 4, 72]; put nn.Flatten",
    ),
    ((nn.Linear(9, 2),), "2 (Linear): it must come after Decode"),
    ((Decode(), Encode(8)), "3 (Encode): it must come before Decode"),
]


@pytest.mark.parametrize(("layers", "line"), REFUSED, ids=[line for _, line in REFUSED])
def test_what_cannot_be_exported_is_named(layers, line):
    refused(behind(*layers), IMAGES, line)


def test_all_that_cannot_be_exported_is_named():
    """What follows a refused part is checked, too."""
    head = Decode(), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4), nn.Softmax(1)
    net = behind(SpikingMaxPool2d(2), TandemConv2d(4, 8, 1, neuron=IF(initial=0.5)), *head)
    lines = "2 (SpikingMaxPool2d): NIR", "3 (TandemConv2d): initial must be 0"
    refused(net, IMAGES, *lines, f"5 (ReLU): {NO_NODE}", f"8 (Softmax): {NO_NODE}")


def test_calls_that_cannot_be_exported_are_named():
    first, scale = TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5)), nn.Parameter(torch.ones(4, 1, 1))
    parts = {"encode": Encode(8), "first": first, "decode": Decode(), "scale": scale, "cat": SpikeCat(False, False)}
    parts |= {"up": TandemInterpolate(4, 4, 4, scale_factor=[1.0, 1.0])}

    def calls(run):
        return Net(lambda n, x: run(n, n.first(n.encode(x))), **parts)

    moved = "it must flatten neighbouring dimensions, and leave the batch dimension alone"
    for run, *lines in (
        (lambda n, x: n.decode(n.cat(x, x)), f"cat (SpikeCat): {MOVES}"),
        (lambda n, x: n.decode(x) * n.scale, f"mul (call_function): {NO_NODE}"),
        (lambda n, x: n.decode(x).mean(2).relu(), f"mean (call_method): {NO_NODE}", "relu (call_method): NIR has"),
        (lambda n, x: F.dropout(n.decode(x), 0.5, True), "dropout (call_function): it must do nothing in eval mode"),
        (lambda n, x: n.decode(x).flatten(0, 1), f"flatten (call_method): {moved}"),
        (lambda n, x: n.decode(x).reshape(-1, 9, 32), f"reshape (call_method): {moved}"),
        (lambda n, x: n.decode(x) + n.decode(x)[..., :1], f"getitem (call_function): {NO_NODE}", "add (call_function)"),
        (lambda n, x: torch.add(n.decode(x), n.decode(x), alpha=2), f"add (call_function): {NO_NODE}"),
        (lambda n, x: n.decode(x) + 1, "add (call_function): it must add two values of one shape, got [N, 4, 8, 9]"),
        (lambda n, x: torch.cat([n.decode(x), n.decode(x)]), f"cat (call_function): {NO_NODE}"),
        (lambda n, x: (n.decode(x), x), "output: it must be a single value"),
    ):  # fmt: skip
        refused(calls(run), IMAGES, *lines)
    add = Net(lambda n, x: n.add(x, x), add=TandemAdd(TandemConvTranspose2d(4, 4, 1), parts["up"], nn.Identity()))
    with pytest.raises(ValueError, match=r"add \(TandemAdd\): TandemAdd: inputs must be 3, one per branch, got 2"):
        to_nir(nn.Sequential(*behind(), add), IMAGES)
    add.run = lambda n, x: n.add(x, x, x)
    branches = "NIR has no transposed convolution", "NIR has no interpolation"
    net = nn.Sequential(*behind(), add)
    refused(net, IMAGES, *(f"2.add (TandemAdd), branch {i}: {why}" for i, why in enumerate(branches)))


def test_networks_that_cannot_be_exported():
    net = Pair(lambda n, x, y: n.add(x, y), add=TandemAdd(nn.Identity(), nn.Identity()))
    refused(net, SPIKES, "y (placeholder): the model must have only one input")
    refused(nn.Sequential(Encode(8), nn.Flatten()), IMAGES, "output: it must depend on a tandem layer")
    refused(nn.Sequential(Decode(), nn.Linear(4, 2)), SPIKES, "output: it must depend on a tandem layer")
    refused(nn.Sequential(Encode(8), Encode(4)), IMAGES, "1 (Encode): ")
    wide = SpikeTrain.from_dense(torch.ones(8, 1, 3, 4))
    refused(
        nn.Sequential(TandemLinear(4, 4)), wide, "0 (TandemLinear): its input must be [N, F], got [N, 3, 4]; put nn.F"
    )
    layer = TandemLinear(4, 4)
    nn.init.constant_(layer.bias[1:2], math.nan)
    refused(layer, SPIKES, "tandemlinear (TandemLinear): weights and bias must be finite, got NaN or infinite values")
    with pytest.raises(ValueError, match=r"to_nir: model must be traceable by torch\.fx, got the error: "):
        to_nir(Net(lambda n, x: x if x.count.sum() > 0 else None), SPIKES)
    with pytest.raises(ValueError, match=r"to_nir: sample must be \[N, ...\] and not empty, got \[0, 2, 8, 9\]"):
        to_nir(network(), IMAGES[:0])


def test_pairs_are_not_flattened():
    """The train keeps the two parts of each value side by side; a Flatten node would not."""
    bits = torch.ones(8, 1, 4, 2, 3)
    x = SpikeTrain.from_dense(bits).replace(pair_dim=1)
    refused(nn.Sequential(nn.Flatten(), TandemLinear(24, 3)), x, f"0 (Flatten): {MOVES}, as flattening moves")


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
        r"d \(Delay\): this package has no such layer": graph(d=nir.Delay(shape)),
        r"t \(Threshold\): this package has no such layer": graph(
            w=weights, n=nir.IF(shape, shape), t=nir.Threshold(shape)
        ),
    }
    for message, bad in cases.items():
        with pytest.raises(ValueError, match=r"from_nir: source must be made of(.|\n)*" + message):
            from_nir(bad, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")
    looped = graph(w=weights, n=nir.IF(shape, shape))
    looped.edges.append(("n", "w"))
    with pytest.raises(ValueError, match=r"  n, w: on a cycle; recurrent networks are not supported"):
        from_nir(looped, time_steps=8, encoding="spikes", dt=1.0, reset="subtract")


def test_unknown_types_of_nodes_in_files(tmp_path: Path):
    """nir itself refuses them without a name."""
    path = tmp_path / "net.nir"
    to_nir(TandemLinear(4, 3), SPIKES, path)
    with h5py.File(path, "r+") as file:
        for name, kind in (("gate", "TandemGate"), ("pool", "MaxPool2d")):
            file[f"node/nodes/{name}/type"] = kind
    lines = r"(.|\n)*gate \(TandemGate\): this package has no such layer\n  pool \(MaxPool2d\): this package has no"
    with pytest.raises(ValueError, match=r"from_nir: source must be made of" + lines):
        from_nir(path)


def test_pooling_without_neurons():
    """Weights may read it, but no other node."""
    image, ones = np.array([2, 4, 4]), np.ones((2, 2, 2))
    weight = np.ones((2, 1, 1, 1), np.float32)
    nodes = {
        "in": nir.Input(image), "first": nir.Conv2d((4, 4), weight, 1, 0, 1, 2, np.zeros(2)),
        "spikes": nir.IF(np.ones((2, 4, 4)), np.ones((2, 4, 4))), "pool": nir.AvgPool2d(2, 2, 0),
        "conv": nir.Conv2d((2, 2), weight, 1, 0, 1, 2, np.zeros(2)), "n": nir.IF(ones, ones), "out": nir.Output(image),
    }  # fmt: skip
    grouped = r"conv \(Conv2d\): groups must be 1 after pooling without neurons, got 2"
    no_spikes, others = (
        r"pool \(AvgPool2d\): there must be neurons before it",
        r"must be followed by neurons or by weights",
    )
    chains = {grouped: [*nodes], no_spikes: ["in", "pool", "conv", "n", "out"]}
    chains[others] = ["in", "first", "spikes", "pool", "again", "conv", "n", "out"]
    nodes["again"] = nir.AvgPool2d(2, 2, 0)
    for message, names in chains.items():
        graph = nir.NIRGraph({name: nodes[name] for name in names}, list(pairwise(names)), type_check=False)
        with pytest.raises(ValueError, match=message):
            from_nir(graph, time_steps=8, encoding="constant", dt=1.0, reset="subtract")


def test_bad_arguments(tmp_path: Path):
    x = SpikeTrain.from_dense(torch.ones(8, 1, 4))
    net = TandemLinear(4, 4)
    with pytest.raises(TypeError, match=r"to_nir: model must be an nn\.Module, got int"):
        to_nir(3, x)
    with pytest.raises(TypeError, match="to_nir: sample must be a Tensor or a SpikeTrain, got list"):
        to_nir(net, [1])
    with pytest.raises(
        ValueError, match="to_nir: sample must have spikes that all weigh the same, as in NIR, got radix"
    ):
        to_nir(nn.Sequential(nn.Flatten(), Decode(), nn.Linear(4, 2)), x.replace(radix=True))
    with pytest.raises(TypeError, match="to_nir: groups must be True or False, got int"):
        to_nir(net, x, groups=1)
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
    path = Path(tandem_cuda.__file__).parent / "exchange" / "nir_file.py"
    spec = importlib.util.spec_from_file_location("tandem_cuda.nir_file_again", path)
    monkeypatch.setattr(nir, "__version__", version)
    if good:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    else:
        with pytest.raises(ImportError, match=rf"needs nir >= 1\.0\.7 \(got nir {version}.*pip install"):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[nir\]"):
        _ = imported_without(monkeypatch, "tandem_cuda.exchange", "nir").to_nir
