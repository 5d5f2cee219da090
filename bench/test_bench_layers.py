"""pytest-benchmark cases of the layers, inference and training step, against the reference's layers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tandem_cuda as tc
from networks import mnist_net
from tandem_cuda import reference


def _settled(layers: Any, x: Tensor) -> nn.Sequential:
    """After a few batches, so that the running statistics are those of the data."""
    torch.manual_seed(0)
    net = mnist_net(layers)
    with torch.no_grad():
        for _ in range(30):
            net(x)
    return net


@pytest.mark.parametrize("side", [tc, reference], ids=["kernel", "reference"])
@pytest.mark.parametrize("mode", ["inference", "training-step"])
def test_network(benchmark: Any, mode: str, side: ModuleType) -> None:
    x = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(32) % 10
    net = _settled(side, x)
    other = _settled(tc if side is reference else reference, x).eval()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        logits, expected = net.eval()(x), other(x)
    # Sums of floats in another order: a neuron close to its threshold may decide otherwise.
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.9

    def infer() -> Tensor:
        with torch.no_grad():
            return net(x)

    def step() -> None:
        net.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()

    net.train(mode == "training-step")
    benchmark.group = f"MNIST-size network, {mode}"
    benchmark(infer if mode == "inference" else step)
