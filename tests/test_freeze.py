"""freeze: the same outputs as eval mode, whole or in chunks of time, also from a file; and files that are none."""

import contextlib
import copy
import errno
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import tandem_cuda
from exact import FLOATS, SEEDS, generator, same, slow, train
from neurons import EVERY_KIND
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    synops,
)
from tandem_cuda.freeze import Node
from tandem_cuda.freeze import file as artefact
from test_networks import build, networks

pytest.importorskip("safetensors")


def result(out):
    """What a network returned, as tensors."""
    return (out.to_dense(), out.count) if isinstance(out, SpikeTrain) else (out,)


def randomised(net, seed=0):
    """Norms in any state, and enough current for neurons to fire."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if hasattr(layer, "neuron"):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, 0.5 / fan_in, 2 / fan_in**0.5)
        if getattr(layer, "norm", None) is not None:
            nn.init.uniform_(layer.norm.weight, -1.5, 1.5)
            nn.init.uniform_(layer.norm.bias, 0, 4)
            nn.init.uniform_(layer.norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    return net


def small_network(mode="constant", norm="batch", neuron=IF(), time_steps=8, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    named = {"norm": norm, "neuron": neuron, "bias": bias}
    net = nn.Sequential(
        *([Encode(time_steps, mode)] if mode != "events" else []),
        TandemConv2d(2, 6, 3, padding=1, **named),
        nn.Sequential(TandemConv2d(6, 8, 3, stride=2, padding=1, **named), nn.Flatten()),
        TandemLinear(8 * 16, 20, **named),
        Decode(),
        nn.Dropout(),
        nn.Linear(20, 5),
    )
    return randomised(net).to(dtype).eval()


def input_of(mode, time_steps=8, batch=4, dtype=torch.float32, seed=1):
    if mode == "events":
        return SpikeTrain.from_dense(train(time_steps, batch, 2, 8, 8, seed=seed).to(dtype))
    return torch.randn(batch, 2, 8, 8, generator=generator(seed), dtype=dtype) * (4 if mode == "impulse" else 1)


def in_chunks(stream, sizes, x=None):
    """The last output of a stream run in chunks of these sizes, in turn; with x, spikes arrive chunk by chunk."""
    out, i = None, 0
    while stream.remaining:
        now = min(sizes[i % len(sizes)], stream.remaining)
        out = stream.advance(now if x is None else x.window(stream.done, stream.done + now))
        i += 1
    return out


MODES = ("constant", "impulse", "events")
every_mode = pytest.mark.parametrize("mode", MODES)


class Everything(nn.Module):
    """An ANN that converts into every kind of layer but one-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(6))
        self.max = nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.short = nn.Conv2d(6, 8, 1, 2, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2)
        self.mean, self.some = nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((2, 3))
        self.drop, self.drop2d = nn.Dropout(), nn.Dropout2d()
        self.hidden, self.last = nn.Linear(36, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = self.max(torch.relu(self.stem(x)))
        x = torch.relu(self.body(x) + self.short(x))
        x = self.mean(self.drop2d(torch.relu(self.second(x) + x)))
        x = torch.flatten(self.some(torch.relu(self.up(x))), 1)
        return self.last(self.drop(torch.relu(self.hidden(x))))


def line():
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 6, 3, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3, padding="same"),
        nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(124, 5),
    )  # fmt: skip


def upwards():
    """Real input for a transposed convolution."""
    return nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 17 * 17, 5)
    )


def converted(make, mode="constant", time_steps=8, calibrated=False, dtype=torch.float32):
    torch.manual_seed(0)
    ann = make().to(dtype).eval()
    for layer in ann.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, 0, 1)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    x = input_of(mode, time_steps, dtype=dtype).count if mode == "events" else input_of(mode, dtype=dtype)
    return convert(ann, time_steps, mode="spikes" if mode == "events" else mode, calibrate=x if calibrated else None)


