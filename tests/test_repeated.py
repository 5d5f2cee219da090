"""Calls of frozen layers that are like the call before run an operator at once; those that are not, do not."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call

from exact import dyadic, same
from tandem_cuda import (
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemLinear,
    freeze,
    quantise,
)
from tandem_cuda.nn import TandemElementwise
from tandem_cuda.nn.repeated import OrderedCall, RadixCall
from test_python_calls import python_calls

pytest.importorskip("safetensors")
NEURON = RadixIF(level=4.0)


def train(*shape, seed=0, steps=4, amplitude=0.25):
    bits = torch.randint(0, 1 << steps, (1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return SpikeTrain(bits, steps, amplitude=amplitude, radix=True)


def pixels(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 4


def conv(**named):
    return TandemConv2d(16, 16, 3, padding=1, neuron=NEURON, **named)


def alone(layer, inputs=1):
    """A network of one layer."""
    graph = fx.Graph()
    graph.output(graph.call_module("layer", tuple(graph.placeholder(f"x{i}") for i in range(inputs))))
    return fx.GraphModule({"layer": layer}, graph)


def joined(*branches):
    return alone(TandemAdd(*branches, neuron=NEURON), len(branches))


def encoded(layer):
    """A network whose layer takes pixels."""
    network = nn.Sequential(Encode(4, "impulse"), layer)
    quantise(network, 8)
    return network


IMAGE = (2, 16, 6, 6)
NETWORKS = {
    "convolution": lambda: (alone(conv()), [IMAGE]),
    "convolution without bias": lambda: (alone(conv(bias=False)), [IMAGE]),
    "linear": lambda: (alone(TandemLinear(16, 8, neuron=NEURON)), [(3, 5, 16)]),
    "identity": lambda: (joined(conv(), nn.Identity()), [IMAGE] * 2),
    "identity first": lambda: (joined(nn.Identity(), conv()), [IMAGE] * 2),
    "two products": lambda: (joined(TandemConv2d(16, 16, 1), conv()), [IMAGE] * 2),
}

OF_PIXELS = {
    "pixels": lambda: (encoded(conv()), [IMAGE]),
    "rows of pixels": lambda: (encoded(TandemLinear(16, 8, neuron=NEURON, bias=False)), [(3, 5, 16)]),
}

OTHERS = {
    "pairs of values": lambda: (alone(TandemElementwise(8, 16, 8, neuron=NEURON)), [(2, 8, 6, 6)]),
    "features": lambda: (alone(TandemElementwise(8, 8, 8, neuron=NEURON, of_features=True)), [(3, 5, 8)]),
    "a feature of one": lambda: (alone(TandemElementwise(1, 2, 1, neuron=NEURON, of_features=True)), [(2, 1, 5, 1)]),
    "line": lambda: (alone(TandemConv1d(16, 16, 3, neuron=NEURON)), [(2, 16, 9)]),
    "sum of features": lambda: (
        joined(TandemElementwise(8, 8, 8, neuron=NEURON, of_features=True), nn.Identity()),
        [(3, 5, 8)] * 2,
    ),
    "padded pixels": lambda: (encoded(conv(padding_mode="circular")), [IMAGE]),
    "a line of pixels": lambda: (encoded(TandemConv1d(16, 16, 3, neuron=NEURON)), [(2, 16, 9)]),
    "sum of three": lambda: (joined(conv(), nn.Identity(), nn.Identity()), [IMAGE] * 3),
}
"""Whose calls are more than one operator's."""


