"""Cases of the operators: trains, neurons, products with their gradients, the tandem
coupling, batch norm."""

import math

import numpy as np
import torch

from tandem_cuda import SpikeTrain, ops
from tandem_cuda.neuron import RadixIF

from . import oracle
from .draw import FLOATS, NUMPY, SIGNIFICANDS, WEIGHTS, Draw, close, same


def shape_of_train(draw: Draw):
    """(T, N, ...) of any number of dimensions, sometimes larger than a cache."""
    if draw.chance(0.02):
        return draw.steps(), 3, 64, 17, 19
    spatial = [draw.int(1, 6) for _ in range(draw.int(0, 3))]
    return (draw.steps(), draw.batch(), draw.channels(), *spatial)[: draw.one((2, 3, 4, 5, 5, 5))]


def trains(draw: Draw):
    """pack_spikes, unpack_spikes, spike_count, and what SpikeTrain makes of them."""
    spikes = draw.spikes(*shape_of_train(draw))
    steps = len(spikes)
    dtype = draw.one((torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8))
    draw.note(shape=list(spikes.shape), dtype=str(dtype))
    same("pack_spikes", ops.pack_spikes(draw.tensor(spikes, dtype)), oracle.pack(spikes))
    bits = draw.bits(spikes)
    out = draw.one((torch.float32, torch.float64, torch.bool, torch.uint8))
    dense = ops.unpack_spikes(bits, steps, out)
    assert dense.dtype == out
    same("unpack_spikes", dense, spikes)
    float_ = draw.one(FLOATS)
    count = spikes.sum(0, dtype=np.int64)
    same("spike_count", ops.spike_count(bits, float_), count.astype(NUMPY[float_]))
    train = SpikeTrain(bits, steps, dtype=float_)
    start = draw.int(0, steps - 1)
    stop = draw.int(start + 1, steps)
    part = train.window(start, stop)
    same("SpikeTrain.window", part.bits, oracle.pack(spikes[start:stop]))
    same("SpikeTrain.to_dense", train.to_dense(), spikes)
    if spikes.ndim > 3:
        flat = train.flatten()
        features = math.prod(spikes.shape[2:])
        same("SpikeTrain.flatten", flat.bits, oracle.pack(spikes.reshape(*spikes.shape[:2], features)))


def neurons(draw: Draw):
    """integrate_and_fire in every mode, with and without each optional argument."""
    steps, *shape = shape_of_train(draw)
    while len(shape) < 2:
        shape.append(draw.channels())
    mode, dtype = draw.one(("constant", "impulse", "series", "once")), draw.one(FLOATS)
    number = NUMPY[dtype]
    neuron = draw.neuron()
    current = draw.floats(*((steps, *shape) if mode == "series" else shape), dtype=number)
    scale = draw.floats(shape[1], dtype=number) if draw.chance(0.4) else None
    bias = draw.floats(shape[1], dtype=number) if draw.chance(0.5) else None
    state = draw.state(neuron, *shape, dtype=number) if draw.chance(0.4) else None
    wants = draw.chance(0.6), draw.chance(0.6)
    draw.note(steps=steps, shape=shape, mode=mode, dtype=str(dtype), neuron=str(neuron))

    axis = 2 if mode == "series" else 1
    x = oracle.affine(current, scale, bias, axis)
    if mode != "series":
        x = np.repeat(x[None], steps, 0)
        if mode == "impulse":
            x[1:] = 0 if bias is None else bias.reshape(-1, *[1] * (len(shape) - 2))
        if mode == "once":
            x[1:] = 0
    spikes, total, final = oracle.neurons(x, neuron, state)
    given = [None if value is None else draw.tensor(value) for value in (bias, state, scale)]
    got = ops.integrate_and_fire(
        draw.tensor(current),
        steps,
        given[0],
        given[1],
        scale=given[2],
        mode=mode,
        neuron=neuron,
        want_sum=wants[0],
        want_state=wants[1],
    )
    check_spiking(got, spikes, total, final, wants)


