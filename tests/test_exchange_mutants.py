"""Damaged NIR graphs: each is refused with an error that says where, or is a network that runs."""

import copy
import functools
import io
import math
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tandem_cuda
from exact import train
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    SpikeTrain,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemLinear,
)
from tandem_cuda.nn import SpikeWindows

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
h5py = pytest.importorskip("h5py")

from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402 (only where the extra is there)


class Images(nn.Module):
    """Every kind of node, and branches that part and join."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TandemConv2d(4, 4, 3, padding=1, groups=2)
        self.add = TandemAdd(TandemConv2d(4, 4, 3, padding=1), nn.Identity(), neuron=LIF(leak=0.5))
        self.pool, self.sums = SpikingAvgPool2d(2), SpikingAvgPool2d(3, threshold=0.5)
        self.flat, self.hidden = nn.Flatten(), TandemLinear(4, 5, neuron=IF(0.5))
        self.decode, self.out = Decode(), nn.Linear(5, 3)

    def forward(self, x: SpikeTrain) -> torch.Tensor:
        y = self.first(x)
        return self.out(self.decode(self.hidden(self.flat(self.sums(self.pool(self.add(y, x)))))))


class Lines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TandemConv1d(4, 6, 3, padding=1), TandemConv1d(6, 2, 2, stride=2, groups=2)

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        return self.second(self.first(x))


class Windows(nn.Module):
    """Averages without neurons, in front of a convolution and of a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.two, self.second = TandemConv2d(4, 2, 3, padding=1), SpikeWindows(2), TandemConv2d(8, 3, 2)
        self.three, self.flat, self.last = SpikeWindows((1, 2), (1, 1)), nn.Flatten(), TandemLinear(12, 3)
        for layer, windows in ((self.second, 4), (self.last, 2)):
            weight = layer.weight.data[:, : layer.weight.shape[1] // windows]
            layer.weight.data = weight.repeat(1, windows, *[1] * (weight.dim() - 2))

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        return self.last(self.flat(self.three(self.second(self.two(self.first(x))))))


NETWORKS = {"Images": (Images, (4, 6, 7)), "Lines": (Lines, (4, 9)), "Windows": (Windows, (4, 6, 7))}
every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def graph_of(name: str) -> tuple[nir.NIRGraph, SpikeTrain]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    x = SpikeTrain.from_dense(train(8, 2, *shape, seed=0).float())
    return to_nir(make().eval(), x), x


NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 0.5, -0.0, 3.0, 1e-320, 1e308, 2**31, 2**63, 10**400, -(2**70), math.nan, math.inf, -math.inf),
    *(
        None,
        "1",
        "",
        b"same",
        "same",
        "reflect",
        True,
        1j,
        [],
        [1],
        [1, 2],
        [1, 2, 3],
        [[1, 2], [3]],
        (0, 0),
        {},
        {"input": 3},
    ),
    *(np.array(2), np.array([2.5]), np.zeros(0), np.zeros((0, 3)), np.ones((1, 1, 1, 1, 1)), np.array("x")),
    *(np.array([2**62]), np.array([True]), np.array([None]), np.ones(4, np.complex64), np.ones((2, 2), np.float16)),
    *(torch.ones(2), torch.tensor([math.nan]), torch.ones(3, dtype=torch.bfloat16), object(), IF),
)


def _changed(array: np.ndarray) -> Iterator[np.ndarray]:
    """Arrays that are nearly right."""
    for value in (math.nan, math.inf, -1.0, 0.0, 1e300):
        damaged = array.astype(np.float64)
        damaged.reshape(-1)[:1] = value
        yield damaged
        yield np.full(array.shape, value)
    yield from (array[:-1], array[..., :-1], array[None], array.reshape(-1), array[:0], np.concatenate([array, array]))
    yield from (array.astype(np.int8), array.astype(np.float16), array.astype(str), array.astype(object), -array)
    yield array.swapaxes(0, -1)


Mutation = tuple[str, str, Callable[[nir.NIRGraph], Any]]
"""A description, the node whose name an error must have, and what it does."""


