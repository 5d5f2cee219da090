"""Cases of networks of radix spikes: in eval mode against the oracle, in training against the specification; frozen.

They mix radix neurons with two-phase neurons that count, and radix spikes with trains of rates.
"""

import copy
import io
import json
import math
import pickle
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    RadixIF,
    SpikeTrain,
    freeze,
    quantise,
    record_activity,
    synops,
)
from tandem_cuda import nn as tandem
from tandem_cuda import reference as ref
from tandem_cuda.nn.tandem import TandemLayer

from . import networks, oracle
from .draw import Draw, Mismatch, close, same
from .networks import Encoded


class Train(NamedTuple):
    """What flows between layers: spikes uint8 [T, N, ...]."""

    values: np.ndarray
    amplitude: float
    radix: bool = False
    paired: bool = False
    """Whether channels 2i and 2i + 1 are the two parts of one value."""

    @property
    def shape(self):
        return self.values.shape[2:]

    @property
    def numbers(self):
        """What the next layer reads, float64 [N, ...]."""
        read = oracle.radix_values if self.radix else lambda spikes: spikes.sum(0, dtype=np.int64)
        return read(self.values).astype(np.float64)


class Real(NamedTuple):
    """The output of Decode, [N, ...]."""

    values: np.ndarray


class RadixNetwork(networks.Network):
    """Modules under construction, each with the oracle's output after it."""

    def begin(self):
        draw = self.draw
        self.steps = draw.int(1, 8)
        most = draw.one(((), (8,), (8, 8), (8, 8), (8, 8), (5, 6, 6)))
        shape = (draw.batch(), draw.channels(), *(draw.int(3, n) for n in most))
        self.mode = draw.one(("impulse", "radix", "radix", "rates", "numbers"))
        if self.mode in ("rates", "numbers"):
            amplitude, radix = draw.one((1.0, 1.0, 0.5, 3.0)), self.mode == "numbers"
            spikes = draw.spikes(self.steps, *shape)
            bits = oracle.radix_values(spikes)[None].astype(np.uint8) if radix else oracle.pack(spikes)
            self.input = SpikeTrain(draw.tensor(bits), self.steps, dtype=self.dtype, amplitude=amplitude, radix=radix)
            return Train(spikes, amplitude, radix)
        if self.mode == "impulse":
            values, scale = draw.dyadic(*shape, dtype=self.number), draw.one((1.0, 1.0, 0.5))
            self.input, self.first = draw.tensor(values), Encode(self.steps, "impulse", scale)
            return Encoded(values * self.number(scale), self.steps, self.mode)
        return self._pixels(shape)

    def _pixels(self, shape):
        draw, levels = self.draw, 2**self.steps - 1
        scale = draw.one((1.0, levels / 16, levels / 2.0**self.steps, 0.3))
        if self.dtype == torch.float32 and draw.chance(0.4):
            pixels = draw.rng.integers(0, 256, shape).astype(np.uint8)
            values = pixels.astype(np.float32) / np.float32(255)
            self.input = draw.tensor(pixels)
        else:
            values = draw.rng.random(shape).astype(self.number)
            exact = draw.rng.random(shape) < 0.3
            values[exact] = (draw.rng.integers(0, 17, shape)[exact] / 16).astype(self.number)
            self.input = draw.tensor(values)
        self.first = Encode(self.steps, "radix", scale)
        return self.fired(values, RadixIF(2**self.steps / levels))._replace(amplitude=scale / levels)

    # ---- Neurons

    def neuron(self):
        draw = self.draw
        initial = draw.one((0.5, 0.5, 0.0, 0.25, 0.75))
        if draw.chance(0.75):
            level = (
                draw.one((0.5, 1.0, 2.0, 8.0, 64.0, 512.0)) if draw.chance(0.7) else float(draw.rng.uniform(0.1, 99))
            )
            return RadixIF(level, clip=draw.chance(0.3), initial=initial)
        threshold = draw.one((0.5, 1.0, 4.0, 32.0, 0.7))
        return IF(threshold, amplitude=draw.one((1.0, 0.5, threshold)), initial=initial, two_phase=True)

    def suited(self, neuron, v):
        """Neurons of the same kind whose range is mostly that of v."""
        largest = np.abs(v).max(initial=0)
        if not 0 < largest < 1e30 or self.draw.chance(0.3):
            return neuron
        level = 2.0 ** math.ceil(math.log2(largest)) * self.draw.one((0.25, 0.5, 1.0, 2.0))
        return replace(neuron, level=level) if neuron.radix else replace(neuron, threshold=level / self.steps)

    def fired(self, v, neuron):
        """Neurons that wait, with v [N, ...] the sum of their input."""
        number, steps, spikes = self.number, self.steps, []
        v = v.astype(number)
        theta = number(neuron.threshold_at(steps))
        u = v + number(neuron.initial) * theta
        for t in range(1, steps + 1):
            h = theta * number(2.0 ** (steps - t)) if neuron.radix else theta
            spikes.append(u >= h)
            u = np.where(spikes[-1], u - h, u)
        return Train(np.stack(spikes).astype(np.uint8), neuron.amplitude_at(steps), neuron.radix)

    def currents(self, x, product, gain, bias, axis):
        """The sum of what drives the neurons, [N, ...]. axis: of the channels in [T, N, ...]."""
        axis = axis - (axis > 0)
        if isinstance(x, Encoded):
            return oracle.affine(product(x.values).astype(self.number), gain, bias, axis)
        values = product(x.numbers).astype(self.number)
        scale = None
        if not (gain is None and x.amplitude == 1):
            scale = self.number(x.amplitude) * (self.number(1) if gain is None else gain)
            scale = np.broadcast_to(scale, values.shape[axis : axis + 1] if axis > 0 else values.shape[-1:])
        return oracle.affine(values, scale, bias, axis)

    def times_amplitude(self, x):
        return x.numbers.astype(self.number) * self.number(x.amplitude)

    def fill(self, layer, plain):
        return super().fill(layer, True)

    def check_output(self, name, got, want):
        if isinstance(want, Encoded):
            return
        if not isinstance(want, Train):
            same(name, got, want.values if isinstance(want, Real) else want)
            return
        same(name, got.to_dense(torch.uint8), want.values)
        code = want.amplitude, 1 if want.paired else None, want.radix
        if want.paired and len(want.shape) == 1 and got.pair_dim == -1:
            code = want.amplitude, -1, want.radix
        if tuple(got.code) != code:
            raise Mismatch(f"{name}: code {got.code}, expected {code}")
        same(f"{name}, value", got.value, want.numbers.astype(got.value.detach().numpy().dtype))


