"""Mutants of frozen networks' files: refused with ValueError, TypeError or OSError, or sound networks."""

import contextlib
import copy
import functools
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from tandem_cuda import IF, LIF, Decode, Encode, FrozenNetwork, RadixIF, SpikeTrain, convert, freeze
from tandem_cuda import nn as tandem
from tandem_cuda.freeze import file as artefact

from .draw import Draw
from .mutate import any_value, loaded, mutated_array, mutated_bytes, mutated_tree, near, places, runs

CHAIN = 5000  # nodes of the long chain that a file may hold


class _Residual(nn.Module):
    """An ANN with a join."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.short = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.hidden, self.last = nn.BatchNorm2d(4), nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.body(x)) + self.short(x))
        return self.last(torch.relu(self.hidden(x.flatten(1))))


def _networks():
    """(network, input) of every kind of layer."""
    image, line = torch.rand(2, 2, 8, 8) * 2, torch.rand(2, 3, 12)
    events = SpikeTrain.from_dense((torch.rand(5, 2, 2, 8, 8) < 0.5).float())
    named = {"norm": "batch"}
    yield (
        nn.Sequential(
            Encode(4),
            tandem.TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.5), **named),
            tandem.TandemConv2d(4, 6, 3, 2, 1, groups=2, **named),
            nn.Flatten(),
            tandem.TandemLinear(96, 7, **named),
            Decode(),
            nn.Linear(7, 3),
        ),
        image,
    )
    yield (
        nn.Sequential(
            Encode(9, "impulse", 0.5),
            tandem.TandemConv1d(3, 4, 3, padding="same", neuron=LIF(0.5, 0.75)),
            nn.Flatten(),
            tandem.TandemLinear(48, 5),
        ),
        line,
    )
    yield (
        nn.Sequential(
            tandem.TandemConvTranspose2d(2, 3, 3, 2, 1, 1),
            tandem.SpikingAvgPool2d(2),
            tandem.SpikingMaxPool2d(3, 1, 1),
            tandem.SpikingAdaptiveAvgPool2d((3, 2)),
            nn.Flatten(),
            tandem.TandemLinear(18, 4),
            Decode(),
        ),
        events,
    )
    yield (
        nn.Sequential(
            Encode(4),
            tandem.TandemConv3d(2, 3, (2, 3, 3), padding=(0, 1, 1), **named),
            tandem.SpikingMaxPool3d((1, 2, 2)),
            tandem.SpikingAvgPool3d((1, 2, 2)),
            tandem.SpikingAdaptiveAvgPool3d((2, 1, 1)),
            nn.Flatten(),
            tandem.TandemLinear(6, 4),
            Decode(),
        ),
        torch.rand(2, 2, 3, 8, 8),
    )
    yield convert(_Residual().eval(), time_steps=4, example=image), image
    yield (
        nn.Sequential(
            Encode(8, "radix"),
            tandem.TandemConv2d(2, 4, 3, padding=1, neuron=RadixIF(2.0), **named),
            tandem.SpikingAvgPool2d(2, threshold=0.5, initial=0.5),
            tandem.SpikingMaxPool2d(2, 1),
            tandem.TandemConv2d(4, 6, 2, neuron=IF(0.5, initial=0.5, two_phase=True)),
            nn.Flatten(),
            tandem.TandemLinear(24, 7, neuron=RadixIF(initial=0.25)),
            Decode(),
            nn.Linear(7, 3),
        ),
        image / 2,
    )
    yield convert(_Residual().eval(), time_steps=4, neuron=RadixIF(), example=image), image


@functools.cache
def bases():
    """(description, tensors, metadata, bytes, input) of sound files."""
    out = []
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        for i, (network, x) in enumerate(_networks()):
            path = Path(folder) / f"{i}.safetensors"
            freeze(network.eval()).save(path)
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata())
            description, tensors = artefact.read(path)
            out.append((description, tensors, metadata, path.read_bytes(), x))
    return out


def sealed(text, tensors, metadata):
    """The bytes of a file with this description and these tensors, whose digest is right."""
    digest = artefact.digest(text, tensors)
    return safetensors.torch.save(tensors, {**metadata, "description": text, "sha256": digest})


# ---- Mutations: (bytes of a file)


def _raw(draw, description, tensors, metadata, data):
    return mutated_bytes(draw, data)


def _metadata(draw, description, tensors, metadata, data):
    changed = dict(metadata)
    key = draw.one([*metadata, "x"])
    if draw.chance(0.3):
        changed.pop(key, None)
    else:
        changed[key] = draw.one(("", "0", "2", "x", "1.0", "\uff19", "9" * 5000, '{"nodes": [], "output": ""}', "null"))
    return safetensors.torch.save(tensors, changed)


def _json(draw, description, tensors, metadata, data):
    return sealed(json.dumps(mutated_tree(draw, description)), tensors, metadata)


def _settings(draw, description, tensors, metadata, data):
    """One setting of one layer, mostly by a little."""
    changed = copy.deepcopy(description)
    node = draw.one([node for node in changed["nodes"] if node["settings"]])
    container, key = draw.one(list(places(node["settings"])))
    container[key] = near(draw, container[key])
    return sealed(json.dumps(changed), tensors, metadata)


def _text(draw, description, tensors, metadata, data):
    text = json.dumps(description)
    at = draw.int(0, len(text))
    pieces = ("", "[" * 100_000, '"name": 1, ', "\\ud800", "1e999", "NaN", "-", "\x00", "}", "9" * 5000)
    return sealed(text[:at] + draw.one(pieces) + text[at + draw.one((0, 0, 1, 3)) :], tensors, metadata)


def _tensors(draw, description, tensors, metadata, data):
    changed = dict(tensors)
    name = draw.one([*changed])
    kind = draw.int(0, 5)
    if kind <= 2:
        changed[name] = torch.from_numpy(mutated_array(draw, changed[name].numpy())).clone()
    elif kind == 3:
        changed[draw.one(("x", "x/y", name + "/z", name.replace("/", ""), ""))] = changed.pop(name)
    elif kind == 4:
        other = draw.one([*changed])
        changed[name], changed[other] = changed[other], changed[name]
    elif draw.chance(0.5):
        del changed[name]
    else:
        changed[name] = changed[name].to(draw.one((torch.bfloat16, torch.float16, torch.float64, torch.int32)))
    text = json.dumps(description if draw.chance(0.8) else mutated_tree(draw, description))
    return sealed(text, {k: x.clone(memory_format=torch.contiguous_format) for k, x in changed.items()}, metadata)


def _graph(draw, description, tensors, metadata, data):
    """Nodes removed, doubled, reordered or connected in other ways."""
    nodes = [dict(node) for node in description["nodes"]]
    names = ["<input>", *(node["name"] for node in nodes)]
    output = description["output"]
    for _ in range(draw.one((1, 1, 2))):
        node, kind = draw.one(nodes), draw.int(0, 5)
        if kind == 0:
            node["inputs"] = [draw.one(names) for _ in range(draw.one((0, 1, 1, 2)))]
        elif kind == 1 and len(nodes) > 1:
            nodes.remove(node)
        elif kind == 2:
            draw.rng.shuffle(nodes)
        elif kind == 3:
            output = draw.one(names)
        elif kind == 4:
            node["kind"] = draw.one([other["kind"] for other in nodes] + ["SpikingMaxPool2d", "TandemAdd", "Flatten"])
        else:
            node["name"] = draw.one((*names, "", "a/b", any_value(draw)))
    return sealed(json.dumps({**description, "nodes": nodes, "output": output}), tensors, metadata)


def _chain(draw, description, tensors, metadata, data):
    """A chain of thousands of nodes in front of the output."""
    count = CHAIN if draw.chance(0.2) else 100
    name, nodes = description["output"], list(description["nodes"])
    for i in range(count):
        settings = {"start_dim": 1, "end_dim": -1}
        nodes.append({"name": f"chain{i}", "kind": "Flatten", "inputs": [name], "settings": settings})
        name = f"chain{i}"
    return sealed(json.dumps({**description, "nodes": nodes, "output": name}), tensors, metadata)


MUTATIONS = [
    *[_raw] * 10,
    *[_metadata] * 5,
    *[_json] * 20,
    *[_settings] * 25,
    *[_text] * 5,
    *[_tensors] * 15,
    *[_graph] * 20,
    _chain,
]


def files(draw: Draw):
    """A mutant of a frozen network's file."""
    which = draw.int(0, len(bases()) - 1)
    *base, x = bases()[which]
    mutation = draw.one(MUTATIONS)
    draw.note(base=which, mutation=mutation.__name__)
    data = mutation(draw, *base)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        network = loaded(lambda: FrozenNetwork.load(file.name))
    draw.note(refused=network is None)
    if network is not None:
        runs(network, itertools.chain([x] * _takes(network, x), _inputs(network)))


def _takes(network, x):
    """Whether it is made for such inputs: real ones where it has an Encode, else spikes."""
    return isinstance(x, torch.Tensor) == (network.time_steps is not None)


def _inputs(network):
    """Inputs that a network may be made for: for a changed one other shapes than before."""
    dtype = next((x.dtype for x in network.buffers() if x.dtype.is_floating_point), torch.float32)
    channels = {2, 3, 4, 6}
    with contextlib.suppress(AttributeError):
        for module in network.modules():
            channels |= {
                x for x in (getattr(module, "in_channels", 0), getattr(module, "in_features", 0)) if 0 < x < 500
            }
    spatial = [(), (12,), (8, 8), (4, 4), (16, 16), (5, 7), (24, 24)]
    rng = np.random.default_rng(0)
    for size, c in itertools.product(spatial, sorted(channels)):
        shape = (2, c, *size)
        if network.time_steps is not None:
            yield torch.from_numpy(rng.random(shape)).to(dtype)
        else:
            yield SpikeTrain.from_dense(torch.from_numpy(rng.random((5, *shape)) < 0.5), dtype=dtype)
