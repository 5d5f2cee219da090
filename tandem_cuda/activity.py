"""synops: how active a network is, and what that costs next to its ANN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nn import Decode, EncodedInput, TandemAdd, TandemConv2d, TandemConvTranspose2d
from .nn.conv import ConvolutionLayer
from .nn.layer import TandemLayer
from .spike_train import SpikeTrain


@dataclass(frozen=True)
class LayerActivity:
    """What one layer did, averaged over the samples of the batch."""

    name: str
    """Qualified name in the model, as in ``named_modules``."""
    neurons: int
    """Output neurons per sample."""
    time_steps: int
    """T."""
    firing_rate: float | None
    """Spikes per output neuron and time step, in [0, 1]; None for a read-out, which has no spikes."""
    saturation: float | None
    """Share of output neurons that spike at every time step; None for a read-out."""
    silent: float | None
    """Share of output neurons that never spike; None for a read-out."""
    synops: float
    """Synaptic operations per sample: additions of one weight to one neuron. 0 for an analogue layer."""
    macs: int
    """Multiply-accumulates per sample of the same layer in the ANN."""
    analogue: bool
    """The input is real (it comes from ``Encode``): the spiking layer does the ANN's ``macs`` too, once for all T."""


def synops(model: nn.Module, inputs: Any) -> list[LayerActivity]:
    """Run a batch through a network and count the operations of each layer.

    A synaptic operation (SynOp) is what a spike costs at each neuron that it reaches: one addition, where the ANN
    multiplies and adds (Merolla et al., "A million spiking-neuron integrated circuit", Science 2014,
    doi:10.1126/science.1254642; compared with the operations of an ANN as in Wu et al., "A Tandem Learning Rule", IEEE
    TNNLS 2021, doi:10.1109/TNNLS.2021.3095724, energy efficiency). Conventions:

    - SynOps are exact: every input spike times the number of output neurons that it reaches. In a convolution that
      depends on stride, padding, dilation and groups, and is smaller at the borders.
    - MACs are what a dense implementation does, O * Ho * Wo * (C / groups) * kH * kW for a convolution, C * H * W *
      (O / groups) * kH * kW for a transposed one and F * O for a linear layer: taps in the zero padding count. Batch
      norm (folded), bias and neuron updates are not counted, nor is pooling.
    - A TandemAdd does what its branches do, and through nn.Identity one operation a spike. Its zero weights cost time,
      but are no synapses.
    - A tandem layer fed by ``Encode`` multiplies its real input by the weights once, whatever T: ``analogue``.
    - An nn.Linear fed by ``Decode`` reads the counts once, after the last step: one operation for each count that is
      not zero and each output.

    Args:
        model: any module with tandem layers in it. Runs in eval mode without gradient; each submodule gets its own mode
            back. Hooks of its own run as usual.
        inputs: its one argument, a batch of at least one sample.

    Returns:
        One LayerActivity per tandem layer, and read-out behind ``Decode``, in order of execution. A layer that runs
        twice is listed twice.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: no tandem layer ran, or the batch is empty.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"synops: model must be an nn.Module, got {type(model).__name__}")
    found: list[LayerActivity] = []
    decoded: list[tuple[Tensor, int]] = []  # the latest counts and their T

    def on_layer(name: str, layer: TandemLayer | TandemAdd, args: tuple[Any, ...], output: SpikeTrain) -> None:
        found.append(_layer_activity(name, layer, args, output))

    def on_decode(module: Decode, args: tuple[SpikeTrain], output: Tensor) -> None:
        decoded[:] = [(output, args[0].time_steps)]

    def on_linear(name: str, layer: nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
        # Same memory: nn.Flatten or dropout (in eval mode) may stand in between, another layer may not.
        if decoded and isinstance(args[0], Tensor) and args[0].data_ptr() == decoded[0][0].data_ptr():
            found.append(_readout_activity(name, layer, args[0], decoded[0][1]))

    handles = []
    try:
        for path, module in model.named_modules():
            name = path or type(module).__name__
            if isinstance(module, (TandemLayer, TandemAdd)):
                hook: Any = _named(name, on_layer)
            elif isinstance(module, Decode):
                hook = on_decode
            elif isinstance(module, nn.Linear):
                hook = _named(name, on_linear)
            else:
                continue
            handles.append(module.register_forward_hook(hook))
        with _evaluating(model), torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(f"synops: model must run a tandem layer (TandemConv2d, TandemLinear, ...), got {model}")
    return found


def _named(name: str, hook: Any) -> Any:
    return lambda *args: hook(name, *args)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then for each module the mode it had: parts of a model may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _layer_activity(
    name: str, layer: TandemLayer | TandemAdd, inputs: tuple[SpikeTrain | EncodedInput, ...], output: SpikeTrain
) -> LayerActivity:
    samples = _samples(output.shape)
    branches = list(layer.branches) if isinstance(layer, TandemAdd) else [layer]
    count = output.count
    return LayerActivity(
        name=name,
        neurons=math.prod(output.shape[1:]),
        time_steps=output.time_steps,
        firing_rate=float(output.firing_rate()),
        saturation=_share(count == output.time_steps),
        silent=_share(count == 0),
        synops=sum(
            _synaptic_operations(branch, x.count) / samples
            for branch, x in zip(branches, inputs, strict=True)
            if isinstance(x, SpikeTrain)
        ),
        macs=sum(_macs(branch, x, output) for branch, x in zip(branches, inputs, strict=True)),
        analogue=isinstance(inputs[0], EncodedInput),
    )


def _readout_activity(name: str, layer: nn.Linear, count: Tensor, time_steps: int) -> LayerActivity:
    samples = _samples(count.shape)
    neurons = count.numel() // count.shape[-1] // samples * layer.out_features
    return LayerActivity(
        name=name,
        neurons=neurons,
        time_steps=time_steps,
        firing_rate=None,
        saturation=None,
        silent=None,
        synops=int(count.count_nonzero()) * layer.out_features / samples,
        macs=neurons * layer.in_features,
        analogue=False,
    )


def _samples(shape: torch.Size) -> int:
    if math.prod(shape) == 0:
        raise ValueError(f"synops: inputs must hold at least one sample, got a batch of shape {list(shape)}")
    return shape[0]


def _share(condition: Tensor) -> float:
    return int(condition.count_nonzero()) / condition.numel()


def _macs(layer: nn.Module, x: SpikeTrain | EncodedInput, output: SpikeTrain) -> int:
    """Multiply-accumulates per sample; an identity has none."""
    if not isinstance(layer, TandemLayer):
        return 0
    # Every weight of an input channel meets every pixel of the input where the convolution is transposed.
    value = x.value if isinstance(x, EncodedInput) else x
    neurons = value.shape[1:] if isinstance(layer, TandemConvTranspose2d) else output.shape[1:]
    return math.prod(neurons) * layer.weight[0].numel()


def _synaptic_operations(layer: nn.Module, count: Tensor) -> float:
    """Sum over all input neurons, count [N, ...], of spikes times output neurons reached."""
    if not isinstance(layer, TandemLayer):
        return float(count.sum(dtype=torch.float64))
    if isinstance(layer, ConvolutionLayer) and not (isinstance(layer, TandemConv2d) and layer.padding_mode == "zeros"):
        spikes = count.sum(0, keepdim=True, dtype=torch.float64).cpu()
        return float((spikes * _fan_out(layer, spikes.shape)).sum())
    if isinstance(layer, TandemConv2d):
        reached = _reached_pixels(layer, count.shape[-2], count.shape[-1]) * (layer.out_channels // layer.groups)
        spikes = count.sum((0, 1), dtype=torch.float64).cpu()
    else:
        reached = torch.tensor(layer.weight.shape[0], dtype=torch.float64)
        spikes = count.sum(dtype=torch.float64).cpu()
    return float((spikes * reached).sum())


def _fan_out(layer: ConvolutionLayer, shape: torch.Size) -> Tensor:
    """Output neurons that a spike of each input neuron reaches, [1, C, ...]: the gradient of the sum with weights 1."""
    with torch.enable_grad():
        ones = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        weight = torch.ones_like(layer._kernel_weight(), dtype=torch.float64, device="cpu")
        (fan_out,) = torch.autograd.grad(layer._dense_product(ones, weight, None).sum(), ones)
    return fan_out


def _reached_pixels(layer: TandemConv2d, height: int, width: int) -> Tensor:
    """Output pixels that a spike at each input pixel reaches, float64 [H, W].

    Output pixel o takes part in input pixel i = o * stride - padding + k * dilation for every tap k. Transposing a
    convolution follows just these connections backwards: of ones by ones, it counts them. Its result covers the padded
    input, from the first tap of the first output pixel to the last tap of the last: cut the padding off in front, and
    behind it cut, or fill with zeros where the stride skips the last pixels.
    """
    outputs, front = [], []
    for size, kernel, stride, dilation, axis in zip(
        (height, width), layer.kernel_size, layer.stride, layer.dilation, (0, 1), strict=True
    ):
        span = dilation * (kernel - 1)
        if isinstance(layer.padding, str):
            total = span if layer.padding == "same" else 0
            front.append(total // 2)
        else:
            total = 2 * layer.padding[axis]
            front.append(layer.padding[axis])
        outputs.append((size + total - span - 1) // stride + 1)
    reached = F.conv_transpose2d(
        torch.ones(1, 1, *outputs, dtype=torch.float64),
        torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64),
        stride=layer.stride,
        dilation=layer.dilation,
    )[0, 0]
    rows, columns = reached.shape
    top, left = front
    return F.pad(reached, (-left, left + width - columns, -top, top + height - rows))
