"""Convolutional tandem layers. All of them compute their products as 2-D convolutions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ..neuron import IF, Neuron
from ..ops.geometry import check_axes
from . import schema
from .convolution import Conv1dSynapses, Conv2dSynapses, Conv3dSynapses, ConvTranspose2dSynapses
from .schema import Check
from .tandem import TandemLayer

Pair = int | tuple[int, int]
Triple = int | tuple[int, int, int]


def _settings(axes: int, paddings: tuple[str, ...], modes: tuple[str, ...]) -> dict[str, Check]:
    return {
        "in_channels": schema.whole(0),
        "out_channels": schema.whole(0),
        "kernel_size": schema.per_axis(axes, 1),
        "stride": schema.per_axis(axes, 1),
        "padding": schema.per_axis(axes, 0, paddings),
        "dilation": schema.per_axis(axes, 1),
        "groups": schema.whole(1),
        "padding_mode": schema.one_of(*modes),
    }


_CONVOLUTION = (("same", "valid"), ("zeros", "reflect", "replicate", "circular"))
"""The named paddings and the modes of a convolution that is not transposed."""


class TandemConvolution(TandemLayer):
    """A convolutional tandem layer; torch's convolution must come next in the bases."""

    def check_windows(self, axes: int) -> None:
        """Raise TypeError or ValueError unless the kernel and its movement have a number for each axis, in range."""
        layer: Any = self
        numbers = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        if isinstance(layer.padding, str):
            del numbers["padding"]
        check_axes(type(self).__name__, axes, **numbers)