# ---- Layers


def pooling(net):
    draw, x = net.draw, net.last
    threshold, initial = draw.one((0.25, 0.5, 1.0)), draw.one((0.0, 0.5, 0.25))
    named = {"threshold": threshold, "amplitude": draw.one((1.0, 1.0, 0.5, threshold))}
    named |= {"initial": initial if x.radix or draw.chance(0.5) else 0.0}
    named["two_phase"] = bool(named["initial"]) or draw.chance(0.5)
    pool, axes, override = networks.average_pool(net, **named)
    amplitude = x.amplitude * pool.amplitude
    if not x.radix and not pool.two_phase:
        values = oracle.average_pool(x.values, axes, threshold, override, net.number)
        net.add(pool, x._replace(values=values, amplitude=amplitude))
        return
    sums, common = oracle.window_sums(x.numbers, axes, override)
    theta = threshold * common
    neuron = RadixIF(theta * 2**net.steps, initial=pool.initial)
    fired = net.fired(sums, neuron if x.radix else IF(theta, initial=pool.initial, two_phase=True))
    net.add(pool, x._replace(values=fired.values, amplitude=amplitude))


def maximum(net):
    x, (pool, axes) = net.last, networks.max_pool(net)
    values = digits(oracle.window_maxima(x.numbers, axes), net.steps) if x.radix else oracle.max_pool(x.values, axes)
    net.add(pool, x._replace(values=values))


def digits(numbers, steps):
    whole = numbers.astype(np.int64)
    return np.stack([whole >> (steps - t) & 1 for t in range(1, steps + 1)]).astype(np.uint8)