# --- the same as eval mode -------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    network=networks(),
    encoding=st.sampled_from(MODES),
    batch=st.integers(0, 3),
    dtype=st.sampled_from(FLOATS),
    decode=st.booleans(),
    seed=SEEDS,
)
def test_frozen_networks_compute_what_eval_mode_does(tmp_path_factory, network, encoding, batch, dtype, decode, seed):
    time_steps, sample, layers = network
    if encoding == "events":
        front, x = (), SpikeTrain.from_dense(train(time_steps, batch, *sample, seed=seed).to(dtype))
    else:
        front, x = (Encode(time_steps, encoding),), 3 * torch.randn(batch, *sample, generator=generator(seed)).to(dtype)
    net = randomised(build(tandem_cuda, front, layers, dtype), seed)
    if not decode:
        net = net[:-1]
    frozen = freeze(net.train())  # whatever the mode
    with torch.no_grad():
        want = result(net.eval()(x))
    same(result(frozen(x)), want)
    path = tmp_path_factory.mktemp("frozen") / "net.safetensors"
    frozen.save(path)
    same(result(FrozenNetwork.load(path)(x)), want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("neuron", [neuron.scaled(0.7) for neuron in EVERY_KIND.values()], ids=str)
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("time_steps", [1, 9, 21])
@every_mode
def test_chunks_of_time_are_the_whole(mode, time_steps, norm, neuron, dtype):
    net = small_network(mode, norm, neuron, time_steps, bias=time_steps != 9, dtype=dtype)
    x = input_of(mode, time_steps, dtype=dtype)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    assert want.std() > 0
    for sizes in ((1,), (8,), (3,), (2, 5, 1, 8), (16, 1), (100,)):
        same(in_chunks(frozen.stream(x), sizes), want, str(sizes))
        if mode == "events":
            same(in_chunks(frozen.stream(time_steps=time_steps), sizes, x), want, f"{sizes}, arriving")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("time_steps", [1, 11])
@pytest.mark.parametrize("make", [Everything, line, upwards])
@every_mode
def test_converted_networks(mode, make, time_steps, calibrated, dtype, tmp_path):
    """Whole, from a file, and in chunks."""
    if mode == "events" and make is line:
        pytest.skip("its first layer flattens in another way than trains do")
    net, x = converted(make, mode, time_steps, calibrated, dtype), input_of(mode, time_steps, dtype=dtype)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    assert want.std() > 0
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    same(loaded(x), want)
    for sizes in ((1,), (3, 8)):
        same(in_chunks(loaded.stream(x), sizes), want, str(sizes))


def test_converted_networks_elsewhere():
    """Copied, pickled, exported; left by some samples."""
    net, x = converted(Everything, calibrated=True), input_of("constant", batch=6)
    frozen = freeze(net)
    want = frozen(x)
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        same(twin(x), want)
    same(torch.export.export(frozen, (x,)).module()(x), want)
    stream = frozen.stream(x)
    stream.advance(3)
    stream.select(torch.tensor([4, 1]))
    torch.testing.assert_close(in_chunks(stream, (2,)), want[[4, 1]], rtol=0, atol=1e-5)
    read: list[torch.Tensor] = []
    (decode,) = (module for module in net.snn.modules() if isinstance(module, Decode))
    decode.register_forward_hook(lambda module, args, output: read.append(args[0].count))
    layers = [layer.synops for layer in synops(net, x) if layer.firing_rate is not None]
    curve = frozen.accuracy_curve([(x, torch.zeros(6, dtype=torch.int64))])
    assert len(layers) == 5
    assert curve.over_time[-1].synops == pytest.approx(sum(layers) + float(read[0].sum()) / 6 * 5)


@every_mode
def test_trains_of_chunks_are_those_of_the_whole(mode):
    """A network that ends in a spiking layer; and it does spike."""
    net = small_network(mode, time_steps=21)[:-3]
    x = input_of(mode, 21)
    stream = freeze(net).stream(x)
    chunks = [stream.advance(steps).to_dense() for steps in (1, 9, 3, 8)]
    with torch.no_grad():
        want = net(x).to_dense()
    same(torch.cat(chunks), want)
    assert 0.02 < want.mean() < 0.9


@every_mode
def test_readout_on_the_way_estimates_the_counts_to_come(mode):
    net = small_network(mode, time_steps=10)
    x = input_of(mode, 10)
    with torch.no_grad():
        spikes = net[:-3](x).to_dense()
    stream = freeze(net).stream(x)
    for t in range(1, 11):
        counts = spikes[:t].sum(0) * (1 if mode == "impulse" else 10 / t)
        torch.testing.assert_close(stream.advance(), net[-1](counts).detach(), rtol=1e-5, atol=1e-5)


@every_mode
def test_samples_may_leave_a_stream(mode):
    """What stays is bit for bit what it is without the others."""
    net = small_network(mode, time_steps=11, dtype=torch.float64)
    frozen, x = freeze(net), input_of(mode, 11, batch=6, dtype=torch.float64)
    stream = frozen.stream(x)
    stream.advance(3)
    stream.select(torch.tensor([4, 1, 0]))
    stream.advance(5)
    stream.select(torch.tensor([2, 1]))
    torch.testing.assert_close(in_chunks(stream, (2,)), net(x)[[0, 1]].detach(), rtol=0, atol=1e-12)


def test_it_shares_nothing_and_has_no_parameters():
    net = small_network()
    x = input_of("constant")
    frozen = freeze(net)
    want = frozen(x)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.zero_()
    same(frozen(x), want)
    assert not list(frozen.parameters())
    assert not frozen(x.requires_grad_()).requires_grad
    same(frozen.train()(x), want)


@every_mode
def test_copies_pickles_state_dicts_and_conversions(mode):
    frozen, x = freeze(small_network(mode)), input_of(mode)
    want = frozen(x)
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen).double().float()):
        same(twin(x), want)
    other = freeze(randomised(small_network(mode), seed=5))
    assert not torch.equal(other(x), want)
    other.load_state_dict(frozen.state_dict())
    same(other(x), want)
    double = copy.deepcopy(frozen).double()
    x64 = x.to(torch.float64)
    torch.testing.assert_close(double(x64), small_network(mode).double()(x64).detach(), rtol=0, atol=1e-6)


