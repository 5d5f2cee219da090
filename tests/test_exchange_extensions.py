"""Functions of real numbers and gates in NIR: nodes that extend the format, and that other readers refuse."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import IF, Decode, Encode, SpikeTrain, TandemAdd, TandemConv2d, TandemLinear, freeze
from tandem_cuda.nn import SpikeCat, TandemGate

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
pytest.importorskip("nirtorch", reason="pip install tandem_cuda[nir]")
h5py = pytest.importorskip("h5py", reason="pip install tandem_cuda[nir]")

from nir_interpreter import executed  # noqa: E402 (only where the extra is there)
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402
from tandem_cuda.exchange.nir_extension import computed  # noqa: E402
from test_exchange_graphs import filled, steps_of  # noqa: E402
from test_exchange_layers import IMAGES, Net, made  # noqa: E402

STEPS = 8


def of(graph, kind):
    return {name: node for name, node in graph.nodes.items() if type(node).__name__ == kind}


def compared(net, path, x=IMAGES, **settings):
    """Write, execute, read, freeze and write again: outputs are the same to the bit."""
    graph = to_nir(net, x, path / "net.nir", **settings)
    with torch.no_grad():
        want = net(x)
    assert len(want.unique()) > 2
    torch.testing.assert_close(executed(graph, steps_of(x, "constant")), want.double(), rtol=1e-6, atol=1e-6)
    for source in (graph, path / "net.nir"):
        back = from_nir(source)
        with torch.no_grad():
            assert torch.equal(back(x), want)
            assert torch.equal(freeze(back)(x), want)
    again = to_nir(back, x, **settings)
    assert len(again.nodes) == len(graph.nodes)
    with torch.no_grad():
        assert torch.equal(from_nir(again)(x), want)
    return graph


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("name", ["gate", "gate of values", "gate in a residual block"])
def test_squeeze_and_excitation(name, groups, tmp_path):
    """As `convert` makes it: a decoded mean, two convolutions, a sigmoid, and neurons for the product."""
    net, x = made(name)
    graph = compared(net, tmp_path, x, groups=groups)
    (gate,) = of(graph, "TandemGate").values()
    assert gate.signed == (name == "gate of values")


def headed(head, *layers):
    """Spikes, and functions of their counts."""
    return filled(nn.Sequential(Encode(STEPS), TandemConv2d(2, 4, 3, neuron=IF(0.5)), Decode(), head, *layers))


class Squared(nn.Module):
    """Functions with constants, several inputs, tuples and keywords."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor([0.5, -1.0, 2.0, 0.25]).view(4, 1, 1))
        self.register_buffer("offset", torch.tensor(0.125))

    def forward(self, x):
        y = torch.cat([x * self.factor, (x + self.offset).clamp(max=2.0), x * x], dim=1)
        y = F.pad(y, (1, 0)) / 2
        return torch.amax(y - y.mean((2, 3), keepdim=True), dim=(2, 3)).unsqueeze(2).flatten(1)


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Softmax(1)),
        nn.Sequential(nn.PReLU(4), nn.Conv2d(4, 3, 3, stride=2), nn.Softmax(1)),
        Squared(),
    ],
    ids=["ReLU", "BatchNorm2d", "PReLU", "functions"],
)
def test_functions_behind_the_last_neurons(head, tmp_path):
    net = headed(head)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.5)
            module.running_var.fill_(3.0)
    graph = compared(net.eval(), tmp_path)
    assert of(graph, "TandemFunction")
    trainable = {name for name, _ in from_nir(graph).named_parameters()}
    assert len(trainable) == len([*net.parameters()])


def gated(n, x):
    gate = torch.sigmoid(n.squeeze(n.decode(x).mean((2, 3), keepdim=True)))
    return n.out(n.flat(n.decode2(n.last(n.gate(x, gate)))))


