"""The comparison behind ``python -m tandem_cuda bench``: frozen SNNs against their ANN at its best, on this CPU."""

from __future__ import annotations

import copy
import os
import platform
import random
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import models
from ._progress import progress
from .analysis.activity import synops
from .build_info import build_info
from .convert import convert
from .doctor import summary
from .freeze import freeze
from .nn.batch_norm import NORMS

# Each network with the shape of its input; CifarNet with a quarter of its channels
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "CifarNet / 4": (lambda: models.cifarnet(width=0.25), (8, 3, 32, 32)),
    "MNIST": (models.mnist_cnn, (32, 1, 28, 28)),
}
TIME_STEPS = (4, 8)
BETA = 0.5
"""The bias of every batch norm. Neurons then fire in about 5 % of 8 time steps, as in trained networks."""
SECONDS = 5.0  # of measuring, per network
ROUNDS = 5  # at least
TURN = 0.05  # seconds that a side fills when its turn comes

Side = Callable[[], Tensor]


def report() -> str:
    """Measure and describe the machine: Markdown, to be pasted into an issue."""
    info = build_info()
    lines = [
        f"tandem_cuda {info['version']}, torch {info['torch']}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        "",
        f"{info['processor']}, usable CPUs: {len(os.sched_getaffinity(0))}, threads: {info['threads']}, "
        f"kernels: {info['cpu_isa']}, torch: {torch.backends.cpu.get_cpu_capability()}",
        "",
        "| network, batch | inference | firing rate | median ms | time / best ANN |",
        "|---|---|---|---|---|",
    ]
    notes: dict[str, None] = {}
    for name, (build, shape) in NETWORKS.items():
        sides, rates, missing = network_sides(build, shape)
        times = {side: 1000 * seconds for side, seconds in medians(name, sides, SECONDS, ROUNDS).items()}
        best = min(value for side, value in times.items() if side.startswith("ANN"))
        for side, value in times.items():
            rate = f"{rates[side]:.1%}" if side in rates else ""
            lines.append(f"| {name}, {shape[0]} | {side} | {rate} | {value:.2f} | {value / best:.2f} |")
        notes |= dict.fromkeys(missing)
    lines += ["", "Weights and images are random. The ANN's batch norm is folded into its weights.", *notes]
    return "\n".join(lines)


def network_sides(
    build: Callable[[], nn.Sequential], shape: tuple[int, ...]
) -> tuple[dict[str, Side], dict[str, float], list[str]]:
    """Return the ways to run a network on one batch, the SNNs' firing rates, and notes on ways that do not run here."""
    torch.manual_seed(0)
    ann, x = build(), torch.rand(shape)
    for module in ann.modules():
        if isinstance(module, NORMS):
            nn.init.constant_(module.bias, BETA)
    settling = convert(ann, max(TIME_STEPS), example=x).train()
    with torch.no_grad():
        for _ in ann:  # statistics settle layer by layer, from the input on
            settling(x)
    ann.eval()

    sides: dict[str, Side] = {}
    rates: dict[str, float] = {}
    for time_steps in TIME_STEPS:
        for weights in ("float32", "int8"):
            twin = copy.deepcopy(ann)  # quantisation changes both networks
            snn = convert(twin, time_steps, weights=None if weights == "float32" else weights, example=x).eval()
            frozen = freeze(snn)
            with torch.no_grad():
                if not torch.equal(frozen(x), snn(x)):
                    raise RuntimeError(f"bench: the frozen network's output differs, T = {time_steps}, {weights}")
            side = f"SNN, T = {time_steps}, {weights}"
            sides[side] = _inference(frozen, x)
            spiking = [layer for layer in synops(frozen, x) if layer.firing_rate is not None]
            spikes = sum(layer.neurons * (layer.firing_rate or 0.0) for layer in spiking)
            rates[side] = spikes / sum(layer.neurons for layer in spiking)
    sides_of_ann, missing = ann_sides(ann, x)
    return sides | sides_of_ann, rates, missing


def ann_sides(ann: nn.Sequential, x: Tensor) -> tuple[dict[str, Side], list[str]]:
    """Return PyTorch's ways to run an ANN in eval mode, checked to agree, and notes on ways that do not run here."""
    plain: Any = folded(ann)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    sides = {"ANN": _inference(plain, x), "ANN, channels last": _inference(last, x_last)}
    missing = []
    try:
        torch.compiler.reset()
        compiled: Any = torch.compile(copy.deepcopy(last), dynamic=False, options={"freezing": True})
        compiled_side = _inference(compiled, x_last)
        compiled_side()
        sides["ANN, channels last, compiled"] = compiled_side
    except Exception as error:  # without a C++ compiler, for example
        missing.append(f"torch.compile does not work here, so it is not measured: {summary(error)}")
    expected = _inference(ann, x)()
    for name, side in sides.items():
        error_share = float((side() - expected).norm() / expected.norm())
        if not error_share < 1e-3:
            raise RuntimeError(f"bench: '{name}' differs from the ANN's output by {error_share:.2g} of its norm")
    return sides, missing


def folded(ann: nn.Sequential) -> nn.Sequential:
    """Return a copy of a network in eval mode with batch norm folded into the weights before it."""
    layers: list[Any] = []
    for layer in copy.deepcopy(ann):
        if isinstance(layer, NORMS):
            fuse: Any = (
                nn.utils.fuse_linear_bn_eval if isinstance(layers[-1], nn.Linear) else nn.utils.fuse_conv_bn_eval
            )
            layers[-1] = fuse(layers[-1], layer)
        elif not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def medians(name: str, sides: Mapping[str, Side], seconds: float, rounds: int) -> dict[str, float]:
    """Return each side's median seconds a call. All take turns, in random order, so that all meet the same machine."""
    repeats = {}
    for side, run in sides.items():
        run()
        repeats[side] = max(1, round(TURN / min(timeit.repeat(run, repeat=3, number=1))))
    times: dict[str, list[float]] = {side: [] for side in sides}
    order, shuffle = list(sides), random.Random(0).shuffle
    for _ in progress(_rounds(seconds, rounds), f"bench: {name}"):
        shuffle(order)
        for side in order:
            times[side].append(timeit.timeit(sides[side], number=repeats[side]) / repeats[side])
    return {side: statistics.median(values) for side, values in times.items()}


def _rounds(seconds: float, least: int) -> Iterator[int]:
    end, done = time.perf_counter() + seconds, 0
    while done < least or time.perf_counter() < end:
        yield done
        done += 1


def _inference(network: nn.Module, x: Tensor) -> Side:
    def run() -> Tensor:
        with torch.no_grad():
            output: Tensor = network(x)
        return output

    return run
