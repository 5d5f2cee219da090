"""Networks and graphs for the exchange with NIR."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tandem_cuda import IF, LIF, Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that make neurons fire, and batch norm with statistics and an affine map of its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for x, low, high in (
                (module.weight, -0.5, 2.0),
                (module.bias, 0.0, 3.0),
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.5, 2.0),
            ):
                x.data.uniform_(low, high, generator=generator)
        elif getattr(module, "weight", None) is not None:
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0.3 / fan_in, 1.2 * fan_in**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(-2, 5, generator=generator)
    return net.eval()


def network(
    *, norm: str | None = "batch", neuron: IF | LIF = IF(), steps: int = 8, mode: str = "constant", bias: bool = True
) -> nn.Sequential:
    named = {"norm": norm, "neuron": neuron, "bias": bias}
    return nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, **named),
        TandemConv2d(6, 8, 3, stride=2, padding=1, **named),
        nn.Flatten(),
        TandemLinear(160, 12, **named),
        Decode(),
        nn.Dropout(),
        nn.Linear(12, 5),
    )


IMAGES = torch.rand(4, 2, 8, 9, generator=torch.Generator().manual_seed(1))


def spiking(net: nn.Sequential, x: Tensor | SpikeTrain) -> list[Tensor]:
    """Spikes of all tandem layers and what the last module returns; with gradients, and so with batch norm folded."""
    kept: list[Tensor] = []
    for module in net:
        x = module(x)
        if isinstance(module, (TandemConv2d, TandemLinear)):
            kept.append(x.bits)
    return [*kept, x.count.detach() if isinstance(x, SpikeTrain) else x.detach()]


def foreign(threshold: float = 1.0, **edits: object) -> nir.NIRGraph:
    """A graph as another library may have made it: nothing but what NIR knows is in it."""
    weight = np.random.default_rng(0).normal(0.2, 0.5, (4, 6)).astype(np.float32)
    nodes = {
        "in": nir.Input(np.array([6])),
        "fc": nir.Affine(weight, np.zeros(4, np.float32)),
        "lif": nir.IF(np.ones(4), np.full(4, threshold)),
        "out": nir.Output(np.array([4])),
    }
    return nir.NIRGraph({**nodes, **edits}, list(pairwise(nodes)), type_check=False)
