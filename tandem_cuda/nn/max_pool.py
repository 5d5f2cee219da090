"""Max pooling of spike trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.geometry import check_axes
from ..ops.max_pool_spikes import check_padding, windows_along
from ..spike_code import refuse_part
from ..spike_train import SpikeTrain, interleaved, signs
from . import schema
from .ann_twin import without_spikes
from .coupling import carrying, needs_gradient
from .frozen import Span, State, single
from .geometry import PAIRS_OF_COLUMNS, check_image, per_axis
from .schema import Check
from .sizes import SPIKES, Size, Value, check_count
from .spiking import Spiking


class Pooling(Spiking):
    """Spiking pooling of images, or of volumes."""

    axes = 2
    """The number of dimensions that windows have."""

    def out_size(self, *inputs: Value) -> Value:
        x = single(inputs, SPIKES)
        x.check_dims(1 + self.axes)
        if x.pair_dim == -1:
            raise ValueError(PAIRS_OF_COLUMNS)
        channels, *image = (Size(),) * (1 + self.axes) if x.shape is None else x.shape
        shape = self.channels(channels), *self.image_size(image)
        check_count("outputs", [size.least for size in shape])
        return x._replace(kind=SPIKES, shape=shape)

    def check_windows(self, *others: str) -> None:
        """Raise TypeError or ValueError unless windows with these settings beside their size and padding exist."""
        layer, name = cast(Any, self), type(self).__name__
        kernel, padding = check_axes(name, self.axes, kernel_size=layer.kernel_size, padding=layer.padding)
        check_axes(name, self.axes, **{other: getattr(self, other) for other in others})
        for size, zeros in zip(kernel, padding, strict=True):
            check_padding(name, size, zeros)

    def channels(self, channels: Size) -> Size:
        """Return the number of output channels."""
        return channels

    def image_size(self, image: Sequence[Size]) -> Sequence[Size]:
        """Return what is known about Ho and Wo, given H and W: here of windows of ``kernel_size``."""
        layer: Any = self
        windows_of = layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1)
        settings, ceil_mode = [per_axis(x, self.axes) for x in windows_of], getattr(layer, "ceil_mode", False)
        sizes = []
        for size, kernel, stride, padding, dilation in zip(image, *settings, strict=True):
            # The minimum size that a window fits into.
            fits = dilation * (kernel - 1) + 1 - 2 * padding - (stride - 1 if ceil_mode else 0)
            window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            windows = partial(windows_along, type(self).__name__, ceil_mode=ceil_mode, **window)
            sizes.append(size.at_least(fits).through(windows, stride, fits - stride, regular=not ceil_mode))
        check_count("input", [size.needs for size in sizes])
        return sizes


class MaxPooling(Pooling):
    """Base of max poolings. A frozen layer carries the counts of its inputs.

    Of a train that is ``paired``, the values are differences of counts. With d_i[t] that of pair i up to step t::

        M[t] = max over i of d_i[t],      s+[t] = 1 if M[t] > M[t-1],      s-[t] = 1 if M[t] < M[t-1]

    A difference changes by at most one per step, and so does M: the difference of the pooled counts is exactly the
    largest difference. Where each pair has spikes of one sign only, as of two-phase neurons, the pooled
    pair has, too: the positive count is the largest positive count, and the negative count is the smallest negative
    count of windows without a positive one.
    """

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[SpikeTrain, State | None]:
        (x,) = inputs
        self.check_input(x)
        if x.radix:
            if not span.whole:
                refuse_part(type(self).__name__)
            return self.forward(x), None
        most = 24 if x.paired else 31  # differences are pooled as float32, counts are int32
        if span.total >= 2**most:
            raise ValueError(f"{type(self).__name__}: time_steps must be below 2^{most}, got {span.total}")
        spikes = self.signed_spikes if x.paired else self.spikes
        bits, counts = spikes(x, state, not span.ends)
        return x.replace_unchecked(bits=bits), None if span.ends else counts

    def spikes(self, x: SpikeTrain, state: State | None = None, want_state: bool = False) -> tuple[Tensor, State]:
        """Return the bits and the inputs' final counts; ``state`` has the counts of an earlier call to continue."""
        raise NotImplementedError

    def signed_spikes(
        self, x: SpikeTrain, state: State | None = None, want_state: bool = False
    ) -> tuple[Tensor, State]:
        """Return the bits of a paired train, and the final differences; ``state`` continues an earlier call."""
        steps = x.time_steps
        positive, negative = signs(ops.unpack_spikes.trusted(x.bits, steps, torch.float32), 2)
        before = torch.zeros_like(positive[0]) if state is None else state[0].to(positive)
        differences = torch.cat([before.unsqueeze(0), before + (positive - negative).cumsum(0)])
        largest = torch.unflatten(self._pool_differences(differences.flatten(0, 1)), 0, (steps + 1, -1))
        steps_up = largest.diff(dim=0)
        bits = ops.pack_spikes(interleaved((steps_up > 0).byte(), (steps_up < 0).byte(), 2))
        return bits, (differences[-1].to(torch.int32),) if want_state else ()

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        self.check_input(x)
        if x.paired:
            return self._of_pairs(x)
        bits, _ = self.spikes(x)
        return carrying(bits, x, self.largest(x) if needs_gradient(x.carried_value) else None)

    def _of_pairs(self, x: SpikeTrain) -> SpikeTrain:
        """Pool differences. Either part of a pooled pair carries half of the gradient, which weights double again."""
        if x.radix:
            largest = self.largest(x).detach().to(torch.uint8)
            bits = largest.movedim(1, -1).contiguous().movedim(-1, 1).unsqueeze(0)  # channels innermost in memory
        else:
            bits, _ = self.signed_spikes(x)
        if not needs_gradient(x.carried_value):
            return carrying(bits, x, None)
        half = self.largest_difference(x.value) / 2
        return carrying(bits, x, interleaved(half, -half, 1))

    def largest(self, x: SpikeTrain) -> Tensor:
        """Return the largest value of each window, as the ANN's pooling computes it: pairs, if the input has pairs."""
        if not x.paired:
            return torch.clamp(self.pool_values(x.value), min=0)
        largest = self.largest_difference(x.value)
        return interleaved(torch.relu(largest), torch.relu(-largest), 1)

    def largest_difference(self, value: Tensor) -> Tensor:
        """Return the largest difference of the pairs in each window."""
        positive, negative = signs(value, 1)
        return self._pool_differences(positive - negative)

    def _pool_differences(self, differences: Tensor) -> Tensor:
        largest = self.pool_values(differences)
        return largest.masked_fill(largest == -torch.inf, 0)

    def pool_values(self, values: Tensor) -> Tensor:
        """Return the ANN's pooling of values [N, C, ...]; -inf for windows entirely in the padding."""
        raise NotImplementedError

    def ann_twin(self, x: SpikeTrain) -> SpikeTrain:
        """Run the ANN twin alone; see :mod:`.ann_twin`."""
        return without_spikes(self.largest(x), x.time_steps, x.amplitude, x.pair_dim, x.radix)

    def check_input(self, x: SpikeTrain) -> None:
        """Check that the input is a train of images, whose pairs lie along the channels."""
        check_image(self, x, self.axes)

    def windows(self, size: Sequence[int]) -> Sequence[tuple[int, int, int, int]]:
        """Return kernel size, stride, padding and dilation for each dimension of an image or volume of this size."""
        layer: Any = self
        settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return [*zip(*(per_axis(x, self.axes) for x in settings), strict=True)]


