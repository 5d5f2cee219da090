"""Pooling of volumes [N, C, D, H, W], one slice or one output depth after the other."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..spike_train import SpikeTrain
from .average_pool import AdaptiveAverage, WindowAverage, adaptive_settings, window_settings
from .frozen import State
from .geometry import per_axis
from .max_pool import WindowMaxPooling, pooled
from .max_pool import window_settings as max_settings

Three = tuple[int, int, int]


class SpikingMaxPool3d(WindowMaxPooling, nn.MaxPool3d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """Max pooling of spikes by count: the pooled count is exactly nn.MaxPool3d of the counts, whatever T.

    A pooled neuron spikes when the largest count of its window grows, as in :class:`SpikingMaxPool2d`. The largest
    count of a volume is the largest one of the largest counts of its slices, at every time step: so the slices are
    pooled first, and what comes of them is pooled along the depth.

    Args:
        kernel_size: size of the window, an int or three.
        stride: an int or three; defaults to ``kernel_size``.
        padding: silent neurons added around the volume, an int or three.
        dilation: spacing of the window's neurons, an int or three.
        return_indices: must be False.
        ceil_mode: let the last windows extend beyond the padded volume.

    Shape:
        SpikeTrain [N, C, D, H, W] -> SpikeTrain [N, C, Do, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, D, H, W], a window is larger than the padded volume, or ``return_indices``
            is True.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 3, 2, 6, 6))
        >>> SpikingMaxPool3d((1, 2, 2))(x).shape
        torch.Size([1, 3, 2, 3, 3])
    """

    SETTINGS: ClassVar = max_settings(3)
    axes = 3

    def __init__(
        self,
        kernel_size: int | Three,
        stride: int | Three | None = None,
        padding: int | Three = 0,
        dilation: int | Three = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    def spikes(self, x: SpikeTrain, state: State | None = None, want_state: bool = False) -> tuple[Tensor, State]:
        """Return the bits, and the final counts of the inputs and of the pooled slices; ``state`` has earlier ones."""
        samples, _, depth, *_ = x.shape
        settings = self.kernel_size, self.stride, self.padding, self.dilation
        (kernel, *image), (stride, *strides), (pad, *pads), (dilation, *dilations) = (per_axis(s, 3) for s in settings)
        before, lines_before = (None, None) if state is None else ((state[0].flatten(0, 1),), state[1:])
        windows = image, strides, pads, dilations, self.ceil_mode
        slices, (count,) = pooled(x, x.bits.movedim(3, 2).flatten(1, 2), windows, before, want_state)
        height, width = slices.shape[3:]
        lines = torch.unflatten(slices, 1, (samples, depth)).movedim(2, 3).flatten(4, 5)
        along = (kernel, 1), (stride, 1), (pad, 0), (dilation, 1), self.ceil_mode
        bits, (largest,) = pooled(x, lines, along, lines_before, want_state)
        counts = (torch.unflatten(count, 0, (samples, depth)), largest) if want_state else ()
        return torch.unflatten(bits, 4, (height, width)), counts


class SpikingAvgPool3d(WindowAverage, nn.AvgPool3d):  # type: ignore[misc]  # as above
    """Average pooling of spikes: integrate-and-fire neurons driven by the mean of their window at every time step.

    As :class:`SpikingAvgPool2d`, with windows of volumes. The ANN twin is nn.AvgPool3d.

    Args:
        kernel_size: size of the window, an int or three.
        stride: an int or three; defaults to ``kernel_size``.
        padding: silent neurons added around the volume, an int or three.
        ceil_mode: let the last windows extend beyond the padded volume.
        count_include_pad: include the padding in the divisor.
        divisor_override: the divisor to use instead.
        threshold: threshold of the neurons, in units of the mean.
        amplitude: weight of an output spike, in units of the input's ``amplitude``. If it equals the threshold,
            amplitude * count approximates the mean itself.
        initial: initial potential of the neurons as a fraction of the threshold, in [0, 1).
        two_phase: first integrate all T steps, then spike, as :class:`IF` says.
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, D, H, W] -> SpikeTrain [N, C, Do, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain, ``threshold`` or ``amplitude`` is not a number, or ``two_phase`` is
            not a bool.
        ValueError: the input is not [N, C, D, H, W], a window is larger than the padded volume, or ``threshold``,
            ``amplitude``, ``initial`` or ``engine`` is invalid.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 1, 2, 2, 2))
        >>> SpikingAvgPool3d(2)(x).count
        tensor([[[[[4.]]]]])
    """

    SETTINGS: ClassVar = window_settings(3)
    axes = 3

    def __init__(
        self,
        kernel_size: int | Three,
        stride: int | Three | None = None,
        padding: int | Three = 0,
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


class SpikingAdaptiveAvgPool3d(AdaptiveAverage, nn.AdaptiveAvgPool3d):  # type: ignore[misc]  # as above
    """Adaptive average pooling of spikes: :class:`SpikingAvgPool3d` with one window for each output.

    It has the windows of nn.AdaptiveAvgPool3d, as :class:`SpikingAdaptiveAvgPool2d` describes them.

    Args:
        output_size: Do, Ho and Wo, an int or three; None keeps the size of the input.
        threshold: threshold of the neurons, in units of the mean.
        amplitude: weight of an output spike, in units of the input's ``amplitude``. If it equals the threshold,
            amplitude * count approximates the mean itself.
        initial: initial potential of the neurons as a fraction of the threshold, in [0, 1).
        two_phase: first integrate all T steps, then spike, as :class:`IF` says.
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, D, H, W] -> SpikeTrain [N, C, Do, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain, ``threshold`` or ``amplitude`` is not a number, or ``two_phase`` is
            not a bool.
        ValueError: the input is not [N, C, D, H, W], or ``threshold``, ``amplitude``, ``initial`` or ``engine`` is
            invalid.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 3, 2, 6, 6))
        >>> SpikingAdaptiveAvgPool3d(1)(x).count.flatten()
        tensor([4., 4., 4.])
    """

    SETTINGS: ClassVar = adaptive_settings(3)
    axes = 3

    def __init__(
        self,
        output_size: int | tuple[int | None, int | None, int | None] | None,
        *,
        threshold: float = 1.0,
        amplitude: float = 1.0,
        initial: float = 0.0,
        two_phase: bool = False,
        engine: str = "auto",
    ) -> None:
        neuron: dict[str, Any] = {"threshold": threshold, "amplitude": amplitude, "initial": initial}
        super().__init__(output_size, **neuron, two_phase=two_phase, engine=engine)