def mutations(graph: nir.NIRGraph) -> Iterator[Mutation]:
    folded = {source for source, reader in graph.edges if source.endswith("_windows") and "neurons" not in reader}
    for name, node in graph.nodes.items():
        blamed = "" if name in folded else name  # of another size, neurons behind its reader may be what does not fit
        for field, value in vars(node).items():
            values = [*NUMBERS, *(_changed(value) if isinstance(value, np.ndarray) and value.ndim else ())]
            for i, new in enumerate(values):
                yield (
                    f"{name}.{field} {i}: {new!r}"[:90],
                    blamed,
                    lambda g, n=name, f=field, v=new: setattr(g.nodes[n], f, v),
                )
            yield f"{name}: no {field}", name, lambda g, n=name, f=field: delattr(g.nodes[n], f)
        yield f"{name} missing", name, lambda g, n=name: g.nodes.pop(n)
        yield f"{name} an int", name, lambda g, n=name: g.nodes.update({n: 3})
        for other, replacement in graph.nodes.items():
            yield f"{name} is {other}", "", lambda g, n=name, r=replacement: g.nodes.update({n: copy.deepcopy(r)})
        for other in graph.nodes:
            yield f"{name} to {other}", "", lambda g, e=(name, other): g.edges.append(e)
        for odd in ("", "a.b", "forward", "if", "train", "a b", "0", "é\n", 3, None):
            yield f"{name} named {odd!r}", "", lambda g, n=name, o=odd: _rename(g, n, o)
    for i in range(len(graph.edges)):
        yield f"edge {i} missing", "", lambda g, i=i: g.edges.pop(i)
        yield f"edge {i} twice", "", lambda g, i=i: g.edges.append(g.edges[i])
        for edge in (
            (),
            ("a",),
            ("a", "b"),
            ("a", "b", "c"),
            None,
            3,
            (1, 2),
            ([], []),
            "ab",
            (graph.edges[i][0], "x"),
        ):
            yield f"edge {i} is {edge}", "", lambda g, i=i, e=edge: g.edges.__setitem__(i, e)
    for key in ("time_steps", "dt", "encoding", "reset"):
        for value in NUMBERS:
            yield f"metadata {key}: {value!r}"[:90], "", lambda g, k=key, v=value: g.metadata.update({k: v})
        yield f"no metadata {key}", "", lambda g, k=key: g.metadata.pop(k)
    for field in ("nodes", "edges", "metadata"):
        for value in NUMBERS:
            yield f"{field}: {value!r}"[:90], "", lambda g, f=field, v=value: setattr(g, f, v)


def _rename(graph: nir.NIRGraph, name: str, new: Any) -> None:
    graph.nodes = {new if key == name else key: node for key, node in graph.nodes.items()}
    graph.edges = [tuple(new if end == name else end for end in edge) for edge in graph.edges]


def verdict(source: Any, x: SpikeTrain, node: str, what: str) -> bool:
    """Whether it was refused, as it must be, rather than imported."""
    try:
        net = from_nir(source)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert message.startswith("from_nir: "), f"{what}: {message}"
        assert re.search(r"must|may|there", message), f"{what}: {message}"
        assert node in message, f"{what}: {message}"
        return True
    channels, *size = x.shape[1:]
    for module in net.modules():  # it may be for other inputs
        if isinstance(module, (TandemConv1d, TandemConv2d)):
            channels = module.in_channels
            break
    with torch.no_grad():
        y = net(SpikeTrain.from_dense(train(net_steps(source), 2, channels, *size, seed=0).to(dtype_of(net))))
    assert (y.count if isinstance(y, SpikeTrain) else y).isfinite().all(), what
    return False


def net_steps(source: Any) -> int:
    graph = source if isinstance(source, nir.NIRGraph) else nir.read(source, type_check=False)
    return min(int(np.asarray(graph.metadata["time_steps"]).reshape(-1)[0]), 64)


def dtype_of(net: nn.Module) -> torch.dtype:
    return next((x.dtype for x in net.parameters()), torch.float32)


def sample(found: list[Any], count: int | None) -> list[Any]:
    """All, or always the same few."""
    return found if count is None else random.Random(0).sample(found, min(count, len(found)))