def radix(draw: Draw):
    """radix_spikes, integrate_and_fire of its neurons, and tandem_count of its bits."""
    _, *shape = shape_of_train(draw)
    while len(shape) < 2:
        shape.append(draw.channels())
    steps, dtype = draw.int(1, 8), draw.one(FLOATS)
    number = NUMPY[dtype]
    neuron = RadixIF(draw.one((0.25, 0.7, 1.0, 3.0, 100.0)), initial=draw.one((0.0, 0.25, 0.5)))
    theta = number(neuron.threshold_at(steps))
    v = draw.floats(*shape, dtype=number)
    if draw.chance(0.5):  # multiples of theta, where a value is about to change
        chosen = draw.rng.random(shape) < 0.5
        v = np.where(chosen, draw.rng.integers(-2, 2**steps + 3, shape).astype(number) * theta, v)
    scale = draw.floats(shape[1], dtype=number) if draw.chance(0.4) else None
    bias = draw.floats(shape[1], dtype=number) if draw.chance(0.5) else None
    draw.note(steps=steps, shape=shape, dtype=str(dtype), neuron=str(neuron))
    total = oracle.affine(v, scale, bias, 1)
    values, left = oracle.radix_spikes(total, neuron, steps)
    given = {name: None if x is None else draw.tensor(x) for name, x in (("scale", scale), ("bias", bias))}
    bits = ops.radix_spikes(draw.tensor(v), steps, neuron, **given)
    same("bits", bits, values[None])
    got = ops.integrate_and_fire(draw.tensor(v), steps, mode="once", neuron=neuron, **given)
    for name, value, want in zip(("bits", "sum", "state"), got, (values[None], total, left[None]), strict=True):
        same(name, value, want)
    same("value", ops.tandem_count(bits, draw.tensor(total), steps, neuron), values.astype(number))


def check_spiking(got, spikes, total, final, wants):
    """(bits, sum, state) of an operator against the oracle's; what was not wanted is empty."""
    same("bits", got[0], oracle.pack(spikes))
    for name, value, want, wanted in zip(("sum", "state"), got[1:], (total, final), wants, strict=True):
        same(name, value, want if wanted else np.empty(0))


# ---- Products

SMALLEST = {torch.int8: 128, torch.int16: 32639}
"""Of integer weights, minus the smallest."""


def weights(draw: Draw, shape, largest):
    """(values in float64, dtype of torch): dyadic, and so few bits that sums of inputs up to `largest` are exact."""
    dtype = draw.one(WEIGHTS)
    if dtype in SMALLEST:
        return draw.rng.integers(-SMALLEST[dtype], SMALLEST[dtype], shape).astype(np.float64), dtype
    room = SIGNIFICANDS[torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype]
    room -= math.ceil(math.log2(math.prod(shape[1:]) * largest + 1)) + 1
    bits = min(room, SIGNIFICANDS[dtype], draw.one((2, 4, 8, 12)))
    return draw.dyadic(*shape, largest=2**bits - 1, unit=2.0 ** -draw.int(bits - 1, bits), dtype=np.float64), dtype


