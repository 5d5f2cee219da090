"""Layers that read radix spikes, or whose neurons fire them, against the reference, in training, in eval and frozen."""

import copy
import io
import itertools
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import ENGINES, dyadic, every_path, same, train
from freezable import graph_of
from layer_cases import AVERAGES, CASES, every, of_each_kind, with_weights
from layer_twins import agree, fronts, twins
from pairwise import pairs
from tandem_cuda import (
    IF,
    LIF,
    AdaptiveIF,
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    TandemAdd,
    TandemLinear,
    freeze,
    quantise,
    synops,
)
from tandem_cuda import reference as ref
from tandem_cuda.freeze import file as artefact
from tensors import normal

FIRING = [case for case in CASES if (case.has_weights or case.kind == "TandemAdd") and "neuron" not in case.named]
TWINS = [case for case in FIRING if case.in_reference]
every_layer = every(TWINS)
every_t = pytest.mark.parametrize("steps", range(1, 9))


def numbers(case, steps, seed=0, batch=3, **code):
    """Radix spikes for each input of both packages, with a gradient."""
    spikes = [train(steps, batch, *sample, seed=seed + i, rate=0.4).double() for i, sample in enumerate(case.samples)]
    ours, theirs = zip(*(fronts(s, radix=True, **code) for s in spikes), strict=True)
    return list(ours), list(theirs)


def neurons(steps, theta=1.0, **more):
    """Neurons whose last threshold is `theta`."""
    return RadixIF(theta * 2**steps, **more)


# --- against the reference -------------------------------------------------------------------------------------------


@pairs(case=TWINS, steps=[1, 3, 8], batch=[0, 3], clip=[False, True])
def test_layers(case, steps, batch, clip):
    ours, theirs = twins(case, steps, neuron=neurons(steps, 2.0, clip=clip))
    agree(ours, theirs, *numbers(case, steps, batch=batch))


@every_layer
@pytest.mark.parametrize("engine", ENGINES)
def test_norm_and_amplitude(case, engine):
    named = {} if "norm" in case.named or not case.has_weights else {"norm": "batch"}
    ours, theirs = twins(case, 4, neuron=neurons(4), **named)
    for layer in ours.modules():
        if hasattr(layer, "engine"):
            layer.engine = engine
    agree(ours, theirs, *numbers(case, 4, amplitude=0.5))


@every_layer
def test_rates_in(case):
    """Recorded spikes, for example."""
    ours, theirs = twins(case, 8, neuron=neurons(6))
    both = zip(*(fronts(train(8, 3, *s, seed=i, rate=0.4).double()) for i, s in enumerate(case.samples)), strict=True)
    agree(ours, theirs, *map(list, both))


@every_layer
def test_rates_out(case):
    """Two-phase neurons read numbers, too."""
    ours, theirs = twins(case, 4, neuron=IF(8.0, initial=0.5, two_phase=True))
    agree(ours, theirs, *numbers(case, 4))


@pairs(case=with_weights(), norm=[None, "batch"])
def test_real_input(case, norm):
    ours, theirs = twins(case, 4, norm=norm, neuron=neurons(4, 0.25))
    x = dyadic(3, *case.samples[0], seed=5, scale=8, span=3, dtype=torch.float64)
    want = theirs(ref.Encode(4, "impulse")(x))
    for path, got in every_path(ours, Encode(4, "impulse")(x)):
        same(got.to_dense(), want.spikes, path)
    got, expected = (
        torch.autograd.grad(y.value.square().sum(), [*layer.parameters()])
        for layer, y in ((ours, ours(Encode(4, "impulse")(x))), (theirs, want))
    )
    same(got, expected)


@pairs(case=with_weights(), norm=[None, "batch"])
def test_pixels_as_spikes(case, norm):
    """Their weight is dyadic: 1 / 16."""
    ours, theirs = twins(case, 4, norm=norm, neuron=neurons(4, 0.25))
    x = torch.rand(3, *case.samples[0], dtype=torch.float64)
    pixels = ref.Encode(4, "radix")(x)
    encoded = Encode(4, "radix", scale=15 / 16)(x)
    same(encoded.to_dense(), pixels.spikes)
    same(ours(encoded).to_dense(), theirs(ref.DenseTrain(pixels.spikes, amplitude=1 / 16, radix=True)).spikes)