class WindowMaxPooling(MaxPooling):
    """Max pooling with windows of a given size. The matching pooling module of torch must come next in the bases."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        layer: Any = self
        if layer.return_indices:
            name = type(self).__name__
            raise ValueError(f"{name}: return_indices must be False, since the maximum moves from step to step")
        self.check_windows("stride", "dilation")

    def pool_values(self, values: Tensor) -> Tensor:
        layer: Any = self
        for size, window in zip(values.shape[2:], self.windows(values.shape[2:]), strict=True):
            windows_along(type(self).__name__, size, *window, layer.ceil_mode)
        return super(MaxPooling, self).forward(values)


def window_settings(axes: int) -> dict[str, Check]:
    """Return the checks of the settings of a max pooling."""
    sizes = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    return {**{name: schema.whole(least, axes) for name, least in sizes.items()}, "ceil_mode": schema.flag}


class SpikingMaxPool2d(WindowMaxPooling, nn.MaxPool2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """Max pooling of spikes by count: the pooled count is exactly nn.MaxPool2d of the counts, whatever T.

    Let c_i[t] be the number of spikes of neuron i up to step t. A pooled neuron spikes when the largest count of its
    window grows::

        M[t] = max over i of c_i[t],      s[t] = M[t] - M[t-1]

    A count grows by at most one per step, and so does M, so s[t] is 0 or 1. The tandem coupling is therefore exact in
    value and gradient; the gradient goes to the neuron with the most spikes, as in torch. The usual rule passes on the
    spikes of the neuron that has fired most so far (Rueckauer et al. 2017, doi:10.3389/fnins.2017.00682). Unlike it,
    this layer drops the spikes with which another neuron only catches up. For T = 1 the result is the OR of the
    window's spikes. (The CifarNet of Wu et al. 2021 has strided convolutions instead of pooling.) Of radix spikes, the
    result is the largest value. The output has the input's ``amplitude``.

    Of a train that is ``paired``, it pools the values of the pairs, exactly (:class:`MaxPooling`). No kernel does: the
    differences of all steps are computed as floats, which takes 4 bytes for each step and input neuron.

    Pooling needs one counter per input neuron and takes much less time than the convolution before it
    (docs/performance.md). It has no synaptic operations (SynOps), since it adds nothing to a membrane potential.

    Args:
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair.
        dilation: spacing of the window's neurons, an int or a pair.
        return_indices: must be False.
        ceil_mode: let the last windows extend beyond the padded image.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, H, W], a window is larger than the padded image, or ``return_indices`` is
            True.

    Examples:
        >>> bits = torch.tensor([[0b0001, 0b0111], [0b0000, 0b1000]], dtype=torch.uint8)  # T = 4, 2 x 2 neurons
        >>> x = SpikeTrain(bits.view(1, 1, 1, 2, 2), time_steps=4)
        >>> SpikingMaxPool2d(2)(x).count.item()
        3.0
    """

    SETTINGS: ClassVar = window_settings(2)

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    def spikes(self, x: SpikeTrain, state: State | None = None, want_state: bool = False) -> tuple[Tensor, State]:
        """Return the bits and the inputs' final counts; ``state`` has the counts of an earlier call to continue."""
        windows = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        return pooled(x, x.bits, windows, state, want_state)


