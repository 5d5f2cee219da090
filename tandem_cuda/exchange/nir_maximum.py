"""Max pooling in NIR, which has no such node: for two neurons at a time, from its integrators and threshold gates.

Let a and b be two trains of spikes, and d[t] the difference of their counts up to step t. Their maximum,
max(count of a, count of b), grows in a step in which the train that leads spikes::

    s[t] = 1  if  a[t] = 1 and d[t-1] >= 0,  or  b[t] = 1 and d[t-1] <= 0

Integrators (``I``) count, so that d[t] = d[t-1] + a[t] - b[t] is a sum of their outputs. With a number n that no count
exceeds, either case is a gate (``Threshold``) that depends on a sum of whole numbers::

    n a[t] + b[t] + d[t] > n + 1/2,        n b[t] + a[t] - d[t] > n + 1/2

and a last gate opens if one of them does. All of this takes place in the step of the spikes. The maximum of a window
is that of two shifted maxima of half the window, first of columns, then of rows. What is written is what
:class:`tandem_cuda.SpikingMaxPool2d` computes, spike by spike.

Values of both signs are differences of the counts of two neurons, a = a+ - a- and b = b+ - b- are -1, 0 or 1, and n is
twice as large. The same gates then tell when the maximum grows. It falls in a step that, run backwards, makes it grow::

    s-[t] = 1  if  a[t] = -1 and d[t] >= 0,  or  b[t] = -1 and d[t] <= 0

    -(n + 1) a[t] + d[t] > n + 1/2,        -(n + 1) b[t] - d[t] > n + 1/2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..nn import SpikeRearrange, SpikingMaxPool2d
from ..nn.nir import MaxAxis, NirGeometry, Shape, dense, image
from ..ops.max_pool_spikes import windows_along
from .nir_builder import Builder, Place
from .nir_format import nir
from .nir_nodes import CONVOLUTIONS, NirWeights, PartialShape, numbers_of
from .nir_sources import NirSource


class Larger(NamedTuple):
    """The larger one of the pixels at i * stride - before and, ``offset`` further, for each pixel i of ``size``."""

    offset: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    size: tuple[int, int]


def stages(rows: MaxAxis, columns: MaxAxis, height: int, width: int) -> list[Larger]:
    """Return the maxima of two that make up the maximum of windows in an image of this size."""
    axes, size, found = (rows, columns), [height, width], []
    for dim, axis in enumerate(axes):
        other, offsets, length = axes[1 - dim], axis.offsets(), size[dim]
        for i, offset in enumerate(offsets):
            first, last = i == 0, i == len(offsets) - 1
            length += (2 * axis.padding if first else 0) - offset
            # More than there are places if the last windows extend beyond the padding.
            length = max(length, (axis.outputs - 1) * axis.stride + sum(offsets[i + 1 :]) + 1)
            size[dim] = axis.outputs if last else length
            along = [(offset, axis.stride if last else 1, axis.padding if first else 0), (0, 1, 0)]
            if first and other.kernel == 1:  # its windows only select
                along[1], size[1 - dim] = (0, other.stride, other.padding), other.outputs
            up, left = along if dim == 0 else along[::-1]
            offset_of, stride, before = zip(up, left, strict=True)
            found.append(Larger(offset_of, stride, before, (size[0], size[1])))
    return found


def weights_of(
    groups: int, kernel: Sequence[int], taps: Sequence[Sequence[int]], most: int, signed: bool
) -> tuple[Tensor, ...]:
    """Return the weights of the gates of each channel or pair: of the spikes, of the counts; and of the last gates.

    ``taps``: where in the kernel the two pixels are. ``most``: the number that no difference of counts exceeds.
    """
    of_spikes, of_counts = [(most, 1), (-most - 1, 0)][: 1 + signed], (1, -1)
    signs = torch.tensor([1.0, -1.0][: 1 + signed])
    gates = 2 * len(of_spikes)
    spikes, counts = torch.zeros(2, groups, gates, len(signs), *kernel)
    for gate in range(gates):
        places = taps[::-1] if gate % 2 else taps
        for weights, values in ((spikes, of_spikes[gate // 2]), (counts, of_counts)):
            for tap, value in zip(places, values, strict=True):
                weights[(slice(None), gate, slice(None), *tap)] += value * signs
    either = torch.eye(len(signs)).repeat_interleave(2, 1).repeat(groups, 1)
    return spikes.flatten(0, 1), counts.flatten(0, 1), either.view(*either.shape, *[1] * len(kernel))


def larger(builder: Builder, at: Place, source: NirSource, stage: Larger, signed: bool = False) -> NirSource:
    """Add the nodes of a maximum of two, of values of both signs if ``signed``."""
    assert builder.encoding is not None
    groups, most = source.shape[0] // (1 + signed), builder.encoding[0] * (1 + signed)
    kernel, dilation = [1 + (offset > 0) for offset in stage.offset], [max(offset, 1) for offset in stage.offset]
    taps = (0, 0), (kernel[0] - 1, kernel[1] - 1)
    weights = [weight.to(builder.out.dtype) for weight in weights_of(groups, kernel, taps, most, signed)]
    geometry = NirGeometry(stage.stride, stage.before, (dilation[0], dilation[1]), groups, stage.size)

    def put(name: str, node: nir.NIRNode, *sources: NirSource) -> NirSource:
        names = [name for source in sources for name in source.nodes]
        return NirSource((builder.put(f"{at.name}_{name}", node, names),), tuple(node.output_type["output"].tolist()))

    count = put("count", nir.I(np.full(source.shape, 1 / builder.dt)), source)
    spiked = builder.depthwise(at._replace(name=f"{at.name}_spikes"), weights[0], geometry, source)
    counted = builder.depthwise(at._replace(name=f"{at.name}_counts"), weights[1], geometry, count)
    leads = put("leads", nir.Threshold(np.full(spiked.shape, most + 0.5)), spiked, counted)
    one = geometry._replace(stride=(1, 1), before=(0, 0), dilation=(1, 1))
    either = builder.depthwise(at._replace(name=f"{at.name}_either"), weights[2], one, leads)
    return put("larger", nir.Threshold(np.full(either.shape, 0.5)), either)


# -- reading


class Found(NamedTuple):
    """The nodes of a maximum of two in a graph, without the last gate."""

    counter: str
    spiked: str
    counted: str
    leads: str
    either: str
    source: str
    """The node that it reads."""


def found_in(
    nodes: Mapping[str, nir.NIRNode], sources: Mapping[str, Sequence[str]], readers: Mapping[str, Sequence[str]]
) -> dict[str, Found]:
    """Return the maxima of two in a graph, each by the name of its last gate."""
    found = {}

    def only(name: str, kind: Any) -> str | None:
        """Return the only input of a node, if it is of this kind and has no other reader."""
        (before, *more) = sources[name] or ("",)
        return before if before and not more and isinstance(nodes[before], kind) and len(readers[before]) == 1 else None

    for name, node in nodes.items():
        either = only(name, CONVOLUTIONS) if isinstance(node, nir.Threshold) else None
        leads = either and only(either, nir.Threshold)
        parts = sources[leads] if leads else ()
        if either is None or leads is None or len(parts) != 2 or any(len(readers[part]) != 1 for part in parts):
            continue
        if not all(isinstance(nodes[part], CONVOLUTIONS) for part in parts):
            continue
        for spiked, counted in (parts, parts[::-1]):
            count = only(counted, nir.I)
            if count is not None and sources[count] == sources[spiked] and len(sources[count]) == 1:
                found[name] = Found(count, spiked, counted, leads, either, sources[count][0])
    return found


def read(nodes: Mapping[str, nir.NIRNode], name: str, found: Found, shape: PartialShape, dt: float, steps: int) -> Any:
    """Return the modules of a maximum of two, and the shape of its output.

    Raises:
        ValueError: the nodes are another function.
    """
    if shape is None or None in shape or len(shape) not in (2, 3):
        raise ValueError("the shape of its input must be known, [N, C, L] or [N, C, H, W]")
    size: Shape = tuple(n for n in shape if n is not None)
    spiked, counted = (NirWeights.of(part, nodes[part], size) for part in (found.spiked, found.counted))
    after = spiked.out_shape(size)
    counted.out_shape(size)
    assert after is not None
    either = NirWeights.of(found.either, nodes[found.either], after)
    either.out_shape(after)
    gate, channels = _only(nodes[found.leads].threshold), size[0]
    convolutions = spiked, counted, either
    for signed in (False, True):
        own = [_ungrouped(weights, channels // (1 + signed)) for weights in convolutions]
        taps = [torch.nonzero(own[1][0, 0] == sign).tolist() for sign in (1, -1)] if own[1].dim() > 2 else [[], []]
        if [len(places) for places in taps] == [1, 1] and _is_maximum(convolutions, own, taps, int(gate), signed):
            break
    else:
        raise ValueError("gates and weights before it must be those of a maximum, as to_nir writes it")
    rate, last, least = _only(nodes[found.counter].r) * dt, _only(nodes[name].threshold), steps * (1 + signed)
    if abs(rate - 1) > 1e-9 or gate == int(gate) or int(gate) < least or not 0 < last < 1:
        raise ValueError(
            f"counts before it must grow by r * dt = 1, and thresholds must be between 0 and 1 and, at least {least}, "
            f"between two whole numbers, got r * dt = {rate}, {last} and {gate}"
        )
    first, second = taps[0][0], taps[1][0]
    return _modules(size, after, spiked, first, second, signed), (channels, *after[1:])


def _is_maximum(
    convolutions: Sequence[NirWeights], weights: Sequence[Tensor], taps: Sequence[Any], most: int, signed: bool
) -> bool:
    """Return whether three convolutions, with these weights of each group, are those that :func:`larger` writes."""
    spiked, counted, either = convolutions
    kernel, groups = weights[0].shape[2:], len(weights[2]) // (1 + signed)
    wanted = weights_of(groups, kernel, [tap for (tap,) in taps], most, signed)
    plain = (1,) * len(kernel), (0,) * len(kernel), (1,) * len(kernel)
    return (
        all(torch.equal(own.double(), want.double()) for own, want in zip(weights, wanted, strict=True))
        and all(x.bias is None for x in convolutions)
        and spiked[3:6] == counted[3:6]
        and either[3:6] == plain
    )


def _only(values: Any) -> float:
    """Return the number that all elements are."""
    distinct = np.unique(numbers_of("threshold or r", values))
    if len(distinct) != 1:
        raise ValueError(f"thresholds and r must be the same for all neurons, got {len(distinct)} values")
    return float(distinct[0])


def _ungrouped(weights: NirWeights, groups: int) -> Tensor:
    """Return the weights of a convolution with so many groups, also if zeros between its groups are written out."""
    weight = weights.weight
    if not groups or len(weight) % groups or (weight.shape[1] * weights.groups) % groups:
        return torch.zeros(0)
    if weights.groups == groups:
        return weight
    weight = dense(weight, weights.groups)
    own = weight.view(groups, -1, groups, weight.shape[1] // groups, *weight.shape[2:])
    each = torch.arange(groups)
    diagonal = own[each, :, each].flatten(0, 1)
    return diagonal if torch.equal(dense(diagonal, groups), weight) else torch.zeros(0)


def _modules(
    before: Shape,
    after: Sequence[int | None],
    weights: NirWeights,
    first: Sequence[int],
    second: Sequence[int],
    signed: bool,
) -> list[nn.Module]:
    """Return the layers of a maximum of two."""
    line = len(before) == 2
    dilation, stride = ((1, *x)[-2:] for x in (weights.dilation, weights.stride))
    (_, *size), (_, *outputs) = image(before), image([n or 0 for n in after])
    taps = [(0, *tap)[-2:] for tap in (first, second)]
    offset = [(b - a) * d for a, b, d in zip(*taps, dilation, strict=True)]
    padding = (0, 0) if isinstance(weights.padding, str) else (0, *weights.padding)[-2:]
    ahead = [p - a * d for p, a, d in zip(padding, taps[0], dilation, strict=True)]
    if min(offset) < 0 or sum(o > 0 for o in offset) != 1 or weights.padding == "same":
        raise ValueError(
            f"its two pixels must be in one row or column, the first one ahead, got a distance of {offset}"
        )
    modules: list[nn.Module] = [SpikeRearrange("unsqueeze")] if line else []
    windows = [(1 + (o > 0), s, a, max(o, 1)) for o, s, a in zip(offset, stride, ahead, strict=True)]
    for ceil in (False, True):
        if [_outputs(n, *window, ceil) for n, window in zip(size, windows, strict=True)] == outputs:
            break
    else:
        behind = [
            (n - 1) * s + o + 1 - a - b for n, s, o, a, b in zip(outputs, stride, offset, ahead, size, strict=True)
        ]
        modules.append(SpikeRearrange("zero_pad", ahead[1], behind[1], ahead[0], behind[0]))
        windows, ceil = [(kernel, s, 0, d) for kernel, s, _, d in windows], False
    kernel_size, strides, paddings, dilations = zip(*windows, strict=True)
    pool: list[nn.Module] = [SpikingMaxPool2d(kernel_size, strides, paddings, dilations, ceil_mode=ceil)]
    modules += [SpikeRearrange("pairs", 1, signed=True), *pool, SpikeRearrange("pairs", 0)] if signed else pool
    return [*modules, nn.Flatten(2)] if line else modules


def _outputs(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Return the number of windows of a max pooling; 0 if there is no such pooling."""
    try:
        return windows_along("from_nir", size, kernel, stride, padding, dilation, ceil_mode) if padding >= 0 else 0
    except ValueError:
        return 0
