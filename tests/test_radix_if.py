"""RadixIF: the neuron, and the reference's trains and layers of radix spikes."""

import dataclasses
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exact import FLOATS, SEEDS, same
from neurons import near_thresholds
from tandem_cuda import IF, LIF
from tandem_cuda import reference as ref
from tandem_cuda.neuron import MODELS, RadixIF, of_settings
from tensors import dyadic, generator, normal

STEPS = range(1, 9)
every_t = pytest.mark.parametrize("steps", STEPS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS)

LEVELS = (1.0, 3.2, 0.7, 255.0, 1e-20, 1e20, torch.finfo(torch.float32).max)
INITIAL = (0.0, 0.25, 0.5, 0.999)


def weights(steps, dtype=torch.float64):
    """What a spike of each step weighs, [T, 1]."""
    return torch.tensor([2.0 ** (steps - t) for t in range(1, steps + 1)], dtype=dtype).view(-1, 1)


def value_of(spikes):
    return (spikes * weights(len(spikes), spikes.dtype)).sum(0)


# --- the neuron ------------------------------------------------------------------------------------------------------


@given(
    level=st.sampled_from(LEVELS) | st.floats(1e-30, 1e30),
    initial=st.sampled_from(INITIAL),
    steps=st.sampled_from(STEPS),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_the_closed_form_is_the_dynamics(level, initial, steps, dtype, seed):
    radix = RadixIF(level, initial=initial)
    v = torch.cat([near_thresholds(radix, steps, dtype), normal(200, seed=seed, dtype=dtype) * min(level, 1e37)])
    spikes, left = radix.discharge(v, steps)
    assert spikes.shape == (steps, *v.shape)
    assert left.shape == (1, *v.shape)
    assert ((spikes == 0) | (spikes == 1)).all()
    same(value_of(spikes), radix.value(v, steps))


@given(steps=st.sampled_from(STEPS), level=st.floats(1e-6, 1e6), initial=st.sampled_from(INITIAL), seed=SEEDS)
def test_the_value_is_the_quotient(steps, level, initial, seed):
    """In rational numbers, of the potential and the threshold as they are after rounding to float32."""
    radix = RadixIF(level, initial=initial)
    v = torch.cat([near_thresholds(radix, steps, torch.float32), normal(50, seed=seed) * level])
    v = v[v.isfinite()]
    theta = torch.tensor(radix.threshold_at(steps), dtype=torch.float32)
    u = v + torch.tensor(initial, dtype=torch.float32) * theta
    quotients = [math.floor(Fraction(x) / Fraction(theta.item())) for x in u.tolist()]
    want = [min(max(q, 0), 2**steps - 1) for q in quotients]
    assert radix.value(v, steps).tolist() == want
    assert {0, 2**steps - 1} <= {*want}


@every_t
def test_the_dynamics_by_hand(steps):
    """One number after the other, with thresholds that are powers of two, so that nothing is rounded."""
    radix = RadixIF(level=2.0 ** (steps - 1), initial=0.5)  # theta is 1 / 2
    for v in (x / 8 for x in range(-8, 8 * 2**steps)):
        u, want = v + 0.25, []
        for t in range(1, steps + 1):
            fires = u >= 0.5 * 2 ** (steps - t)
            u -= 0.5 * 2 ** (steps - t) * fires
            want.append(float(fires))
        spikes, left = radix.discharge(torch.tensor([v]), steps)
        assert spikes.flatten().tolist() == want
        assert left.item() == u
        assert radix.value(torch.tensor([v]), steps).item() == min(max(math.floor(v / 0.5 + 0.5), 0), 2**steps - 1)


@pytest.mark.parametrize("level", [1.0, 0.7, 3.2])
def test_every_t_has_the_same_range(level):
    """The thresholds are level / 2, level / 4, ...; the error is at most half a threshold below the top, and halves."""
    v = torch.linspace(0, level, 1001, dtype=torch.float64)
    errors = []
    for steps in STEPS:
        radix = RadixIF(level)
        theta = radix.amplitude_at(steps)
        assert theta == radix.threshold_at(steps) == radix.relu_threshold_at(steps) == level * 0.5**steps
        assert RadixIF(level, clip=True).upper(steps) == level - theta
        error = (theta * radix.value(v, steps) - v).abs()
        assert error[v < level - theta / 2].max() <= theta / 2 * (1 + 1e-9)
        assert error.max() <= theta * (1 + 1e-9)
        errors.append(error.mean().item())
    assert all(after < 0.6 * before for before, after in pairwise(errors))


@every_t
def test_fewer_steps_are_a_prefix(steps):
    """Of neurons that start at 0: the thresholds of the first steps do not depend on T."""
    radix, v = RadixIF(2.5, initial=0.0), normal(1000, seed=steps)
    same(radix.discharge(v, 8)[0][:steps], radix.discharge(v, steps)[0])


@pytest.mark.parametrize("factor", [0.25, 8.0])
@every_t
def test_scaled(factor, steps):
    radix = RadixIF(1.5, clip=True, initial=0.25)
    other = radix.scaled(factor)
    assert other == RadixIF(1.5 * factor, clip=True, initial=0.25)
    v = normal(100, seed=0)
    same(other.value(factor * v, steps), radix.value(v, steps))
    assert other.upper(steps) == factor * radix.upper(steps) == radix.upper(steps, factor)


@every_t
def test_activation_and_slope(steps):
    radix = RadixIF(2.0)
    v = torch.linspace(-1, 3, 101, dtype=torch.float64, requires_grad=True)
    activation = radix.activation(v, steps)
    (slope,) = torch.autograd.grad(activation.sum(), v)
    same(radix.slope(v.detach(), steps), slope)
    inside = (v >= 0) & (v <= 2 - 2 * 0.5**steps)
    assert ((activation - radix.value(v.detach(), steps)).abs()[inside] <= 0.5 + 1e-9).all()
    assert radix.largest(steps) == radix.levels(steps) == 2**steps - 1
    assert radix.upper(steps) == math.inf
    clipped = dataclasses.replace(radix, clip=True)
    assert clipped.activation(torch.tensor(clipped.upper(steps)), steps).item() == pytest.approx(2**steps - 1)


def test_parameters():
    assert repr(RadixIF()) == "RadixIF(level=1.0, clip=False)"
    assert repr(RadixIF(3, initial=0.0)) == "RadixIF(level=3.0, clip=False, initial=0.0)"
    assert RadixIF(3, initial=0.0).settings() == {"model": "RadixIF", "level": 3.0, "initial": 0.0}
    assert RadixIF().two_phase
    assert RadixIF().radix
    assert [model for model in MODELS if model.radix] == [RadixIF]


@pytest.mark.parametrize("steps", [0, -1, 9, 16])
def test_bad_time_steps(steps):
    message = f"time_steps of radix spikes must be from 1 to 8, since .* fills a byte, got {steps}"
    v = torch.ones(2, 3)
    for call in (
        RadixIF().threshold_at,
        RadixIF().amplitude_at,
        RadixIF().levels,
        RadixIF().largest,
        lambda steps: RadixIF().value(v, steps),
        lambda steps: RadixIF().discharge(v, steps),
        lambda steps: RadixIF().activation(v, steps),
        lambda steps: RadixIF().slope(v, steps),
    ):
        with pytest.raises(ValueError, match=f"^RadixIF: {message}" + ("; neurons such as IF take more" * (steps > 8))):
            call(steps)
    if steps > 0:
        IF().levels(steps)  # as it says
        with pytest.raises(ValueError, match=message):
            ref.neuron_loop([v] * steps, RadixIF())


# --- in the reference ------------------------------------------------------------------------------------------------


@given(
    steps=st.sampled_from(STEPS),
    mode=st.sampled_from(("constant", "impulse", "series", "once")),
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_integrate_and_fire(steps, mode, dtype, seed):
    """The byte is the value of the sum of the currents, and bit T - t is step t."""
    radix = RadixIF(1.75, initial=0.5)
    current = dyadic(*((steps,) if mode == "series" else ()), 4, 5, seed=seed, dtype=dtype)
    bias = dyadic(5, seed=seed + 1, dtype=dtype)
    bits, total, left = ref.integrate_and_fire(current, steps, bias, mode=mode, neuron=radix)
    q = radix.value(total, steps)
    assert bits.shape == (1, 4, 5)
    same(bits[0].to(dtype), q)
    spikes, _ = radix.discharge(total, steps)
    for t in range(1, steps + 1):
        same((bits[0] >> (steps - t) & 1).to(dtype), spikes[t - 1])
    theta = torch.tensor(radix.threshold_at(steps), dtype=dtype)
    saturated = q == 2**steps - 1
    assert ((left[0] < theta) | saturated).all()
    assert q.max() > 0


def test_no_state():
    with pytest.raises(ValueError, match="neuron_loop: state must be None with two_phase"):
        ref.neuron_loop([torch.ones(2, 3)] * 4, RadixIF(), torch.zeros(1, 2, 3))


@every_t
@every_dtype
def test_tandem_count_is_the_value(steps, dtype):
    radix = RadixIF(1.0, clip=True)
    v = (normal(4, 5, seed=0, dtype=dtype)).requires_grad_()
    bits, _, _ = ref.integrate_and_fire(v.detach(), steps, mode="once", neuron=radix)
    value = ref.tandem_count(bits, v, steps, radix, radix.upper(steps))
    same(value.detach(), radix.value(v.detach(), steps))
    (grad,) = torch.autograd.grad(value.sum(), v)
    inside = (v > 0) & (v <= radix.upper(steps))
    same(grad, torch.where(inside, 1 / torch.tensor(radix.threshold_at(steps), dtype=dtype), 0.0))


def radix_train(steps, *shape, seed, **named):
    spikes = (torch.rand(steps, *shape, generator=generator(seed)) < 0.5).float()
    return ref.DenseTrain(spikes, radix=True, **named)


@every_t
def test_dense_train(steps):
    x = radix_train(steps, 2, 3, 4, seed=0)
    same(x.value.flatten(), value_of(x.spikes.flatten(1)))
    same(x.count, x.spikes.sum(0))
    flat = x.flatten()
    assert flat.radix
    same(flat.value, x.value.flatten(1))
    same(ref.Decode()(ref.DenseTrain(x.spikes, amplitude=0.5, radix=True)), 0.5 * x.value)
    with pytest.raises(ValueError, match=r"DenseTrain: time_steps of radix spikes must be from 1 to 8, .*got 9"):
        ref.DenseTrain(torch.ones(9, 2, 3), radix=True)


@every_t
@pytest.mark.parametrize("form", ["loop", "folded"])
def test_layer_reads_numbers(steps, form):
    """By the dynamics of the input, u <- 2 u + W s[t], and by one product with the values; then the neurons."""
    radix = RadixIF(2.0)
    layer = ref.TandemLinear(6, 5, neuron=radix, form=form)
    with torch.no_grad():
        layer.weight.copy_(dyadic(5, 6, seed=0))
        layer.bias.copy_(dyadic(5, seed=1))
    x = radix_train(steps, 3, 6, seed=2, amplitude=2.0**-steps)
    u = torch.zeros(3, 5)
    for s in x.spikes:
        u = 2 * u + s @ layer.weight.t()
    v = x.amplitude * u + layer.bias
    same(v, nn.functional.linear(x.amplitude * x.value, layer.weight, layer.bias))
    out = layer(x)
    same(out.value.detach(), radix.value(v, steps).detach())
    assert (out.radix, out.amplitude) == (True, radix.threshold_at(steps))
    assert out.value.any()


BIASED = {
    "linear": (ref.TandemLinear(3, 40), (3,)),
    "linear, rows": (ref.TandemLinear(3, 40), (2, 3)),
    "1d": (ref.TandemConv1d(3, 40, 2), (3, 4)),
    "2d": (ref.TandemConv2d(3, 40, 2), (3, 4, 4)),
    "3d": (ref.TandemConv3d(3, 40, 2), (3, 4, 4, 4)),
    "transposed": (ref.TandemConvTranspose2d(3, 40, 2), (3, 4, 4)),
    "batch norm": (ref.TandemConv2d(3, 40, 2, norm="batch").eval(), (3, 4, 4)),
}


@every_t
@pytest.mark.parametrize("name", BIASED)
def test_the_bias_enters_once(steps, name):
    """Without spikes the neurons' input is the bias to the bit, whatever T; a T-th in each step would be rounded."""
    layer, shape = BIASED[name]
    silent = ref.DenseTrain(torch.zeros(steps, 1, *shape), radix=True)
    _, currents = layer.drive(silent, RadixIF())
    bias = layer.bias if layer.norm is None else layer._fold(layer.norm)[1]
    features = -1 if name.startswith("linear") else 1
    want = bias.view([-1 if i == features % currents[0].dim() else 1 for i in range(currents[0].dim())])
    same(sum(currents), want.expand(currents[0].shape).detach())
    assert len(currents) == steps


def network(radix, hidden):
    layers = ref.TandemLinear(6, hidden, neuron=radix), ref.TandemLinear(hidden, hidden, neuron=radix), ref.Decode()
    return nn.Sequential(ref.Encode(1, "impulse"), *layers, nn.Linear(hidden, 3))


def test_one_network_every_t():
    """One set of weights comes closer to its clipped ReLU network with every time step from the third on."""
    torch.manual_seed(0)
    net = network(RadixIF(2.0), 64)
    x, errors = torch.rand(256, 6), []
    hidden = x
    for layer in net[1:3]:
        hidden = nn.functional.linear(hidden, layer.weight, layer.bias).clamp(0, 2)
    want = net[-1](hidden)
    for steps in STEPS:
        net[0].time_steps = steps
        errors.append((net(x) - want).abs().mean().item())
    assert max(errors) < 0.1
    assert all(after < 0.65 * before for before, after in pairwise(errors[2:]))


def test_gradients_are_those_of_the_ann():
    """Of the first layer, given what the second one passes down."""
    torch.manual_seed(0)
    net = network(RadixIF(2.0, clip=True), 8)
    net[0].time_steps = 4
    x = torch.rand(16, 6)
    net(x).square().sum().backward()
    first, second, out = net[1], net[2], net[-1]
    q1, q2 = first(net[0](x)), second(first(net[0](x)))
    v1 = nn.functional.linear(x, first.weight, first.bias)
    v2 = nn.functional.linear(q1.amplitude * q1.value, second.weight, second.bias)
    grad = 2 * out(q2.amplitude * q2.value) @ out.weight
    grad = torch.where((v2 > 0) & (v2 <= 2), grad, 0.0)
    torch.testing.assert_close(second.weight.grad, grad.t() @ (q1.amplitude * q1.value))
    grad = torch.where((v1 > 0) & (v1 <= 2), grad @ second.weight, 0.0)
    torch.testing.assert_close(first.weight.grad, grad.t() @ x)


def test_joins_dropout_and_thresholds():
    radix, steps = RadixIF(2.0), 3
    x, y = (radix_train(steps, 4, 5, seed=seed, amplitude=a) for seed, a in ((0, 0.25), (1, 0.5)))
    join = ref.TandemAdd(nn.Identity(), nn.Identity(), neuron=radix)
    same(join(x, y).value, radix.value(0.25 * x.value + 0.5 * y.value, steps))
    counts = ref.DenseTrain(x.spikes)  # a sum may have numbers and counts
    same(join(x, counts).value, radix.value(0.25 * x.value + counts.count, steps))
    dropped = ref.TandemDropout(0.5)(x)
    assert (dropped.radix, dropped.amplitude) == (True, 0.5)
    kept = dropped.spikes.any(0)
    same(dropped.value, torch.where(kept, x.value, 0.0))
    layer = ref.TandemLinear(5, 5, bias=False, neuron=radix, learn_threshold=True)
    with torch.no_grad():
        layer.weight.copy_(dyadic(5, 5, seed=3))
        layer.log_threshold.fill_(math.log(2))
    out = layer(x)
    v = nn.functional.linear(0.25 * x.value, layer.weight)
    same(out.value.detach(), radix.value(v / torch.exp(layer.log_threshold), steps).detach())
    (grad,) = torch.autograd.grad(out.value.sum(), layer.log_threshold)
    slope = -torch.relu(v).sum() / (2 * radix.threshold_at(steps)) / math.sqrt(5 * 7)  # LSQ: 7 = 2^3 - 1 levels
    torch.testing.assert_close(grad, slope.detach())


@pytest.mark.parametrize("one_phase", [IF(), LIF(), IF(initial=0.5)])
def test_one_phase_neurons_refuse_numbers(one_phase):
    x = radix_train(4, 2, 3, seed=0)
    with pytest.raises(ValueError, match=r"TandemLinear: neuron must wait for all time steps to read radix spikes"):
        ref.TandemLinear(3, 2, neuron=one_phase)(x)
    with pytest.raises(ValueError, match=r"TandemAdd: neuron must wait for all time steps to read radix spikes"):
        ref.TandemAdd(nn.Identity(), nn.Identity(), neuron=one_phase)(x, x)


def test_two_phase_neurons_count_numbers():
    """Radix spikes in, a rate out."""
    x = radix_train(4, 2, 3, seed=0, amplitude=0.25)
    waiting = IF(0.5, initial=0.5, two_phase=True)
    layer = ref.TandemLinear(3, 2, bias=False, neuron=waiting)
    with torch.no_grad():
        layer.weight.copy_(dyadic(2, 3, seed=1))
    out = layer(x)
    v = nn.functional.linear(0.25 * x.value, layer.weight)
    assert not out.radix
    same(out.count.detach(), torch.floor(v / 0.5 + 0.5).clamp(0, 4).detach())


MAXIMA = {
    "images": (ref.SpikingMaxPool2d(2, 1, padding=1), (2, 3, 5, 4)),
    "dilated": (ref.SpikingMaxPool2d((3, 2), dilation=(1, 2)), (2, 3, 5, 4)),
    "volumes": (ref.SpikingMaxPool3d(2), (2, 2, 4, 4, 5)),
}


@every_t
@pytest.mark.parametrize("name", MAXIMA)
def test_maximum_of_numbers(steps, name):
    pool, shape = MAXIMA[name]
    x = radix_train(steps, *shape, seed=0, amplitude=0.25)
    x.value.requires_grad_()
    out = pool(x)
    plain = nn.MaxPool3d if len(shape) == 5 else nn.MaxPool2d
    want = plain(pool.kernel_size, pool.stride, pool.padding, pool.dilation)(x.value)
    assert (out.radix, out.amplitude) == (True, 0.25)
    same(out.value.detach(), want.detach())
    same(value_of(out.spikes.flatten(1)), want.detach().flatten())
    same(*(torch.autograd.grad(y.square().sum(), x.value)[0] for y in (out.value, want)))


AVERAGES = {
    "images": (ref.SpikingAvgPool2d(3, 2, padding=1, initial=0.5), 9, (2, 3, 5, 4)),
    "inside alone": (ref.SpikingAvgPool2d(2, padding=1, count_include_pad=False), 4, (2, 3, 5, 4)),
    "thirds and halves": (ref.SpikingAdaptiveAvgPool2d(2, initial=0.5), 6, (2, 3, 3, 5)),
    "volumes": (ref.SpikingAvgPool3d(2, initial=0.25), 8, (2, 2, 4, 4, 5)),
    "all pixels": (ref.SpikingAdaptiveAvgPool3d(1, initial=0.5), 27, (2, 3, 3, 3, 3)),
}


@every_t
@pytest.mark.parametrize("name", AVERAGES)
def test_average_of_numbers(steps, name):
    """Rounded to a number of the same range, exactly, also of windows with other sizes."""
    pool, unit, shape = AVERAGES[name]
    x = radix_train(steps, *shape, seed=0, amplitude=0.25)
    x.value.requires_grad_()
    out, mean = pool(x), super(type(pool).__mro__[1], pool).forward(x.value.double())
    assert (out.radix, out.amplitude) == (True, 0.25)
    sums = (mean * unit * 4).round() / (unit * 4)  # without the error of a third
    same(out.value.detach().double(), torch.floor(sums + pool.initial + 1e-9).detach())
    assert out.value.max() <= 2**steps - 1
    same(out.value.detach(), value_of(out.spikes.flatten(1)).view_as(out.value))
    (grad,) = torch.autograd.grad(out.value.sum(), x.value)
    (want,) = torch.autograd.grad(mean.sum(), x.value)
    torch.testing.assert_close(grad, want)


@every_t
def test_averages_with_a_threshold(steps):
    """Of half of it, twice the value."""
    x = radix_train(steps, 1, 2, 4, 4, seed=0)
    mean = nn.functional.avg_pool2d(x.value, 2)
    want = (2 * mean).floor().clamp(max=2**steps - 1)
    same(ref.SpikingAvgPool2d(2, threshold=0.5)(x).value, want)


@every_t
def test_pixels(steps):
    """Of 8 bits as they are, and rounded to fewer."""
    pixels = torch.arange(256.0).view(1, 256)
    x = ref.Encode(steps, "radix")(pixels / 255)
    assert (x.radix, x.time_steps) == (True, steps)
    levels = 2**steps - 1
    same(x.value, torch.floor(pixels.double() * levels / 255 + 0.5).float())
    assert x.amplitude * levels == pytest.approx(1)
    if steps == 8:
        same(x.value, pixels)
    layer = ref.TandemLinear(256, 3, neuron=RadixIF(2.0))
    assert layer(x).radix


def test_bad_pixels():
    with pytest.raises(ValueError, match="Encode: time_steps of radix spikes must be from 1 to 8"):
        ref.Encode(9, "radix")
    for wrong in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match="Encode: input must be from 0 to 1 in mode 'radix', got other numbers"):
            ref.Encode(8, "radix")(torch.tensor([[0.5, wrong]]))


# --- forms -----------------------------------------------------------------------------------------------------------


def test_forms():
    radix = RadixIF(2.0, initial=0.25)
    assert radix.calibrated(3.0) == RadixIF(3.0, initial=0.25)
    assert of_settings("layer", radix.settings()) == radix
    with pytest.raises(ValueError, match=r"neuron must have a form in NIR .*, got RadixIF\(level=2\.0"):
        radix.to_nir(1.0)
    with pytest.raises(TypeError, match="RadixIF: neurons with radix spikes have no time loop"):
        _ = radix.kind