@every_mode
def test_export_and_compile(mode):
    frozen, x = freeze(small_network(mode)), input_of(mode)
    want = frozen(x)
    if mode != "events":
        exported = torch.export.export(frozen, (x,))
        same(exported.module()(x), want)
    torch.compiler.reset()
    same(torch.compile(frozen, backend="aot_eager", fullgraph=True)(x), want)


def test_channels_last_and_parametrized_models():
    net = small_network().to(memory_format=torch.channels_last)
    nn.utils.parametrizations.weight_norm(net[1])
    x = input_of("constant").contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        same(freeze(net)(x), net(x))


def test_a_layer_that_is_there_twice():
    layer = TandemLinear(6, 6, norm="batch")
    net = randomised(nn.Sequential(Encode(5), TandemLinear(3, 6), layer, layer, Decode())).eval()
    x = torch.randn(7, 3, generator=generator(0))
    with torch.no_grad():
        want = net(x)
        assert not torch.equal(net[:3](x).count, want)
    same(freeze(net)(x), want)


def graph_of(net, calls):
    """A network that calls its modules so, {module: inputs}, as torch.fx writes it down."""
    graph = fx.Graph()
    values = {"x": graph.placeholder("x")}
    for name, inputs in calls.items():
        values[name] = graph.call_module(name, tuple(values[i] for i in inputs))
    graph.output(values[name])
    return fx.GraphModule(net, graph)


def graph_module(net):
    """A network with the calls of a Sequential."""
    names = [name for name, _ in net.named_children()]
    return graph_of(net, {name: (before,) for before, name in zip(["x", *names], names, strict=False)})