COUNTS = [pytest.param(30, id="some"), pytest.param(None, id="all", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("count", COUNTS)
@every_network
def test_graphs_in_memory(name: str, count: int | None) -> None:
    graph, x = graph_of(name)
    assert not verdict(graph, x, "", "as it is")
    verdicts = []
    for what, node, mutate in sample(list(mutations(graph)), count):
        mutant = copy.deepcopy(graph)
        mutate(mutant)
        verdicts.append(verdict(mutant, x, node, what))
    assert count is not None or len(verdicts) > 2000
    assert 0.3 * len(verdicts) < sum(verdicts) < len(verdicts)


def edits(graph: nir.NIRGraph, path: Path) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
    """Of the datasets of a file: a description, the node, and what to do with the open file."""
    nir.write(path, graph)
    names: list[str] = []
    with h5py.File(path) as file:
        file.visit(names.append)
        whole = [name for name in names if isinstance(file[name], h5py.Dataset)]
    for name in names:
        node = name.split("/")[2] if name.startswith("node/nodes/") and name.count("/") > 2 else ""
        yield f"no {name}", "", lambda file, n=name: file.pop(n)
        for value in (0, -1, 2**40, math.nan, 1e300, "x", b"y", [1, 2, 3], np.zeros((0, 2)), np.zeros((3, 1, 2)), 1j):
            if name in whole:
                yield f"{name}: {value!r}", node, lambda file, n=name, v=value: _replace(file, n, v)


def _replace(file: Any, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


@pytest.mark.parametrize("count", COUNTS)
@every_network
def test_files(tmp_path: Path, name: str, count: int | None) -> None:
    """Their datasets replaced by others, then bytes overwritten, then cut."""
    graph, x = graph_of(name)
    path = tmp_path / "net.nir"
    verdicts = []
    found = list(edits(graph, path))
    contents = path.read_bytes()
    for what, _, edit in sample(found, count):
        damaged = io.BytesIO(contents)
        with h5py.File(damaged, "r+") as file:
            edit(file)
        path.write_bytes(damaged.getbuffer())
        verdicts.append(verdict(path, x, "", what))
    assert 0.3 * len(verdicts) < sum(verdicts) < len(verdicts)
    draw = random.Random(0)
    for i in range(count or 1000):
        changed = bytearray(contents)
        for _ in range(1 + i % 5):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed if i % 3 else changed[: draw.randrange(len(changed))])
        verdict(path, x, "", f"bytes {i}")


def test_a_dataset_larger_than_its_file(tmp_path):
    path = tmp_path / "net.nir"
    to_nir(nn.Sequential(tandem_cuda.Encode(4), TandemLinear(3, 2)), torch.rand(1, 3), path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/input/shape"]
        file["node/nodes/input"].create_dataset("shape", (2**40,), chunks=(1024,), dtype="int64")
    with pytest.raises(ValueError, match=r"from_nir: source must be a NIR file, .*shape claims 8796093022208 bytes"):
        from_nir(path)


def test_free_space_of_no_size(tmp_path):
    """HDF5 itself would never come back."""
    path = tmp_path / "net.nir"
    to_nir(nn.Sequential(tandem_cuda.Encode(4), TandemLinear(3, 2)), torch.rand(1, 3), path)
    contents = bytearray(path.read_bytes())
    at = contents.index(b"GCOL") + 16
    while struct.unpack_from("<H", contents, at)[0] != 0:
        at += 16 + -(-struct.unpack_from("<Q", contents, at + 8)[0] // 8) * 8
    struct.pack_into("<Q", contents, at + 8, 0)
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=rf"from_nir: source must be a NIR file, .*damaged at byte {at}"):
        from_nir(path)


def test_strings_of_a_damaged_type(tmp_path):
    """HDF5 itself would crash."""
    path = tmp_path / "net.nir"
    to_nir(nn.Sequential(tandem_cuda.Encode(4), TandemLinear(3, 2)), torch.rand(1, 3), path)
    contents = path.read_bytes()
    string = bytes.fromhex("19 01 01 00 10 00 00 00 10 00 00 00 01 00 00 00 00 00 08 00")  # of any length, in UTF-8
    places = [match.start() + 1 for match in re.finditer(re.escape(string), contents)]
    assert len(places) > 3
    for at in places:
        path.write_bytes(contents[:at] + b"\xcf" + contents[at + 1 :])
        with pytest.raises(ValueError, match=r"from_nir: source must be a NIR file, .* must hold numbers or strings"):
            from_nir(path)
