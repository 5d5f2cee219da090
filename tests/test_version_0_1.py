"""State dicts and frozen files that version 0.1 wrote load, and compute what they computed; its names are there."""

import pickle
from itertools import pairwise
from operator import attrgetter
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
from tandem_cuda._moved import MOVED
from tandem_cuda.freeze import register

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


OLD_NAMES = [(old, name) for old, places in MOVED.items() for names in places.values() for name in names.split()]


@pytest.mark.parametrize(("old", "name"), OLD_NAMES)
def test_moved_names(old, name):
    """All names are there, also as attributes without an import of the module; the warning says where they are now."""
    if old == "metrics":
        pytest.importorskip("torchmetrics", reason="pip install tandem_cuda[metrics]")
    found, followed = {}, {}
    with pytest.warns(DeprecationWarning, match=f"tandem_cuda.{old}.{name} has moved: use ") as caught:
        exec(f"from tandem_cuda.{old} import {name}", found)
    place, _, new = str(caught[0].message).rpartition(" use ")[2].rpartition(".")
    exec(f"from {place} import {new}", followed)  # pytest would raise a second warning of a moved name
    assert followed[name] is found[name]
    with pytest.warns(DeprecationWarning, match="has moved"):
        assert attrgetter(f"{old}.{name}")(tandem_cuda) is found[name]


def test_module_names():
    """Without an import of their own."""
    assert tandem_cuda.nn.frozen.register is register


def test_names_that_moved_modules_lack():
    with pytest.raises(ImportError, match="cannot import name 'gone'"):
        exec("from tandem_cuda.anytime import gone")
    with pytest.raises(ModuleNotFoundError, match=r"tandem_cuda\.gone"):
        exec("import tandem_cuda.gone")


def test_the_warning_names_the_line_of_the_user():
    with pytest.warns(DeprecationWarning, match="has moved") as caught:
        from tandem_cuda.activity import synops
    assert caught[0].filename == __file__
    assert synops is tandem_cuda.synops