@every_mode
def test_graph_modules(mode, tmp_path):
    net, x = small_network(mode), input_of(mode)
    frozen = freeze(graph_module(net))
    with torch.no_grad():
        want = net(x)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    same(FrozenNetwork.load(tmp_path / "net.safetensors")(x), want)


def test_a_layer_alone():
    layer = randomised(TandemLinear(5, 7, norm="batch")).eval()
    x = SpikeTrain.from_dense(train(13, 2, 5, seed=0).float())
    with torch.no_grad():
        same(freeze(layer)(x).bits, layer(x).bits)


@every_mode
def test_on_a_device(mode, tmp_path, device):
    path = tmp_path / "net.safetensors"
    net, x = small_network(mode, time_steps=21).to(device), input_of(mode, 21).to(device)
    for layer in net.modules():
        if hasattr(layer, "engine"):
            layer.engine = "event"  # "auto" may take another engine, with other rounding, for the density of a chunk
    freeze(net).save(path)
    with torch.no_grad():
        want = net(x)
    for frozen in (freeze(net), FrozenNetwork.load(path, device=device)):
        same(frozen(x), want)
        same(in_chunks(frozen.stream(x), (2, 5, 1, 8)), want)
        assert frozen.predict(x).classes.device.type == device


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_needs_no_code_of_the_model(tmp_path):
    frozen, x = freeze(small_network()), input_of("constant")
    frozen.save(tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    description = json.loads(header["__metadata__"]["description"])
    assert header["__metadata__"]["format"] == "tandem_cuda.frozen"
    assert header["__metadata__"]["version"] == "1"  # as version 0.1 reads and writes it
    assert description.keys() == {"nodes", "output"}
    assert [node["kind"] for node in description["nodes"]] == [
        "Encode", "TandemConv2d", "TandemConv2d", "Flatten", "TandemLinear", "Decode", "Linear",
    ]  # fmt: skip
    assert {name.split("/")[1] for name in header if "/" in name} == {"weight", "scale", "bias"}  # not packed
    again = tmp_path / "again.safetensors"
    FrozenNetwork.load(tmp_path / "net.safetensors").save(again)
    written, read = artefact.read(tmp_path / "net.safetensors"), artefact.read(again)
    assert read[0] == written[0]
    assert read[1].keys() == written[1].keys()
    same(FrozenNetwork.load(str(again), device="cpu")(x), frozen(x))


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    freeze(small_network()).save(path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("no space left on device")

    other = freeze(small_network("impulse"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            other.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    other.save(path)
    assert path.read_bytes() != before
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(FileNotFoundError):
        other.save(tmp_path / "nowhere" / "net.safetensors")


FULL = """
import resource, signal, sys, torch
from torch import nn
from tandem_cuda import Decode, Encode, TandemLinear, freeze

frozen = freeze(nn.Sequential(Encode(3), TandemLinear(400, 500), Decode()))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    frozen.save(sys.argv[1])
except OSError as error:
    print(type(error).__name__, error.errno, error.filename, error)
"""


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    frozen = freeze(small_network())
    frozen.save(path)
    before = path.read_bytes()
    ran = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"OSError {errno.EFBIG} {path} "), ran
    assert "FrozenNetwork.save: the file cannot be written: File too large" in ran.stdout
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
    for name, number, kind in (
        ("write", errno.ENOSPC, OSError),
        ("fsync", errno.EDQUOT, OSError),
        ("replace", errno.EACCES, PermissionError),
        ("mkstemp", errno.EROFS, OSError),
    ):

        def fail(*args, number=number, **named):
            raise OSError(number, os.strerror(number), "/some/temporary")

        with monkeypatch.context() as patch:
            owner = {"fsync": os, "replace": artefact.Path, "mkstemp": artefact.tempfile}.get(name)
            if owner is None:
                patch.setattr(artefact.os, "fdopen", lambda fd, *args, **named: Failing(fd, fail))
            else:
                patch.setattr(owner, name, fail)
            with pytest.raises(kind, match=f"FrozenNetwork.save: .*{os.strerror(number)}") as caught:
                frozen.save(path)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="nowhere") as caught:
        frozen.save(tmp_path / "nowhere" / "net")
    assert caught.value.filename == str(tmp_path / "nowhere" / "net")
    frozen.save(path)
    assert list(tmp_path.iterdir()) == [path]


class Failing(io.FileIO):
    """A file that takes a part, then fails, as a disk that fills up."""

    def __init__(self, descriptor, fail):
        super().__init__(descriptor, "wb")
        self.fail = fail

    def write(self, data):
        return super().write(data[:-50]) if len(data) > 500 else self.fail()


def tiny():
    return randomised(
        nn.Sequential(Encode(3), TandemConv2d(1, 2, 2, norm="batch"), nn.Flatten(), TandemLinear(8, 3), Decode())
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A good file's bytes."""
    path = tmp_path_factory.mktemp("good") / "net.safetensors"
    freeze(tiny()).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_truncated_files(tmp_path, data, kept):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(
        ValueError, match=r"FrozenNetwork.load: .*net.safetensors must be a frozen network, got a damag"
    ):
        FrozenNetwork.load(path)


def test_any_damaged_byte_is_noticed(tmp_path, data):
    path = tmp_path / "net.safetensors"
    (size,) = struct.unpack("<Q", data[:8])
    body = 8 + size
    for position in [*range(0, body, 7), *range(body, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"FrozenNetwork.load: .*net.safetensors"):
            FrozenNetwork.load(path)
    path.write_bytes(data)
    FrozenNetwork.load(path)


def test_foreign_files(tmp_path):
    import safetensors.torch

    path = tmp_path / "other"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"must be a frozen network .*got a safetensors file of format None"):
        FrozenNetwork.load(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="format 'pt'"):
        FrozenNetwork.load(path)
    torch.save(small_network().state_dict(), path)
    with pytest.raises(ValueError, match="damaged file or another kind"):
        FrozenNetwork.load(path)
    with pytest.raises(FileNotFoundError):
        FrozenNetwork.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        FrozenNetwork.load(tmp_path)


@pytest.mark.parametrize(
    ("version", "message"),
    [("3", "got '3'; upgrade tandem_cuda: a newer version wrote"), ("x", "got 'x'$"), (0, "got '0'$")],
)
def test_other_versions(tmp_path, version, message):
    artefact.write(tmp_path / "net.safetensors", *contents(tiny(), tmp_path), version=version)
    with pytest.raises(ValueError, match=f"must be of format version 1 to 2, {message}"):
        FrozenNetwork.load(tmp_path / "net.safetensors")


def contents(net, tmp_path):
    freeze(net).save(tmp_path / "good.safetensors")
    return artefact.read(tmp_path / "good.safetensors")


def paths_in(value, at=()):
    """Where the values of a JSON document stand."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_in(item, (*at, key))


FEW_ODD = (None, -1, 7, "same", [1, 2])
ODD = (*FEW_ODD, True, 0, 10**30, 1.5, "", [], {}, {"threshold": 1.0})


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (tiny, FEW_ODD),
        slow(tiny, ODD),
        slow(lambda: converted(Everything), ODD, id="everything"),
        slow(lambda: converted(line), ODD, id="line"),
    ],
)
def test_any_other_description_is_refused(tmp_path, make, values):
    """Every value replaced by each of many, and left out: an error, or (where there is another truth) a network."""
    description, tensors = contents(make(), tmp_path)
    path = tmp_path / "net.safetensors"
    accepted = set()
    for at in paths_in(description):
        for odd in (*values, paths_in):  # the last one: left out
            changed = copy.deepcopy(description)
            place = changed
            for key in at[:-1]:
                place = place[key]
            if odd is paths_in:
                del place[at[-1]]
            elif json.dumps(place[at[-1]]) == json.dumps(odd):
                continue
            else:
                place[at[-1]] = odd
            artefact.write(path, changed, tensors)
            with contextlib.suppress(ValueError):  # no other error
                FrozenNetwork.load(path)
                accepted.add(
                    (at[-1] if isinstance(at[-1], str) else at[-2], "left out" if odd is paths_in else str(odd))
                )
    accepted.discard(("gate", "left out"))  # as version 0.1 did
    # What other networks have too.
    assert {name for name, _ in accepted} <= {
        "time_steps", "scale", "threshold", "amplitude", "stride", "padding", "dilation", "output_padding",
        "kernel_size", "output_size", "ceil_mode", "count_include_pad", "divisor_override", "start_dim",
        "end_dim", "name", "inputs",
    }  # fmt: skip
    assert ("time_steps", "7") in accepted
    whole = {odd for name, odd in accepted if name in ("stride", "padding", "dilation")}
    assert whole <= {"0", "7", "same", "[1, 2]"}


@pytest.mark.parametrize("change", ["missing", "unknown", "foreign", "shape", "dtype", "integers", "mixed"])
def test_tensors_that_do_not_fit(tmp_path, change):
    description, tensors = contents(tiny(), tmp_path)
    weight = tensors["1/weight"]
    changes = {
        "missing": {"1/weight": None},
        "unknown": {"1/other": weight.clone()},
        "foreign": {"9/weight": weight.clone()},
        "shape": {"1/weight": weight[:, :, :1].contiguous()},
        "dtype": {"1/weight": weight.half()},
        "integers": {"1/weight": weight.int()},
        "mixed": {"1/weight": weight.double()},
    }
    changed = {name: x for name, x in (tensors | changes[change]).items() if x is not None}
    artefact.write(tmp_path / "net.safetensors", description, changed)
    with pytest.raises(ValueError, match=r"does not describe a network: .*(must be|must belong)"):
        FrozenNetwork.load(tmp_path / "net.safetensors")


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[freeze\]"):
        freeze(small_network()).save(tmp_path / "net.safetensors")
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[freeze\]"):
        FrozenNetwork.load(tmp_path / "net.safetensors")


# --- errors ----------------------------------------------------------------------------------------------------------


class OwnConv(TandemConv2d):
    """May compute anything."""


def test_what_cannot_be_frozen_is_named():
    net = nn.Sequential(
        OrderedDict(
            stem=nn.Bilinear(1, 2, 3), body=nn.Sequential(Encode(3), OwnConv(2, 3, 1), nn.Flatten()), act=nn.RReLU()
        )
    )
    message = (
        r"freeze: model must contain only tandem layers, .* docs/inference.md, .*nn.frozen.register, "
        r"got stem \(Bilinear\), body.1 \(OwnConv\), act \(RReLU\)$"
    )
    with pytest.raises(ValueError, match=message):
        freeze(net)
    with pytest.raises(TypeError, match=r"freeze: model must be an nn.Module, got list"):
        freeze([net])
    graph = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Identity()))
    freeze(graph)
    graph = fx.symbolic_trace(lambda x, y: torch.trace(x) + torch.diag(y))
    with pytest.raises(ValueError, match=r"got trace \(trace: is not listed in .*, diag \(diag: is not listed in"):
        freeze(graph)
    layer = TandemLinear(3, 4, norm="batch")
    layer.norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="norm must keep running statistics"):
        freeze(layer)
    with pytest.raises(ValueError, match="output must be the name of a node, got '<input>'"):
        freeze(nn.Identity())


def test_networks_that_are_none():
    flatten, encode = (freeze(layer).nodes[0].layer for layer in (nn.Flatten(), Encode(3)))
    other = freeze(Encode(4)).nodes[0].layer
    for nodes, output, message in (
        ([Node("a", flatten, ("b",))], "a", "inputs of 'a' must be inputs of the network or earlier nodes, got 'b'"),
        ([Node("a", flatten, ())], "a", "inputs of 'a' must be inputs of the network or earlier nodes, got none"),
        ([Node("a", flatten, ("<input>",))] * 2, "a", "names of nodes must differ, got 'a' twice"),
        ([Node("a", flatten, ("<input>",))], "b", "output must be the name of a node, got 'b'"),
        (
            [Node("a", encode, ("<input>",)), Node("b", other, ("<input>",))],
            "b",
            r"every Encode must have the same time_steps, got \[3, 4\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            FrozenNetwork(nodes, output)


def test_bad_input():
    encoded, events = freeze(small_network()), freeze(small_network("events"))
    x, spikes = input_of("constant"), input_of("events")
    for call, error, message in (
        (lambda: encoded(spikes), TypeError, "FrozenNetwork: input must be a Tensor, got SpikeTrain"),
        (lambda: events(x), TypeError, "FrozenNetwork: input must be a SpikeTrain .*no Encode.*got Tensor"),
        (lambda: encoded(x.double()), TypeError, "TandemConv2d: input must have the dtype of weight"),
        (lambda: encoded(x[:, :1]), ValueError, r"TandemConv2d: input must be \[N, 2, H, W\]"),
        (lambda: encoded.stream(), TypeError, "stream: x must be given for a network with Encode"),
        (lambda: encoded.stream(x, time_steps=3), TypeError, "stream: time_steps must be left out if x is given"),
        (lambda: encoded.stream(spikes), TypeError, "input must be a Tensor"),
        (lambda: events.stream(), TypeError, "stream: time_steps must be an int, got NoneType"),
        (lambda: events.stream(time_steps=0), ValueError, "stream: time_steps must be at least 1"),
        (
            lambda: encoded.stream(x).advance(9),
            ValueError,
            r"chunk must be 1 to 8 time steps \(all that remain\), got 9",
        ),
        (lambda: encoded.stream(x).advance(0), ValueError, "chunk must be 1 to 8 time steps"),
        (lambda: encoded.stream(x).advance(1.0), TypeError, "chunk must be a number of time steps, got float"),
        (lambda: encoded.stream(x).advance(spikes), TypeError, "chunk must be a number of time steps, got SpikeTrain"),
        (lambda: events.stream(time_steps=9).advance(1), TypeError, "chunk must be a SpikeTrain, got int"),
        (lambda: events.stream(time_steps=7).advance(spikes), ValueError, "chunk must be 1 to 7 time steps"),
        (lambda: encoded.stream(x).select([0]), TypeError, "select: samples must be a Tensor, got list"),
        (lambda: encoded.stream(x).select(torch.ones(4) > 0), TypeError, "select: samples must be int64"),
    ):
        with pytest.raises(error, match=message):
            call()
    stream = events.stream(time_steps=20)
    stream.advance(spikes)
    with pytest.raises(ValueError, match="chunk must hold 4 samples, got 2"):
        stream.advance(input_of("events", batch=2))


# --- windows of spike trains -----------------------------------------------------------------------------------------


@given(time_steps=st.integers(1, 40), cut=st.tuples(st.integers(0, 40), st.integers(0, 40)), seed=SEEDS)
def test_windows_of_a_train(time_steps, cut, seed):
    spikes = train(time_steps, 3, 5, seed=seed).float()
    x = SpikeTrain.from_dense(spikes)
    start, stop = cut
    if not 0 <= start < stop <= time_steps:
        with pytest.raises(ValueError, match=r"SpikeTrain.window: start and stop must be 0 <= start < stop <="):
            x.window(start, stop)
        return
    window = x.window(start, stop)
    want = SpikeTrain.from_dense(spikes[start:stop])
    same(window.bits, want.bits)  # bits past the end are zero
    assert (window.time_steps, window.dtype) == (stop - start, torch.float32)
    same(x.to_dense(), spikes)


def test_bad_windows():
    with pytest.raises(TypeError, match=r"SpikeTrain.window: stop must be an int, got float"):
        SpikeTrain.from_dense(torch.zeros(3, 1, 1)).window(0, 1.0)
