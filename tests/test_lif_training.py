"""Leaky neurons learn: the surrogate gradient of a LIF network is good enough to train it."""

import pytest
import torch
from torch import nn

from exact import slow
from tandem_cuda import LIF, Decode, Encode, TandemConv2d, TandemLinear


def digits_like(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a bar at one of four places, in noise; the place is the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (samples,), generator=generator)
    images = 0.3 * torch.rand(samples, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 2] += 0.5
    return images, labels


@pytest.mark.parametrize(("norm", "leak"), [("batch", 0.9), slow("batch", 0.5), slow(None, 0.5), slow(None, 0.9)])
def test_loss_falls(leak: float, norm: str | None) -> None:
    torch.manual_seed(0)
    named = {"norm": norm, "neuron": LIF(leak=leak)}
    net = nn.Sequential(
        Encode(8),
        TandemConv2d(1, 8, 3, padding=1, **named),
        TandemConv2d(8, 8, 3, stride=2, padding=1, **named),
        nn.Flatten(),
        TandemLinear(8 * 4 * 4, 16, **named),
        Decode(),
        nn.Linear(16, 4),
    )
    images, labels = digits_like(64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(160):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0  # ln 4 = 1.39 is chance
    assert losses[-1] < 0.25 * losses[0]
    with torch.no_grad():
        assert (net.eval()(images).argmax(1) == labels).float().mean() > 0.9