def concatenation(net):
    """SpikeCat of the last output and another that suits it, perhaps itself; a part may be signed."""
    draw, x, last = net.draw, net.last, len(net.outputs) - 1
    suits = [
        i
        for i, y in enumerate(net.outputs)
        if isinstance(y, Train)
        and (y.amplitude, y.radix, y.shape[1:], y.values.shape[:2])
        == (x.amplitude, x.radix, x.shape[1:], x.values.shape[:2])
    ]
    other = draw.one([*suits, last])
    parts = [x, net.outputs[other]]
    signed = [draw.chance(0.2) and len(p.values) and p.shape[0] % 2 == 0 for p in parts]
    paired = [s or p.paired for s, p in zip(signed, parts, strict=True)]
    values = [p.values for p in parts]
    if any(paired):
        values = [v if own else with_silent(v) for v, own in zip(values, paired, strict=True)]
    out = x._replace(values=np.concatenate(values, 2), paired=any(paired))
    net.add(tandem.SpikeCat(*map(bool, signed)), out, last, other)


def with_silent(values):
    """Channels with a silent negative part each."""
    pairs = np.stack([values, np.zeros_like(values)], 3)
    return pairs.reshape(*values.shape[:2], 2 * values.shape[2], *values.shape[3:])


def real_value(net):
    """TandemNeurons behind a read-out."""
    draw, x = net.draw, net.last
    value = net.times_amplitude(x)
    if x.paired:
        value = value[:, ::2] - value[:, 1::2]
    net.add(Decode(), Real(value))
    signed = x.paired or draw.chance(0.3)
    v = value
    if signed:
        v = np.stack([v, -v], 2).reshape(v.shape[0], 2 * v.shape[1], *v.shape[2:])
    neuron = net.suited(RadixIF(draw.one((1.0, 8.0, 300.0)), initial=draw.one((0.0, 0.5))), v)
    net.add(tandem.TandemNeurons(net.steps, neuron, signed), net.fired(v, neuron)._replace(paired=signed))


