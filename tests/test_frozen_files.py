"""Files of frozen networks whose contents were changed: what loads also runs, and what does not says why."""

import contextlib
import copy
import itertools
import json
import math
import re
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import generator, same, train
from freezable import graph_of, paths_in, randomised
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    convert,
    freeze,
    quantise,
)
from tandem_cuda.freeze import Node
from tandem_cuda.freeze import file as artefact

safetensors = pytest.importorskip("safetensors")


def write(path, description, tensors):
    """A file with the right checksum, whatever it holds."""
    import safetensors.torch

    text = json.dumps(description)  # NaN and Infinity too
    metadata = {"format": artefact.FORMAT, "version": artefact.VERSION, "description": text}
    metadata["sha256"] = artefact.digest(text, tensors)
    safetensors.torch.save_file(tensors, path, metadata)


def images():
    return nn.Sequential(
        Encode(3, scale=0.5), TandemConv2d(1, 2, 2, norm="batch"), SpikingMaxPool2d(2, 1), SpikingAvgPool2d(2, 1),
        TandemConvTranspose2d(2, 3, 2, 2), SpikingAdaptiveAvgPool2d(2), nn.Flatten(), TandemLinear(12, 3), Decode(),
        nn.Linear(3, 2),
    )  # fmt: skip


def lines():
    return nn.Sequential(
        TandemConv1d(2, 4, 3, padding=1, groups=2, padding_mode="circular"), TandemConv1d(4, 3, 2, padding="same"),
        nn.Flatten(), TandemLinear(15, 3, norm="batch"),
    )  # fmt: skip


def residual():
    net = nn.Module()
    net.stem, net.decode = TandemConv2d(2, 3, 3, 1, 1), Decode()
    net.add = TandemAdd(TandemConv2d(3, 3, 3, 1, 1, norm="batch"), nn.Identity(), TandemConv2d(3, 3, 1), neuron=IF())
    return graph_of(net, {"stem": ("x",), "add": ("stem", "stem", "stem"), "decode": ("add",)})


class Moved(nn.Module):
    """Neurons moved and concatenated, and values of both signs."""

    def __init__(self):
        super().__init__()
        self.first, self.values = nn.Conv2d(1, 4, 2), nn.Conv2d(6, 2, 1)
        self.norm, self.fc = nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.pad(torch.cat([x, x.chunk(2, 1)[1]], 1), (1, 0, 0, 1))
        return self.fc(F.relu(self.norm(F.interpolate(self.values(x), scale_factor=2))).amax((2, 3)))


def moved():
    return convert(Moved().eval(), 3, neuron=IF(initial=0.5), example=torch.zeros(1, 1, 8, 8))


NETWORKS = {"images": images, "lines": lines, "residual": residual, "moved": moved}
DIMS = {"images": (1, 2), "lines": (2, 1), "residual": (2, 2), "moved": (1, 2)}
"""Channels of the input, and its dimensions behind them."""