def layers(channels=4, **others):
    return {
        "decode": Decode(), "squeeze": nn.Conv2d(channels, channels, 1), "gate": TandemGate(IF(0.5)),
        "last": TandemConv2d(channels, 3, 3, neuron=IF(0.5)), "decode2": Decode(), "flat": nn.Flatten(),
        "out": nn.Linear(45, 3), **others,
    }  # fmt: skip


def test_gates_of_concatenated_spikes_with_an_amplitude(tmp_path):
    """Where no node has the spikes, neurons in front repeat them; amplitudes are in the gate."""

    def run(n, x):
        x = n.first(n.encode(x))
        return gated(n, n.cat(n.a(x), n.b(x)))

    named = {"neuron": IF(0.5, amplitude=0.5)}
    net = filled(Net(
        run, encode=Encode(STEPS), first=TandemConv2d(2, 4, 3), a=TandemConv2d(4, 2, 1, **named),
        b=TandemConv2d(4, 2, 1, **named), cat=SpikeCat(False, False), **layers(),
    )).eval()  # fmt: skip
    x = torch.randint(0, 9, (2, 2, 9, 7)) / 8
    assert len(of(compared(net, tmp_path, x), "TandemGate")) == 1


def test_other_readers_refuse_the_file(tmp_path):
    """They must not run a network without its gates."""
    net, x = made("gate")
    to_nir(net, x, tmp_path / "net.nir")
    for check in (True, False):
        with pytest.raises((AssertionError, KeyError, ValueError)):
            nir.read(tmp_path / "net.nir", type_check=check)
    with h5py.File(tmp_path / "net.nir") as file:
        types = {node["type"][()].decode() for node in file["node/nodes"].values()}
    assert {"TandemFunction", "TandemGate"} <= types


