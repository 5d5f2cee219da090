"""Synaptic operations and multiply-accumulates of a layer: what its spikes reach, and what its ANN multiplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..spike_train import SpikeTrain
from .add import TandemAdd
from .conv import TandemConvTranspose2d
from .encode import EncodedInput
from .tandem import TandemLayer


def branches_of(layer: nn.Module) -> list[nn.Module]:
    """What the spikes of a layer's inputs go through, one for each input, if it is spiking."""
    if isinstance(layer, TandemAdd):
        return list(layer.branches)
    return [layer] if isinstance(layer, TandemLayer) else []


def fan_out(layer: TandemLayer, shape: torch.Size, device: torch.device) -> Tensor:
    """Output neurons that each input neuron reaches, float64 in the shape of a sample.

    One output channel per group stands for all.
    """
    weight, groups = layer.kernel_weight(), getattr(layer, "groups", 1)
    of_one = reached(lambda x, ones: layer.dense_product(x, ones, None), shape, (groups, *weight.shape[1:]), device)
    return of_one * (weight.shape[0] // groups)


def reached(
    product: Callable[[Tensor, Tensor], Tensor], shape: torch.Size, kernel: Sequence[int], device: torch.device
) -> Tensor:
    """With weights of one, what a neuron reaches is the derivative of the sum of the outputs."""
    # Hooks of its own: else activation checkpointing, around the forward pass that is counted, waits for these tensors.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        ones = torch.ones(*kernel, dtype=torch.float64, device=device)
        sample = torch.zeros(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
        (reached,) = torch.autograd.grad(product(sample, ones).sum(), sample)
    return reached[0]


def layer_macs(layer: nn.Module, x: SpikeTrain | EncodedInput, output: SpikeTrain) -> int:
    """Multiply-accumulates per sample; an identity has none."""
    if not isinstance(layer, TandemLayer):
        return 0
    # Every weight of an input channel meets every pixel of the input where the convolution is transposed.
    value = x.value if isinstance(x, EncodedInput) else x
    neurons = value.shape[1:] if isinstance(layer, TandemConvTranspose2d) else output.shape[1:]
    return math.prod(neurons) * layer.weight[0].numel()
