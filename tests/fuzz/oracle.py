"""What operators and layers compute, in NumPy and with torch's square root: a second opinion, written from mathematics.

A neuron loop takes its floats in the one order that is promised, so that its results are equal to the bit. Products
are float64 sums, exact for the dyadic weights that the cases draw, and rounded to the currents' dtype once.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from tandem_cuda import IF


def pack(spikes):
    """[T, ...] of 0 and 1 -> uint8 [P, ...]: bit i of plane p is the spike at step 8p + i."""
    steps = len(spikes)
    planes = np.zeros((-(-steps // 8), *spikes.shape[1:]), np.uint8)
    for t in range(steps):
        planes[t // 8] |= (spikes[t] != 0).astype(np.uint8) << np.uint8(t % 8)
    return planes


def unpack(planes, steps):
    """The inverse: uint8 [T, ...]."""
    return np.stack([(planes[t // 8] >> np.uint8(t % 8)) & np.uint8(1) for t in range(steps)])


def radix_values(spikes):
    """[T, ...] of 0 and 1 -> the numbers that radix spikes stand for: that of step t weighs 2^(T - t)."""
    value = np.zeros(spikes.shape[1:], np.int64)
    for spike in spikes:
        value = 2 * value + spike
    return value


class Model(NamedTuple):
    """What the oracle knows of a neuron model."""

    step: Callable[..., Any]
    """(neuron, state [S, ...], x [...]) -> (spikes, new state), with the parameters rounded to the dtype of x."""
    gradient: Callable[..., Any]
    """(neuron, grad, v, steps, upper) -> the tandem gradient, exact in the dtype of v if it is a ReLU's."""


def if_step(neuron, state, x):
    (u,) = state
    threshold = x.dtype.type(neuron.threshold)
    u = np.where(u >= threshold, u - threshold, u) + x
    return u >= threshold, u[None]


def lif_step(neuron, state, x):
    (u,) = state
    threshold, held = x.dtype.type(neuron.threshold), x.dtype.type(neuron.leak) * u
    u = np.where(u >= threshold, held - threshold, held) + x
    return u >= threshold, u[None]


def refractory_step(neuron, state, x):
    u, left = state
    threshold, refractory = x.dtype.type(neuron.threshold), x.dtype.type(neuron.refractory)
    fired = (left == 0) & (u >= threshold)
    u = np.where(fired, u - threshold, u)
    left = np.where(fired, refractory, np.maximum(left - 1, 0))
    u = np.where(left == 0, u + x, u)
    return (left == 0) & (u >= threshold), np.stack([u, left])


def refractory_gradient(neuron, grad, v, steps, upper):
    """Of v / (threshold + refractory * v / T), in float64."""
    v = v.astype(np.float64)
    slope = neuron.threshold / (neuron.threshold + neuron.refractory * v / steps) ** 2
    return np.where((v > 0) & (v <= upper), grad * slope, 0.0)


def adaptive_step(neuron, state, x):
    u, b = state
    threshold, adaptation, decay = (x.dtype.type(value) for value in neuron.parameters[:3])
    above = u - adaptation * b
    fired = above >= threshold
    spike = fired.astype(x.dtype)
    u = np.where(fired, above - threshold, u) + x
    b = spike + decay * (b - spike)
    return u - adaptation * b >= threshold, np.stack([u, b])


def adaptive_gradient(neuron, grad, v, steps, upper):
    """Of the root r of I = r * (threshold + rise * r), times T, in float64: 1 / (threshold + 2 * rise * r)."""
    v = v.astype(np.float64)
    rise = neuron.adaptation * np.mean([1 - neuron.decay**t for t in range(steps)])
    with np.errstate(invalid="ignore"):
        slope = 1 / np.sqrt(neuron.threshold**2 + 4 * rise * v / steps)
    return np.where((v > 0) & (v <= upper), grad * slope, 0.0)


def if_gradient(neuron, grad, v, steps, upper):
    return tandem_gradient(grad, v, neuron.threshold, upper)