REFUSED = {
    "a batch mean": (lambda x: x - x.mean(0, keepdim=True), "must not depend on the other samples"),
    "a batch of one": (lambda x: x.mean(0, keepdim=True), "must not depend on the other samples"),
    "a number": (lambda x: x.mean(), r"its result must be real numbers \[N, F, ...\], got torch.float32 \[\]"),
    "indices": (lambda x: x.argmax(1), r"its result must be real numbers \[N, F, ...\], got torch.int64"),
    "a size": (lambda x: x * x.size(1), "its result must be real numbers .* got int"),
    "what freeze does not know": (lambda x: torch.special.i0(x), "it is not supported by freeze"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_of_one_sample_is_refused(name):
    class Head(nn.Module):
        def forward(self, x):
            return REFUSED[name][0](x)

    with pytest.raises(ValueError, match=REFUSED[name][1]):
        to_nir(headed(Head()), IMAGES)


def test_statistics_of_a_batch_are_refused():
    """Also where a batch that holds every sample twice has the same statistics."""
    x = torch.rand(2, 4)
    for call in (lambda x: x - x.mean(0), lambda x: x / x.amax(0), lambda x: x.softmax(0)):
        with pytest.raises(ValueError, match="must not depend on the other samples"):
            computed(call, [x])
    assert torch.equal(computed(torch.exp, [x]), x.exp())


class Broadcast(nn.Module):
    def forward(self, x):
        return x + x[:, :1]


def test_a_sum_of_different_shapes(tmp_path):
    assert of(compared(headed(Broadcast()), tmp_path), "TandemFunction")


def test_functions_of_spikes_and_of_the_input_are_refused():
    net = nn.Sequential(nn.ReLU(), Encode(STEPS), TandemConv2d(2, 4, 3))
    with pytest.raises(ValueError, match=r"0 \(ReLU\): its input must be current, got real; put it after Decode"):
        to_nir(net, IMAGES)
    net = Net(lambda n, x: n.a(n.encode(x.mul(2))), encode=Encode(STEPS), a=TandemConv2d(2, 4, 3))
    with pytest.raises(
        ValueError, match=r"mul \(call_method\): its input must be current \(after Decode\), .* got real"
    ):
        to_nir(net, IMAGES)
    net = Net(lambda n, x: n.gate(n.a(x), n.b(x)), gate=TandemGate(), a=TandemLinear(4, 4), b=TandemLinear(4, 4))
    with pytest.raises(
        ValueError, match=r"gate \(TandemGate\): its input must be current, got spikes; put it after Decode"
    ):
        to_nir(net, SpikeTrain.from_dense(torch.ones(STEPS, 1, 4)))


def edited(field, value, kind="TandemFunction"):
    def edit(graph):
        setattr(next(iter(of(graph, kind).values())), field, value)

    return edit


def joined(graph):
    """More current for the neurons behind the gate."""
    graph.edges.append(("first_neurons", next(b for a, b in graph.edges if a == "mul_product")))


EDITS = {
    "another function": (edited("function", "os.system"), "setting function must be listed"),
    "no function": (edited("function", "system"), "function must be a function of torch"),
    "another module": (edited("function", "torch.nn.Linear"), "setting function must be listed"),
    "an attribute": (edited("function", "Tensor.size"), "settings must fit|its result must be real numbers"),
    "arguments": (edited("settings", json.dumps({"args": [{"input": 1}], "kwargs": {}})), "args must name every input"),
    "no JSON": (edited("settings", "{"), "settings must be JSON"),
    "a list": (edited("settings", "[]"), "settings and tensors must be objects"),
    "inputs": (edited("inputs", json.dumps(["input"])), "inputs must name the nodes that it reads"),
    "numbers as inputs": (edited("inputs", "[1]"), "inputs must be a list of names"),
    "no inputs": (edited("inputs", 3), "inputs must be JSON"),
    "a shape": (edited("shape", np.array([7])), r"shape must be that of its output"),
    "a tensor": (edited("tensors", {"0": np.ones(3)}), "args must name every input and tensor"),
    "a gate's shape": (edited("shape", np.array([7]), "TandemGate"), "must multiply spikes of its shape"),
    "a gate's sign": (edited("signed", 0.5, "TandemGate"), "signed must be a whole number"),
    "a gate's inputs": (
        lambda graph: edited(
            "inputs", json.dumps(json.loads(of(graph, "TandemGate")["mul_product"].inputs)[::-1]), "TandemGate"
        )(graph),
        "must multiply spikes of its shape by a function of spikes",
    ),
    "more current": (joined, "neurons behind mul must have no other input"),
}


@pytest.mark.parametrize("name", EDITS)
def test_damaged_nodes_are_refused(name):
    net, x = made("gate")
    graph = to_nir(net, x)
    from_nir(graph)
    edit, message = EDITS[name]
    edit(graph)
    with pytest.raises(ValueError, match=message):
        from_nir(graph)


def test_fields_that_are_missing_are_refused(tmp_path):
    net, x = made("gate")
    to_nir(net, x, tmp_path / "net.nir")
    with h5py.File(tmp_path / "net.nir", "a") as file:
        del file["node/nodes/mul_product/signed"]
    with pytest.raises(ValueError, match=r"from_nir: source must be a NIR file, got .*signed"):
        from_nir(tmp_path / "net.nir")


def test_a_join_behind_a_gate_reads_both_trains(tmp_path):
    def run(n, x):
        x = n.first(n.encode(x))
        gate = torch.sigmoid(n.squeeze(n.decode(x).mean((2, 3), keepdim=True)))
        return n.out(n.flat(n.decode2(n.last(n.add(n.gate(x, gate), x)))))

    add = TandemAdd(nn.Identity(), nn.Identity(), neuron=IF(0.5))
    net = Net(run, encode=Encode(STEPS), first=TandemConv2d(2, 4, 3), add=add, **layers())
    compared(filled(net).eval(), tmp_path, torch.randint(0, 9, (2, 2, 9, 7)) / 8)
