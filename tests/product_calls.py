"""Products of every engine and kind of weight, for run_products, and what the CPU makes of them."""

import itertools
from dataclasses import replace

import numpy as np
import torch

import call_files
from call_files import COUNTS, DTYPES, SPIKES, VALUES
from cases import CONVOLUTIONS
from exact import generator, packed_on_cuda, planes, product_of_values
from neurons import BRANCHES, EVERY_KIND, NEURONS, joining
from tandem_cuda import ops
from tandem_cuda.ops.pack_weight import packed_like

# Weights whose sums are exact in float32: whole numbers up to these, but for float64.
LARGEST = {
    torch.float32: 5 * 2**15,
    torch.float64: 2**17,
    torch.float16: 2**11,
    torch.bfloat16: 2**8,
    torch.int8: 2**7,
    torch.int16: 32639,
}
SIZES = [
    *CONVOLUTIONS.values(),
    replace(CONVOLUTIONS["many pixels"], rate=0.0),
    *(replace(CONVOLUTIONS["3 x 3"], batch=1, time_steps=steps) for steps in range(1, 21)),
    replace(
        CONVOLUTIONS["depthwise"], channels=40, groups=40, outputs=80, stride=(2, 1), dilation=(1, 2), time_steps=19
    ),
]
# With these, every instance of a kernel runs, with neurons of every kind.
INSTANCES = [
    CONVOLUTIONS["1 x 1"],
    *(replace(CONVOLUTIONS["1 x 1"], outputs=outputs, time_steps=8) for outputs in (64, 130)),
    CONVOLUTIONS["depthwise"],
]
# Of radix spikes: every T, every shape, values up to 255, and planes that tensor cores read as they are or filled up.
RADIX_SIZES = [
    *(replace(CONVOLUTIONS["3 x 3"], time_steps=steps, rate=0.5) for steps in range(1, 9)),
    *(replace(sizes, time_steps=8 - i % 3, rate=0.5) for i, sizes in enumerate(CONVOLUTIONS.values())),
    *(replace(CONVOLUTIONS["many pixels"], channels=64, groups=groups, rate=1.0) for groups in (1, 2)),
    replace(CONVOLUTIONS["3 x 3"], batch=0),
]


def hows(dtype, sizes, multiplied):
    """(0: the gather engine, -1: the depthwise one, else tiles of tensor cores; most blocks, or 0).

    Tiles: 1, large; 2, small; 3, of warpgroups.
    """
    tiles = (1, 2, 3) if multiplied == SPIKES else (1, 2)
    cores = () if dtype == torch.float64 else tiles
    depthwise = [(-1, 0), (-1, 1)] if sizes.channels == sizes.groups else []
    return [(0, 0), (0, 2), *((engine, 0) for engine in cores), *depthwise]