def flatten(net):
    x = net.last
    lead = x.values.ndim - len(x.shape)
    values, shape = x.values, x.values.shape[:lead]
    if getattr(x, "paired", False):  # pairs stay side by side
        parts = [values[:, :, i::2].reshape(*shape, math.prod(x.shape) // 2) for i in range(2)]
        values = np.stack(parts, -1).reshape(*shape, math.prod(x.shape))
    else:
        values = values.reshape(*shape, math.prod(x.shape))
    net.add(nn.Flatten(), x._replace(values=values))


def read_out(net):
    x = net.last
    counts = net.times_amplitude(x)
    if x.paired:
        counts = counts[:, ::2] - counts[:, 1::2]
    net.add(Decode(), counts)


def built(draw):
    """A network of a few layers."""
    net = RadixNetwork(draw)
    if isinstance(net.last, Encoded):
        if draw.chance(0.2):
            flatten(net)
        networks.tandem_layer(net)
    for _ in range(draw.int(1, 4)):
        x = net.last
        dims = len(x.shape)
        choices = [networks.tandem_layer] * 3 + [networks.idle]
        choices += [networks.join, networks.join, concatenation] if x.shape[0] < 80 else []
        choices += [real_value] if x.values.shape[1] else []
        choices += [flatten] if dims > 1 else []
        choices += [pooling, pooling] + [maximum] * (not x.paired) if dims >= 3 else []
        draw.one(choices)(net)
    if draw.chance(0.5):
        read_out(net)
    net.note()
    return net


def radix_networks(draw: Draw):
    net = built(draw)
    with torch.random.fork_rng():
        torch.manual_seed(draw.int(0, 2**31))
        net.check_layers()
        if any(isinstance(module, tandem.spiking.Spiking) for module, _ in net.calls):
            check_frozen(net)
            check_analysis(net)
            check_refusals(net)
        if net.input.shape[0] > 1:
            check_training(net)


def check_frozen(net):
    draw = net.draw
    frozen = freeze(net.graph())
    net.check_output("frozen", frozen(net.input), net.last)
    with torch.no_grad():
        want = frozen(net.input)
    check_file(draw, frozen, net.input, want)
    if draw.chance(0.3):
        layers = copy.deepcopy(net.graph())
        bits = draw.one((8, 16, 4))
        try:
            quantise(layers, bits)
        except ValueError as refused:
            if "quantise: " not in str(refused):
                raise
            return
        draw.note(bits=bits)
        with torch.no_grad():
            want = layers(net.input)
        integers = freeze(layers)
        agree("the frozen network of integers", integers(net.input), want)
        check_file(draw, integers, net.input, want)
        if net.dtype != torch.float32:
            return  # in float64, quantised weights stay floats, whose sums depend on their order
        for module in layers.modules():
            if hasattr(module, "engine"):
                module.engine = draw.one(("event", "dense"))
        with torch.no_grad():
            agree("with other engines", layers(net.input), want)


def agree(name, got, want):
    if isinstance(want, SpikeTrain):
        same(name, got.bits, want.bits.numpy())
        if got.code != want.code:
            raise Mismatch(f"{name}: code {got.code}, expected {want.code}")
    else:
        same(name, got, want.detach().numpy())


def must_refuse(errors, words, f):
    """Mismatch unless a call raises one of these errors, whose message has one of the words."""
    try:
        f()
    except errors as error:
        if not re.search(words, str(error)):
            raise Mismatch(f"refused with another message: {error}") from error
        return
    raise Mismatch(f"not refused: expected a message with {words}")


def check_file(draw, frozen, x, want, batches=True):
    """Whole copies, files, batches and streams of a frozen network."""
    if draw.chance(0.5):
        agree("a pickle", pickle.loads(pickle.dumps(frozen))(x), want)
        agree("a copy", copy.deepcopy(frozen)(x), want)
    if draw.chance(0.5):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "net.safetensors")
            frozen.save(path)
            loaded = FrozenNetwork.load(path)
        agree("the file", loaded(x), want)
        settings = [[node.layer.settings() for node in network.nodes] for network in (loaded, frozen)]
        if json.dumps(settings[0]) != json.dumps(settings[1]):
            raise Mismatch(f"the file's settings are {settings[0]}, expected {settings[1]}")
    buffer = io.BytesIO()
    torch.save(frozen.state_dict(), buffer)
    size = x.shape[0]
    if batches and size > 1 and draw.chance(0.5):
        rows = torch.from_numpy(draw.rng.permutation(size)[:1])
        part = x[rows] if isinstance(x, torch.Tensor) else x.replace(bits=x.bits[:, rows])
        expected = want[rows] if isinstance(want, torch.Tensor) else want.replace(bits=want.bits[:, rows])
        agree("a sample alone", frozen(part), expected)
    stream = frozen.stream(x)
    if stream.remaining > 1 and any(node.layer.waits for node in frozen.nodes):
        must_refuse(
            ValueError, "chunk must be all|only together", lambda: stream.advance(draw.int(1, stream.remaining - 1))
        )
    agree("the only chunk", frozen.stream(x).advance(frozen.stream(x).remaining), want)


def check_analysis(net):
    graph = net.graph()
    if net.input.shape[0] == 0 or not any(isinstance(module, TandemLayer) for module in graph.modules()):
        return
    with torch.no_grad():
        want = graph(net.input)
        with record_activity(graph) as record:
            agree("with its activity recorded", graph(net.input), want)
        str(record)
        str(synops(graph, net.input))


@torch.no_grad()
def check_refusals(net):
    """Neurons that cannot read radix spikes, and constant input: errors that name the layer."""
    first = 0 if net.first is None else 1
    spiking = [i for i, (module, _) in enumerate(net.calls) if isinstance(module, (TandemLayer, tandem.TandemAdd))]
    reading = [i for i in spiking if any(getattr(net.outputs[j], "radix", False) for j in net.calls[i][1])]
    if reading:
        graph, at = copy.deepcopy(net.graph()), net.draw.one(reading)
        layer = graph.get_submodule(str(at + first))
        layer.neuron = IF()
        message = rf"{type(layer).__name__}( '\w+')?: neuron must wait for all time steps to read radix spikes"
        must_refuse(ValueError, message, lambda: graph(net.input))
        must_refuse(ValueError, message, lambda: freeze(graph)(net.input))
    if net.mode == "impulse" and net.calls[spiking[0]][0].neuron.radix:
        graph = copy.deepcopy(net.graph())
        graph.get_submodule("0").mode = "constant"
        message = rf"^{type(net.calls[spiking[0]][0]).__name__}: input of RadixIF neurons must be encoded with mode"
        must_refuse(ValueError, message, lambda: graph(net.input))
        must_refuse(ValueError, message, lambda: freeze(graph)(net.input))


# ---- Training: each layer against the specification, with what the layers before it have put out


def twin_of(module):
    """The module of the specification; None if it has none."""
    kind = type(module).__name__
    if isinstance(module, tandem.TandemAdd):
        branches = [b if isinstance(b, nn.Identity) else twin_of(b) for b in module.branches]
        twin = ref.TandemAdd(*branches, neuron=module.neuron, learn_threshold=module.log_threshold is not None)
    elif isinstance(module, TandemLayer) and hasattr(ref, kind):
        arguments = {**module.arguments(), "bias": module.bias is not None}
        named = {"norm": module.norm and "batch", "learn_threshold": module.log_threshold is not None}
        twin = getattr(ref, kind)(**arguments, neuron=module.neuron, **named)
    elif isinstance(module, tandem.average_pool.SpikingAverage):
        return None if module.amplitude != 1 else pool_twin(module)
    else:
        return None
    twin = twin.double()
    twin.load_state_dict(module.state_dict())
    for ours, theirs in zip(module.modules(), twin.modules(), strict=True):
        if hasattr(ours, "eps"):
            theirs.eps = ours.eps
    return twin


def pool_twin(module):
    names = (
        ("output_size",)
        if hasattr(module, "output_size")
        else (*("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),)
    )
    names = (*names, "threshold", "initial", "two_phase")
    return getattr(ref, type(module).__name__)(**{name: getattr(module, name) for name in names})


def check_training(net):
    """In double precision, with weights of all values, whose potentials reach no threshold exactly."""
    draw = net.draw
    train = net.encoded()
    double = (
        (lambda x: x.to(torch.float64))
        if isinstance(train, SpikeTrain)
        else (lambda x: x._replace(value=x.value.double()))
    )
    values = [double(train)]
    for i, (module, inputs) in enumerate(net.calls):
        module = copy.deepcopy(module).double().train()
        of_layer = [m for m in module.modules() if isinstance(m, TandemLayer)]
        with torch.no_grad():
            for layer in of_layer:
                layer.weight.add_(torch.randn_like(layer.weight) * 0.05)
                if layer.norm is not None:
                    layer.norm.eps = 1e-5
                    layer.norm.bias.add_(torch.randn_like(layer.norm.bias) * 0.05)  # equal samples give v = bias
        learns = draw.chance(0.3) and isinstance(module, (TandemLayer, tandem.TandemAdd))
        if learns:
            module.log_threshold = nn.Parameter(torch.tensor(float(draw.rng.normal()) / 3, dtype=torch.float64))
        given = [with_leaf(values[j]) for j in inputs]
        twin = twin_of(module)
        if draw.chance(0.3):
            module.eval()
        out = module(*given)
        name = f"training, {i + 1}, {type(module).__name__}"
        if twin is not None and not isinstance(out, torch.Tensor):
            check_twin(name, module, twin.train(module.training), given, out)
        if isinstance(module, nn.modules.dropout._DropoutNd):  # which changes amplitudes, and sums want them alike
            out = module.eval()(*given)
        values.append(out.detach() if hasattr(out, "detach") else out)


def with_leaf(x):
    if isinstance(x, SpikeTrain):
        return x.replace(value=x.value.detach().clone().requires_grad_())
    return x


def dense(x):
    if not isinstance(x, SpikeTrain):
        return ref.EncodedInput(x.value, x.time_steps, x.mode) if hasattr(x, "mode") else x
    return ref.DenseTrain(x.to_dense(), x.value.detach().clone().requires_grad_(), x.amplitude, x.radix)


def check_twin(name, module, twin, given, out):
    theirs = [dense(x) for x in given]
    want = twin(*theirs)
    same(f"{name}, spikes", out.to_dense(), want.spikes.numpy())
    if (out.amplitude, out.radix) != (want.amplitude, want.radix):
        raise Mismatch(f"{name}: code {out.code}, expected {want.amplitude}, {want.radix}")
    seed = torch.randn_like(out.value)
    leaves = [
        [*(x.value for x in inputs if hasattr(x, "bits") or hasattr(x, "spikes")), *layer.parameters()]
        for inputs, layer in ((given, module), (theirs, twin))
    ]
    if not leaves[0]:
        return
    got = torch.autograd.grad(out.value, leaves[0], seed, allow_unused=True)
    expected = torch.autograd.grad(want.value, leaves[1], seed, allow_unused=True)
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        zero = torch.zeros_like(leaves[0][i])
        close(
            f"{name}, gradient {i}",
            zero if g is None else g,
            (zero if e is None else e).numpy(),
            1e-7,
            1 + zero.numpy(),
        )
    for (of, b), other in zip(module.named_buffers(), twin.buffers(), strict=False):
        if b is not None and b.is_floating_point():
            close(f"{name}, {of}", b, other.numpy(), 1e-9, 1 + np.abs(other.numpy()))
