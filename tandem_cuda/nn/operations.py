"""Count a layer's synaptic operations (the synapses its spikes reach) and its ANN's multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..spike_train import SpikeTrain
from .add import TandemAdd
from .conv import TandemConvTranspose2d
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
    """Return the multiply-accumulates per sample; an identity or elementwise map has none."""
    if not isinstance(layer, TandemLayer) or isinstance(layer, TandemElementwise):
        return 0
    if isinstance(layer, TandemConvTranspose2d):  # every weight of an input channel is used once per input pixel
        neurons = (x.value if isinstance(x, EncodedInput) else x).shape[1:]
        sharing = layer.copies * (2 if layer.signed_input else 1)
    else:
        neurons, sharing = output.shape[1:], 2 if layer.signed else 1
    return math.prod(neurons) * layer.weight[0].numel() // (sharing * layer.multiplicity)
