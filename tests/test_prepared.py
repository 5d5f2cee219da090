"""What frozen layers make ready once serves later calls, until a constant, a setting or the kind of input changes."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call

from exact import dyadic, same
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemLinear,
    freeze,
    quantise,
)
from tandem_cuda.nn import TandemElementwise
from tandem_cuda.nn.prepared import Prepared
from test_python_calls import python_calls

pytest.importorskip("safetensors")
RADIX, TWO_PHASE, ONE_PHASE = RadixIF(level=4.0), IF(0.5, two_phase=True), IF(0.5)


def train(*shape, seed=0, steps=4, amplitude=0.25, radix=True):
    bits = torch.randint(0, 1 << steps, (1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return SpikeTrain(bits, steps, amplitude=amplitude, radix=radix)


def pixels(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 4


def conv(neuron=RADIX, **named):
    return TandemConv2d(16, 16, 3, padding=1, neuron=neuron, **named)


def alone(layer, inputs=1):
    """A network of one layer."""
    graph = fx.Graph()
    graph.output(graph.call_module("layer", tuple(graph.placeholder(f"x{i}") for i in range(inputs))))
    return fx.GraphModule({"layer": layer}, graph)


def joined(*branches, neuron=RADIX):
    return alone(TandemAdd(*branches, neuron=neuron), len(branches))


def encoded(layer):
    """A network whose layer takes pixels."""
    network = nn.Sequential(Encode(4, "impulse"), layer)
    quantise(network, 8)
    return network


IMAGE = (2, 16, 6, 6)
NETWORKS = {
    "convolution": lambda: (alone(conv()), [IMAGE]),
    "convolution without bias": lambda: (alone(conv(bias=False)), [IMAGE]),
    "two phases": lambda: (alone(conv(TWO_PHASE)), [IMAGE]),
    "one phase": lambda: (alone(conv(ONE_PHASE)), [IMAGE]),
    "linear": lambda: (alone(TandemLinear(16, 8, neuron=RADIX)), [(3, 5, 16)]),
    "identity": lambda: (joined(conv(), nn.Identity()), [IMAGE] * 2),
    "identity first": lambda: (joined(nn.Identity(), conv()), [IMAGE] * 2),
    "identity of one phase": lambda: (joined(nn.Identity(), conv(), neuron=ONE_PHASE), [IMAGE] * 2),
    "two products": lambda: (joined(TandemConv2d(16, 16, 1), conv()), [IMAGE] * 2),
    "two products of two phases": lambda: (joined(TandemConv2d(16, 16, 1), conv(), neuron=TWO_PHASE), [IMAGE] * 2),
    "identities": lambda: (joined(conv(), nn.Identity(), nn.Identity()), [IMAGE] * 3),
    "pairs of values": lambda: (alone(TandemElementwise(8, 16, 8, neuron=RADIX)), [(2, 8, 6, 6)]),
    "features": lambda: (alone(TandemElementwise(8, 8, 8, neuron=RADIX, of_features=True)), [(3, 5, 8)]),
    "a feature": lambda: (alone(TandemElementwise(1, 2, 1, neuron=RADIX, of_features=True)), [(2, 1, 5, 1)]),
    "sum of features": lambda: (
        joined(TandemElementwise(8, 8, 8, neuron=RADIX, of_features=True), nn.Identity()),
        [(3, 5, 8)] * 2,
    ),
    "sum of features and products": lambda: (
        joined(TandemElementwise(8, 8, 8, neuron=RADIX, of_features=True), TandemLinear(8, 8), nn.Identity()),
        [(3, 5, 8)] * 3,
    ),
    "sum of pixels": lambda: (joined(TandemElementwise(16, 16, 16, neuron=RADIX), conv(), nn.Identity()), [IMAGE] * 3),
    "line": lambda: (alone(TandemConv1d(16, 16, 3, neuron=RADIX)), [(2, 16, 9)]),
}
OF_PIXELS = {
    "pixels": lambda: (encoded(conv()), [IMAGE]),
    "pixels of one phase": lambda: (encoded(conv(ONE_PHASE)), [IMAGE]),
    "rows of pixels": lambda: (encoded(TandemLinear(16, 8, neuron=RADIX, bias=False)), [(3, 5, 16)]),
    "padded pixels": lambda: (encoded(conv(padding_mode="circular")), [IMAGE]),
    "a line of pixels": lambda: (encoded(TandemConv1d(16, 16, 3, neuron=RADIX)), [(2, 16, 9)]),
}


def made(network, shapes):
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(dyadic(*p.shape, seed=i))
    frozen = freeze(network)
    layer = layer_of(frozen)
    radix = getattr(layer, "neuron", RADIX) != ONE_PHASE
    if isinstance(frozen.layers[0].layer, Encode):
        return frozen, [pixels(*shape, seed=i) for i, shape in enumerate(shapes)]
    return frozen, [train(*shape, seed=i, radix=radix) for i, shape in enumerate(shapes)]


@pytest.fixture(params=[*NETWORKS, *OF_PIXELS])
def case(request):
    return made(*(NETWORKS | OF_PIXELS)[request.param]())


@pytest.fixture(params=NETWORKS)
def case_of_spikes(request):
    return made(*NETWORKS[request.param]())


@pytest.fixture
def made_ready(monkeypatch):
    """How often a layer found out what its calls have to do."""
    seen, init = [], Prepared.__init__

    def counting(self, layer, *arguments):
        if not isinstance(layer, Encode):
            seen.append(layer)
        init(self, layer, *arguments)

    monkeypatch.setattr(Prepared, "__init__", counting)
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


def as_fresh(frozen, inputs):
    got, want = frozen(*inputs), fresh(frozen, inputs)
    same(got.bits, want.bits)
    assert (got.code, got.time_steps, got.dtype) == (want.code, want.time_steps, want.dtype)
    return got


def test_other_spikes_and_sizes(case, made_ready):
    """Layers whose sizes need not be known serve inputs of any size."""
    frozen, inputs = case
    assert as_fresh(frozen, inputs).value.any()
    more = [x[:1] for x in inputs] if isinstance(inputs[0], torch.Tensor) else [train(5, *x.shape[1:]) for x in inputs]
    more = [x if isinstance(x, torch.Tensor) else x.replace(radix=y.radix) for x, y in zip(more, inputs, strict=True)]
    want = [fresh(frozen, x) for x in (other(inputs), other(inputs, 19), more)]
    made_ready.clear()
    for x, y in zip((other(inputs), other(inputs, 19), more), want, strict=True):
        same(frozen(*x).bits, y.bits)
    assert not made_ready


def test_constants_that_have_changed(case, made_ready):
    frozen, inputs = case
    layer = layer_of(frozen)
    names = [name for name, x in layer.named_buffers() if name.rpartition(".")[2] != "packed"]
    assert any("weight" in name for name in names)
    for name in names:
        as_fresh(frozen, inputs)
        tensor = layer.get_buffer(name)
        tensor.copy_(changed(tensor))  # in place
        as_fresh(frozen, inputs)
        parent, _, leaf = name.rpartition(".")
        layer.get_submodule(parent).register_buffer(leaf, changed(tensor))  # another tensor
        as_fresh(frozen, inputs)
        made_ready.clear()
        frozen(*inputs)
        assert not made_ready


def test_changed_attributes(case):
    frozen, inputs = case
    layer = layer_of(frozen)
    as_fresh(frozen, inputs)
    for of in [layer, *getattr(layer, "branches", [])]:
        for name, value in (("engine", "event"), ("padding_mode", "circular"), ("engine", "dense")):
            if hasattr(of, name):
                setattr(of, name, value)
                as_fresh(frozen, inputs)
    layer.neuron = layer.neuron.scaled(0.5) if layer.neuron != RADIX else RadixIF(level=2.0)
    as_fresh(frozen, inputs)


def test_another_branch():
    frozen, inputs = made(*NETWORKS["identity"]())
    another, _ = made(joined(conv(), conv()), [IMAGE] * 2)
    frozen(*inputs)
    for branch in (0, 1):
        layer_of(frozen).branches[branch] = layer_of(another).branches[branch]
        as_fresh(frozen, inputs)


def test_other_kinds_of_trains(case_of_spikes):
    frozen, inputs = case_of_spikes
    radix = inputs[0].radix
    finer = [train(*x.shape, steps=5, amplitude=0.125, radix=radix) for x in inputs]
    heavier = [train(*x.shape, amplitude=0.5, radix=radix) for x in inputs]
    for wanted in (inputs, finer, heavier, inputs, inputs):
        as_fresh(frozen, wanted)


@pytest.mark.parametrize("name", OF_PIXELS)
def test_other_encodings(name):
    frozen, (x,) = made(*OF_PIXELS[name]())
    encode = frozen.layers[0].layer
    as_fresh(frozen, [x])
    encode.mode = "constant"
    if layer_of(frozen).neuron.radix:
        with pytest.raises(ValueError, match="'impulse' or 'radix'"):
            frozen(x)
    else:
        as_fresh(frozen, [x])
    encode.mode = "impulse"
    encode.time_steps = frozen.time_steps = 5
    as_fresh(frozen, [x])


def test_other_weights_of_a_call(case):
    frozen, inputs = case
    before = frozen(*inputs)
    buffers = {name: changed(x) for name, x in frozen.named_buffers() if "packed" not in name}
    replaced = copy.deepcopy(frozen)
    replaced.load_state_dict(buffers, strict=False)  # without the description
    same(functional_call(frozen, buffers, tuple(inputs)).bits, replaced(*inputs).bits)
    same(frozen(*inputs).bits, before.bits)


def test_copies_begin_anew(case):
    frozen, inputs = case
    want = frozen(*inputs).bits
    for copied in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert layer_of(copied)._prepared is None
        same(copied(*inputs).bits, want)
    layer = copy.copy(layer_of(frozen))
    assert layer._prepared is None


def test_moves_keep_no_earlier_tensors(case):
    frozen, inputs = case
    frozen(*inputs)
    frozen.to("meta")
    assert layer_of(frozen)._prepared is None


def test_errors_stay(case_of_spikes):
    frozen, inputs = case_of_spikes
    radix = inputs[0].radix
    frozen(*inputs)
    for shape in ((2, 7, 6, 6), (2, 7, 6), (2, 7)):
        with pytest.raises(ValueError, match=r"must be.* got") as caught:
            frozen(*[train(*shape, radix=radix)] * len(inputs))
        assert caught.value.__context__ is None
    past = [SpikeTrain.unchecked(x.bits + 16, 4, amplitude=0.25, radix=radix) for x in inputs]
    with pytest.raises(RuntimeError, match="past"):
        frozen(*past)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith(("identi", "two products"))])
def test_branches_that_do_not_agree(name):
    """Never broadcast, in no call."""
    frozen, inputs = made(*NETWORKS[name]())
    for pixel in range(1, len(inputs)):
        for _ in range(2):
            wrong = [x.rearranged(lambda y: y[..., :1, :1]) if i == pixel else x for i, x in enumerate(inputs)]
            with pytest.raises(ValueError, match="TandemAdd: branches must agree in shape"):
                frozen(*wrong)
            frozen(*inputs)


@pytest.mark.parametrize("name", OF_PIXELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_that_autocast_converts(name, dtype):
    frozen, (x,) = made(*OF_PIXELS[name]())
    frozen(x)
    with torch.autocast("cpu", torch.bfloat16):
        for seed in (9, 19):
            as_fresh(frozen, [pixels(*x.shape, seed=seed).to(dtype)])
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


def test_pools_of_other_sizes(made_ready):
    frozen = freeze(SpikingAvgPool2d(2))
    x = train(2, 3, 8, 8, radix=False)
    for shape, found in (((2, 3, 8, 8), 1), ((5, 3, 8, 8), 0), ((2, 3, 6, 8), 1), ((2, 4, 6, 8), 1)):
        made_ready.clear()
        x = train(*shape, radix=False)
        got = frozen(x)
        assert len(made_ready) == found
        same(got.bits, SpikingAvgPool2d(2)(x).bits)
    for wrong in (train(2, 3, 1, 1, radix=False), train(2, 3, radix=False)):
        with pytest.raises(ValueError, match="SpikingAvgPool2d: "):
            frozen(wrong)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("neuron", [RADIX, TWO_PHASE, ONE_PHASE])
def test_inference_mode(first, neuron):
    """What is made ready in it serves other calls, and the other way round."""
    frozen, inputs = made(alone(conv(neuron)), [IMAGE])
    want = [fresh(frozen, x) for x in (inputs, other(inputs))]
    for mode, x, y in ((first, inputs, want[0]), (not first, other(inputs), want[1])):
        with torch.inference_mode(mode):
            same(frozen(*x).bits, y.bits)


def test_python_calls(case):
    """Few functions run in a layer that is ready."""
    frozen, inputs = case
    assert python_calls(lambda: frozen(*inputs)) < 150