two_phase = pytest.mark.parametrize(
    "neuron", [RadixIF(2.0, clip=True), IF(0.5, clip=True, two_phase=True)], ids=["radix", "counts"]
)


# Torch's batch norm of rows normalises another dimension.
@pairs(
    case=[case for case in TWINS if case.name != "linear of rows"], learn_threshold=[False, True], amplitude=[1, 0.5]
)
@two_phase
def test_training(case, learn_threshold, amplitude, neuron):
    """Neurons fire from the v that the ANN has normalised with the batch's statistics."""
    named = {} if "norm" in case.named or not case.has_weights else {"norm": "batch"}
    ours, theirs = (layer.double() for layer in twins(case, 4, neuron=neuron, learn_threshold=learn_threshold, **named))
    if learn_threshold:
        for layer in (ours, theirs):
            nn.init.constant_(layer.log_threshold, 0.3)
    results = []
    for module, inputs in zip((ours, theirs), numbers(case, 4, amplitude=amplitude, batch=5), strict=True):
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.eps = 1e-5
        y = module.train()(*inputs)
        grads = torch.autograd.grad(y.value.square().sum(), [*(x.value for x in inputs), *module.parameters()])
        results.append((y.to_dense(), *grads, *(b.double() for norm in norms for b in norm.buffers())))
    same(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-9, atol=1e-9)


@pairs(identity=[False, True], norm=[None, "batch"], clip=[False, True])
def test_gradient_of_thresholds(identity, norm, clip):
    """dq/dl = -v / theta where the tandem rule passes a gradient, shared by the neurons of a sample and the values."""
    neuron, theta = RadixIF(2.0, clip), 2 / 16
    named = {"norm": norm, "neuron": neuron, "dtype": torch.float64}
    conv = tandem_cuda.TandemConv2d(3, 3, 3, padding=1, learn_threshold=not identity, **named)
    layer = TandemAdd(conv, nn.Identity(), neuron=neuron, learn_threshold=True) if identity else conv
    nn.init.constant_(layer.log_threshold, 0.3)
    spikes = (train(4, 3, 3, 5, 6, seed=i, rate=0.4).double() for i in range(1 + identity))
    inputs = [SpikeTrain.from_dense(s, radix=True).replace(amplitude=0.5) for s in spikes]
    y = layer(*inputs)
    weight = normal(*y.shape, seed=2, dtype=torch.float64)
    (grad,) = torch.autograd.grad((y.value * weight).sum(), [layer.log_threshold])
    v = nn.functional.conv2d(0.5 * inputs[0].value, conv.weight, conv.bias, padding=1)
    if norm:
        v = nn.functional.batch_norm(v, None, None, conv.norm.weight, conv.norm.bias, training=True)
    v = (v + 0.5 * inputs[1].value if identity else v) / math.exp(0.3)
    gate = (v > 0) & ((v <= 15 * theta) | (not clip))
    assert (v > 15 * theta).any()
    want = -(weight * v * gate).sum() / theta / math.sqrt(v[0].numel() * 15)
    torch.testing.assert_close(grad, want.detach(), rtol=1e-9, atol=1e-9)


@every_layer
@two_phase
def test_training_fires_alike_without_gradients(case, neuron):
    named = {} if "norm" in case.named or not case.has_weights else {"norm": "batch"}
    layer = case.make(neuron=neuron, **named).train()
    inputs = case.inputs(time_steps=4, radix=True)
    states, outs = [], []
    for guard in (torch.enable_grad, torch.no_grad):
        twin = copy.deepcopy(layer)
        with guard():
            outs.append(twin(*inputs))
        states.append([*twin.buffers()])
    same(outs[0].bits, outs[1].bits)
    same(states[0], states[1])


