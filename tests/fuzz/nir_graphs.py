"""Mutants of NIR graphs and files: refused with ValueError, TypeError or OSError, or sound networks."""

import copy
import functools
import tempfile
from pathlib import Path

import h5py
import nir
import numpy as np
import torch
from torch import nn

from tandem_cuda import IF, LIF, Decode, Encode, SpikeTrain
from tandem_cuda import nn as tandem
from tandem_cuda.exchange import from_nir, to_nir

from .draw import Draw
from .mutate import any_value, loaded, mutated_array, mutated_bytes, near, runs


def _models():
    """(network, input)"""
    image = torch.rand(2, 2, 6, 7) * 2
    yield (
        nn.Sequential(
            Encode(4),
            tandem.TandemConv2d(2, 4, 3, padding=1, norm="batch", neuron=IF(0.5)),
            tandem.TandemConv2d(4, 6, (3, 1), 2, 1, groups=2),
            nn.Flatten(),
            tandem.TandemLinear(90, 7, neuron=LIF(0.5, 0.75)),
            Decode(),
            nn.Linear(7, 3),
        ),
        image,
    )
    yield nn.Sequential(Encode(3, "impulse"), tandem.TandemLinear(5, 4, bias=False)), torch.rand(2, 5)
    spikes = SpikeTrain.from_dense((torch.rand(9, 2, 2, 6, 7) < 0.5).float())
    yield nn.Sequential(tandem.TandemConv2d(2, 3, 2, neuron=LIF(1.0, 0.9))), spikes
    folded = tandem.TandemConv2d(12, 4, 2)
    folded.weight.data = folded.weight.data[:, :3].repeat(1, 4, 1, 1)
    yield nn.Sequential(tandem.TandemConv2d(2, 3, 3), tandem.SpikeWindows(2, 1), folded), spikes


@functools.cache
def bases():
    """(graph, bytes of its file, input)"""
    out = []
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        for i, (model, x) in enumerate(_models()):
            path = Path(folder, f"{i}.nir")
            graph = to_nir(model.eval(), x, path)
            out.append((graph, path.read_bytes(), x))
    return out


# ---- Graphs in memory


def _others():
    """Nodes of other kinds."""
    one = np.ones(3)
    yield nir.Threshold(one)
    yield nir.Scale(one)
    yield nir.Delay(one)
    yield nir.I(one)
    yield nir.LI(one, one, one)
    yield nir.CubaLIF(one, one, one, one, one, one, one)
    yield nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    yield nir.Flatten({"input": np.array([2, 6, 7])}, 0, -1)
    yield nir.IF(one, one, np.zeros(3))
    yield nir.Linear(np.ones((3, 4)))
    yield nir.Input({"input": np.array([3])})
    yield nir.Output({"output": np.array([3])})


def _attribute(draw, graph):
    node = graph.nodes[draw.one([*graph.nodes])]
    name = draw.one([*vars(node)] or ["x"])
    value = getattr(node, name, None)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = mutated_array(draw, value) if draw.chance(0.8) else any_value(draw)
    elif isinstance(value, dict) and value and draw.chance(0.7):
        key = draw.one([*value])
        value = {**value, key: mutated_array(draw, value[key]) if draw.chance(0.7) else any_value(draw)}
    elif isinstance(value, tuple):
        value = tuple(near(draw, x) if draw.chance(0.5) else x for x in value)
    else:
        value = near(draw, value)
    setattr(node, name, value)


def _edges(draw, graph):
    names = [*graph.nodes, "x"]
    edges = [edge for edge in graph.edges if isinstance(edge, tuple)]
    kind = draw.int(0, 4)
    if kind == 0 and edges:
        del edges[draw.int(0, len(edges) - 1)]
    elif kind == 1:
        edges.insert(draw.int(0, len(edges)), (draw.one(names), draw.one(names)))
    elif kind == 2 and edges:
        at = draw.int(0, len(edges) - 1)
        edges[at] = draw.one((edges[at][::-1], edges[at] * 2, edges[at][:1], any_value(draw)))
    elif kind == 3:
        edges = edges + edges
    else:
        draw.rng.shuffle(edges)
    graph.edges = edges


def _nodes(draw, graph):
    name, kind = draw.one([*graph.nodes]), draw.int(0, 4)
    if kind == 0:
        graph.nodes[name] = draw.one([*_others()])
    elif kind == 1:
        del graph.nodes[name]
    elif kind == 2:
        graph.nodes[draw.one(("x", "", "a.b", "decode", 5))] = graph.nodes.pop(name)
    elif kind == 3:
        other = draw.one([*graph.nodes])
        graph.nodes[name], graph.nodes[other] = graph.nodes[other], graph.nodes[name]
    else:
        graph.nodes[name] = any_value(draw)


def _metadata(draw, graph):
    metadata = dict(graph.metadata)
    key = draw.one([*metadata, "x"])
    if draw.chance(0.2):
        metadata.pop(key, None)
    else:
        metadata[key] = near(draw, metadata.get(key))
    graph.metadata = metadata if draw.chance(0.95) else any_value(draw)


# ---- Files


def _file(draw, data, path):
    """Datasets and groups of a file removed, replaced or renamed."""
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        for _ in range(draw.one((1, 1, 2))):
            names = []
            file.visit(names.append)
            name = draw.one(names)
            item, kind = file[name], draw.int(0, 3)
            if kind == 0:
                del file[name]
            elif kind == 1:
                file.move(name, draw.one((name + "x", "x/y", draw.one(names) + "/z")))
            elif isinstance(item, h5py.Dataset):
                values = item[()]
                changed = mutated_array(draw, values) if isinstance(values, (np.ndarray, np.number)) else None
                del file[name]
                try:
                    file[name] = any_value(draw) if changed is None or draw.chance(0.4) else changed
                except TypeError:  # nothing that HDF5 has a type for
                    file[name] = draw.one(("x", "IF", "NIRGraph", 3, -1, b"\xff"))


def nir_graphs(draw: Draw):
    """A mutant of a NIR graph or of its file."""
    which = draw.int(0, len(bases()) - 1)
    graph, data, x = bases()[which]
    mutation = draw.one(
        (*[_attribute] * 6, *[_edges] * 2, *[_nodes] * 3, *[_metadata] * 2, _file, _file, mutated_bytes)
    )
    draw.note(base=which, mutation=mutation.__name__)
    if mutation in (_file, mutated_bytes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "mutant.nir")
            if mutation is _file:
                try:
                    _file(draw, data, path)
                except (ValueError, OSError, RuntimeError, KeyError):
                    return  # no change that HDF5 allows
            else:
                path.write_bytes(mutated_bytes(draw, data))
            network = loaded(lambda: from_nir(path))
    else:
        graph = copy.deepcopy(graph)
        for _ in range(draw.one((1, 1, 2))):
            mutation(draw, graph)
            if not graph.nodes or not isinstance(graph.metadata, dict):
                break
        network = loaded(lambda: from_nir(graph))
    draw.note(refused=network is None)
    if network is not None:
        runs(network, _inputs(network, x))


def _inputs(network, x):
    """The input as it was, real or as spikes, in the dtype of the weights."""
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    value = x if isinstance(x, torch.Tensor) else x.count.clamp(max=1)
    encoded = any(isinstance(module, Encode) for module in network)
    if encoded:
        yield value.to(dtype)
    elif isinstance(x, SpikeTrain):
        yield SpikeTrain(x.bits, x.time_steps, dtype=dtype)
    else:
        yield SpikeTrain.from_dense((value > 0.5).expand(4, *value.shape), dtype=dtype)
