"""What cannot be written to NIR or read from it is named."""

import importlib.util
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tandem_cuda
from anns import Net
from exact import imported_without
from tandem_cuda import (
    Decode,
    Encode,
    SpikeTrain,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
)

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
pytest.importorskip("nirtorch", reason="pip install tandem_cuda[nir]")

from nir_networks import IMAGES, foreign, network  # noqa: E402
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402 (only where the extra is there)


def test_what_cannot_be_exported_is_named():
    def refused(net, x, *lines):
        with pytest.raises(ValueError, match=r"^to_nir: model must be made of Encode") as caught:
            to_nir(net, x)
        got = str(caught.value).split("\n")[1:]
        assert len(got) == len(lines), got
        for line, want in zip(got, lines, strict=True):
            assert line.startswith(f"  {want}"), got

    x = SpikeTrain.from_dense(torch.ones(8, 1, 4))
    skip = Net(lambda n, x: (n.b(n.a(x)), n.a(x)), a=TandemLinear(4, 4), b=TandemLinear(4, 4))
    refused(skip, x, "output: it must be a single value")
    net = nn.Sequential(Encode(8), TandemConv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Softmax(1), nn.Linear(4, 2))
    refused(net, IMAGES, "2 (MaxPool2d): its input must be current, got spikes; put it after Decode")
    net = nn.Sequential(
        Encode(8), TandemConv2d(2, 4, 3), Decode(), nn.Flatten(), nn.RReLU(), nn.MultiheadAttention(2, 1)
    )
    refused(net, IMAGES, "4 (RReLU): NIR has no node for it", "5 (MultiheadAttention): NIR has no node for it")
    net = nn.Sequential(TandemLinear(4, 4), nn.Linear(4, 4))
    refused(net, x, "1 (Linear): its input must be current, got spikes; put it after Decode")
    net = nn.Sequential(TandemLinear(4, 4), Decode(), Encode(8), TandemLinear(4, 4))
    refused(net, x, "2 (Encode): its input must be real, got current")
    net = nn.Sequential(Encode(8), TandemConvTranspose2d(2, 2, 3, stride=2))
    moved = "it must read spikes, which NIR can move like this, got encoded input"
    refused(net, IMAGES, f"1 (TandemConvTranspose2d): {moved}")
    refused(TandemAdd(TandemLinear(4, 4), nn.Identity()), x, "tandemadd (TandemAdd): it must have 2 inputs, got 1")
    net = nn.Sequential(Encode(8), TandemConv2d(2, 2, 3, padding=1, padding_mode="circular"))
    refused(net, IMAGES, f"1 (TandemConv2d): {moved}")
    net = nn.Sequential(
        Encode(8), TandemConv2d(2, 2, 3), Decode(), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    )
    refused(net, IMAGES, "3 (Conv2d): padding_mode must be 'zeros', got 'circular'")
    refused(nn.Sequential(Encode(8), nn.Flatten()), IMAGES, "output: it must depend on a tandem layer")
    wide = SpikeTrain.from_dense(torch.ones(8, 1, 3, 4))
    refused(nn.Sequential(TandemLinear(4, 4)), wide, "0 (TandemLinear): its input must be [N, F], got [1, 3, 4]")
    layer = TandemLinear(4, 4)
    nn.init.constant_(layer.bias[1:2], math.nan)
    refused(layer, x, "tandemlinear (TandemLinear): weights and bias must be finite, got NaN or infinite values")
    with pytest.raises(ValueError, match=r"to_nir: sample must be \[N, ...\] and not empty, got \[0, 2, 8, 9\]"):
        to_nir(network(), IMAGES[:0])


def test_windows_of_different_sizes_in_large_images_are_refused(monkeypatch):
    monkeypatch.setattr("tandem_cuda.exchange.nir_writer._MOST_WEIGHTS", 20_000)
    first, x = TandemConv2d(2, 2, 1), SpikeTrain.from_dense(torch.ones(1, 1, 2, 10, 11))
    message = r"1 \(SpikingAvgPool2d\): its windows of different sizes need 24200 weights in NIR; use windows of one"
    with pytest.raises(ValueError, match=message):
        to_nir(nn.Sequential(first, SpikingAvgPool2d(3, 1, 1, count_include_pad=False)), x)
    to_nir(nn.Sequential(first, SpikingAvgPool2d(3, 1, 1)), x)  # whose padding counts


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
    with pytest.raises(
        ValueError, match="to_nir: sample must have spikes that all weigh the same, as in NIR, got radix"
    ):
        to_nir(nn.Sequential(nn.Flatten(), Decode(), nn.Linear(4, 2)), x.replace(radix=True))
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
