"""Calls of operators in files, for the programs that tests/cpp/calls.h describes, and what these programs return."""

import numpy as np
import torch

# What programs call the weights' dtypes of a product; then come products of real input, with two of them, and neurons
# with spikes of one weight and with radix spikes.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16)
ORDERED, NEURONS, RADIX = {torch.int8: 6, torch.int16: 7}, 8, 9
SPIKES, COUNTS, VALUES = range(3)


def product(bits, weight, scale, bias, state, geometry, time_steps, neuron, joined, how):
    """A call of a product.

    bits: [P, N, C, H, W]; weight: [O, C/groups, kH, kW]; state, and what joins: as the operators take them; geometry:
    stride to groups; neuron: kind and parameters; joined: added and amplitude, or nothing; how: the program's engine,
    what is multiplied (SPIKES, COUNTS or VALUES of radix spikes), and the most blocks of a grid.
    """
    added = joined.get("added")
    spikes = added is not None and added.dtype == torch.uint8
    branches = [None if spikes else added, joined.get("amplitude"), added if spikes else None]
    head = [DTYPES.index(weight.dtype), *sizes_of(bits.shape[1:], weight.shape, **geometry), time_steps, *how]
    arrays = [_features_last(bits), weight, scale, bias, _features_last(state)]
    arrays += [_features_last(branches[0]), branches[1], _features_last(branches[2])]
    return _bytes(head + _neuron(*neuron), arrays)


def ordered_product(x, weight, geometry):
    """A call of a product of x [N, C, H, W] with integer weights [O, C/groups, kH, kW]."""
    head = [ORDERED[weight.dtype], *sizes_of(x.shape, weight.shape, **geometry)]
    return _bytes(head, [_features_last(x), weight])


def neurons(current, scale, bias, state, time_steps, mode, neuron):
    """A call of integrate_and_fire on a current [N, C, H, W]; mode: its number."""
    head = [NEURONS, *_pixels_and_channels(current), time_steps, mode]
    return _bytes(head + _neuron(*neuron), [_features_last(current), scale, bias, _features_last(state)])


def radix_spikes(current, scale, bias, time_steps, threshold, initial):
    """A call of radix_spikes on a current [N, C, H, W]."""
    head = [RADIX, *_pixels_and_channels(current), time_steps, float(threshold), float(initial)]
    return _bytes(head, [_features_last(current), scale, bias])


def sizes_of(image, kernel, stride, padding, dilation, groups):
    """The members of ConvGeometry for an image [N, C, H, W] and a kernel [O, C/groups, kH, kW]."""
    sides = zip(image[2:], kernel[2:], stride, padding, dilation, strict=True)
    out = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides]
    return [*image, kernel[0], *out, *kernel[2:], *stride, *padding, *dilation, groups]


def results(data):
    """The arrays in a file that a program wrote, as bytes."""
    rest, out = memoryview(data), []
    while rest:
        size = int.from_bytes(rest[:8], "little")
        out.append(rest[8 : 8 + size])
        rest = rest[8 + size :]
    return out


def _pixels_and_channels(x):
    n, channels, *image = x.shape
    return [n * int(np.prod(image)), channels]


def _features_last(x):
    return None if x is None else x.movedim(-3, -1)


def _neuron(kind, parameters):
    return [kind, len(parameters), *map(float, parameters)]


def _bytes(head, arrays):
    """head: ints and floats."""
    parts = [np.float64(x) if isinstance(x, float) else np.int64(x) for x in head]
    for array in arrays:
        values = b"" if array is None else array.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        parts += [np.int64(len(values)), values]
    return b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
