"""Count a layer's synaptic operations and its ANN's multiply-accumulates: both of them by the synapses that exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..spike_train import SpikeTrain
from .add import TandemAdd
from .conv import ConvolutionLayer, TandemConvTranspose2d
from .elementwise import TandemElementwise
from .encode import EncodedInput
from .gate import TandemGate
from .tandem import TandemLayer


def branches_of(layer: nn.Module) -> list[nn.Module]:
    """Return the modules that a spiking layer's inputs pass through, one per input; empty for other modules."""
    if isinstance(layer, TandemAdd):
        return list(layer.branches)
    if isinstance(layer, TandemGate):
        return [nn.Identity()]
    return [layer] if isinstance(layer, TandemLayer) else []


def fan_out(layer: TandemLayer, shape: torch.Size, device: torch.device) -> Tensor:
    """Return the number of output neurons that each input neuron reaches, float64 in the shape of a sample.

    Computes one output channel per group and scales the result up.
    """
    weight, groups = layer.kernel_weight(), getattr(layer, "groups", 1)
    of_one = reached(lambda x, ones: layer.dense_product(x, ones, None), shape, (groups, *weight.shape[1:]), device)
    return of_one * (weight.shape[0] // groups)


def reached(
    product: Callable[[Tensor, Tensor], Tensor], shape: torch.Size, kernel: Sequence[int], device: torch.device
) -> Tensor:
    """Compute the fan-out as the gradient of the summed outputs, with all weights set to one."""
    # Own hooks: otherwise activation checkpointing around the counted forward pass would expect these tensors again.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        ones = torch.ones(*kernel, dtype=torch.float64, device=device)
        sample = torch.zeros(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
        (reached,) = torch.autograd.grad(product(sample, ones).sum(), sample)
    return reached[0]


def layer_macs(layer: nn.Module, x: SpikeTrain | EncodedInput, output: SpikeTrain) -> int:
    """Return the ANN's multiply-accumulates per sample; an identity or elementwise map has none.

    They are the synapses that ``fan_out`` counts: taps in the zero padding multiply nothing.
    """
    if not isinstance(layer, TandemLayer) or isinstance(layer, TandemElementwise):
        return 0
    outputs = output.shape[2:]
    if isinstance(layer, ConvolutionLayer):
        inputs = (x.value if isinstance(x, EncodedInput) else x).shape[2:]
        uses = math.prod(_uses(layer, axis, *sizes) for axis, sizes in enumerate(zip(inputs, outputs, strict=True)))
    else:
        uses = math.prod(output.shape[1:-1])
    channels = layer.stored_weight().shape[:2]  # of the ANN: shared by copies and signs
    return math.prod(channels) * uses // layer.multiplicity


def _uses(layer: Any, axis: int, inputs: int, outputs: int) -> int:
    """Return how many pairs of a value and a tap are multiplied along an axis of the image."""
    taps, stride, dilation = (int(x[axis]) for x in (layer.kernel_size, layer.stride, layer.dilation))
    if isinstance(layer, TandemConvTranspose2d):  # values spread over the outputs; some of them are cut off
        return _within(inputs, outputs, taps, stride, dilation, int(layer.padding[axis]))
    if layer.padding_mode != "zeros":
        return outputs * taps
    before = layer._reversed_padding_repeated_twice[2 * (len(layer.kernel_size) - 1 - axis)]  # also of "same"
    return _within(outputs, inputs, taps, stride, dilation, before)


def _within(steps: int, size: int, taps: int, stride: int, dilation: int, before: int) -> int:
    """Count the pairs of a step and a tap for which step * stride + tap * dilation - before is in [0, size)."""
    total = 0
    for tap in range(taps):
        shift = before - tap * dilation
        first, last = max(0, -(-shift // stride)), min(steps - 1, (size - 1 + shift) // stride)
        total += max(0, last - first + 1)
    return total
