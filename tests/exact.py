"""What the tests of operators and layers draw, and how they run it on every CPU path. Tensors are in tensors.py."""

import contextlib
import importlib
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st

from tandem_cuda import _C, ops
from tandem_cuda import reference as ref
from tandem_cuda.ops.gradient import ON_CUDA
from tandem_cuda.ops.pack_weight import packed_like

# Some of them for whoever imports from here.
from tensors import (  # noqa: F401
    ENGINES,
    FLOATS,
    HALVES,
    INTEGERS,
    META,
    WEIGHTS,
    dyadic,
    generator,
    int8,
    integers,
    normal,
    planes,
    train,
    views,
)  # fmt: skip

ISAS = _C.build_info()["cpu_isas_runnable"]
THREADS = (1, 2)

RATES = (0.0, 0.05, 0.5, 1.0)
# T around the borders of bytes and words; counts above 255 have tests of their own.
TIME_STEPS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 64, 65, 70)
# T of radix spikes.
RADIX = tuple(range(1, 9))
# Around the borders of a word of 64 spikes, of blocks of 16, 32 and 64 weights and of a chunk of 128 rows of them.
CHANNELS = (1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 70, 130, 257)
# Of depthwise convolutions, whose output channels fill vectors of 2 to 16 lanes; and output channels of each of them.
DEPTHWISE_CHANNELS = (2, 3, 7, 8, 15, 16, 17, 33, 40)
MULTIPLIERS = (1, 2, 3, 17)
SEEDS = st.integers(0, 2**31 - 1)
VANISHING = 1e-300  # of batch norm: leaves a variance as it is, and torch 2.11 refuses 0
AUTO, EVENT, DENSE = range(3)  # as the operators themselves take them
CONSTANT, _, SERIES, _ = range(4)  # modes, likewise


def slow(*values, **named):
    """One of a test's parameters that only `make test-slow` takes."""
    return pytest.param(*values, **named, marks=pytest.mark.slow)


def nightly(*values, **named):
    """One of a test's parameters that only `make nightly` takes."""
    return pytest.param(*values, **named, marks=pytest.mark.nightly)


