"""State dicts and frozen files that version 0.1 wrote load, and compute what they computed; its names are there."""

import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import everywhere, same
from freezable import graph_of
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    freeze,
)
from tandem_cuda.freeze import file, predict, register

safetensors = pytest.importorskip("safetensors.torch")

FOLDER = Path(__file__).parent / "golden" / "version_0_1"


def network():
    """One of every kind of layer with weights, joined and pooled."""
    net = nn.Module()
    net.encode = Encode(11, scale=0.5)
    net.stem = TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=IF(0.75))
    net.depthwise = TandemConv2d(6, 6, 3, stride=(2, 1), padding=1, groups=6, neuron=LIF(1.0, 0.5))
    branches = TandemConv2d(6, 6, 3, padding=1, norm="batch"), nn.Identity(), TandemConv2d(6, 6, 1)
    net.join = TandemAdd(*branches, neuron=IF(1.5))
    net.mean = SpikingAvgPool2d(2)
    net.up = TandemConvTranspose2d(6, 5, 2, 2)
    net.flatten = nn.Flatten()
    net.hidden = TandemLinear(120, 7, norm="batch")
    net.decode = Decode()
    net.readout = nn.Linear(7, 3)
    for layer in net.modules():
        if getattr(layer, "norm", None) is not None:
            layer.norm.eps = 0.25  # the square roots are exact
    names = ["x", *(name for name, _ in net.named_children())]
    calls = {name: (before,) for before, name in pairwise(names)}
    return graph_of(net, calls | {"join": ("depthwise",) * 3}).eval()


@pytest.fixture(scope="module")
def values():
    return safetensors.load_file(FOLDER / "residual_values.safetensors")


def loaded(values):
    net = network()
    net.load_state_dict({k.removeprefix("state."): x for k, x in values.items() if k.startswith("state.")})
    return net


@pytest.mark.parametrize("grad", [True, False])
def test_state_dict(values, grad):
    net, seen = loaded(values), {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: out}))
    want = {k.removeprefix("bits."): x for k, x in values.items() if k.startswith("bits.")}
    assert {"stem", "depthwise", "join", "mean", "up", "hidden"} <= set(want)
    with torch.set_grad_enabled(grad):
        everywhere(values["logits"], lambda: net(values["x"]).detach())
    for name, bits in want.items():
        same(seen[name].bits, bits, name)


def test_frozen_file(values, tmp_path):
    frozen, x = FrozenNetwork.load(FOLDER / "residual.safetensors"), values["x"]
    everywhere(values["logits"], frozen, x)
    stream = frozen.stream(x)
    while stream.remaining:
        logits = stream.advance(min(3, stream.remaining))
    same(logits, values["logits"])
    frozen.save(tmp_path / "again")
    same(FrozenNetwork.load(tmp_path / "again")(x), values["logits"])
    same(freeze(loaded(values))(x), values["logits"])


def test_names_in_pickles():
    """Classes that have moved since are still found where pickles of whole models look for them."""
    moved = {
        "tandem_cuda.nn.pool": ("SpikingMaxPool2d", "SpikingGlobalMaxPool2d"),
        "tandem_cuda.convert.conversion": ("flattened_to",),
    }
    for module, names in moved.items():
        for name in names:
            found = pickle.loads(f"c{module}\n{name}\n.".encode())
            assert found.__name__ == name
            assert found.__module__ != module  # else it has not moved


def test_module_names():
    """Without an import of their own."""
    assert tandem_cuda.nn.frozen.register is register
    assert tandem_cuda.anytime.predict is predict
    assert tandem_cuda.artefact.read is file.read
