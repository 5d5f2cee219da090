"""What layers say about themselves in NIR, the Neuromorphic Intermediate Representation.

:func:`tandem_cuda.exchange.to_nir` calls the method ``nir(writer, *signals)`` of each layer. It takes a
:class:`NirWriter` and the layer's inputs, adds nodes for the layer, and returns its output. ``nir_takes`` lists the
kinds of inputs that the layer takes, by default ``("spikes",)``. A layer that NIR cannot express says why in
``no_nir`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..neuron import Neuron

Shape = tuple[int, ...]
"""The shape of a value without the batch dimension."""


class NirGeometry(NamedTuple):
    """Which pixels a convolution reads."""

    stride: tuple[int, int]
    before: tuple[int, int]
    """The padding above and on the left; below and on the right it is what the output's size asks for."""
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    """Ho and Wo of the output."""
    named: str = ""
    """The padding, if it has a name: "same" or "valid"."""


class Product(NamedTuple):
    """Weights, and what they read."""

    weight: Tensor
    """[O, F], or [O, C/groups, kH, kW] for a convolution."""
    bias: Tensor | None = None
    """The sum over all time steps, [O]."""
    geometry: NirGeometry | None = None
    """None: the weights are a matrix."""
    rounding: tuple[int, Tensor] | None = None
    """The bits of quantised weights, and what the integer 1 of each output stands for, [O]."""


class Signal(Protocol):
    """A value of the network in the graph."""

    @property
    def shape(self) -> Shape:
        """The shape of the value without the batch dimension."""

    @property
    def pair_dim(self) -> int | None:
        """The ``pair_dim`` of a spike train; None for other values."""

    def times(self, factor: float) -> Any:
        """Multiply the value."""


class Windows(Protocol):
    """The windows of a pooling along one dimension, as :meth:`SpikingAvgPool2d.windows` returns them."""

    size: int
    starts: list[int]
    stops: list[int]
    stride: int

    def uniform(self) -> bool: ...

    def membership(self) -> Tensor: ...


class MaxAxis(NamedTuple):
    """The windows of a max pooling along one dimension."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    outputs: int

    def offsets(self) -> list[int]:
        """Return by how much to shift maxima so that, one after the other, they grow into windows: 1, 2, 4, ..."""
        found, covered = [], 1
        while covered < self.kernel:
            found.append(min(covered, self.kernel - covered))
            covered += found[-1]
        return [offset * self.dilation for offset in found]


class NirWriter(Protocol):
    """Adds the nodes of one layer to a graph."""

    @property
    def shape(self) -> Shape:
        """The shape of the layer's output without the batch dimension."""

    def encoded(self, signal: Any, time_steps: int, mode: str, scale: float) -> Any:
        """Encode a real input, as :class:`Encode` does."""

    def decoded(self, signal: Any, pair_dim: int | None, scale: Tensor | None) -> Any:
        """Decode spikes with pairs along ``pair_dim``, as :class:`Decode` does. ``scale`` holds a factor for each."""

    def concatenated(self, signals: Sequence[Any], silent: Sequence[bool], pair_dim: int | None) -> Any:
        """Concatenate spikes, as :class:`SpikeCat` does. ``silent``: which signals get a silent negative part."""

    def rearranged(self, signal: Any, move: Callable[[Tensor], Tensor], own: bool = True) -> Any:
        """Move, copy or drop spikes, as ``move`` does with values [P, N, C, ...], or add zeros.

        ``own``: whether the result is the layer's output, and not what its weights read.
        """

    def neurons(self, neuron: Neuron, inputs: Sequence[tuple[Any, Product | None]]) -> Any:
        """Add neurons that are driven by the sum of products of signals. None in place of a product: the signal."""

    def pooled(
        self, signal: Any, rows: Windows, columns: Windows, divisors: Sequence[int], neurons: Callable[..., Neuron]
    ) -> Any:
        """Add neurons that average windows. ``neurons`` makes them for sums that are a multiple of the average."""

    def maximum(self, signal: Any, rows: MaxAxis, columns: MaxAxis) -> Any:
        """Add the largest count of each window, as :class:`SpikingMaxPool2d` computes it."""

    def gated(self, neuron: Neuron, signal: Any, gate: Any, decode: Any) -> Any:
        """Add neurons for decoded spikes times a gate, as :class:`TandemGate` computes them."""


def convolution(
    layer: Any, weight: Tensor, bias: Tensor | None, outputs: Shape, rounding: tuple[int, Tensor] | None
) -> Product:
    """Return the product of a layer with the attributes of nn.Conv1d or nn.Conv2d, and outputs of this shape.

    With a ``padding_mode`` other than "zeros" it reads images that are padded already.
    """
    weight = weight.unsqueeze(2) if weight.dim() == 3 else weight
    stride, dilation = ((1, *x)[-2:] for x in (layer.stride, layer.dilation))
    padded = layer.padding_mode != "zeros"
    named = layer.padding if isinstance(layer.padding, str) and not padded else ""
    before = (0, 0) if named or padded else (0, *layer.padding)[-2:]
    if named == "same":
        above, left = spans(weight, dilation)
        before = above // 2, left // 2
    geometry = NirGeometry(stride, before, dilation, layer.groups, image(outputs)[1:], named)
    return Product(weight, bias, geometry, rounding)


def spans(weight: Tensor, dilation: Sequence[int]) -> list[int]:
    """Return the distances of a kernel's first and last rows and columns."""
    return [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]


def image(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of a line [C, L] or an image [C, H, W] as the shape of an image."""
    channels, *size = shape
    height, width = (1, *size)[-2:]
    return channels, height, width


def dense(weight: Tensor, groups: int) -> Tensor:
    """Return a grouped weight [O, C/groups, ...] as [O, C, ...]."""
    if groups == 1:
        return weight
    outputs, inputs, *kernel = weight.shape
    blocks = weight.new_zeros(groups, outputs // groups, groups, inputs, *kernel)
    each = torch.arange(groups)
    blocks[each, :, each] = weight.view(groups, outputs // groups, inputs, *kernel)
    return blocks.view(outputs, groups * inputs, *kernel)


def linear_map(rows: Tensor, columns: Tensor, groups: int) -> tuple[Tensor, NirGeometry]:
    """Return the kernel [kH, kW] and the geometry of the convolution that maps images x to rows @ x @ columns.T.

    Where the stride is the size of the image, a tap of the kernel belongs to one pixel of the output and one of the
    input. So every linear map is a convolution.

    Args:
        rows: [..., Ho, H].
        columns: [..., Wo, W].
        groups: of the convolution.
    """
    (down, *vertical), (right, *horizontal) = _taps(rows), _taps(columns)
    stride, before = zip(vertical, horizontal, strict=True)
    size = rows.shape[-2], columns.shape[-2]
    return down.unsqueeze(-1) * right.unsqueeze(-2), NirGeometry(stride, before, (1, 1), groups, size)


def _taps(matrix: Tensor) -> tuple[Tensor, int, int]:
    """Return the kernel, stride and padding of the convolution that multiplies by a matrix [..., outputs, inputs]."""
    outputs, inputs = matrix.shape[-2:]
    if outputs == inputs and bool((matrix == torch.eye(inputs).to(matrix)).all()):
        return matrix[..., 0, :1], 1, 0
    return matrix.flip(-2).flatten(-2), inputs, (outputs - 1) * inputs