class TandemConv2d(TandemConvolution, nn.Conv2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A convolutional tandem layer: nn.Conv2d whose neurons spike (Wu et al. 2021, section III).

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair.
        stride: an int or a pair.
        padding: an int, a pair, "valid" or "same".
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        padding_mode: "zeros", or "reflect", "replicate" or "circular" to fill the padding with the image's spikes.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm2d).
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, H, W] (or EncodedInput from Encode) -> SpikeTrain [N, O, Ho, Wo].

    Raises:
        TypeError: the input is a Tensor, or its dtype is not the weights'; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape, or more padding than the image has pixels for.

    Examples:
        >>> layer = TandemConv2d(3, 16, 3, padding=1, norm="batch", neuron=IF(threshold=0.5))
        >>> x = Encode(time_steps=8)(torch.rand(2, 3, 32, 32))
        >>> layer(x)
        SpikeTrain([2, 16, 32, 32], time_steps=8, dtype=torch.float32, device=cpu)
    """

    SETTINGS: ClassVar = _settings(2, *_CONVOLUTION)
    norm_class = nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        tandem: dict[str, Any] = {"norm": norm, "neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(*sizes, bias, padding_mode, device, dtype, **tandem)
        self.check_windows(2)

    @property
    def synapses(self) -> Conv2dSynapses:
        return Conv2dSynapses(self)


class TandemConv1d(TandemConvolution, nn.Conv1d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A convolutional tandem layer over one dimension: nn.Conv1d whose neurons spike (Wu et al. 2021, section III).

    It is computed as a 2-D convolution of images of height 1.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: number of taps.
        stride: an int.
        padding: an int, "valid" or "same".
        dilation: spacing of the kernel taps.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        padding_mode: "zeros", or "reflect", "replicate" or "circular" to fill the padding with the input's spikes.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm1d).
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, L] (or EncodedInput from Encode) -> SpikeTrain [N, O, Lo].

    Raises:
        TypeError: the input is a Tensor, or its dtype is not the weights'; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape, or more padding than the input has values for.

    Examples:
        >>> layer = TandemConv1d(2, 4, kernel_size=5)
        >>> layer(Encode(time_steps=8)(torch.rand(3, 2, 100)))
        SpikeTrain([3, 4, 96], time_steps=8, dtype=torch.float32, device=cpu)
    """

    SETTINGS: ClassVar = _settings(1, *_CONVOLUTION)
    norm_class = nn.BatchNorm1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        tandem: dict[str, Any] = {"norm": norm, "neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(*sizes, bias, padding_mode, device, dtype, **tandem)
        self.check_windows(1)

    @property
    def synapses(self) -> Conv1dSynapses:
        return Conv1dSynapses(self)


class TandemConv3d(TandemConvolution, nn.Conv3d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A convolutional tandem layer over three dimensions: nn.Conv3d whose neurons spike (Wu et al. 2021, section III).

    It is computed as a 2-D convolution. For each depth of the output, the kD slices that the kernel covers stand side
    by side as channels, so that bits are copied kD times, and in training counts, which the backward pass keeps.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or three.
        stride: an int or three.
        padding: an int, three ints, "valid" or "same".
        dilation: spacing of the kernel taps, an int or three.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        padding_mode: "zeros", or "reflect", "replicate" or "circular" to fill the padding with the input's spikes.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm3d).
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, D, H, W] (or EncodedInput from Encode) -> SpikeTrain [N, O, Do, Ho, Wo].

    Raises:
        TypeError: the input is a Tensor, or its dtype differs from that of the weights; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape, or more padding than the input has values for.

    Examples:
        >>> layer = TandemConv3d(3, 16, 3, padding=1, norm="batch")
        >>> layer(Encode(time_steps=8)(torch.rand(2, 3, 4, 16, 16)))
        SpikeTrain([2, 16, 4, 16, 16], time_steps=8, dtype=torch.float32, device=cpu)
    """

    SETTINGS: ClassVar = _settings(3, *_CONVOLUTION)
    norm_class = nn.BatchNorm3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = 1,
        padding: str | Triple = 0,
        dilation: Triple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        sizes = in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        tandem: dict[str, Any] = {"norm": norm, "neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(*sizes, bias, padding_mode, device, dtype, **tandem)
        self.check_windows(3)

    @property
    def synapses(self) -> Conv3dSynapses:
        return Conv3dSynapses(self)


class TandemConvTranspose2d(TandemConvolution, nn.ConvTranspose2d):  # type: ignore[misc]  # as above
    """A transposed convolution as a tandem layer: nn.ConvTranspose2d whose neurons spike (Wu et al. 2021, section III).

    It is computed as a convolution with mirrored kernels over the image with stride - 1 zeros between its pixels
    (Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285, section 4). The
    event-driven engine does no work for the zeros. The gradient is dense and does stride^2 times the work of an
    ordinary transposed convolution's gradient.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair.
        stride: an int or a pair.
        padding: rows and columns removed from each side of the output, an int or a pair.
        output_padding: rows and columns added at the end of the output, an int or a pair.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        dilation: spacing of the kernel taps, an int or a pair.
        padding_mode: "zeros", the only mode of nn.ConvTranspose2d.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm2d).
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, H, W] (or EncodedInput from Encode) -> SpikeTrain [N, O, Ho, Wo].

    Raises:
        TypeError: the input is a Tensor, or its dtype is not the weights'; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape.

    Examples:
        >>> layer = TandemConvTranspose2d(3, 8, 2, stride=2)
        >>> layer(Encode(time_steps=8)(torch.rand(2, 3, 16, 16))).shape
        torch.Size([2, 8, 32, 32])
    """

    SETTINGS: ClassVar = {**_settings(2, (), ("zeros",)), "output_padding": schema.per_axis(2, 0)}
    norm_class = nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        sizes = in_channels, out_channels, kernel_size, stride, padding, output_padding, groups
        tandem: dict[str, Any] = {"norm": norm, "neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(*sizes, bias, dilation, padding_mode, device, dtype, **tandem)
        self.check_windows(2)

    @property
    def synapses(self) -> ConvTranspose2dSynapses:
        return ConvTranspose2dSynapses(self)