def made(network, shapes):
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(dyadic(*p.shape, seed=i))
    frozen = freeze(network)
    signal = pixels if isinstance(frozen.layers[0].layer, Encode) else train
    return frozen, [signal(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.fixture(params=[*NETWORKS, *OF_PIXELS])
def case(request):
    return made(*(NETWORKS | OF_PIXELS)[request.param]())


@pytest.fixture(params=NETWORKS)
def case_of_spikes(request):
    return made(*NETWORKS[request.param]())


@pytest.fixture
def calls(monkeypatch):
    """How often an operator was run at once."""
    seen = []

    def counting(run):
        def counted(self, inputs):
            seen.append(self)
            return run(self, inputs)

        return counted

    for call in (RadixCall, OrderedCall):
        monkeypatch.setattr(call, "run", counting(call.run))
    return seen


def layer_of(frozen):
    return frozen.layers[-1].layer


def other(inputs, seed=9):
    def of(x, seed):
        if isinstance(x, torch.Tensor):
            return pixels(*x.shape, seed=seed)
        return x.replace(bits=train(*x.shape, seed=seed).bits)

    return [of(x, seed + i) for i, x in enumerate(inputs)]


def changed(x):
    return x * 0.5 if x.is_floating_point() else -x


def fresh(frozen, inputs):
    """What a network returns that has not been called before."""
    return copy.deepcopy(frozen)(*inputs)


def test_other_spikes(case, calls):
    frozen, inputs = case
    frozen(*inputs)
    assert not calls
    for seed in (9, 19):
        got, want = frozen(*other(inputs, seed)), fresh(frozen, other(inputs, seed))
        same(got.bits, want.bits)
        assert (got.code, got.time_steps, got.dtype) == (want.code, want.time_steps, want.dtype)
        assert got.value.any()
    assert len(calls) == 2


def test_constants_that_have_changed(case, calls):
    frozen, inputs = case
    layer = layer_of(frozen)
    names = [name for name, x in layer.named_buffers() if name.rpartition(".")[2] != "packed"]
    assert any("weight" in name for name in names)
    for name in names:
        frozen(*inputs)
        before = len(calls)
        frozen(*inputs)
        assert len(calls) == before + 1
        tensor = layer.get_buffer(name)
        tensor.copy_(changed(tensor))  # in place
        same(frozen(*inputs).bits, fresh(frozen, inputs).bits)
        assert len(calls) == before + 1
        parent, _, leaf = name.rpartition(".")
        layer.get_submodule(parent).register_buffer(leaf, changed(tensor))  # another tensor
        same(frozen(*inputs).bits, fresh(frozen, inputs).bits)
        assert len(calls) == before + 1


def test_other_settings(case, calls):
    frozen, inputs = case
    layer = layer_of(frozen)
    frozen(*inputs)
    layer.neuron = RadixIF(level=2.0)
    same(frozen(*inputs).bits, fresh(frozen, inputs).bits)
    layer.engine = "dense"
    same(frozen(*inputs).bits, fresh(frozen, inputs).bits)
    assert not calls


def test_changed_attributes(case, calls):
    frozen, inputs = case
    layer = layer_of(frozen)
    for of in [layer, *getattr(layer, "branches", [])]:
        for name, value in (("engine", "event"), ("padding_mode", "circular")):
            if hasattr(of, name):
                frozen(*inputs)
                before = len(calls)
                setattr(of, name, value)
                same(frozen(*inputs).bits, fresh(frozen, inputs).bits)
                assert len(calls) == before


def test_another_branch(calls):
    frozen, inputs = made(*NETWORKS["identity"]())
    other, _ = made(joined(conv(), conv()), [IMAGE] * 2)
    frozen(*inputs)
    for branch in (0, 1):
        layer_of(frozen).branches[branch] = layer_of(other).branches[branch]
        same(frozen(*inputs).bits, fresh(frozen, inputs).bits)
    assert not calls


@pytest.mark.parametrize("name", OTHERS)
def test_calls_that_are_more_than_an_operator(name, calls):
    frozen, inputs = made(*OTHERS[name]())
    for seed in (9, 19, 29):
        same(frozen(*other(inputs, seed)).bits, fresh(frozen, other(inputs, seed)).bits)
    assert not calls


def test_other_inputs(case_of_spikes, calls):
    frozen, inputs = case_of_spikes
    frozen(*inputs)
    more = [train(5, *x.shape[1:]) for x in inputs]
    finer = [train(*x.shape, steps=5, amplitude=0.125) for x in inputs]
    heavier = [train(*x.shape, amplitude=0.5) for x in inputs]
    for wanted in (more, finer, heavier, inputs):
        same(frozen(*wanted).bits, fresh(frozen, wanted).bits)
    assert not calls
    frozen(*inputs)
    assert len(calls) == 1


@pytest.mark.parametrize("name", OF_PIXELS)
def test_other_pixels(name, calls):
    frozen, (x,) = made(*OF_PIXELS[name]())
    frozen(x)
    more = pixels(5, *x.shape[1:])
    same(frozen(more).bits, fresh(frozen, [more]).bits)
    encode = frozen.layers[0].layer
    frozen(x)
    encode.mode = "constant"
    with pytest.raises(ValueError, match="'impulse' or 'radix'"):
        frozen(x)
    encode.mode = "impulse"
    encode.time_steps = frozen.time_steps = 5
    same(frozen(x).bits, fresh(frozen, [x]).bits)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        same(frozen(other([x])[0]).bits, fresh(frozen, other([x])).bits)
    assert len(calls) == 1


def test_other_weights_of_a_call(case, calls):
    frozen, inputs = case
    frozen(*inputs)
    buffers = {name: changed(x) for name, x in frozen.named_buffers() if "packed" not in name}
    replaced = copy.deepcopy(frozen)
    replaced.load_state_dict(buffers, strict=False)  # without the description
    same(functional_call(frozen, buffers, tuple(inputs)).bits, replaced(*inputs).bits)
    assert not calls


def test_copies_begin_anew(case, calls):
    frozen, inputs = case
    want = frozen(*inputs).bits
    for copied in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert layer_of(copied)._repeated is None
        same(copied(*inputs).bits, want)
    assert not calls


def test_errors_stay(case_of_spikes):
    frozen, inputs = case_of_spikes
    frozen(*inputs)
    with pytest.raises((ValueError, TypeError)):
        frozen(*[train(2, 7, 6, 6)] * len(inputs))
    past = [SpikeTrain.unchecked(x.bits + 16, 4, amplitude=0.25, radix=True) for x in inputs]
    with pytest.raises(RuntimeError, match="past"):
        frozen(*past)


@pytest.mark.parametrize("name", OF_PIXELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_that_autocast_converts(name, dtype, calls):
    frozen, (x,) = made(*OF_PIXELS[name]())
    with torch.autocast("cpu", torch.bfloat16):
        for seed in (9, 19):
            y = pixels(*x.shape, seed=seed).to(dtype)
            same(frozen(y).bits, fresh(frozen, [y]).bits)
    assert not calls
    with pytest.raises(TypeError, match="dtype of weight"):
        frozen(x.to(dtype))


@pytest.mark.filterwarnings("ignore")  # of torch.jit
def test_traces_hold_whole_calls():
    network = nn.Sequential(encoded(conv()), conv(), Decode())
    frozen = freeze(network)
    traced = torch.jit.trace(frozen, (pixels(*IMAGE),))  # it compares two calls
    same(traced(pixels(*IMAGE, seed=1)), frozen(pixels(*IMAGE, seed=1)))


@pytest.mark.parametrize("name", OF_PIXELS)
def test_errors_of_pixels_stay(name):
    frozen, (x,) = made(*OF_PIXELS[name]())
    frozen(x)
    for wrong, error in ((x.double(), TypeError), (x[:, :3, :3], ValueError), (x * torch.inf, ValueError)):
        with pytest.raises(error):
            frozen(wrong)


def test_python_calls(case):
    """A layer that repeats a call runs few functions."""
    frozen, inputs = case
    assert python_calls(lambda: frozen(*inputs)) < 90