class SpikingGlobalMaxPool2d(MaxPooling):
    """Max pooling of spikes by count over the whole image, or over its rows or columns, whatever its size.

    As :class:`SpikingMaxPool2d` with a window that covers the image: the count is the largest count of each channel.

    Args:
        dims: the dimensions that are pooled, 2 or 3 or both.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, 1, 1]; with ``dims=(2,)`` [N, C, 1, W], with (3,) [N, C, H, 1].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, H, W], or ``dims`` are not 2, 3 or both.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 2, 3, 7, 5))
        >>> SpikingGlobalMaxPool2d()(x).shape
        torch.Size([2, 3, 1, 1])
    """

    SETTINGS: ClassVar = {"dims": schema.any_value}
    dims: Sequence[int]

    def __init__(self, dims: Sequence[int] = (2, 3)) -> None:
        super().__init__()
        if not isinstance(dims, (tuple, list)) or tuple(dims) not in ((2,), (3,), (2, 3)):
            raise ValueError(f"SpikingGlobalMaxPool2d: dims must be (2,), (3,) or (2, 3), got {dims!r}")
        self.dims = tuple(dims)

    def windows(self, size: Sequence[int]) -> Sequence[tuple[int, int, int, int]]:
        return [(n if dim in self.dims else 1, 1, 0, 1) for dim, n in enumerate(size, 2)]

    def pool_values(self, values: Tensor) -> Tensor:
        return values.amax(tuple(self.dims), keepdim=True)

    def spikes(self, x: SpikeTrain, state: State | None = None, want_state: bool = False) -> tuple[Tensor, State]:
        """Return the bits and the inputs' final counts; ``state`` has the counts of an earlier call to continue."""
        window = tuple(kernel for kernel, *_ in self.windows(x.shape[2:]))
        return pooled(x, x.bits, (window,), state, want_state)

    def image_size(self, image: Sequence[Size]) -> Sequence[Size]:
        return [size.fixed(1) if dim in self.dims else size for dim, size in enumerate(image, 2)]

    def extra_repr(self) -> str:
        return "" if tuple(self.dims) == (2, 3) else f"dims={tuple(self.dims)}"


def pooled(
    x: SpikeTrain, bits: Tensor, windows: Sequence[Any], state: State | None, want_state: bool
) -> tuple[Tensor, State]:
    """Pool images [P, N, C, H, W] by count, or radix spikes by value.

    Return the bits and the inputs' final counts, [N, C, H, W], which radix spikes do not have. ``x``: the train that
    the bits are from. ``windows``: kernel size, stride, padding, dilation and ceil mode, or the first of them.
    ``state``: counts of an earlier call.
    """
    how: dict[str, Any] = {"count": None if state is None else state[0], "want_count": want_state}
    how |= {"time_steps": x.time_steps, "radix": x.code.radix}
    bits, count = ops.max_pool_spikes.trusted(bits, *windows, **how)
    return bits, (count,)
