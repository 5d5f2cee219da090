"""SpikeTrain of radix spikes: a byte is a number, whose binary digits are the spikes."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

import tandem_cuda
from exact import FLOATS, SEEDS, generator, same
from layer_cases import CASES, every
from tandem_cuda import (
    Decode,
    RadixIF,
    SpikeCat,
    SpikeRearrange,
    SpikeTrain,
    SpikeWindows,
    SpikingMaxPool2d,
    TandemDropout,
    TandemStochasticDepth,
    freeze,
)
from tandem_cuda import reference as ref
from tandem_cuda.spike_code import SpikeCode
from tensors import train

STEPS = range(1, 9)
every_t = pytest.mark.parametrize("steps", STEPS)


DROPOUTS = ("TandemDropout", "TandemDropout2d", "TandemDropout3d", "TandemStochasticDepth")
MAXIMA = ("SpikingMaxPool2d", "SpikingMaxPool3d", "SpikingGlobalMaxPool2d")


def numbers(steps, *shape, seed=0):
    """Values of T binary digits, uint8 [N, ...]."""
    return torch.randint(0, 2**steps, shape, dtype=torch.uint8, generator=generator(seed))


def example(steps=5, *shape, **named):
    return SpikeTrain(numbers(steps, *(shape or (2, 4, 3, 5))).unsqueeze(0), steps, radix=True, **named)


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    steps=st.sampled_from(STEPS),
    dtype=st.sampled_from((*FLOATS, torch.float16, torch.bool, torch.uint8)),
    seed=SEEDS,
)
def test_dense_round_trip(shape, steps, dtype, seed):
    """Digits in the order of time, the most significant first."""
    spikes = train(steps, *shape, seed=seed)
    x = SpikeTrain.from_dense(spikes.to(dtype), radix=True)
    assert (x.radix, x.time_steps, tuple(x.bits.shape)) == (True, steps, (1, *shape))
    same(x.to_dense(), spikes.to(x.dtype))
    same(x.to_dense(torch.bool), spikes.bool())
    value = sum((2 ** (steps - t) * s.to(torch.int64) for t, s in enumerate(spikes, 1)), torch.zeros(()).long())
    same(x.bits[0].to(torch.int64), value)
    same(x.value, value.to(x.dtype))
    same(x.count, spikes.sum(0, dtype=torch.int64).to(x.dtype))
    same(x.value, ref.DenseTrain(spikes.to(x.dtype), radix=True).value)


@every_t
def test_the_byte_is_the_number(steps):
    every = torch.arange(2**steps, dtype=torch.uint8).view(1, 1, -1)
    x = SpikeTrain(every, steps, radix=True)
    assert x.value.flatten().tolist() == [*range(2**steps)]
    assert x.count.flatten().tolist() == [i.bit_count() for i in range(2**steps)]
    for i, spikes in enumerate(x.to_dense(torch.uint8).flatten(1).t().tolist()):
        assert "".join(map(str, spikes)) == f"{i:0{steps}b}"
    assert x.firing_rate() == pytest.approx(0.5)


def test_rates_have_their_count_as_value():
    x = SpikeTrain.from_dense(train(9, 2, 3, seed=0))
    assert not x.radix
    assert x.value is x.count is x.carried_value
    leaf = x.count.clone().requires_grad_()
    assert SpikeTrain(x.bits, 9, value=leaf).count is leaf
    assert x.replace(value=leaf).count is leaf


def test_the_value_carries_the_gradient():
    x = example(dtype=torch.float64)
    assert x.carried_value is None
    leaf = x.value.clone().requires_grad_()
    x = x.replace(value=leaf)
    assert x.value is x.carried_value is leaf
    same(x.count.detach(), example(dtype=torch.float64).count)
    (grad,) = torch.autograd.grad(x.count.sum(), leaf)
    same(grad, torch.full_like(grad, 5 / 31))
    assert x.flatten().value.requires_grad
    assert not x.detach().value.requires_grad
    assert x.replace(amplitude=2.0).value is leaf
    assert x.replace(dtype=torch.float32).value.dtype == torch.float32
    assert x.replace(bits=x.bits).carried_value is None
    rate = x.replace(radix=False)
    assert rate.carried_value is None
    same(rate.count, x.count.detach())


def moved(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


OPERATIONS = {
    "flatten": lambda x: x.flatten(),
    "nn.Flatten": nn.Flatten(),
    "rearranged": lambda x: x.rearranged(lambda values: values.flip(-1)),
    "window": lambda x: x.window(0, x.time_steps),
    "cat": lambda x: SpikeTrain.cat([x, x]),
    "default_collate": lambda x: default_collate([x.rearranged(lambda values: values[:, :1])] * 3),
    "to": lambda x: x.to(torch.float64).to(torch.float32),
    "detach": lambda x: x.detach(),
    "replace": lambda x: x.replace(),
    "dropout": lambda x: TandemDropout(0.5)(x.replace(amplitude=x.amplitude / 2)),
    "stochastic depth": TandemStochasticDepth(0.01, scale=False),
    "SpikeRearrange": SpikeRearrange("upsample", 2, 3),
    "frozen SpikeRearrange": lambda x: freeze(SpikeRearrange("channels", 0, 2))(x),
    "pytree": lambda x: pytree.tree_map_only(torch.Tensor, torch.clone, x),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "file": moved,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_field_is_lost(name, carried):
    torch.manual_seed(0)  # dropout keeps some
    x = example(6, amplitude=3.0, pair_dim=1)
    if carried:
        assert x.value is x.carried_value
    y = OPERATIONS[name](x)
    assert (y.time_steps, y.code) == (6, SpikeCode(3.0, 1, True))
    same(y.value, y.bits[0].to(torch.float32))
    assert y.bits.any()


def test_structure_and_repr():
    x, rate = example(5, 2, 3), SpikeTrain(numbers(5, 2, 3).unsqueeze(0), 5)
    assert repr(x) == "SpikeTrain([2, 3], time_steps=5, dtype=torch.float32, device=cpu, radix=True)"
    spec = pytree.tree_structure(x)
    assert spec != pytree.tree_structure(rate)  # torch.compile must not reuse a graph
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def test_bad_trains():
    bits, value = numbers(5, 2, 3).unsqueeze(0), torch.zeros(2, 3)
    nine = torch.zeros(2, 2, 3, dtype=torch.uint8)
    for arguments, named, error, message in (
        ((bits, 5), {"radix": 1}, TypeError, "radix must be True or False, got int"),
        ((nine, 9), {}, ValueError, "time_steps of radix spikes must be from 1 to 8, since .* fills a byte, got 9"),
        ((bits, 5, value), {}, ValueError, "count must be None with radix"),
        ((bits, 5, value), {"radix": False, "value": value}, ValueError, "count must be None with value"),
        ((bits, 5), {"value": value[:1]}, ValueError, r"value must be \[2, 3\], got \[1, 3\]"),
        ((bits, 5), {"value": value.half()}, TypeError, "value must be .*got torch.float16"),
        ((bits.fill_(32), 5), {}, ValueError, "bits past time_steps must be zero: .* bytes must be below 32, got 32"),
    ):
        with pytest.raises(error, match=f"SpikeTrain: {message}"):
            SpikeTrain(*arguments, **{"radix": True} | named)
    x = example(5, 2, 3)
    with pytest.raises(ValueError, match=r"SpikeTrain: time_steps of radix spikes must be from 1 to 8, .*got 9"):
        SpikeTrain.from_dense(torch.zeros(9, 2, 3), radix=True)
    with pytest.raises(ValueError, match="SpikeTrain: count must be None with radix"):
        x.replace(count=value)
    with pytest.raises(ValueError, match=r"window: start and stop must be 0 and 5 for radix spikes, .* got 0, 4"):
        x.window(0, 4)
    with pytest.raises(ValueError, match=r"SpikeTrain\.cat: trains must have the same radix, got True and, .*False"):
        SpikeTrain.cat([x, x.replace(radix=False)])


def test_the_reference_reads_trains():
    """As it reads its own."""
    layer = ref.TandemLinear(3, 4, neuron=RadixIF(2.0))
    x = example(5, 2, 3, amplitude=0.125)
    want = layer(ref.DenseTrain(x.to_dense(), amplitude=0.125, radix=True))
    same(layer(x).spikes, want.spikes)
    assert want.value.any()


# --- layers that read numbers ----------------------------------------------------------------------------------------


@every_t
def test_decode(steps):
    x = example(steps, amplitude=0.25)
    same(Decode()(x), 0.25 * x.value)
    same(Decode()(x.replace(pair_dim=1)), 0.25 * (x.value[:, ::2] - x.value[:, 1::2]))
    same(freeze(Decode())(x), 0.25 * x.value)
    leaf = x.value.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Decode()(x.replace(value=leaf)).sum(), leaf)
    same(grad, torch.full_like(grad, 0.25))


@every_t
def test_concatenation(steps):
    x, y = (SpikeTrain(numbers(steps, 2, c, 3, seed=c).unsqueeze(0), steps, radix=True) for c in (4, 2))
    leaf = x.value.clone().requires_grad_()
    for both in (SpikeCat(False, False)(x, y), SpikeCat(False, False)(x.replace(value=leaf), y)):
        assert (both.radix, both.time_steps) == (True, steps)
        same(both.value.detach(), torch.cat([x.value, y.value], 1))
        same(both.bits[0].float(), both.value.detach())
    assert both.value.requires_grad
    signed = SpikeCat(True, False)(x, y)
    same(Decode()(signed), torch.cat([x.value[:, ::2] - x.value[:, 1::2], y.value], 1))
    with pytest.raises(ValueError, match="SpikeCat: inputs must have the same radix, got True and, for input 1, False"):
        SpikeCat(False, False)(x, y.replace(radix=False))


@every([case for case in CASES if case.kind in DROPOUTS])
def test_dropout(case):
    """What is left keeps its value and weighs 1 / (1 - p); the gradient has the same mask."""
    bits = numbers(6, 100, *case.samples[0]).unsqueeze(0)
    x = SpikeTrain(bits, 6, radix=True, amplitude=3.0, dtype=torch.float64)
    leaf = x.value.clone().requires_grad_()
    y = getattr(tandem_cuda, case.kind)(0.25)(x.replace(value=leaf))
    assert y.code == SpikeCode(4.0, None, True)
    (mask,) = torch.autograd.grad(y.value.sum(), leaf)
    assert mask.unique().tolist() == [0, 1]
    assert 0.5 < mask.mean() < 0.95
    same(y.value.detach(), x.value * mask)
    same(y.bits[0].double(), x.value * mask)
    same(y.to_dense(), x.to_dense() * mask)


def test_windows():
    x = example(5, amplitude=0.5)
    windows = SpikeWindows(2, 1)(x)
    assert (windows.radix, windows.amplitude) == (True, 0.125)
    mean = windows.amplitude * windows.value.unflatten(1, (4, -1)).sum(1)
    same(mean, 0.5 * nn.functional.avg_pool2d(x.value, 2, 1))


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case.kind in MAXIMA], ids=str)
def test_maxima(case, carried):
    """Equal to torch's pooling of the values, with its gradient; frozen, too."""
    layer, (sample,) = case.make(), case.samples
    x = SpikeTrain(numbers(6, 3, *sample).unsqueeze(0), 6, radix=True, amplitude=0.5)
    if carried:
        x = x.replace(value=x.value.clone().requires_grad_())
    y = layer(x)
    if case.kind == "SpikingGlobalMaxPool2d":
        want = x.value.amax((2, 3), keepdim=True)
    else:
        settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        pool = nn.functional.max_pool3d if len(sample) == 4 else nn.functional.max_pool2d
        want = pool(x.value, *settings, layer.ceil_mode).clamp(min=0)
    assert y.code == SpikeCode(0.5, None, True)
    same(y.value.detach(), want.detach())
    same(y.bits[0].float(), want.detach())
    same(y.to_dense(), SpikeTrain(y.bits, 6, radix=True).to_dense())
    if carried:
        same(*(torch.autograd.grad(z.square().sum(), x.value)[0] for z in (y.value, want)))
    frozen = freeze(layer.eval())(x)
    assert frozen.code == y.code
    same(frozen.bits, y.bits)
    x = x.detach()
    same(layer(x).bits, y.bits)


@pytest.mark.parametrize("layer", [SpikingMaxPool2d(2), Decode()])
def test_no_parts_of_numbers(layer):
    """Neither as windows of a whole train nor as trains of few steps."""
    frozen = freeze(layer.eval())
    with pytest.raises(ValueError, match=r"SpikeTrain\.window: start and stop must be 0 and 5 for radix spikes"):
        frozen.stream(example(5)).advance(2)
    with pytest.raises(ValueError, match=f"{type(layer).__name__}: radix spikes must be those of all time steps"):
        frozen.stream(time_steps=5).advance(example(2))
