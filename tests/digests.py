"""The networks and digits of the digest: what golden/digests.json says of them, and how to compute it.

`make_digests.py` trains the networks and writes the files; golden/README.md defines every byte of a digest.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from elsewhere import Elsewhere
from exact import VANISHING
from tandem_cuda import IF, FrozenNetwork, TandemAdd, convert
from tandem_cuda.neuron import RadixIF

GOLDEN = Path(__file__).parent / "golden"
STEPS = 8
ONE_PHASE = IF(0.3, clip=True, amplitude=0.3, initial=0.5)
TWO_PHASES = IF(0.3, clip=True, amplitude=0.3, initial=0.5, two_phase=True)
RADIX = RadixIF(2.4, clip=True)  # at most 8 times 0.3, as above
# Neurons, weights and the mode of Encode.
NETWORKS = {
    "int8": (ONE_PHASE, "int8", "impulse"),
    "int16": (ONE_PHASE, "int16", "impulse"),
    "two_phase_int8": (TWO_PHASES, "int8", "impulse"),
    "radix_int8": (RADIX, "int8", "impulse"),
    "radix_pixels_int8": (RADIX, "int8", "radix"),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
one_phase = pytest.mark.parametrize("name", [name for name, (neuron, *_) in NETWORKS.items() if not neuron.two_phase])
radix = pytest.mark.parametrize("name", [name for name, (neuron, *_) in NETWORKS.items() if neuron.radix])
KINDS = ("spikes", "counts", "potentials")
LAYERS = ("stem", "conv", "add", "add_1", "hidden")


class Residual(nn.Module):
    """A small residual ANN for digits [N, 1, 28, 28]."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.conv_norm = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.same, self.same_norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.down, self.down_norm = nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.short, self.short_norm = nn.Conv2d(16, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.hidden, self.hidden_norm = nn.Linear(16 * 7 * 7, 32, bias=False), nn.BatchNorm1d(32)
        self.readout = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = self.conv_norm(self.conv(x)).relu()
        x = (self.same_norm(self.same(x)) + x).relu()
        x = (self.down_norm(self.down(x)) + self.short_norm(self.short(x))).relu()
        x = self.hidden_norm(self.hidden(x.flatten(1))).relu()
        return self.readout(x)


def new_network(name):
    neuron, weights, mode = NETWORKS[name]
    example = torch.zeros(1, 1, 28, 28)
    return convert(Residual(), STEPS, mode=mode, neuron=neuron, weights=weights, example=example)


def file_of(name):
    return GOLDEN / f"digits_{name}.safetensors"


def frozen_network(name):
    return FrozenNetwork.load(file_of(name))


def layers_of(net):
    """The spiking layers of a network, frozen or not, by name."""
    layers = {node.name: node.layer for node in net.nodes} if isinstance(net, FrozenNetwork) else net.snn._modules
    return {name: layers[name] for name in LAYERS}


def unfrozen_network(name):
    """A converted network with the integers, scales and biases of the frozen one.

    The largest integer of a channel is 127 or 32639, so quantising them changes nothing.
    """
    net, frozen = new_network(name).eval(), layers_of(frozen_network(name))
    for layer, own in layers_of(net).items():
        tensors = frozen[layer].tensors()
        joins = isinstance(own, TandemAdd)
        for prefix, branch in ((f"{i}.", x) for i, x in enumerate(own.branches)) if joins else [("", own)]:
            if isinstance(branch, nn.Identity):
                continue
            branch.weights.stored().data.copy_(tensors[f"{prefix}weight"])
            branch.norm.weight.data.copy_(tensors[f"{prefix}scale"])
            branch.norm.bias.data.copy_(tensors[f"{prefix}bias"])
            branch.norm.eps = VANISHING  # with its mean of 0 and variance of 1 the norm is scale and bias
    return net


def digits():
    """(images [100, 1, 28, 28], labels [100]). NumPy divides; PyTorch may multiply by the inverse instead."""
    with np.load(GOLDEN / "digits.npz") as file:
        images = file["pixels"].astype(np.float32) / np.float32(255)
        return torch.from_numpy(images), torch.from_numpy(file["labels"].astype(np.int64))


def expected(name, *kinds):
    """Digests by kind: "spikes" of each layer, "counts" or values, and "potentials" of one-phase neurons."""
    found = json.loads((GOLDEN / "digests.json").read_text())[name]
    return {kind: found[kind] for kind in kinds or ("spikes", "counts")}


class Watch:
    """The spikes that the layers of a network, frozen or not, send out."""

    def __init__(self, net, steps=STEPS):
        self.trains = {}
        self.steps = steps
        self.radix = False  # whether the last layer's are radix spikes
        for name, layer in layers_of(net).items():
            layer.register_forward_hook(self._keeper(name))

    def _keeper(self, name):
        def keep(module, inputs, output):
            train = output[0] if isinstance(output, tuple) else output
            self.trains.setdefault(name, []).append(train.to_dense(torch.uint8).cpu())
            self.radix = train.radix

        return keep

    def digests(self, dim=1):
        """Of all calls since the last time: of other samples (dim 1), or of further time steps (dim 0)."""
        spikes = {name: torch.cat(trains, dim).numpy() for name, trains in self.trains.items()}
        assert all(len(steps) == self.steps for steps in spikes.values())
        self.trains = {}
        hidden = spikes["hidden"]
        read = np.packbits(hidden, axis=0)[0] if self.radix else hidden.sum(0, dtype=np.uint8)
        return {
            "spikes": {name: _sha256(np.packbits(x, axis=0, bitorder="little")) for name, x in spikes.items()},
            "counts": _sha256(read),
        }


@torch.no_grad()
def digests_of(net, watch, batch=100, samples=100):
    device = next(net.buffers()).device
    for x in digits()[0][:samples].split(batch):
        net(x.to(device))
    return watch.digests()


def digests_in_parts(net, watch):
    """The same of one-phase neurons in two parts, and of their potentials in between.

    Spikes tell where neurons fire; potentials tell how every single current was rounded.
    """
    stream = net.stream(digits()[0])
    stream.advance(STEPS - 1)
    potentials = {name: stream.state[name][-1] + 0.0 for name in LAYERS}  # -0 becomes 0
    stream.advance(1)
    return watch.digests(dim=0) | {"potentials": {name: _sha256(x.numpy()) for name, x in potentials.items()}}


def check_elsewhere(name, place):
    """Check the digests where all operators that compute spikes run elsewhere."""
    net, (neuron, _, mode) = frozen_network(name), NETWORKS[name]
    watch = Watch(net)
    with Elsewhere(place) as elsewhere:
        if neuron.two_phase:
            assert digests_of(net, watch) == expected(name)
            calls = Counter({"count_product": 5, "radix_spikes" if neuron.radix else "integrate_and_fire": 5})
            calls += Counter(["count_product", "radix_spikes"] if mode == "radix" else ["ordered_product"])
        else:
            assert digests_in_parts(net, watch) == expected(name, *KINDS)
            calls = {"ordered_product": 1, "integrate_and_fire": 2, "spiking_product": 8, "count_product": 2}
    assert elsewhere.calls == calls


def _sha256(array):
    """Of the elements in C order; floats are little-endian."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()
