"""Quantised networks as PT2E writes them, whose scales are powers of two, so that their arithmetic is exact.

The bias of a layer is an odd multiple of half of its sums' unit. So no sum is halfway between two integers, where
PyTorch rounds to the even one: requantisation divides sums by 2 at least.
"""

import copy

import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 (registers quantized_decomposed)

from tensors import generator

Q = torch.ops.quantized_decomposed
INPUT = (2.0**-5, 100)
"""Scale and zero point of the input."""
SUM = (2.0**-6, 0)
"""Of the residual sum: so fine that it is a whole number of its steps."""


def integers(*shape, seed):
    """int8 weights; the least integer is among them."""
    weight = torch.randint(-128, 128, shape, generator=generator(seed), dtype=torch.int8)
    weight.view(-1)[0] = -128
    return weight


class Weights:
    """Integer weights of one layer with scales of outputs, and scale and zero point of input and output."""

    def __init__(self, seed, shape, x, y, per_tensor=False):
        self.values = integers(*shape, seed=seed)
        exponents = torch.randint(-2, 1, [shape[0]], generator=generator(seed + 1)).double()
        inputs = self.values[0].numel()
        # Sums of some hundreds of output steps.
        unit = y[0] / x[0] * 2.0 ** -round(4 + torch.tensor(float(inputs)).log2().item() / 2)
        self.scale = unit * (torch.ones(shape[0]).double() if per_tensor else 2.0**exponents)
        self.of_tensor = float(self.scale[0]) if per_tensor else None
        half = torch.randint(-400, 400, [shape[0]], generator=generator(seed + 2)) + 0.5
        self.bias = (half * self.scale * x[0]).float()
        self.x, self.y = x, y


FIRST, SECOND, THIRD, HIDDEN, LAST = (2.0**-4, 0), (2.0**-5, 131), (2.0**-3, 0), (2.0**-2, 0), (2.0**-1, 97)


def weights():
    """The layers of :class:`Exported`."""
    return {
        "conv1": Weights(1, (8, 3, 3, 3), INPUT, FIRST),
        "conv2": Weights(4, (8, 8, 3, 3), FIRST, SECOND),
        "conv3": Weights(7, (6, 4, 3, 3), SUM, THIRD),
        "fc1": Weights(10, (16, 6 * 4), THIRD, HIDDEN, per_tensor=True),
        "fc2": Weights(13, (10, 16), HIDDEN, LAST),
    }


class Exported(nn.Module):
    """Convolutions with a padded input of another zero point, a residual sum, groups, poolings and linear layers."""

    def __init__(self):
        super().__init__()
        self.layers = weights()
        for name, layer in self.layers.items():
            self.register_buffer(f"{name}_weight", layer.values)
            self.register_buffer(f"{name}_scale", layer.scale.float())
            self.register_buffer(f"{name}_zero", torch.zeros(len(layer.values), dtype=torch.long))
            self.register_buffer(f"{name}_bias", layer.bias)

    def weighted(self, name):
        values, scale, zero = (getattr(self, f"{name}_{part}") for part in ("weight", "scale", "zero"))
        of_tensor = self.layers[name].of_tensor
        if of_tensor is not None:
            weight = Q.dequantize_per_tensor(values, of_tensor, 0, -128, 127, torch.int8)
        else:
            weight = Q.dequantize_per_channel(values, scale, zero, 0, -128, 127, torch.int8)
        return weight, getattr(self, f"{name}_bias")

    def forward(self, x):
        conv2d = nn.functional.conv2d
        x = rounded(torch.relu(conv2d(rounded(x, INPUT), *self.weighted("conv1"), padding=1)), FIRST)
        y = rounded(conv2d(x, *self.weighted("conv2"), padding=1), SECOND)
        x = nn.functional.max_pool2d(rounded(torch.relu(x + y), SUM), 2, padding=1)
        x = rounded(x, SUM)
        x = rounded(torch.relu(conv2d(x, *self.weighted("conv3"), padding=1, groups=2)), THIRD)
        x = rounded(nn.functional.avg_pool2d(x, 3), THIRD)
        x = rounded(torch.flatten(x, 1), THIRD)
        x = rounded(torch.relu(nn.functional.linear(x, *self.weighted("fc1"))), HIDDEN)
        return nn.functional.linear(x, *self.weighted("fc2"))


def rounded(x, code, least=0, most=255, dtype=torch.uint8):
    """Quantise and dequantise."""
    scale, zero_point = code
    given = float(scale), zero_point, least, most, dtype
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *given), *given)


def exported(model, *example):
    return torch.export.export(copy.deepcopy(model).eval(), example)


def images(count=6, seed=0):
    """Some pixels are beyond the range of the input's integers."""
    return torch.randn(count, 3, 10, 10, generator=generator(seed)) * 2