def examples(n):
    """So many of hypothesis's examples; a tenth with `--hypothesis-profile few`, as of all other tests."""
    return settings(max_examples=n * settings.default.max_examples // 100)


def imported_without(monkeypatch, module, missing):
    """Import a module of the library anew where another one cannot be imported."""
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module(module)


def every_path(f, *arguments, **named):
    """Yield what f returns with every instruction set, and with the best one in several threads.

    How work is split among threads does not depend on the instruction set. conftest.py restores what was set.
    """
    for isa, threads in [*((isa, 1) for isa in ISAS), *((ISAS[-1], n) for n in THREADS if n > 1)]:
        _C.set_cpu_isa(isa)
        torch.set_num_threads(threads)
        # So that torch fills new memory with NaN and 255: what a kernel does not write cannot look right by chance.
        torch.use_deterministic_algorithms(True)
        result = f(*arguments, **named)
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
        yield f"{isa}, {threads} threads", result


def everywhere(want, f, *arguments, **named):
    """Assert that f returns exactly `want` on every path."""
    for path, got in every_path(f, *arguments, **named):
        same(got, want, path)


def replace_operator(monkeypatch, name, function):
    """Let everybody call ``function`` for an operator, layers too."""
    function.trusted = function
    monkeypatch.setattr(ops, name, function)


@contextlib.contextmanager
def as_on_cuda(device):
    """Let operators that Python computes on CUDA do so where the CPU stands in for the device, too."""
    library = torch.library.Library("tandem_cuda", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for name, implementation in ON_CUDA.items() if device == "cpu" else ():
                library.impl(name, implementation, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def same(got, want, path=""):
    """Assert that tensors, or tuples of them, are equal in every element and in dtype; NaN equals NaN."""
    if isinstance(want, torch.Tensor):
        got, want = (got,), (want,)
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        message = None if not path else lambda text, i=i: f"{path}, tensor {i}: {text}"
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True, check_stride=False, msg=message)


def features_last(x, dim):
    """Whether dimension `dim` is innermost in memory and the others keep their order."""
    return x.movedim(dim, -1).is_contiguous()


def sized(draw, groups, channels, outputs, wider=range(5)):
    """A convolution of so many channels; the width of its image is one of `wider` more than the kernel needs."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, dilation = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    room = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    height, width = room[0] + draw(st.integers(0, 4)), room[1] + draw(st.sampled_from(wider))
    return {
        "input": (draw(st.integers(0, 3)), channels, height, width),
        "weight": (outputs, channels // groups, *kernel),
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    }


def product_of_values(bits, weight, scale=None, bias=None, **geometry):
    """What a count product makes of the values of radix spikes: scale * (weight * value) + bias, of exact sums."""
    values, doubles = bits[0].double(), weight.double()
    sums = values @ doubles.T if weight.dim() == 2 else F.conv2d(values, doubles, **geometry)
    v = sums.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    of_channel = (-1,) if weight.dim() == 2 else (-1, 1, 1)
    v = v if scale is None else v * scale.view(of_channel)
    return v if bias is None else v + bias.view(of_channel)


@st.composite
def convolutions(draw):
    """Sizes of a convolution: bits [batch, channels, height, width], weight, and the keywords stride to groups."""
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 4, 7)))
    # Per group; often one channel, a depthwise convolution; rarely many.
    channels = groups * draw(st.sampled_from((1, 1, 2, 3, 5, 16, 22, 64 // groups + 1, 256 // groups + 1)))
    outputs = groups * draw(st.sampled_from((1, 1, 2, 3, 5, 16, 17, 64 // groups + 1, 128 // groups + 1)))
    return sized(draw, groups, channels, outputs)


@st.composite
def depthwise_convolutions(draw):
    """The same with one input channel a group."""
    channels = draw(st.sampled_from(DEPTHWISE_CHANNELS))
    return sized(draw, channels, channels, channels * draw(st.sampled_from(MULTIPLIERS)))


def out_shape(case):
    """[N, O, Ho, Wo] of one of `convolutions`."""
    return F.conv2d(torch.zeros(case["input"]), torch.zeros(case["weight"]), **case["geometry"]).shape


def firing_rate(bits, time_steps):
    """Share of neurons and steps that spike, to show that a test is not about silence."""
    return ref.spike_count(bits).mean().item() / time_steps


@dataclass(frozen=True)
class Variant:
    """One way to call a product: what its weights are, and what says how to compute."""

    weights: torch.dtype
    scaled: bool = False
    packed: bool = False
    engine: str = "auto"

    @property
    def dtype(self):
        """Of currents, bias, state and count."""
        return torch.float64 if self.weights == torch.float64 else torch.float32

    def operands(self, *shape, seed):
        """(weight, scale or None): sums of the weights are exact, so that with any scale each current is rounded once.

        Of integers the scale is such that neurons fire now and then.
        """
        draw = integers if self.weights in INTEGERS else dyadic
        weight = draw(*shape, seed=seed, dtype=self.weights)
        smaller = {torch.int8: 64, torch.int16: 2**14}.get(self.weights, 1)
        scale = torch.randn(shape[0], generator=generator(seed + 1), dtype=self.dtype) / smaller
        return weight, scale if self.scaled else None

    def how(self, weight, groups=1):
        """The keywords that the reference does not have."""
        return {"engine": self.engine, "packed": ops.pack_weight(weight, groups) if self.packed else None}


@st.composite
def variants(draw):
    """Every way to call a product."""
    weights = draw(st.sampled_from(WEIGHTS))
    return Variant(
        weights, weights in INTEGERS or draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(ENGINES))
    )


VARIANTS = {
    "float32": Variant(torch.float32, engine="event"),
    "float64": Variant(torch.float64, scaled=True, packed=True, engine="event"),
    "dense": Variant(torch.float32, scaled=True, engine="dense"),
    "bfloat16": Variant(torch.bfloat16, engine="event"),
    "float16": Variant(torch.float16, scaled=True, packed=True, engine="event"),
    "bfloat16 dense": Variant(torch.bfloat16, engine="dense"),
    "int8": Variant(torch.int8, scaled=True, packed=True),
    "int8 dense": Variant(torch.int8, scaled=True, engine="dense"),
    "int16": Variant(torch.int16, scaled=True, engine="event"),
    "int16 dense": Variant(torch.int16, scaled=True, packed=True, engine="dense"),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def whole_weights(weight):
    """Float weights as whole numbers, float64, and the unit of each output channel, as a CUDA device sums them."""
    largest = weight.double().abs().flatten(1).amax(1)
    exponent = torch.where(largest > 0, largest.frexp().exponent.double() - 31, -126.0)
    unit = 2.0 ** exponent.clamp(min=-126)
    return (weight.double() / unit.view(-1, *[1] * (weight.dim() - 1))).round(), unit


def packed_on_cuda(weight, groups=1):
    """Rows of packed weights and, of floats, the units behind them: all that a CUDA device packs of narrow layers."""
    rows = min(packed_like(weight, groups)[0])  # without a processor's own order
    if weight.dtype in (torch.float64, torch.int8, torch.int16):
        return ops.pack_weight(weight, groups)[:rows]
    whole, unit = whole_weights(weight)
    high = (whole / 2**16).floor()
    high, low = (ops.pack_weight(x.float(), groups)[:rows].long() for x in (high, whole - high * 2**16))
    return torch.cat([(high * 2**16 + low).int(), unit.float().view(torch.int32)])


# Of gradients, which are rounded to the dtype of what they are of.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
