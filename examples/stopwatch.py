"""How long inference and a training step of networks take, side by side."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def median_times(sides: dict[str, Callable[[], None]], device: torch.device, rounds: int = 11) -> dict[str, float]:
    """Median milliseconds of each side. The sides take turns, so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 2):
        for name, run in sides.items():
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            if i >= 2:  # the first two warm up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inference(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        net(images)


def training_step_of(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, backward and update on a copy of the network."""
    net = copy.deepcopy(net).train()
    optimizer = torch.optim.AdamW(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def measure_times(
    nets: dict[str, nn.Module], images: Tensor, labels: Tensor, device: torch.device
) -> dict[str, dict[str, float]]:
    """Milliseconds of inference and of a training step on one batch, for each network."""
    inferences: dict[str, Callable[[], None]] = {name: partial(inference, net, images) for name, net in nets.items()}
    steps = {name: training_step_of(net, images, labels) for name, net in nets.items()}
    return {"inference": median_times(inferences, device), "training step": median_times(steps, device)}
