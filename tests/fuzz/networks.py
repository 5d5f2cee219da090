"""Cases of networks in eval mode, against the oracle layer by layer; and frozen, whole and over chunks of time."""

import contextlib
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn

from tandem_cuda import Decode, Encode, SpikeTrain, freeze
from tandem_cuda import nn as tandem
from tandem_cuda.neuron.parameter import AMPLITUDE

from . import oracle
from .draw import FLOATS, NUMPY, Draw, Mismatch, same


class Spikes(NamedTuple):
    """What flows between layers: uint8 [T, N, ...]."""

    values: np.ndarray
    amplitude: float

    @property
    def shape(self):
        return self.values.shape[2:]


class Encoded(NamedTuple):
    """A real input on its way to the first layer: [N, ...]."""

    values: np.ndarray
    steps: int
    mode: str

    @property
    def shape(self):
        return self.values.shape[1:]


class Network:
    """Modules under construction, each with the oracle's output after it."""

    first = None
    """The module that encodes the input, if it is not spikes."""

    def __init__(self, draw: Draw):
        self.draw = draw
        self.dtype = draw.one(FLOATS)
        self.number = NUMPY[self.dtype]
        self.steps = draw.steps()
        self.calls = []  # (module, indices of its inputs among the outputs)
        self.outputs = [self.begin()]

    def begin(self):
        draw = self.draw
        most = draw.one(((), (8,), (8, 8), (8, 8), (8, 8), (5, 6, 6)))
        shape = (draw.batch(), draw.channels(), *(draw.int(3, n) for n in most))
        self.mode = draw.one(("constant", "impulse", "events", "events"))
        if self.mode == "events":
            amplitude = draw.one((1.0, 1.0, 0.5, 3.0))
            spikes = draw.spikes(self.steps, *shape)
            self.input = SpikeTrain(draw.bits(spikes), self.steps, dtype=self.dtype, amplitude=amplitude)
            return Spikes(spikes, amplitude)
        values = draw.dyadic(*shape, dtype=self.number)
        self.input = draw.tensor(values)
        scale = draw.one((1.0, 1.0, 0.5))
        self.first = Encode(self.steps, self.mode, scale)
        return Encoded(values * self.number(scale), self.steps, self.mode)

    def add(self, module, output, *inputs):
        """Append a module that reads the outputs of these numbers, by default the last one."""
        self.calls.append((module.to(self.dtype).eval(), inputs or (len(self.outputs) - 1,)))
        self.outputs.append(output)

    @property
    def last(self):
        return self.outputs[-1]

    # ---- Parameters

    def neuron(self):
        neuron = self.draw.neuron()
        if AMPLITUDE in neuron.PARAMETERS:
            return replace(neuron, amplitude=self.draw.one((1.0, 1.0, 0.5, 2.0)))
        return neuron

    def fill(self, layer, plain):
        """Random parameters; returns (weight, gain or None, bias or None) of the spiking twin.

        plain: gains are powers of two and biases multiples of T, so that currents are exact whatever the order.
        """
        draw, number = self.draw, self.number
        unit = self.steps / 4 if plain else 1 / 8
        weight = draw.dyadic(*layer.weight.shape, unit=2.0 ** -draw.int(2, 5), dtype=number)
        bias = None if layer.bias is None else draw.dyadic(*layer.bias.shape, largest=6, unit=unit, dtype=number)
        gain, parameters = None, {"weight": weight, "bias": bias}
        if layer.norm is not None:
            outputs = layer.norm.num_features
            mean, beta = (draw.dyadic(outputs, largest=6, unit=unit, dtype=number) for _ in range(2))
            if plain:
                layer.norm.eps = 1e-300  # vanishes; torch 2.11 refuses 0
                gamma, var = (number(2) ** draw.rng.integers(-1, 2, outputs) for _ in range(2))
                gamma, var = gamma * draw.rng.choice([-1, 1, 1], outputs), var * var
            else:
                gamma, var = draw.rng.uniform(-1, 2, outputs), draw.rng.uniform(0.1, 3, outputs)
            gamma, var = gamma.astype(number), var.astype(number)
            parameters |= {"norm.weight": gamma, "norm.bias": beta, "norm.running_mean": mean, "norm.running_var": var}
            gain, bias = oracle.batch_norm_fold(gamma, beta, mean, var, layer.norm.eps, bias)
        state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        with torch.no_grad():
            for name, values in parameters.items():
                if values is not None:
                    state[name].copy_(torch.from_numpy(values))
        if weight.ndim == 4 and draw.chance(0.3):
            layer.to(memory_format=torch.channels_last)
        return weight, gain, bias

    def currents(self, x, product, gain, bias, axis):
        """What drives the neurons, [T, N, ...]. axis: of the channels in [T, N, ...]."""
        share = None if bias is None else bias / self.number(self.steps)
        if isinstance(x, Spikes):
            scale = (
                None
                if gain is None and x.amplitude == 1
                else self.number(x.amplitude) * (self.number(1) if gain is None else gain)
            )
            values = _over_time(product, x.values).astype(self.number)
            if scale is not None:
                scale = np.broadcast_to(scale, values.shape[axis : axis + 1] if axis > 0 else values.shape[-1:])
            return oracle.affine(values, scale, share, axis)
        first = oracle.affine(product(x.values).astype(self.number), gain, share, axis - (axis > 0))
        series = np.repeat(first[None], self.steps, 0)
        if x.mode == "impulse":
            series[1:] = oracle.affine(np.zeros_like(series[1:]), None, share, axis)
        return series

    def times_amplitude(self, x):
        """What an identity adds to a sum."""
        return (x.values * self.number(x.amplitude)).astype(self.number)

    def suited(self, neuron, currents):
        """Neurons of the same kind for these currents."""
        return neuron

    def fired(self, currents, neuron):
        return Spikes(oracle.neurons(currents, neuron)[0], neuron.amplitude)

    # ---- Checks

    def check_output(self, name, got, want):
        if isinstance(want, Encoded):
            return
        if not isinstance(want, Spikes):
            same(name, got, want)
            return
        same(name, got.bits, oracle.pack(want.values))
        if got.amplitude != want.amplitude:
            raise Mismatch(f"{name}: amplitude {got.amplitude}, expected {want.amplitude}")

    def check_layers(self):
        grad = self.draw.one((torch.no_grad, torch.enable_grad, contextlib.nullcontext, torch.inference_mode))
        self.draw.note(grad=grad.__name__)
        with grad():
            values = [self.encoded()]
            self.check_output("input", values[0], self.outputs[0])
            for (module, inputs), want in zip(self.calls, self.outputs[1:], strict=True):
                values.append(module(*(values[i] for i in inputs)))
                self.check_output(f"{len(values) - 1}, {type(module).__name__}", values[-1], want)

    def encoded(self):
        return self.input if self.first is None else self.first(self.input)

    def graph(self):
        """The network as freeze takes it: a chain if it is one, else a graph."""
        first = [] if self.first is None else [self.first]
        modules = [*first, *(module for module, _ in self.calls)]
        if all(inputs == (i,) for i, (_, inputs) in enumerate(self.calls)):
            return nn.Sequential(*modules).eval()
        graph, root = fx.Graph(), nn.ModuleDict({str(i): module for i, module in enumerate(modules)})
        nodes = [graph.placeholder("x")]
        if first:
            nodes = [graph.call_module("0", (nodes[0],))]
        for i, (_, inputs) in enumerate(self.calls):
            nodes.append(graph.call_module(str(i + len(first)), tuple(nodes[j] for j in inputs)))
        graph.output(nodes[-1])
        return fx.GraphModule(root, graph).eval()

    def note(self):
        self.draw.note(steps=self.steps, mode=self.mode, dtype=str(self.dtype), input=list(self.outputs[0].shape))
        self.draw.note(layers=[str(module) for module, _ in self.calls])


