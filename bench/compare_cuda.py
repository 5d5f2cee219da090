"""Measure the CUDA kernels: one table of the layers S1 to S3 against PyTorch, the ANN and the device's own ceilings.

Needs a CUDA device. Every side is checked first, then all take turns; medians of CUDA events, with the second-level
cache flushed before each run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tandem_cuda import ops, reference

SHAPES = {"S1": (128, 256, 32, 2), "S2": (256, 512, 16, 2), "S3": (512, 1024, 8, 1)}  # channels, outputs, side, stride
STEPS = 8
REPEATS = 15
Sides = dict[str, Callable[[], Any]]


def medians(sides: Sides) -> dict[str, float]:
    """Milliseconds of each side."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, shuffle = list(sides), random.Random(0).shuffle
    for side in sides.values():
        for _ in range(3):
            side()
    for _ in range(REPEATS):
        shuffle(order)
        for name in order:
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            sides[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def dyadic(*shape: int) -> Tensor:
    return torch.randint(-32, 33, shape, generator=torch.Generator().manual_seed(2)) / 256


def layer(name: str, batch: int, rate: float, compiled: bool) -> dict[str, float]:
    channels, outputs, side, stride = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    spikes = torch.rand(STEPS, batch, channels, side, side, generator=generator) < rate
    weight = dyadic(outputs, channels, 3, 3).cuda()
    bits = ops.pack_spikes(spikes).cuda()
    packed = ops.pack_weight(weight)
    named: dict[str, Any] = {"stride": stride, "padding": 1, "time_steps": STEPS}

    def kernel(engine: str) -> Callable[[], Any]:
        return lambda: ops.spiking_conv2d(bits, weight, packed=packed, engine=engine, **named)

    def plain() -> Any:
        return reference.spiking_conv2d(bits, weight, **named)

    count = ops.spike_count(bits, torch.float32)
    last, last_weight = (x.contiguous(memory_format=torch.channels_last) for x in (count, weight))
    sides: Sides = {f"kernel, {engine}": kernel(engine) for engine in ("auto", "event", "dense")}
    sides["PyTorch"] = plain
    if compiled:
        sides["PyTorch, compiled"] = torch.compile(plain)
    want = plain()[0]
    for key in [key for key in sides if key.startswith("kernel")]:
        if not torch.equal(sides[key]()[0], want):
            raise SystemExit(f"{name} at {rate:.0%}: the spikes of {key} differ from PyTorch's")
    sides["ANN"] = lambda: F.conv2d(count, weight, stride=stride, padding=1)
    sides["ANN, channels last"] = lambda: F.conv2d(last, last_weight, stride=stride, padding=1)
    return medians(sides)


def ceilings() -> dict[str, float]:
    """GB/s of a copy, TFLOP/s of a bf16 matrix product, GB/s of the neuron loop."""
    big = torch.empty(256 << 20, device="cuda")
    into = torch.empty_like(big)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    current = torch.randn(1 << 24, 1, device="cuda")
    found = medians(
        {
            "copy": lambda: into.copy_(big),
            "matmul": lambda: a @ a,
            "neurons": lambda: ops.integrate_and_fire(current, STEPS),
        }
    )
    return {
        "copy, GB/s": 2 * big.nbytes / found["copy"] / 1e6,
        "bf16 matrix product, TFLOP/s": 2 * 8192**3 / found["matmul"] / 1e9,
        "neuron loop, GB/s": (current.nbytes + current.numel()) / found["neurons"] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder for cuda.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/compare_cuda.py: torch finds no CUDA device; nothing was measured")
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, batch {options.batch}, T = {STEPS}")
    figures: dict[str, Any] = {"device": device, "ceilings": ceilings()}
    for name, value in figures["ceilings"].items():
        print(f"{name}: {value:.4g}")
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for name in SHAPES:
            for rate in (0.01, 0.05, 0.2):
                found = layer(name, options.batch, rate, compiled=rate == 0.05)
                key = f"{name} at {rate:.0%}, TF32 {'on' if tf32 else 'off'}"
                figures[key] = found
                print(key)
                for side, time in found.items():
                    print(f"  {side:24} {time:8.3f} ms   {time / found['kernel, auto']:6.2f} x")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "cuda.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
