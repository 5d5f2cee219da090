"""Layers, networks and inputs that several tests of layers share."""

import copy

import torch
from torch import nn

from exact import dyadic, train
from tandem_cuda import IF, Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear
from tandem_cuda import reference as ref


def events(*shape, time_steps=9, dtype=torch.float32, seed=0):
    """A recorded spike train, and the same for the reference."""
    spikes = train(time_steps, *shape, seed=seed).to(dtype)
    return SpikeTrain.from_dense(spikes), ref.DenseTrain(spikes)


def exact_layer(layer, time_steps):
    """Give a layer dyadic parameters whose share per time step is dyadic too."""
    with torch.no_grad():
        layer.weight.copy_(dyadic(*layer.weight.shape, seed=1))
        if layer.bias is not None:
            layer.bias.copy_(time_steps * dyadic(len(layer.bias), seed=2) / 4)
    return layer


def macs_of(ann, *inputs):
    """Multiply-accumulates per sample of each weight layer of an ANN: what weights of one make of an input of ones."""
    found = []

    def count(layer, args, output):
        twin, (x,) = copy.deepcopy(layer).double(), args
        twin._forward_hooks.clear()
        nn.init.ones_(twin.weight)
        twin.bias = None
        found.append(int(twin(torch.ones(x.shape[1:], dtype=torch.float64)[None]).sum()))

    layers = [m for m in ann.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        ann(*inputs)
    for handle in handles:
        handle.remove()
    return found


def small_network(norm="batch", neuron=IF(), time_steps=8, mode="constant", bias=True):
    torch.manual_seed(0)
    named = {"norm": norm, "neuron": neuron, "bias": bias}
    return nn.Sequential(
        Encode(time_steps, mode),
        TandemConv2d(1, 4, 3, padding=1, **named),
        TandemConv2d(4, 6, 3, stride=2, **named),
        nn.Flatten(),
        TandemLinear(54, 10, **named),
        Decode(),
        nn.Linear(10, 3),
    )