def convolution(draw: Draw):
    """(input [N, C, H, W], weight's shape, stride to groups) of a convolution, now and then depthwise or large."""
    kind = draw.rng.random()
    groups = draw.one((1, 1, 1, 2, 3, 4, 8))
    channels, outputs = groups * draw.one((1, 2, 3, 5)), groups * draw.one((1, 2, 3, 5))
    if kind < 0.2:
        groups = draw.one((2, 3, 7, 8, 15, 16, 17, 33, 40))
        channels, outputs = groups, groups * draw.one((1, 1, 2, 3))
    elif kind < 0.6:
        groups, channels, outputs = 1, draw.channels(), draw.channels()
    kernel = draw.pair(1, 5) if draw.chance(0.3) else draw.one(((1, 1), (3, 3), (3, 3), (1, 3), (2, 2), (1, 2), (5, 1)))
    stride, dilation = (draw.pair(1, 3) if draw.chance(0.4) else (1, 1) for _ in range(2))
    padding = draw.pair(0, 3) if draw.chance(0.6) else (0, 0)
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw.one((0, 1, 2, 3, 4, 6))
        for d, k, p in zip(dilation, kernel, padding, strict=True)
    ]
    shape = (draw.batch(), channels, *size)
    if draw.chance(0.01):
        shape = (2, 65, 12, 13)
        return shape, (70, 65, 3, 3), {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shape, (outputs, channels // groups, *kernel), geometry


def products(draw: Draw):
    """spiking_conv2d, spiking_linear, count_conv2d or count_linear, of counts or radix spikes, with gradients."""
    linear, steps = draw.chance(0.35), draw.steps()
    call = draw.one((_spiking, _spiking, _spiking, _counting, _counting, _valuing))
    steps = min(steps, 8) if call is _valuing else steps
    if linear:
        lead = [draw.batch(), *[draw.int(1, 3) for _ in range(draw.one((0, 0, 0, 1, 2)))]]
        shape, weight_shape, geometry = (*lead, draw.channels()), (draw.channels(),), {}
        weight_shape = (*weight_shape, shape[-1])
    else:
        shape, weight_shape, geometry = convolution(draw)
    if draw.chance(0.3):  # ints for pairs
        geometry = {name: x[0] if isinstance(x, tuple) and x[0] == x[1] else x for name, x in geometry.items()}
    values, dtype = weights(draw, weight_shape, 2**steps - 1 if call is _valuing else steps)
    spikes = draw.spikes(steps, *shape)
    numbers = oracle.radix_values(spikes) if call is _valuing else spikes.sum(0)
    operands = _operands(draw, values, dtype)
    draw.note(steps=steps, shape=list(shape), weight=list(weight_shape), dtype=str(dtype), **geometry)

    def product(x):
        if linear:
            return x.astype(np.float64) @ values.T
        flat = oracle.convolution(x.reshape(-1, *shape[1:]), values, **geometry)
        return flat.reshape(*x.shape[:-3], *flat.shape[1:])

    out = call(draw, linear, spikes, numbers, operands, product, geometry)
    if out is not None:
        _gradients(draw, linear, numbers, operands, geometry, out, steps if call is _spiking else 1)


class _Operands:
    """Weight, scale, bias and count, as arrays and as tensors."""

    def __init__(self, values, weight, scale, bias, number):
        self.values, self.weight, self.scale, self.bias, self.number = values, weight, scale, bias, number
        self.tensors = {"scale": None, "bias": None, "count": None}


def _operands(draw, values, dtype):
    number = np.float64 if dtype == torch.float64 else np.float32
    scale = bias = None
    if dtype in SMALLEST or draw.chance(0.3):
        scale = draw.floats(len(values), dtype=number) * number(1.28 / SMALLEST[dtype] if dtype in SMALLEST else 1)
    if draw.chance(0.5):
        bias = draw.floats(len(values), dtype=number)
    operands = _Operands(values, draw.tensor(values, dtype), scale, bias, number)
    for name, value in (("scale", scale), ("bias", bias)):
        operands.tensors[name] = None if value is None else draw.tensor(value)
    return operands


def _arguments(draw, bits, numbers, operands, geometry):
    """Positional and keyword arguments that both products take."""
    groups = geometry.get("groups", 1)
    engine = draw.engine(operands.weight)
    packed = draw.packed(operands.weight, groups)
    count = draw.tensor(numbers.astype(operands.number)) if draw.chance(0.4) else None
    operands.tensors["count"] = count
    draw.note(engine=engine, packed=packed is not None, scale=operands.scale is not None)
    if draw.chance(0.3):
        for x in (operands.weight, operands.tensors["bias"], count):
            if x is not None and x.is_floating_point():
                x.requires_grad_()
    named = {"packed": packed, "scale": operands.tensors["scale"], "count": count, "engine": engine, **geometry}
    return (bits, operands.weight, operands.tensors["bias"]), named


def _spiking(draw, linear, spikes, numbers, operands, product, geometry):
    neuron = draw.neuron()
    axis = -1 if linear else 2
    x = oracle.affine(product(spikes).astype(operands.number), operands.scale, operands.bias, axis)
    state = draw.state(neuron, *x.shape[1:], dtype=operands.number) if draw.chance(0.3) else None
    want = oracle.neurons(x, neuron, state)
    wants = draw.chance(0.7), draw.chance(0.5)
    arguments, named = _arguments(draw, draw.bits(spikes), numbers, operands, geometry)
    draw.note(op="spiking", neuron=str(neuron))
    op = ops.spiking_linear if linear else ops.spiking_conv2d
    got = op(
        *arguments,
        state=None if state is None else draw.tensor(state),
        time_steps=len(spikes),
        neuron=neuron,
        want_sum=wants[0],
        want_state=wants[1],
        **named,
    )
    check_spiking(got, *want, wants)
    return got[1] if wants[0] else None


def _counting(draw, linear, spikes, numbers, operands, product, geometry, radix=0):
    axis = -1 if linear else 1
    want = oracle.affine(product(numbers).astype(operands.number), operands.scale, operands.bias, axis)
    bits = draw.bits(spikes[::-1] if radix else spikes)  # bit T - t of a radix spike's byte is step t
    arguments, named = _arguments(draw, bits, numbers, operands, geometry)
    draw.note(op="count", radix=radix)
    got = (ops.count_linear if linear else ops.count_conv2d)(*arguments, **named, radix=radix)
    same("sum", got, want)
    return got


def _valuing(draw, linear, spikes, *others):
    return _counting(draw, linear, spikes, *others, radix=len(spikes))


def _gradients(draw, linear, numbers, operands, geometry, out, bias_steps):
    """Of whole numbers, so that they are exact too; rounded to the dtype of what they are of."""
    leaves = {"weight": operands.weight, "bias": operands.tensors["bias"], "count": operands.tensors["count"]}
    leaves = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    narrow = operands.weight.dtype in (torch.float16, torch.bfloat16)
    if not leaves or (operands.scale is not None and (narrow or draw.chance(0.5))):
        return  # narrow gradients overflow with some scales
    number = operands.number
    grad = draw.rng.integers(-3, 4, tuple(out.shape)).astype(number)
    got = dict(zip(leaves, torch.autograd.grad(out, [*leaves.values()], draw.tensor(grad)), strict=True))
    channel = -1 if linear else 1
    others = tuple(d for d in range(grad.ndim) if d != channel % grad.ndim)
    scaled = oracle.affine(grad, operands.scale, None, channel).astype(np.float64)
    count = numbers.astype(np.float64)

    def gradients(scaled, values, grad):
        if linear:
            of_count = scaled @ values
            of_weight = scaled.reshape(-1, scaled.shape[-1]).T @ count.reshape(-1, count.shape[-1])
        else:
            pairs = [oracle.pair(geometry[name]) for name in ("stride", "padding", "dilation")]
            of_count, of_weight = oracle.conv2d_gradients(scaled, count, values, *pairs, geometry["groups"])
        return {"weight": of_weight, "bias": grad.sum(others, dtype=np.float64) * bias_steps, "count": of_count}

    want = gradients(scaled, operands.values, grad)
    terms = gradients(np.abs(scaled), np.abs(operands.values), np.abs(grad))
    exact = operands.scale is None
    for name, value in got.items():
        assert value.dtype == leaves[name].dtype, (name, value.dtype)
        if exact:
            same(f"gradient of {name}", value, _rounded(want[name], number, value.dtype))
        else:
            tolerance = 1e-12 if value.dtype == torch.float64 else 1e-5
            close(f"gradient of {name}", value, want[name], tolerance, terms[name])


def _rounded(x, number, dtype):
    x = x.astype(number)
    if dtype == torch.bfloat16:
        return oracle.bfloat16(x)
    with np.errstate(over="ignore"):
        return x.astype(np.float16) if dtype == torch.float16 else x


# ---- The tandem coupling


def coupling(draw: Draw):
    """tandem_count or tandem_norm_count, forward and backward."""
    steps, *shape = shape_of_train(draw)
    while len(shape) < 2:
        shape.append(draw.channels())
    spikes = draw.spikes(steps, *shape)
    dtype = draw.one(FLOATS)
    draw.note(steps=steps, shape=shape, dtype=str(dtype))
    (_count if draw.chance(0.6) else _norm_count)(draw, spikes, dtype)


def _count(draw, spikes, dtype):
    number, steps, shape = NUMPY[dtype], len(spikes), spikes.shape[1:]
    neuron = draw.neuron()
    upper = math.inf if draw.chance(0.5) else neuron.threshold * steps
    v, grad = draw.floats(*shape, dtype=number), draw.floats(*shape, dtype=number)
    if draw.chance(0.5):
        v[draw.rng.random(shape) < 0.2] = number(min(upper, 4.0))
        v[draw.rng.random(shape) < 0.2] = 0
    is_relu = neuron.relu_threshold is not None
    if not is_relu:
        v, grad = np.clip(v, -1e3, 1e3), np.clip(grad, -1e3, 1e3)
        upper = math.inf if upper == math.inf else float(number(upper))
    draw.note(op="tandem_count", neuron=str(neuron), upper=upper)
    given = draw.tensor(v).requires_grad_()
    count = ops.tandem_count(draw.bits(spikes), given, steps, neuron, upper)
    same("count", count, spikes.sum(0).astype(number))
    (got,) = torch.autograd.grad(count, given, draw.tensor(grad))
    want = oracle.MODELS[neuron.kind].gradient(neuron, grad, v, steps, upper)
    if is_relu:
        same("gradient", got, want)
    else:
        close("gradient", got, want, 1e-9 if dtype == torch.float64 else 2e-4)


def _norm_count(draw, spikes, dtype):
    number, steps, shape = NUMPY[dtype], len(spikes), spikes.shape[1:]
    threshold = draw.neuron().threshold
    upper = math.inf if draw.chance(0.5) else threshold * steps
    eps = draw.one((1e-5, 1e-3, 0.5))
    product = draw.rng.standard_normal(shape).astype(number)
    # A power of two: dividing by it rounds nothing.
    unit = draw.one((None, 2.0 ** draw.rng.integers(-9, 3, shape[1]).astype(number)))
    along = 1 if unit is None else unit.reshape(-1, *[1] * (len(shape) - 2))
    gamma = draw.rng.uniform(0.5, 2, shape[1]).astype(number) * draw.one((-1, 1))
    beta = _clear_of_the_gate(draw, product, gamma, eps, upper).astype(number)
    grad = draw.rng.standard_normal(shape).astype(number)
    others = tuple(d for d in range(len(shape)) if d != 1)
    with np.errstate(all="ignore"):
        mean, var = (
            (product.astype(np.float64).mean(others), product.astype(np.float64).var(others))
            if product.size
            else (np.zeros(shape[1]), np.ones(shape[1]))
        )
    draw.note(op="tandem_norm_count", eps=eps, threshold=threshold, upper=upper, unit=unit is not None)
    leaves = [draw.tensor(x).requires_grad_() for x in (product / along, gamma, beta)]
    if unit is not None:
        mean, var = mean / unit, var / unit**2
    statistics = [draw.tensor(x.astype(number)) for x in (mean, var)]
    count = ops.tandem_norm_count(
        draw.bits(spikes),
        leaves[0],
        *statistics,
        *leaves[1:],
        steps,
        unit=None if unit is None else draw.tensor(unit),
        eps=eps,
        threshold=threshold,
        upper=upper,
    )
    same("count", count, spikes.sum(0).astype(number))
    if not product.size:
        return
    got = torch.autograd.grad(count, leaves, draw.tensor(grad))
    want, terms = oracle.norm_gradient(grad, product, gamma, beta, eps, threshold, upper)
    want, terms = (want[0] * along, *want[1:]), (terms[0] * along, *terms[1:])
    tolerance = 1e-8 if dtype == torch.float64 else 5e-4
    for name, value, expected, size in zip(("product", "gamma", "beta"), got, want, terms, strict=True):
        close(f"gradient of {name}", value, expected, tolerance, size)


def _clear_of_the_gate(draw, product, gamma, eps, upper):
    """A beta with which no pre-activation is so near to 0 or upper that rounding decides on which side it is."""
    channels = len(gamma)
    beta = draw.rng.uniform(-1, 1, channels)
    if not product.size:
        return beta
    rows = np.moveaxis(product.astype(np.float64), 1, 0).reshape(channels, -1)
    normal = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + eps)
    for c in range(channels):
        v = gamma[c] * normal[c]
        for _ in range(100):
            gates = [0.0] if upper == math.inf else [0.0, upper]
            if all(np.abs(v + beta[c] - gate).min() > 1e-4 for gate in gates):
                break
            beta[c] = draw.rng.uniform(-3, 3)
        else:
            beta[c] = 1e3  # all above: open, or shut where there is an upper limit
    return beta


# ---- Batch norm's vectors


def norms(draw: Draw):
    """fold_norm with and without each optional argument, and update_statistics_."""
    dtype = draw.one(FLOATS)
    number, channels = NUMPY[dtype], draw.one((0, 1, 3, 17, 64, 300))
    eps, amplitude, steps = draw.one((0.0, 1e-5, 0.5)), draw.one((1.0, 0.3, 1 / 9)), draw.steps()
    draw.note(dtype=str(dtype), channels=channels, eps=eps, amplitude=amplitude, steps=steps)
    mean, var = draw.floats(channels, dtype=number), abs(draw.floats(channels, dtype=number))
    gamma, beta, bias, unit, missing = (
        draw.floats(channels, dtype=number) if draw.chance(0.7) else None for _ in range(5)
    )
    given = [None if x is None else draw.tensor(x) for x in (mean, var, gamma, beta, bias)]
    settings = {"eps": eps, "amplitude": amplitude, "time_steps": steps}
    got = ops.fold_norm(*given, unit=None if unit is None else draw.tensor(unit), **settings)
    with np.errstate(all="ignore"):
        gain, shift = oracle.batch_norm_fold(gamma, beta, mean, var, eps, bias)
        gain = gain if unit is None else unit * gain
        same("gain", got[0], gain * number(amplitude))
        same("bias", got[1], shift / number(steps))
    if channels == 0:
        return
    momentum, repeats = draw.one((0.1, 0.0, 1.0, draw.rng.random())), draw.one((1, steps, 0.3))
    product = draw.tensor(np.zeros((draw.int(2, 9), channels, draw.int(1, 3)), number))
    draw.note(momentum=momentum, repeats=repeats, product=list(product.shape))
    new = draw.floats(channels, dtype=number), abs(draw.floats(channels, dtype=number))
    running = torch.from_numpy(mean.copy()), torch.from_numpy(var.copy())
    batches = torch.tensor(steps)
    settings = {"momentum": momentum, "repeats": repeats}
    settings |= {name: None if x is None else draw.tensor(x) for name, x in (("missing", missing), ("unit", unit))}
    ops.update_statistics_(*running, batches, *(draw.tensor(x) for x in new), product, **settings)
    with np.errstate(all="ignore"):
        count = product.shape[0] * product.shape[2]
        want = oracle.move_statistics((mean, var), new, missing, unit, count, momentum, repeats)
    for name, x, expected in zip(("running_mean", "running_var"), running, want, strict=True):
        same(name, x, expected)
    assert batches == steps + 1
