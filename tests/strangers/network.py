"""What a stranger's network is: how to build it, and what it takes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class Network(NamedTuple):
    """How to build a network, and forward's positional arguments for a batch size: tensors or dicts of tensors."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]


def settled(net: nn.Module, inputs: Callable[[int], tuple[Any, ...]]) -> nn.Module:
    """The network in eval mode. Its running statistics are the mean of two training batches."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean: the initial statistics count for nothing
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(*inputs(32))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def built(network: Network) -> nn.Module:
    """The network with running statistics, in eval mode; the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settled(network.make(), network.inputs)


def _pictures(n: int, *shape: int) -> torch.Tensor:
    """Mean 0, variance about 1, coarse and fine. White noise alone would look the same to every pooling layer."""
    *channels, height, width = shape
    coarse = F.interpolate(torch.randn(n, math.prod(channels), 3, 3), (height, width), mode="bicubic").view(n, *shape)
    return 0.9 * coarse + 0.4 * torch.randn(n, *shape) + 0.5 * torch.randn(n, *[1] * len(shape))


def pixels(*shape: int) -> Callable[[int], tuple[torch.Tensor]]:
    """One input of pictures between 0 and 1."""
    return lambda n: (torch.sigmoid(2 * _pictures(n, *shape)),)


def pictures(*shape: int) -> Callable[[int], tuple[torch.Tensor]]:
    """One input of pictures of mean 0 and variance about 1."""
    return lambda n: (_pictures(n, *shape),)


def noise(*shape: int) -> Callable[[int], tuple[torch.Tensor]]:
    """One input of mean 0 and variance 1, without neighbours."""
    return lambda n: (torch.randn(n, *shape),)


def tokens(vocabulary: int, length: int) -> Callable[[int], tuple[torch.Tensor]]:
    """One input of integers."""
    return lambda n: (torch.randint(vocabulary, (n, length)),)