def firing(net):
    """With weights that let neurons fire."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.3, 1)
    return net


@pytest.fixture(scope="module", params=NETWORKS)
def good(request, tmp_path_factory):
    """Name, description and tensors of a good file."""
    path = tmp_path_factory.mktemp("good") / "net.safetensors"
    freeze(firing(NETWORKS[request.param]())).save(path)
    return request.param, *artefact.read(path)


def inputs(name, frozen):
    """Of the sizes that a network might take."""
    given, dims = DIMS[name]
    sizes = [(n,) for n in range(1, 65)] if dims == 1 else [(n, n) for n in range(1, 33)]
    sizes += [] if dims == 1 else [(n, m) for n in range(1, 9) for m in range(1, 9)]
    for channels, size in itertools.product((given, *{1, 2, 3, 4} - {given}), sizes):
        if frozen.time_steps is None:
            yield SpikeTrain.from_dense(train(5, 2, channels, *size, seed=0).float())
        else:
            yield torch.randn(2, channels, *size, generator=generator(0))


def runs(name, frozen):
    """Whether it takes any of these inputs, whole and in chunks."""
    for x in inputs(name, frozen):
        with contextlib.suppress(Exception):  # whatever is said of an image that is too small
            frozen(x)
            stream = frozen.stream(x)
            while stream.remaining:
                stream.advance(min(2, stream.remaining))
            return True
    return False


def checked(name, path, description, tensors, what, small=True):
    """Load what was changed; it must run, where a small input can be enough. Returns why it does not load."""
    write(path, description, tensors)
    try:
        frozen = FrozenNetwork.load(path)
    except ValueError as error:
        return str(error)
    assert not small or runs(name, frozen), f"{what} loads, but does not run"
    return None


ODD = (
    *(None, True, "same", "", [], {}, [1, 2], {"threshold": 1.0}),
    *(-1, 0, 1, 2, 7, 2**30, 2**62, 10**30, -0.5, 0.0, 1.5, 1e-320, 1e300, math.nan, math.inf, -math.inf),
)
LEFT_OUT = object()


def changed(description, at, value):
    """A copy with one value replaced or left out; None where it had that one."""
    result = copy.deepcopy(description)
    place = result
    for key in at[:-1]:
        place = place[key]
    if value is LEFT_OUT:
        del place[at[-1]]
    elif json.dumps(place[at[-1]]) == json.dumps(value):
        return None
    else:
        place[at[-1]] = value
    return result


QUICK = (None, 7, -1, 2**30, 1e300, math.inf)
VALUES = [pytest.param(x, id=str(x), marks=() if x in QUICK and x is not True else pytest.mark.nightly) for x in ODD]


@pytest.mark.parametrize("value", [*VALUES, pytest.param(LEFT_OUT, id="left out")])
def test_every_setting_replaced(tmp_path, good, value):
    name, description, tensors = good
    for at in paths_in(description):
        edit = changed(description, at, value)
        if edit is None:
            continue
        large = value == 2**30 and {*at} & {"stride", "dilation"}
        # Amplitudes are compared with those of the spikes that arrive; two-phase neurons do not run in chunks.
        small = not large and at[-1] not in ("amplitudes", "two_phase")
        message = checked(name, tmp_path / "net", edit, tensors, f"{at} = {value}", small=small)
        if message is not None and len(at) > 3:  # a node is named, this one or one behind that it does not fit
            later = [node["name"] for node in description["nodes"][at[1] :]]
            assert any(f"'{node}'" in message for node in later), (at, value, message)
            assert "must" in message or str(at[-1]) in message or at[3] in message, (at, value, message)


def test_every_edge_replaced(tmp_path, good):
    name, description, tensors = good
    names = ["<input>", *(node["name"] for node in description["nodes"]), "nobody"]
    for i, node in enumerate(description["nodes"]):
        for inputs in [*([other] for other in names), [], [names[0]] * 2, [node["inputs"][0]] * 4]:
            if inputs != node["inputs"]:
                edit = changed(description, ("nodes", i, "inputs"), inputs)
                checked(name, tmp_path / "net", edit, tensors, f"inputs of {node['name']} = {inputs}")
        for other in names:
            if other != node["name"]:
                edit = changed(description, ("nodes", i, "name"), other)
                assert checked(name, tmp_path / "net", edit, tensors, f"name {other}") is not None
        for other in description["nodes"]:
            if other["kind"] != node["kind"]:
                edit = changed(description, ("nodes", i, "kind"), other["kind"])
                message = checked(name, tmp_path / "net", edit, tensors, f"{node['name']} as {other['kind']}")
                assert message is not None
        for without in (True, False):
            edit = copy.deepcopy(description)
            edit["nodes"][i : i + 1] = [] if without else [node, node]
            checked(name, tmp_path / "net", edit, tensors, f"{node['name']} {'left out' if without else 'twice'}")
    for other in names:
        if other != description["output"]:
            edit = changed(description, ("output",), other)
            message = checked(name, tmp_path / "net", edit, tensors, f"output {other}")
            assert (message is None) == (other in names[1:-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_tensor_made_infinite(tmp_path, good, value):
    name, description, tensors = good
    for key, tensor in tensors.items():
        wrong = tensor.clone()
        wrong.view(-1)[-1] = value
        message = checked(name, tmp_path / "net", description, {**tensors, key: wrong}, key)
        node, _, argument = key.rpartition("/")
        assert f"'{node}': {argument} must be finite, got {value}" in message


def test_every_tensor_of_another_shape(tmp_path, good):
    name, description, tensors = good
    for key, tensor in tensors.items():
        for other in (tensor[:-1], tensor.unsqueeze(0), torch.cat([tensor, tensor]), tensor.int(), tensor[:0]):
            assert checked(name, tmp_path / "net", description, {**tensors, key: other.contiguous()}, key) is not None
        kept = {other: x for other, x in tensors.items() if other != key}
        checked(name, tmp_path / "net", description, kept, f"without {key}")


@pytest.fixture(params=["layer", "join"])
def integers(request, tmp_path):
    """Description and tensors of a good file of integer weights, and the names of a weight and of its scale."""
    net = firing(residual())
    quantise(net, 8)
    freeze(net).save(tmp_path / "good")
    prefix = {"layer": "stem/", "join": "add/0."}[request.param]
    return *artefact.read(tmp_path / "good"), f"{prefix}weight", f"{prefix}scale"


def loaded(path, description, tensors):
    write(path, description, tensors)
    return FrozenNetwork.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda q: torch.full_like(q, 32640, dtype=torch.int16),
            "must be from -32639 to 32639 in torch.int16, got 32640",
        ),
        (
            lambda q: torch.full_like(q, -32768, dtype=torch.int16),
            "must be from -32639 to 32639 in torch.int16, got -3276",
        ),
        (lambda q: q.int(), "must be float32, float64, int8 or int16, got torch.int32"),
        (lambda q: q.to(torch.uint8), "must be float32, float64, int8 or int16, got torch.uint8"),
        (lambda q: q.bool(), "must be float32, float64, int8 or int16, got torch.bool"),
        (lambda q: q[:1], "must be [3, "),
        (lambda q: q.flatten(), "must be [3, "),
    ],
)
def test_integers_that_do_not_fit(tmp_path, integers, edit, message):
    description, tensors, name, _ = integers
    node, _, short = name.partition("/")
    wrong = {**tensors, name: edit(tensors[name]).contiguous()}
    with pytest.raises(ValueError, match=re.escape(f"{short} {message}")) as raised:
        loaded(tmp_path / "net", description, wrong)
    assert f"node '{node}'" in str(raised.value)


def test_scales_of_integers(tmp_path, integers):
    description, tensors, _, name = integers
    scale, (node, _, short) = tensors[name], name.partition("/")
    for value in (math.nan, math.inf, -math.inf):
        wrong = {**tensors, name: scale.index_fill(0, torch.tensor(1), value)}
        with pytest.raises(ValueError, match=f"'{node}': {short} must be finite, got {value}"):
            loaded(tmp_path / "net", description, wrong)
    for change, message in (
        (scale[:2], f"{short} must be [3], got [2]"),
        (scale.double(), "tensors must be of one dtype"),
        (scale.int(), f"{short} must be float32 or float64, got torch.int32"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            loaded(tmp_path / "net", description, {**tensors, name: change.contiguous()})
    without = {other: x for other, x in tensors.items() if other != name}
    with pytest.raises(ValueError, match=f"tensors must contain {short} with torch.int8 weights"):
        loaded(tmp_path / "net", description, without)
    for value in (0.0, -0.5, 1e-45):  # batch norm's gain is in it
        assert runs("residual", loaded(tmp_path / "net", description, {**tensors, name: torch.full_like(scale, value)}))


def test_the_good_files_run(good):
    name, description, tensors = good
    assert runs(name, FrozenNetwork(*artefact.parsed(description, tensors)))


# --- sizes that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((TandemConv2d(1, 2, 3), TandemConv2d(3, 2, 3)), r"'1': in_channels must be 2, got 3"),
        (
            (TandemConv2d(1, 2, 3), nn.Flatten(), TandemLinear(9, 2)),
            "'2': in_features must be at least 2 and a multiple",
        ),
        ((TandemLinear(1, 4), TandemLinear(3, 2)), "'1': in_features must be 4, got 3"),
        ((TandemLinear(1, 4), Decode(), nn.Linear(3, 2)), "'2': in_features must be 4, got 3"),
        ((TandemConv1d(1, 2, 3), TandemConv2d(2, 4, 3)), "'1': input must have 4 dimensions"),
        ((nn.Flatten(), TandemLinear(1, 4), SpikingMaxPool2d(2)), "'2': input must have 4 dimensions"),
        (
            (SpikingAdaptiveAvgPool2d(2), TandemConv2d(1, 2, 3)),
            "'1': the window must fit into the padded input: it needs 3, got 2",
        ),
        (
            (SpikingAdaptiveAvgPool2d(2), SpikingMaxPool2d(3)),
            "'1': the window must fit into the padded input: it needs 3, got 2",
        ),
        ((TandemLinear(1, 4), nn.Linear(4, 2)), "'1': input must be a Tensor, got spikes"),
        ((Encode(2), Decode()), "'1': input must be spikes, got the output of Encode"),
        ((Encode(2), TandemLinear(1, 2), Encode(2)), "'2': input must be a Tensor, got spikes"),
        ((TandemConv2d(1, 2, 3), nn.Flatten(0)), "'1': start_dim must leave the batch dimension alone"),
        ((TandemConv2d(1, 2, 3), nn.Flatten(3, 2)), "'1': start_dim and end_dim must be"),
        ((nn.Flatten(), TandemLinear(2, 2), nn.Flatten(1, 2)), "'2': end_dim must be from -2 to 1"),
    ],
)
def test_layers_that_do_not_fit(layers, message):
    with pytest.raises(ValueError, match=f"freeze: [A-Za-z0-9]+ {message}"):
        freeze(nn.Sequential(*layers))


# --- NaN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "bias", "norm.running_var", "norm.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("encoded", [True, False])
def test_nothing_infinite_is_frozen(name, value, encoded):
    front = (Encode(3),) if encoded else ()
    net = randomised(nn.Sequential(*front, TandemLinear(3, 4, norm="batch"), Decode(), nn.Linear(4, 2)))
    layer = str(len(front))
    if name == "norm.running_var":
        value = -1.0
    net.get_submodule(layer).get_submodule(name.rpartition(".")[0]).__getattr__(name.rpartition(".")[2]).data[1] = value
    with pytest.raises(
        ValueError, match=f"TandemLinear '{layer}': (weight|bias|scale) must be finite, got (nan|-?inf)"
    ):
        freeze(net)
    net = nn.Sequential(Encode(3), TandemLinear(3, 4), Decode(), nn.Linear(4, 2))
    net[3].bias.data[0] = value = math.nan
    with pytest.raises(ValueError, match="Linear '3': bias must be finite, got nan"):
        freeze(net)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predict_refuses_what_is_infinite(value):
    frozen = freeze(randomised(nn.Sequential(Encode(3), TandemLinear(3, 4), Decode(), nn.Linear(4, 2))))
    x = torch.randn(5, 3, generator=generator(0))
    x[3, 1] = value
    with pytest.raises(ValueError, match=f"predict: input must be finite, got {value}"):
        frozen.predict(x)
    with pytest.raises(ValueError, match=f"accuracy_curve: input must be finite, got {value}"):
        frozen.accuracy_curve([(x, torch.zeros(5, dtype=torch.int64))])


def test_predict_refuses_logits_out_of_range():
    net = randomised(nn.Sequential(Encode(3), TandemLinear(3, 4), Decode(), nn.Linear(4, 2)))
    net[3].weight.data.fill_(3e38)
    frozen, x = freeze(net), torch.ones(5, 3)
    with pytest.raises(ValueError, match="predict: read-out must be finite, got nan"):
        frozen.predict(x)
    with pytest.raises(ValueError, match="accuracy_curve: read-out must be finite, got nan"):
        frozen.accuracy_curve([(x, torch.zeros(5, dtype=torch.int64))])


# --- long chains -----------------------------------------------------------------------------------------------------


def chain(n):
    flatten = freeze(nn.Flatten()).nodes[0].layer
    names = ["<input>", *(f"node{i}" for i in range(n))]
    return [Node(name, flatten, (before,)) for before, name in itertools.pairwise(names)]


def seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start


@pytest.mark.slow
def test_construction_loading_and_running_are_linear(tmp_path):
    x = SpikeTrain.from_dense(train(3, 2, 4, seed=0).float())
    times = []
    for n in (1000, 8000):
        nodes = chain(n)
        frozen = FrozenNetwork(nodes, nodes[-1].name)
        frozen.save(tmp_path / "net")
        steps = (
            lambda nodes=nodes: FrozenNetwork(nodes, nodes[-1].name),
            lambda: FrozenNetwork.load(tmp_path / "net"),
            lambda frozen=frozen: frozen(x),
        )
        times.append([min(seconds(step) for _ in range(3)) for step in steps])
    for few, many in zip(*times, strict=True):
        assert many < 30 * few, times  # eight times the nodes; 64 times the time where it was quadratic
    same(frozen(x).bits, x.bits)


def test_errors_do_not_list_long_chains():
    nodes = chain(1000)
    with pytest.raises(ValueError, match="output must be") as caught:
        FrozenNetwork(nodes, "nobody")
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="inputs of 'a' must be") as caught:
        FrozenNetwork([*nodes, Node("a", nodes[0].layer, ("nobody",))], "a")
    assert len(str(caught.value)) < 200


def test_a_read_out_of_another_width():
    """Of an image whose size no file knows."""
    frozen = freeze(nn.Sequential(Encode(3), TandemConv2d(1, 2, 3), Decode(), nn.Linear(5, 2)))
    assert frozen(torch.rand(1, 1, 9, 7)).shape == (1, 2, 7, 2)
    with pytest.raises(ValueError, match=r"Linear: input must be \[N, ..., 5\], got \[1, 2, 7, 6\]"):
        frozen(torch.rand(1, 1, 9, 8))
