"""Random tandem layers: three steps of training, running statistics, eval mode, the frozen layer."""

import copy
from contextlib import nullcontext

import torch
from torch import nn

import tandem_cuda as tandem
from fuzz.draw import Draw
from tandem_cuda import IF, LIF, Decode, Encode, SpikeTrain, freeze, ops, quantise

from .digest import attempt, digest, gradients_of, refusal, state_of

COUNT = 600


def names():
    return [f"layer {i}" for i in range(COUNT)]


def run(name):
    draw = Draw(int(name.split()[1]))
    torch.manual_seed(draw.int(0, 2**31))
    try:
        layer, inputs = drawn(draw)
    except AttributeError as error:  # one of the libraries has no such layer
        return {"layer": refusal(error)}
    bits = draw.one((None, None, None, 8, 4, 16))
    said = "" if bits is None else attempt(quantise, layer, bits)
    return {"layer": f"{layer} {said}", **trained(draw, layer, inputs), **evaluated(draw, layer, inputs)}


def neuron(draw):
    threshold = draw.one((0.5, 1.0, 1.0, 0.7))
    amplitude = draw.one((1.0, 1.0, 0.5))
    return draw.one(
        (
            IF(threshold, amplitude=amplitude),
            IF(threshold, initial=0.5, amplitude=amplitude),
            IF(threshold, initial=0.5, two_phase=True, amplitude=amplitude),
            IF(threshold, two_phase=True),
            IF(threshold, refractory=1),
            LIF(leak=0.9, threshold=threshold),
            LIF(leak=0.5, threshold=threshold, initial=0.25),
        )
    )


def options(draw, norm=True):
    return {
        "bias": draw.chance(0.6),
        "norm": "batch" if norm and draw.chance(0.5) else None,
        "neuron": neuron(draw),
        "engine": draw.one(("auto", "event", "dense")),
        "learn_threshold": draw.chance(0.3),
    }


def weight_layer(draw, channels, spatial, **named):
    outputs = draw.one((2, 4, 6, 17))
    if not spatial:
        return tandem.TandemLinear(channels, outputs, **named)
    groups = draw.one([g for g in (1, 1, 2, channels) if channels % g == outputs % g == 0])
    padding = draw.int(0, 2)
    if spatial == 1:
        return tandem.TandemConv1d(channels, outputs, 3, draw.int(1, 2), padding, groups=groups, **named)
    if draw.chance(0.2):
        bias = named.pop("bias")
        return tandem.TandemConvTranspose2d(channels, outputs, 3, draw.int(1, 2), 1, groups=groups, bias=bias, **named)
    mode = draw.one(("zeros", "zeros", "reflect", "circular", "replicate"))
    return tandem.TandemConv2d(
        channels, outputs, draw.one((1, 3)), draw.int(1, 2), min(padding, 1), groups=groups, padding_mode=mode, **named
    )


def joined(draw, channels, spatial):
    """A TandemAdd of two branches of one shape."""

    def branch():
        named = options(draw) | {"learn_threshold": False}
        if spatial == 0:
            return tandem.TandemLinear(channels, channels, **named)
        kind = tandem.TandemConv1d if spatial == 1 else tandem.TandemConv2d
        return kind(channels, channels, 3, padding=1, **named)

    branches = [branch(), nn.Identity() if draw.chance(0.6) else branch()]
    if draw.chance(0.3):
        branches.reverse()
    return tandem.TandemAdd(*branches, neuron=neuron(draw), learn_threshold=draw.chance(0.3))


def pool(draw):
    settings = {"threshold": draw.one((0.5, 1.0)), "amplitude": draw.one((1.0, 0.5)), "initial": draw.one((0.0, 0.5))}
    return draw.one(
        (
            lambda: tandem.SpikingAvgPool2d(2, **settings, two_phase=draw.chance(0.3)),
            lambda: tandem.SpikingAvgPool2d(3, 2, 1, True, False, **settings),
            lambda: tandem.SpikingAdaptiveAvgPool2d(2, **settings),
            lambda: tandem.SpikingMaxPool2d(2, 1),
            lambda: tandem.SpikingMaxPool2d(3, 2, 1),
            lambda: tandem.SpikingGlobalMaxPool2d(),
            lambda: tandem.SpikeWindows(2),
            lambda: tandem.SpikeRearrange("channels", 1, 3),
            lambda: tandem.TandemDropout(0.5),
            lambda: tandem.TandemDropout2d(0.5),
        )
    )()


def drawn(draw):
    """(layer, its inputs)."""
    steps, batch, channels = draw.steps(), draw.one((0, 1, 3, 4)), draw.one((4, 6, 18))
    batch = max(batch, 2) if draw.chance(0.9) else batch
    dtype = draw.one((torch.float32, torch.float32, torch.float64))
    spatial = draw.one((0, 1, 2, 2, 2))
    shape = (batch, channels, *[draw.int(4, 7) for _ in range(spatial)])
    kind = draw.one(("spikes", "spikes", "real", "join", "neurons", "other" if spatial == 2 else "spikes"))
    if kind == "real":
        encode = Encode(steps, draw.one(("constant", "impulse")))
        layer = weight_layer(draw, channels, spatial, **options(draw))
        return nn.Sequential(encode, layer).to(dtype), [torch.randn(shape, dtype=dtype)]
    if kind == "neurons":
        layer = tandem.TandemNeurons(steps, neuron(draw), signed=draw.chance(0.5), features=draw.chance(0.3))
        return layer, [torch.randn(shape, dtype=dtype, requires_grad=True)]
    bits = ops.pack_spikes((torch.rand(steps, *shape) < draw.one((0.05, 0.3, 0.8))).to(torch.uint8))
    count = ops.spike_count(bits, dtype).requires_grad_()
    train = SpikeTrain(bits, steps, count, amplitude=draw.one((1.0, 1.0, 0.5)))
    if kind == "join":
        return joined(draw, channels, spatial).to(dtype), [train, train]
    layer = weight_layer(draw, channels, spatial, **options(draw)) if kind == "spikes" else pool(draw)
    return layer.to(dtype), [train]


def value(out):
    return out.count * out.amplitude if isinstance(out, SpikeTrain) else out


def trained(draw, layer, inputs):
    found = {}
    half = draw.chance(0.15)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, 0.1) if parameters else None
    for step in range(3):
        try:
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                out = layer(*inputs)
            v = value(out)
            if v.requires_grad:
                v.square().sum().backward()
        except Exception as error:
            return {"training": f"{type(error).__name__}: {error}"}
        found[f"output of step {step}"] = digest(out)
        found[f"gradients of step {step}"] = digest(gradients_of(layer))
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()
    reads = [x.count if isinstance(x, SpikeTrain) else x for x in inputs]
    found["gradients of inputs"] = digest([x.grad for x in reads if x.is_leaf and x.requires_grad])
    found["state"] = digest(state_of(layer))
    return found


def evaluated(draw, layer, inputs):
    layer.eval()
    with torch.no_grad():
        found = {"eval": attempt(layer, *inputs), "eval again": attempt(layer, *inputs)}
        found["copy"] = attempt(copy.deepcopy(layer), *inputs)
    found["eval with gradients"] = attempt(layer, *inputs)
    if len(inputs) == 1:
        network = nn.Sequential(*(layer if isinstance(layer, nn.Sequential) else [layer]), Decode())
        found["frozen"] = attempt(lambda: freeze(network)(*inputs))
        found["operations"] = attempt(lambda: str(tandem.synops(network, inputs[0])))
    return found