def lif_model_gradient(neuron, grad, v, steps, upper):
    if neuron.leak == 1:
        return if_gradient(neuron, grad, v, steps, upper)
    return lif_gradient(grad.astype(np.float64), v, steps, neuron.threshold, neuron.leak, upper)


# By the number of the model, as in csrc/neuron/models.h.
MODELS = {
    0: Model(if_step, if_gradient),
    1: Model(lif_step, lif_model_gradient),
    2: Model(refractory_step, refractory_gradient),
    3: Model(adaptive_step, adaptive_gradient),
}


def neurons(currents, neuron, state=None):
    """The neuron loop on currents [T, ...] -> (spikes uint8 [T, ...], sum, final state [S, ...])."""
    model, dtype = MODELS[neuron.kind], currents.dtype.type
    if state is None:
        state = np.zeros((neuron.states, *currents.shape[1:]), dtype)
        state[0] = dtype(neuron.initial) * dtype(neuron.threshold)
    spikes = np.empty(currents.shape, np.uint8)
    total = None
    with np.errstate(all="ignore"):
        for t, x in enumerate(currents):
            spikes[t], state = model.step(neuron, state, x)
            total = x if total is None else total + x
    return spikes, total, state


def radix_spikes(v, radix, steps):
    """(values uint8 [N, ...], what is left of the potentials) of radix neurons whose input adds up to v.

    A value is the quotient of the potential and theta, rounded down, in rational numbers. A neuron that spikes in every
    step ends where it would if all of theta were subtracted, rounded after each step.
    """
    number, levels = v.dtype.type, 2**steps - 1
    theta = number(radix.threshold_at(steps))
    with np.errstate(all="ignore"):
        u = v + number(radix.initial) * theta
        values = np.zeros(v.shape, np.uint8)
        for at, x in np.ndenumerate(u):
            if np.isfinite(x):
                values[at] = min(max(Fraction(float(x)) // Fraction(float(theta)), 0), levels)
            else:
                values[at] = levels if x > 0 else 0
        left = u.copy()
        for step in range(steps):
            weight = 2 ** (steps - 1 - step)
            left = np.where(values & weight, left - theta * number(weight), left)
    return values, left


def affine(product, scale, bias, axis):
    """scale * product + bias, each rounded once, for a product in float64; in the dtype of scale and bias."""
    with np.errstate(all="ignore"):
        for operation, operand in ((np.multiply, scale), (np.add, bias)):
            if operand is not None:
                shape = [1] * product.ndim
                shape[axis] = -1
                product = operation(product, operand.reshape(shape))
    return product


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def convolution(x, weight, stride=1, padding=0, dilation=1, groups=1):
    """[B, C, *size] with [O, C/groups, *kernel] -> [B, O, *outputs], of any number of dimensions, in float64."""
    batch, channels = x.shape[:2]
    outputs, inputs, *kernel = weight.shape
    stride, padding, dilation = ((y,) * len(kernel) if isinstance(y, int) else y for y in (stride, padding, dilation))
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *((p, p) for p in padding)))
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    x = x.reshape(batch, groups, channels // groups, *x.shape[2:])
    weight = weight.astype(np.float64).reshape(groups, outputs // groups, inputs, *kernel)
    out = np.zeros((batch, groups, outputs // groups, math.prod(size)))
    for taps in itertools.product(*map(range, kernel)):
        seen = [
            slice(tap * d, tap * d + (n - 1) * s + 1, s)
            for tap, d, n, s in zip(taps, dilation, size, stride, strict=True)
        ]
        out += weight[(..., *taps)] @ x[(..., *seen)].reshape(batch, groups, inputs, math.prod(size))
    return out.reshape(batch, outputs, *size)


def conv2d_gradients(grad, x, weight, stride, padding, dilation, groups):
    """Gradients of sum(grad * convolution(x, weight)) with respect to x and weight, in float64."""
    batch, channels, height, width = x.shape
    outputs, inputs, *kernel = weight.shape
    rows, columns = grad.shape[2:]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    padded = padded.reshape(batch, groups, inputs, *padded.shape[2:])
    weight = weight.astype(np.float64).reshape(groups, outputs // groups, inputs, *kernel)
    grad = grad.astype(np.float64).reshape(batch, groups, outputs // groups, rows * columns)
    of_x, of_weight = np.zeros_like(padded), np.zeros_like(weight)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            taps = np.s_[
                ...,
                i * dilation[0] : i * dilation[0] + (rows - 1) * stride[0] + 1 : stride[0],
                j * dilation[1] : j * dilation[1] + (columns - 1) * stride[1] + 1 : stride[1],
            ]
            seen = padded[taps].reshape(batch, groups, inputs, rows * columns)
            of_weight[..., i, j] = np.einsum("bgop,bgip->goi", grad, seen)
            through = np.swapaxes(weight[..., i, j], -1, -2) @ grad
            of_x[taps] += through.reshape(batch, groups, inputs, rows, columns)
    inside = np.s_[..., padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    of_x = of_x.reshape(batch, channels, *of_x.shape[3:])[inside]
    return of_x, of_weight.reshape(outputs, inputs, *kernel)


def conv_transpose2d(x, weight, stride, padding, output_padding, groups, dilation):
    """[B, C, H, W] with [C, O/groups, kH, kW] -> [B, O, Ho, Wo], in float64: every pixel spreads a kernel."""
    batch, channels, *size = x.shape
    _, outputs, *kernel = weight.shape
    full = [
        (n - 1) * s + d * (k - 1) + 1 + o
        for n, s, d, k, o in zip(size, stride, dilation, kernel, output_padding, strict=True)
    ]
    out = np.zeros((batch, groups, outputs, *full))
    x = x.astype(np.float64).reshape(batch, groups, channels // groups, size[0] * size[1])
    weight = weight.astype(np.float64).reshape(groups, channels // groups, outputs, *kernel)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dilation[0], i * dilation[0] + (size[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (size[1] - 1) * stride[1] + 1, stride[1])
            spread = np.swapaxes(weight[..., i, j], -1, -2) @ x
            out[..., rows, columns] += spread.reshape(batch, groups, outputs, *size)
    out = out.reshape(batch, groups * outputs, *full)
    return out[..., padding[0] : full[0] - padding[0], padding[1] : full[1] - padding[1]]


PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(x, pads, mode):
    """Pad the last dimensions by (..., (top, bottom), (left, right)), as ``padding_mode`` says."""
    return np.pad(x, ((0, 0),) * (x.ndim - len(pads)) + tuple(pads), PAD_MODES[mode])


def average_windows(size, kernel, stride, padding, ceil_mode, count_include_pad):
    """(start, stop, divisor) of the windows along one axis, as torch's average pooling has them."""
    room = size + 2 * padding - kernel
    windows = (math.ceil(room / stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    out = []
    for i in range(windows):
        start = i * stride - padding
        stop = min(start + kernel, size + padding)
        first, last = max(start, 0), min(stop, size)
        out.append((first, last, stop - start if count_include_pad else last - first))
    return out


def adaptive_windows(size, outputs):
    """The same of adaptive average pooling."""
    windows = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    return [(first, last, last - first) for first, last in windows]


def average_pool(spikes, axes, threshold, override, dtype):
    """IF neurons driven by the means of their windows, in units of 1 / (the divisors' common multiple).

    `axes` has the windows along each of the last dimensions.
    """
    sums, common = window_sums(spikes, axes, override)
    return neurons(sums.astype(dtype), IF(threshold * common))[0]


def window_sums(x, axes, override):
    """(the means of windows in units of 1 / common, float64; the divisors' common multiple)."""
    windows = [*itertools.product(*axes)]
    divisors = [override or math.prod(divisor for *_, divisor in window) for window in windows]
    common, last = math.lcm(*divisors), tuple(range(-len(axes), 0))
    sums = np.stack([part.astype(np.float64).sum(last) for part in _parts(x, windows)], -1)
    sums = sums * (common // np.array(divisors))
    return sums.reshape(*sums.shape[:-1], *map(len, axes)), common


def max_pool(spikes, axes):
    """A neuron spikes when the largest count of its window grows. `axes`: as in `average_pool`."""
    largest = window_maxima(spikes.cumsum(0, dtype=np.int64), axes)
    return np.diff(largest, axis=0, prepend=np.zeros_like(largest[:1])).astype(spikes.dtype)


def window_maxima(x, axes):
    """The largest number of each window."""
    last = tuple(range(-len(axes), 0))
    largest = np.stack([part.max(last) for part in _parts(x, itertools.product(*axes))], -1)
    return largest.reshape(*largest.shape[:-1], *map(len, axes))


def _parts(x, windows):
    """What each window covers."""
    return [x[(..., *(slice(start, stop) for start, stop, _ in window))] for window in windows]


def batch_norm_fold(gamma, beta, mean, var, eps, bias):
    """(gain, bias) of the spiking twin, in the dtype of the statistics; gamma, beta and bias may be None."""
    number = var.dtype.type
    root = np.sqrt((var + number(eps)).astype(np.float64)).astype(number)
    gain = (number(1) if gamma is None else gamma) / root
    centred = (-mean if bias is None else bias - mean) * gain
    return gain, centred if beta is None else centred + beta


def move_statistics(running, new, missing, unit, count, momentum, repeats):
    """Running mean and variance after a batch of `count` values per channel with the mean and variance `new`."""
    number = new[0].dtype.type
    if unit is not None:
        new = new[0] * unit, new[1] * unit * unit
    mean = new[0] * number(repeats)
    mean = mean if missing is None else mean + missing
    factors = number(momentum), number(repeats * repeats * momentum * count / (count - 1))
    kept = number(1 - momentum)
    return [old * kept + x * f for old, x, f in zip(running, (mean, new[1]), factors, strict=True)]


def tandem_gradient(grad, v, threshold, upper):
    """Of relu(v) / threshold, zero above upper."""
    dtype = v.dtype.type
    with np.errstate(all="ignore"):
        return np.where((v > 0) & (v <= dtype(upper)), grad / dtype(threshold), dtype(0))


def lif_gradient(grad, v, steps, threshold, leak, upper):
    """Of T * (soft LIF rate), in float64: the rate is -ln(leak) / ln(1 + a / q), q = I - i0 smoothed by a softplus."""
    v = v.astype(np.float64)
    onset = threshold * (1 - leak)
    width, a = 0.1 * onset, onset / leak
    z = (v / steps - onset) / width
    with np.errstate(all="ignore"):
        # Far below the onset q underflows; ln q does not, and dq/dI over q is 1 / width.
        below = z < -30
        log_q = math.log(width) + np.where(below, z, np.log(np.logaddexp(0, z)))
        slope_over_q = np.where(below, 1, 1 / (1 + np.exp(-z)) / np.logaddexp(0, z)) / width
        rate_slope = (
            -math.log(leak) / np.logaddexp(0, math.log(a) - log_q) ** 2 * slope_over_q * a / (np.exp(log_q) + a)
        )
    return np.where(v <= upper, grad * rate_slope, 0.0)


def norm_gradient(grad, product, gamma, beta, eps, threshold, upper):
    """The tandem gradient led through batch norm: of product, gamma and beta, in float64. product: [N, C, ...].

    Then the same with the sizes of the terms that are added up.
    """
    others = tuple(d for d in range(product.ndim) if d != 1)
    shape = [1, -1, *[1] * (product.ndim - 2)]
    product, gamma, beta = (x.astype(np.float64) for x in (product, gamma, beta))
    mean, var = product.mean(others, keepdims=True), product.var(others, keepdims=True)
    gain = 1 / np.sqrt(var + eps)
    normal = (product - mean) * gain
    gated = tandem_gradient(
        grad.astype(np.float64), gamma.reshape(shape) * normal + beta.reshape(shape), threshold, upper
    )
    along = gated * normal
    inner = gated - gated.mean(others, keepdims=True) - normal * along.mean(others, keepdims=True)
    gain = gamma.reshape(shape) * gain
    want = gain * inner, along.sum(others), gated.sum(others)
    return want, (gain * gated, np.abs(along).sum(others), np.abs(gated).sum(others))


def bfloat16(x):
    """float32 values rounded to bfloat16, to nearest even, in float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