@every(AVERAGES)
@every_t
def test_averages(case, steps):
    layer = case.make()
    (x,), (x_ref,) = numbers(case, steps, amplitude=0.5)
    y = layer(x)
    assert (y.radix, y.time_steps) == (True, steps)
    mean = nn.Sequential(*[type(layer).__bases__[-1](*case.arguments, **kept(case))])(x.value)
    want = (mean.detach() / layer.threshold + layer.initial + 1e-12).floor().clamp(0, 2**steps - 1)
    same(y.value.detach(), want)
    same(*(torch.autograd.grad(z.sum(), x.value)[0] for z in (y.value, mean / layer.threshold)))
    frozen = freeze(layer.eval())(x.detach())
    same(frozen.bits, y.bits)
    assert frozen.code == y.code
    if case.in_reference:
        same(case.make(ref)(x_ref).value.detach(), want)


def kept(case):
    return {name: value for name, value in case.named.items() if name not in ("threshold", "initial")}


# --- one set of weights, every T -------------------------------------------------------------------------------------


def network(**named):
    torch.manual_seed(0)
    return nn.Sequential(
        Encode(4, "impulse"),
        tandem_cuda.TandemConv2d(3, 8, 3, padding=1, norm="batch", neuron=RadixIF(2.5), **named),
        tandem_cuda.SpikingMaxPool2d(2),
        tandem_cuda.TandemConv2d(8, 8, 3, padding=1, norm="batch", neuron=RadixIF(2.5), **named),
        nn.Flatten(),
        TandemLinear(8 * 4 * 4, 12, neuron=RadixIF(2.5), **named),
        Decode(),
        nn.Linear(12, 5),
    )


def trained(net):
    x = normal(32, 3, 8, 8, seed=1)
    for _ in range(3):
        net.train()(x)
    return net.eval(), x


@torch.no_grad()
def test_every_t_tends_to_the_network_of_real_numbers():
    """Time steps make values finer, and nothing else: the error falls by half with each."""
    net, x = trained(network())
    net = net.double()
    h = x.double()
    for module in net:
        if isinstance(module, (tandem_cuda.TandemConv2d, TandemLinear)):
            base = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
            h = base.forward(module, h)
            h = (h if module.norm is None else module.norm(h)).clamp(0, 2.5)
        elif isinstance(module, nn.MaxPool2d):
            h = nn.functional.max_pool2d(h, 2)
        elif isinstance(module, (nn.Flatten, nn.Linear)):
            h = module(h)
    errors = []
    for steps in range(2, 9):
        net[0].time_steps = steps
        errors.append((net(x.double()) - h).abs().mean().item())
    assert errors[-1] < 0.02 * h.abs().mean()
    assert all(after < 0.8 * before for before, after in pairwise(errors))


