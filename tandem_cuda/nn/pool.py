"""Average pooling of spike trains."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops.max_pool_spikes import windows_along
from ..spike_train import SpikeTrain
from . import schema
from .average_pool import AdaptiveAverage, WindowAverage, adaptive_settings, sizes_of_windows, window_settings
from .geometry import check_image, pad, pair
from .max_pool import Pooling
from .sizes import Size


class SpikingAvgPool2d(WindowAverage, nn.AvgPool2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """Average pooling of spikes: integrate-and-fire neurons driven by the mean of their window at every time step.

    This is a depthwise convolution with constant weights, followed by IF neurons. With S[t] the number of spikes in the
    window at step t and D its divisor (kernel height times width, unless the arguments say otherwise)::

        u[t] = u[t-1] + S[t] / D - threshold * s[t-1],      s[t] = 1 if u[t] >= threshold else 0

    The potential is computed in units of 1 / D, so that all sums are integers and the spikes are the same on every
    device. The ANN twin, and so the gradient, is nn.AvgPool2d of the counts divided by ``threshold``. (A mean of counts
    is never negative, so its ReLU is the identity.)

    Args:
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair.
        ceil_mode: let the last windows extend beyond the padded image.
        count_include_pad: include the padding in the divisor.
        divisor_override: the divisor to use instead.
        threshold: threshold of the neurons, in units of the mean.
        amplitude: weight of an output spike, in units of the input's ``amplitude``. If it equals the threshold,
            amplitude * count approximates the mean itself.
        initial: initial potential of the neurons as a fraction of the threshold, in [0, 1).
        two_phase: first integrate all T steps, then spike, as :class:`IF` says.
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain, ``threshold`` or ``amplitude`` is not a number, or ``two_phase`` is
            not a bool.
        ValueError: the input is not [N, C, H, W], a window is larger than the padded image, or ``threshold``,
            ``amplitude``, ``initial`` or ``engine`` is invalid.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 1, 2, 2))
        >>> SpikingAvgPool2d(2)(x).count
        tensor([[[[4.]]]])
    """

    SETTINGS: ClassVar = window_settings(2)

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        threshold: float = 1.0,
        amplitude: float = 1.0,
        initial: float = 0.0,
        two_phase: bool = False,
        engine: str = "auto",
    ) -> None:
        windows = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        neuron: dict[str, Any] = {"threshold": threshold, "amplitude": amplitude, "initial": initial}
        super().__init__(*windows, **neuron, two_phase=two_phase, engine=engine)


class SpikingAdaptiveAvgPool2d(AdaptiveAverage, nn.AdaptiveAvgPool2d):  # type: ignore[misc]  # as above
    """Adaptive average pooling of spikes: :class:`SpikingAvgPool2d` with one window per output pixel.

    The windows are as in nn.AdaptiveAvgPool2d: from floor(i * H / Ho) to ceil((i + 1) * H / Ho). If their sizes differ,
    the means are computed as a matrix product over the pixels of each channel, in units of 1 / (least common multiple
    of the sizes).

    Args:
        output_size: Ho and Wo, an int or a pair; None keeps the size of the input.
        threshold: threshold of the neurons, in units of the mean.
        amplitude: weight of an output spike, in units of the input's ``amplitude``. If it equals the threshold,
            amplitude * count approximates the mean itself.
        initial: initial potential of the neurons as a fraction of the threshold, in [0, 1).
        two_phase: first integrate all T steps, then spike, as :class:`IF` says.
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain, ``threshold`` or ``amplitude`` is not a number, or ``two_phase`` is
            not a bool.
        ValueError: the input is not [N, C, H, W], or ``threshold``, ``amplitude``, ``initial`` or ``engine`` is
            invalid.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 3, 6, 6))
        >>> SpikingAdaptiveAvgPool2d(1)(x).count.flatten()
        tensor([4., 4., 4.])
    """

    SETTINGS: ClassVar = adaptive_settings(2)

    def __init__(
        self,
        output_size: int | tuple[int | None, int | None] | None,
        *,
        threshold: float = 1.0,
        amplitude: float = 1.0,
        initial: float = 0.0,
        two_phase: bool = False,
        engine: str = "auto",
    ) -> None:
        neuron: dict[str, Any] = {"threshold": threshold, "amplitude": amplitude, "initial": initial}
        super().__init__(output_size, **neuron, two_phase=two_phase, engine=engine)


class SpikeWindows(Pooling):
    """Average pooling without neurons: pass on the spikes of each window side by side, as channels.

    A tandem layer after it repeats its weights for every position in the window (:class:`.wiring.Wiring`) and so adds
    the window's spikes up. It has exactly the currents that it would have after an average pooling. The output has the
    input's ``amplitude``, divided by the divisor.

    Args:
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair.
        divisor_override: divisor of a window's sum; defaults to the number of positions in the window.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, kH * kW * C, Ho, Wo], grouped by position.

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, H, W], or a window is larger than the padded image.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 3, 6, 6))
        >>> windows = SpikeWindows(2)(x)
        >>> windows.shape, windows.amplitude
        (torch.Size([1, 12, 3, 3]), 0.25)
    """

    SETTINGS: ClassVar = {**sizes_of_windows(2), "divisor_override": schema.whole_or_none}

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size)
        self.stride = self.kernel_size if stride is None else pair(stride)
        self.padding = pair(padding)
        self.divisor_override = divisor_override

    @property
    def size(self) -> int:
        """Number of positions in a window."""
        return math.prod(self.kernel_size)

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        check_image(self, x)
        return x.rearranged(self.rearranged).replace_unchecked(
            amplitude=x.amplitude / (self.divisor_override or self.size)
        )

    def rearranged(self, image: Tensor) -> Tensor:
        """Return where bits, counts or any other values [P, N, C, H, W] go."""
        (top, left), settings = self.padding, zip(self.kernel_size, self.stride, self.padding, strict=True)
        rows, columns = (
            [slice(first, first + (n - 1) * stride + 1, stride) for first in range(kernel)]
            for size, (kernel, stride, padding) in zip(image.shape[3:], settings, strict=True)
            for n in [windows_along("SpikeWindows", size, kernel, stride, padding, 1, False)]
        )
        padded = pad(image, (left, left, top, top)).movedim(2, -1)
        return torch.cat([padded[:, :, row, column] for row in rows for column in columns], -1).movedim(-1, 2)

    def channels(self, channels: Size) -> Size:
        return Size(channels.least * self.size, channels.exact, channels.factor * self.size)

    def extra_repr(self) -> str:
        divisor = "" if self.divisor_override is None else f", divisor_override={self.divisor_override}"
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}{divisor}"