class Call:
    """A product: the arguments of the CPU's operator, and what run_products reads of them."""

    def __init__(self, number, sizes, dtype, how, multiplied):
        largest, self.steps, self.dtype, self.how, self.multiplied = (
            LARGEST[dtype], sizes.time_steps, dtype, how, multiplied,
        )  # fmt: skip
        counts, random, integers = multiplied != SPIKES, generator(number), dtype in (torch.int8, torch.int16)
        if multiplied == VALUES and not integers:
            inputs = torch.Size(sizes.weight[1:]).numel()
            largest = min(largest, 2**22 // (inputs * (2**self.steps - 1)))
        whole = torch.randint(-largest, largest, sizes.weight, generator=random)
        self.weight = whole.to(dtype) if integers else (whole.double() / 2 ** (largest.bit_length() + 2)).to(dtype)
        float_ = torch.float64 if dtype == torch.float64 else torch.float32
        self.bits = planes(self.steps, *sizes.input, seed=number, rate=sizes.rate)
        out = sizes.output(sizes.batch)
        some = [number % 3 == 0 or integers, number // 2 % 2 == 0, number % 5 < 3 and not counts]
        neurons = [neuron.scaled(0.25) for neuron in NEURONS.values()]
        self.neuron = neurons[number % len(neurons)]
        scale, bias, state = (
            torch.randint(low, high, size, generator=random).to(float_) / divisor
            for low, high, size, divisor in (
                (-1, 4, (sizes.outputs,), 4 * largest if integers else 2),
                (-4, 6, (sizes.outputs,), 64),
                (-16, 24, (self.neuron.states, *out), 64),
            )
        )
        self.scale, self.bias, self.state = (
            x if there else None for x, there in zip((scale, bias, state), some, strict=True)
        )
        branch = None if counts else BRANCHES[number % len(BRANCHES)]
        self.joined = joining(branch, self.steps, *out, seed=number, dtype=float_)
        if integers:  # whose sums are exact: what follows them is rounded alike whatever it is
            scale = torch.randn(sizes.outputs, generator=random) / (2 * largest)
            bias = torch.randn(sizes.outputs, generator=random) / 16
            self.scale, self.bias = scale, None if self.bias is None else bias
        self.geometry = sizes.geometry

    def written(self):
        """As run_products reads it."""
        operands = self.bits, self.weight, self.scale, self.bias, self.state, self.geometry, self.steps
        neuron = self.neuron.kind, self.neuron.parameters
        return call_files.product(*operands, neuron, self.joined, [self.how[0], self.multiplied, self.how[1]])

    def __repr__(self):
        sizes = call_files.sizes_of(self.bits.shape[1:], self.weight.shape, **self.geometry)
        return f"{self.dtype}, T={self.steps}, how {self.how}, multiplied {self.multiplied}, sizes {sizes}"

    def expected(self):
        """What the CPU's operators return: packed weights, bits, sum and state, channels last.

        Of values the definition, in float64.
        """
        named = {**self.geometry, "scale": self.scale, "bias": self.bias}
        if self.multiplied == VALUES:
            results = [self.bits[:0], product_of_values(self.bits, self.weight, **named), None]
        elif self.multiplied == COUNTS:
            results = [self.bits[:0], ops.count_conv2d(self.bits, self.weight, **named, engine="event"), None]
        else:
            firing = {"neuron": self.neuron, "state": self.state, **self.joined, "engine": "event"}
            results = ops.spiking_conv2d(self.bits, self.weight, time_steps=self.steps, **named, **firing)
        channels = [None if x is None else x.movedim(-3, -1).contiguous() for x in results]
        packed = packed_on_cuda(self.weight, groups := self.geometry["groups"])
        return [packed[: min(packed_like(self.weight, groups)[0])], *channels]


def product_calls():
    """Products of spikes and counts, each with what is expected."""
    out = []
    for sizes in SIZES:
        for dtype in DTYPES:
            for multiplied in (SPIKES, COUNTS):
                for how in hows(dtype, sizes, multiplied):
                    out.append(Call(len(out), sizes, dtype, how, multiplied))
    kinds = [list(NEURONS).index(name) for name in EVERY_KIND]
    for i, (sizes, dtype, kind) in enumerate(itertools.product(INSTANCES, DTYPES, kinds)):
        number = len(NEURONS) * i + kind
        out += [Call(number, sizes, dtype, how, SPIKES) for how in hows(dtype, sizes, SPIKES) if how[1] == 0]
    return [(call, call.expected()) for call in out]


def value_calls():
    """Products of radix spikes, each with what is expected."""
    hows_of = [(sizes, dtype, how) for sizes in RADIX_SIZES for dtype in DTYPES for how in hows(dtype, sizes, VALUES)]
    out = [Call(number, *arguments, VALUES) for number, arguments in enumerate(hows_of)]
    return [(call, call.expected()) for call in out]


def check_calls(host, calls, folder, variant, order):
    """Assert that run_products makes of calls what is expected, to the bit but for the sign of zero."""
    (folder / "in").write_bytes(b"".join(call.written() for call, _ in calls))
    result = host.run("run_products", variant, folder / "in", folder / "out", order=order)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{len(calls)} calls\n", "")
    got = iter(call_files.results((folder / "out").read_bytes()))
    for call, expected in calls:
        for name, want in zip(("packed", "bits", "sum", "state"), expected, strict=True):
            want = np.zeros(0, np.uint8) if want is None else want.numpy().ravel()
            assert np.array_equal(np.frombuffer(next(got), want.dtype), want), (name, call)
    assert next(got, None) is None