@pytest.mark.parametrize("bits", [None, 8, 16])
def test_eval_frozen_saved_and_pickled_agree(bits, tmp_path):
    net, x = trained(network())
    if bits:
        quantise(net, bits)
    with torch.no_grad():
        want = net(x)
    frozen = freeze(net)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.pt")
    same(tandem_cuda.FrozenNetwork.load(tmp_path / "net.pt")(x), want)
    same(pickle.loads(pickle.dumps(frozen))(x), want)
    same(copy.deepcopy(frozen)(x), want)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other = network()
    if bits:
        quantise(other, bits)
    other.load_state_dict(torch.load(buffer))
    same(other.eval()(x), want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pixels(dtype):
    """The first layer reads the pixels of an image as spikes; its operations are counted."""
    pixels = torch.randint(0, 256, (4, 12), dtype=torch.uint8)
    x = pixels if dtype == torch.uint8 else pixels.float() / 255
    same(Encode(8, "radix")(x).bits[0], pixels)
    for steps in range(1, 8):
        y = Encode(steps, "radix", scale=2.0)(x)
        assert (y.radix, y.time_steps, y.amplitude) == (True, steps, 2 / (2**steps - 1))
        want = (pixels.double() / 255 * (2**steps - 1)).round()
        same(y.value.double(), want)
    net = nn.Sequential(Encode(8, "radix"), TandemLinear(12, 6, neuron=RadixIF()), Decode(), nn.Linear(6, 2)).eval()
    frozen = freeze(net)
    with torch.no_grad():
        same(frozen(x), net(x))
    operations = synops(net, [x])[0].synops
    ones = sum(int(p).bit_count() for p in pixels.flatten().tolist())
    assert operations == pytest.approx(6 * ones / 4)


def test_operations_of_a_convolution():
    """Every spike of a pixel, whatever it weighs, once for every neuron that it reaches."""
    spikes = train(4, 3, 2, 5, 6, seed=0, rate=0.4).double()
    layer = tandem_cuda.TandemConv2d(2, 7, 3, stride=2, padding=1, neuron=RadixIF())
    (row,) = synops(layer, SpikeTrain.from_dense(spikes, radix=True))
    positions = itertools.product(range(3), range(3), range(3), range(3))
    taps = [(2 * y + dy - 1, 2 * x + dx - 1) for y, x, dy, dx in positions]
    inside = [(i, j) for i, j in taps if 0 <= i < 5 and 0 <= j < 6]
    assert row.synops == pytest.approx(7 * sum(spikes[..., i, j].sum().item() for i, j in inside) / 3)
    assert row.time_steps == 4
    assert row.macs == 2 * 7 * len(inside)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_one_phase_neurons_refuse_numbers():
    for case in FIRING:
        for neuron in (IF(), LIF(), AdaptiveIF()):
            layer = case.make(neuron=neuron)
            with pytest.raises(ValueError, match=f"^{case.kind}: neuron must wait for all time steps to read radix"):
                layer(*case.inputs(time_steps=4, radix=True))
    layer = TandemLinear(3, 4)
    frozen = freeze(nn.Sequential(layer, Decode()).eval())
    with pytest.raises(ValueError, match="TandemLinear: neuron must wait for all time steps to read radix spikes"):
        frozen(SpikeTrain(torch.ones(1, 2, 3, dtype=torch.uint8), 4, radix=True))


def test_frozen_networks_know_radix_spikes_before_a_call(tmp_path):
    """Whether a layer reads radix spikes is known when a network is frozen or its file is loaded."""
    for source in (Encode(4, "radix"), [Encode(4, "impulse"), TandemLinear(6, 6, neuron=RadixIF())]):
        front = [source] if isinstance(source, Encode) else source
        net = nn.Sequential(*front, nn.Flatten(), TandemLinear(6, 3, neuron=RadixIF()), Decode()).eval()
        freeze(net).save(tmp_path / "net.safetensors")
        description, tensors = artefact.read(tmp_path / "net.safetensors")
        last = next(node for node in reversed(description["nodes"]) if node["kind"] == "TandemLinear")
        last["settings"]["neuron"] = IF().settings()
        with pytest.raises(ValueError, match=f"^FrozenNetwork: TandemLinear '{last['name']}': neuron must wait for"):
            tandem_cuda.FrozenNetwork(*artefact.parsed(description, tensors))
        net[-2].neuron = IF()
        with pytest.raises(ValueError, match=f"^freeze: TandemLinear '{last['name']}': neuron must wait for all time"):
            freeze(net)


def refused_behind_radix_spikes(layer, *others):
    """The message about a layer that reads radix spikes of an Encode, and what other layers make of these."""
    graph = torch.fx.Graph()
    x = graph.call_module("encode", (graph.placeholder("x"),))
    reads = [graph.call_module(f"other_{i}", (x,)) if other else x for i, other in enumerate(others)]
    graph.output(graph.call_module("decode", (graph.call_module("layer", (*reads,)),)))
    named = {"encode": Encode(4, "radix"), "layer": layer, "decode": Decode()}
    named |= {f"other_{i}": other for i, other in enumerate(others) if other}
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the message is what the tests look at
        freeze(torch.fx.GraphModule(nn.ModuleDict(named), graph).eval())
    return str(refused.value)


def test_frozen_networks_know_what_joins_read():
    counts = TandemLinear(6, 6, neuron=IF(two_phase=True))
    message = refused_behind_radix_spikes(TandemAdd(nn.Identity(), nn.Identity()), counts, None)
    assert message.startswith("freeze: TandemAdd 'layer': neuron must wait for all time steps to read radix spikes")
    message = refused_behind_radix_spikes(tandem_cuda.SpikeCat(False, False), counts, None)
    assert message == "freeze: SpikeCat 'layer': inputs must have the same radix, got [False, True]"
    gated = nn.Sequential(Encode(4, "radix"), tandem_cuda.SpikeRearrange("flatten"), TandemLinear(6, 6))
    with pytest.raises(ValueError, match=r"^freeze: TandemLinear '2': neuron must wait for all time steps"):
        freeze(gated.eval())


@every(with_weights())
def test_constant_input_is_refused(case):
    net = nn.Sequential(Encode(4), case.make(neuron=RadixIF()), Decode()).eval()
    x = torch.rand(2, *case.samples[0])
    for each in (net, freeze(net)):
        with pytest.raises(ValueError, match=f"^{case.kind}: input of RadixIF neurons must be encoded with mode"):
            each(x)
    net[0].mode = "impulse"
    net(x)


def test_more_than_8_steps_are_refused():
    net = network()
    net[0].time_steps = 9
    with pytest.raises(ValueError, match=r"RadixIF: time_steps of radix spikes must be from 1 to 8, .* got 9"):
        net(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"Encode: time_steps of radix spikes must be from 1 to 8, .* got 9"):
        Encode(9, "radix")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.tensor([[1.5]]),
            ValueError,
            "input must be from 0 to 1, got 1.5; pass images / 255, or with other numbers use",
        ),
        (torch.tensor([[-0.5]]), ValueError, "input must be from 0 to 1, got -0.5"),
        (torch.tensor([[float("nan")]]), ValueError, "input must be from 0 to 1, got nan"),
        (torch.tensor([[1]]), TypeError, "input must be floating point or uint8, got torch.int64"),
    ],
)
def test_pixels_out_of_range(x, error, message):
    with pytest.raises(error, match=f"^Encode: {message}"):
        Encode(4, "radix")(x)