def _over_time(product, spikes):
    steps, batch, *shape = spikes.shape
    out = product(spikes.reshape(steps * batch, *shape))
    return out.reshape(*spikes.shape[:2], *out.shape[1:])


# ---- Tandem layers: (module, product of arrays, axis of the channels in [T, N, ...])


def _options(net):
    return {
        "bias": net.draw.chance(0.6),
        "norm": "batch" if net.draw.chance(0.4) else None,
        "neuron": net.neuron(),
        "engine": net.draw.one(("auto", "event", "dense") if net.draw.chance(0.3) else ("auto", "event")),
    }


def _padding(draw, kernel, dilation, size):
    """(padding, mode, the pads ((before, after), ...) that an array needs)."""
    mode = draw.one(("zeros", "zeros", "reflect", "replicate", "circular"))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if draw.chance(0.2):
        pads = [(span // 2, span - span // 2) for span in spans]
        if mode in ("zeros", "replicate") or all(p[1] < n for p, n in zip(pads, size, strict=True)):
            return "same", mode, pads
    least = [max(0, -((n - 1 - span) // 2)) for n, span in zip(size, spans, strict=True)]
    padding = [p + draw.int(0, 2) for p in least]
    if mode in ("reflect", "circular") and any(p >= n for p, n in zip(padding, size, strict=True)):
        mode = "zeros"
    return tuple(padding), mode, [(p, p) for p in padding]


CONVOLUTIONS = {dims: getattr(tandem, f"TandemConv{dims}d") for dims in (1, 2, 3)}
"""By the number of dimensions behind the channels."""


def conv(net, x, plain, outputs=None):
    """TandemConv2d, of lines TandemConv1d, and of volumes TandemConv3d."""
    draw, dims = net.draw, len(x.shape) - 1
    channels, size = x.shape[0], x.shape[1:]
    groups = draw.one([g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0])
    outputs = groups * draw.one((1, 2, 3, 5, 8)) if outputs is None else outputs
    groups = groups if outputs % groups == 0 else 1
    kernel, stride, dilation = (tuple(draw.int(1, high) for _ in range(dims)) for high in (3, 2, draw.one((1, 1, 2))))
    padding, mode, pads = _padding(draw, kernel, dilation, size)
    stride = (1,) * dims if padding == "same" else stride
    layer = CONVOLUTIONS[dims](
        channels, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode, **_options(net)
    )
    weight, gain, bias = net.fill(layer.to(net.dtype), plain)

    def product(values):
        return oracle.convolution(oracle.pad(values, pads, mode), weight, stride, 0, dilation, groups)

    return layer, product, gain, bias, 2


def transposed(net, x, plain):
    """TandemConvTranspose2d."""
    draw, channels = net.draw, x.shape[0]
    groups = draw.one([g for g in (1, 1, 2, 3) if channels % g == 0])
    outputs = groups * draw.one((1, 2, 3))
    kernel, stride, dilation = draw.pair(1, 3), draw.pair(1, 2), draw.pair(1, 2) if draw.chance(0.3) else (1, 1)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw.int(0, min(1, span, n - 1)) for span, n in zip(spans, x.shape[1:], strict=True))
    extra = tuple(draw.int(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    options = _options(net)
    bias = options.pop("bias")
    layer = tandem.TandemConvTranspose2d(
        channels, outputs, kernel, stride, padding, extra, groups, bias, dilation, **options
    )
    weight, gain, bias = net.fill(layer.to(net.dtype), plain)

    def product(values):
        return oracle.conv_transpose2d(values, weight, stride, padding, extra, groups, dilation)

    return layer, product, gain, bias, 2


def linear(net, x, plain, outputs=None):
    """TandemLinear."""
    outputs = outputs or (net.draw.channels() if x.shape[0] < 300 else net.draw.int(1, 8))
    layer = tandem.TandemLinear(x.shape[-1], outputs, **_options(net))
    weight, gain, bias = net.fill(layer.to(net.dtype), plain)
    return layer, lambda values: values.astype(np.float64) @ weight.T, gain, bias, -1


def tandem_layer(net):
    x = net.last
    make = linear if len(x.shape) == 1 else conv
    if len(x.shape) == 3 and net.draw.chance(0.25):
        make = transposed
    layer, *of_currents = make(net, x, isinstance(x, Encoded))
    currents = net.currents(x, *of_currents)
    layer.neuron = net.suited(layer.neuron, currents)
    net.add(layer, net.fired(currents, layer.neuron))


# ---- Other layers


def average_pool(net, **named):
    """A layer that averages the last output, what it averages along each axis, and the divisor that it is told."""
    draw, shape = net.draw, net.last.shape
    if draw.chance(0.3):
        size = tuple(draw.int(1, n) for n in shape[1:])
        pool = getattr(tandem, f"SpikingAdaptiveAvgPool{len(size)}d")(size, **named)
        return pool, [oracle.adaptive_windows(n, m) for n, m in zip(shape[1:], size, strict=True)], None
    kernel, stride, padding = _windows(net)
    ceil, include, override = draw.chance(0.3), draw.chance(0.6), draw.one((None, None, 2, 3))
    kind = getattr(tandem, f"SpikingAvgPool{len(kernel)}d")
    axes = [
        oracle.average_windows(n, k, s, p, ceil, include)
        for n, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True)
    ]
    return kind(kernel, stride, padding, ceil, include, override, **named), axes, override


def max_pool(net):
    """A layer that takes the maxima of the last output, and its windows along each axis."""
    kernel, stride, padding = _windows(net)
    pool = getattr(tandem, f"SpikingMaxPool{len(kernel)}d")(kernel, stride, padding)
    axes = [
        oracle.average_windows(n, k, s, p, False, False)
        for n, k, s, p in zip(net.last.shape[1:], kernel, stride, padding, strict=True)
    ]
    return pool, axes


def _windows(net):
    """(kernel, stride, padding) of a pooling of the last output."""
    draw = net.draw
    kernel = tuple(draw.int(1, min(3, n)) for n in net.last.shape[1:])
    return kernel, tuple(draw.int(1, 3) for _ in kernel), tuple(draw.int(0, k // 2) for k in kernel)


def pooling(net):
    x, threshold = net.last, net.draw.one((0.25, 0.5, 1.0))
    pool, axes, override = average_pool(net, threshold=threshold)
    net.add(pool, Spikes(oracle.average_pool(x.values, axes, threshold, override, net.number), x.amplitude))


def maximum(net):
    x, (pool, axes) = net.last, max_pool(net)
    net.add(pool, Spikes(oracle.max_pool(x.values, axes), x.amplitude))


def join(net):
    """TandemAdd of a layer that keeps the shape, of an identity or a second layer, in either order."""
    draw, x, source = net.draw, net.last, len(net.outputs) - 1
    identity = draw.chance(0.6)
    features = x.shape[0]
    branches = []
    for _ in range(1 if identity else 2):
        made = linear(net, x, True, features) if len(x.shape) == 1 else _keeping_shape(net, x, features)
        branches.append((made[0], net.currents(x, *made[1:])))
    if identity:
        branches.insert(draw.int(0, 1), (nn.Identity(), net.times_amplitude(x)))
    currents = sum(current for _, current in branches)
    neuron = net.suited(net.neuron(), currents)
    layer = tandem.TandemAdd(*(branch for branch, _ in branches), neuron=neuron)
    net.add(layer, net.fired(currents, neuron), source, source)


def _keeping_shape(net, x, features):
    """A convolution of odd kernel, stride 1 and as much padding as keeps the shape."""
    kernel = net.draw.one((1, 3))
    layer = CONVOLUTIONS[len(x.shape) - 1](x.shape[0], features, kernel, padding=kernel // 2, **_options(net))
    weight, gain, bias = net.fill(layer.to(net.dtype), True)

    def product(values):
        return oracle.convolution(values, weight, padding=kernel // 2)

    return layer, product, gain, bias, 2


def flatten(net):
    x = net.last
    lead = x.values.ndim - len(x.shape)
    values = x.values.reshape(*x.values.shape[:lead], math.prod(x.shape))
    net.add(nn.Flatten(), x._replace(values=values))


def idle(net):
    layers = [tandem.TandemDropout(0.5), nn.Identity()]
    of_channels = {3: [tandem.TandemDropout2d(0.5)], 4: [tandem.TandemDropout3d(0.5)]}
    net.add(net.draw.one(layers + of_channels.get(len(net.last.shape), [])), net.last)


def read_out(net):
    """Decode, and mostly nn.Linear."""
    x = net.last
    counts = x.values.sum(0, dtype=np.int64).astype(net.number) * net.number(x.amplitude)
    net.add(Decode(), counts)
    if len(x.shape) != 1 or net.draw.chance(0.2):
        return
    layer = nn.Linear(x.shape[0], 5).to(net.dtype)
    weight, bias = (net.draw.dyadic(*p.shape, dtype=net.number) for p in (layer.weight, layer.bias))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    net.add(layer, (counts.astype(np.float64) @ weight.T.astype(np.float64) + bias).astype(net.number))


def networks(draw: Draw):
    """A random network, its frozen form, and that in chunks of time."""
    net = Network(draw)
    if isinstance(net.last, Encoded):
        if draw.chance(0.2):
            flatten(net)
        tandem_layer(net)
    for _ in range(draw.int(0, 3) if net.calls else draw.int(1, 3)):
        dims = len(net.last.shape)
        choices = [tandem_layer, tandem_layer, idle] + [join] * (net.last.shape[0] < 80)
        draw.one(choices + [flatten] * (dims > 1) + [pooling, pooling, maximum] * (dims >= 3))(net)
    if draw.chance(0.5):
        if len(net.last.shape) > 1 and draw.chance(0.7):
            flatten(net)
        read_out(net)
    net.note()
    net.check_layers()
    check_frozen(net)


def check_frozen(net):
    if all(isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)) for module, _ in net.calls):
        return  # nothing remains to be frozen
    draw, want = net.draw, net.last
    frozen = freeze(net.graph())
    net.check_output("frozen", frozen(net.input), want)
    chunked = net.mode == "events" and draw.chance(0.5)
    stream = frozen.stream(time_steps=net.steps) if chunked else frozen.stream(net.input)
    samples = np.arange(len(net.input))
    parts = []
    while stream.remaining:
        now = draw.int(1, stream.remaining)
        if chunked:
            train = net.input if len(samples) == len(net.input) else _selected(net.input, samples)
            out = stream.advance(train.window(stream.done, stream.done + now))
        else:
            out = stream.advance(now)
        if isinstance(want, Spikes):
            done = stream.done
            net.check_output(
                f"steps {done - now} to {done}", out, Spikes(want.values[done - now : done][:, samples], want.amplitude)
            )
        if stream.remaining and len(samples) and draw.chance(0.1):
            kept = np.flatnonzero(draw.rng.random(len(samples)) < 0.7)
            stream.select(torch.from_numpy(kept))
            samples = samples[kept]
    if not isinstance(want, Spikes):
        same("the last of chunks", out, want[samples])
    draw.note(parts=len(parts))


def _selected(train, samples):
    bits = train.bits[:, torch.from_numpy(samples)]
    return SpikeTrain(bits, train.time_steps, dtype=train.dtype, amplitude=train.amplitude)