def test_bad_scales_of_pixels():
    with pytest.raises(ValueError, match="Encode: scale must be positive with mode 'radix', got -1"):
        Encode(4, "radix", scale=-1)


def test_streams_in_chunks_are_refused():
    net, x = trained(network())
    frozen = freeze(net)
    with pytest.raises(ValueError, match="time step"):
        frozen.stream(x).advance(2)


def test_layers_take_the_neurons():
    """With their neurons shown."""
    for case in of_each_kind():
        if case.has_weights or case.kind in ("TandemAdd", "TandemNeurons"):
            layer = case.make(neuron=RadixIF(3.0))
            assert "RadixIF(level=3.0" in repr(layer)
    join = TandemAdd(nn.Identity(), nn.Identity(), neuron=RadixIF(3.0))
    x = SpikeTrain(torch.full((1, 2, 3), 5, dtype=torch.uint8), 3, radix=True, amplitude=0.25)
    with pytest.raises(ValueError, match="TandemAdd: inputs must have the same number of time steps"):
        join(x, SpikeTrain(torch.ones(1, 2, 3, dtype=torch.uint8), 4))


def test_frozen_sums_of_other_shapes_are_refused():
    """Of sizes that nobody knew before the call."""
    join = TandemAdd(tandem_cuda.TandemConv2d(2, 2, 3), nn.Identity(), neuron=RadixIF())
    frozen = freeze(
        graph_of(nn.ModuleDict({"join": join, "decode": Decode()}), {"join": "xx", "decode": ["join"]}).eval()
    )
    with pytest.raises(ValueError, match="TandemAdd: branches must agree in shape, got"):
        frozen(SpikeTrain(torch.ones(1, 2, 2, 5, 5, dtype=torch.uint8), 3, radix=True))
