"""Measure the CUDA kernels: S1 to S3 and CifarNet against PyTorch, the ANN, SpikingJelly and the device's ceilings.

Needs a CUDA device. Every side is checked first, then all take turns; medians of CUDA events, with the second-level
cache flushed before each run. SpikingJelly takes part where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_cuda as tc
from networks import ann_twin, cifar_net, fused, settle
from tandem_cuda import ops, reference

DEVICE = "cuda"
SHAPES = {"S1": (128, 256, 32, 2), "S2": (256, 512, 16, 2), "S3": (512, 1024, 8, 1)}  # channels, outputs, side, stride
STEPS = 8
REPEATS = 15
PEER_SECONDS = 90  # that another library may take
Sides = dict[str, Callable[[], Any]]


def medians(sides: Sides) -> dict[str, float]:
    """Milliseconds of each side."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
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
    """Eight bits of significand: sums are exact in float32."""
    return torch.randint(-32, 33, shape, generator=torch.Generator().manual_seed(2)) / 256


def inputs(name: str, batch: int, rate: float) -> tuple[Tensor, Tensor]:
    """Spikes [T, N, C, H, W] on the CPU and the weight of a layer on the device."""
    channels, outputs, side, _ = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    spikes = torch.rand(STEPS, batch, channels, side, side, generator=generator) < rate
    return spikes, dyadic(outputs, channels, 3, 3).to(DEVICE)


def spikingjelly(batch: int) -> dict[str, float]:
    """Milliseconds of each layer at 5 % in SpikingJelly, by the implementation that the environment chooses."""
    from spikingjelly.activation_based import functional, layer, neuron

    torch.backends.cudnn.allow_tf32 = True
    sides: Sides = {}
    for name, (*_, stride) in SHAPES.items():
        spikes, weight = inputs(name, batch, 0.05)
        dense = spikes.float().to(DEVICE)
        conv = layer.Conv2d(weight.shape[1], weight.shape[0], 3, stride, 1, bias=False, step_mode="m").to(DEVICE)
        conv.weight.data.copy_(weight)
        net = nn.Sequential(conv, neuron.IFNode(v_reset=None, step_mode="m").to(DEVICE)).eval()

        def run(net: nn.Module = net, dense: Tensor = dense) -> Tensor:
            functional.reset_net(net)
            with torch.no_grad():
                return net(dense)

        bits = ops.pack_spikes(run().cpu())
        named = {"stride": stride, "padding": 1, "time_steps": STEPS}
        if not torch.equal(bits, reference.spiking_conv2d(ops.pack_spikes(spikes), weight.cpu(), **named)[0]):
            raise SystemExit(f"{name}: SpikingJelly's spikes differ from PyTorch's on the CPU")
        sides[name] = run
    return medians(sides)


def spikingjelly_implementations(batch: int) -> dict[str, Any]:
    """Those that it has for CUDA; it reads its choice when it is imported, so that each is a process of its own."""
    try:
        metadata.version("spikingjelly")
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, Any] = {}
    for implementation in ("cuda", "triton", "torch"):
        try:
            result = subprocess.run(
                [sys.executable, __file__, "--spikingjelly", "--batch", str(batch)],
                env={**os.environ, "SJ_IF_CUDA_IMPLEMENTATION": implementation},
                capture_output=True,
                text=True,
                check=False,
                timeout=PEER_SECONDS,
            )
        except subprocess.TimeoutExpired:
            found[implementation] = f"did not run: took longer than {PEER_SECONDS} s"
            continue
        if result.returncode == 0:
            found[implementation] = json.loads(result.stdout.splitlines()[-1])
        else:
            found[implementation] = f"did not run: {(result.stderr.splitlines() or ['no message'])[-1]}"
    return found


def integer_product(
    bits: Tensor, weight: Tensor, scale: Tensor, engine: str, named: dict[str, Any]
) -> Callable[[], Any]:
    packed = ops.pack_weight(weight)
    return lambda: ops.spiking_conv2d(bits, weight, scale=scale, packed=packed, engine=engine, **named)


def layer(name: str, batch: int, rate: float, compiled: bool) -> dict[str, float]:
    """Both products of one layer, by every engine and kind of weight."""
    stride = SHAPES[name][3]
    spikes, weight = inputs(name, batch, rate)
    bits = ops.pack_spikes(spikes).to(DEVICE)
    packed = ops.pack_weight(weight)
    geometry: dict[str, Any] = {"stride": stride, "padding": 1}
    named = {**geometry, "time_steps": STEPS}

    def kernel(engine: str) -> Callable[[], Any]:
        return lambda: ops.spiking_conv2d(bits, weight, packed=packed, engine=engine, **named)

    def count_product(engine: str) -> Callable[[], Any]:
        return lambda: ops.count_conv2d(bits, weight, packed=packed, engine=engine, **geometry)

    def plain(w: Tensor = weight) -> Any:
        return reference.spiking_conv2d(bits, w, **named)

    count = ops.spike_count(bits, torch.float32)
    last, last_weight = (x.contiguous(memory_format=torch.channels_last) for x in (count, weight))
    sides: Sides = {f"kernel, {engine}": kernel(engine) for engine in ("auto", "event", "dense")}
    sides |= {"PyTorch": plain, "PyTorch, channels last": lambda: plain(last_weight)}
    for dtype, unit in ((torch.int8, 2**-8), (torch.int16, 2**-16)):  # the same weights, in units
        integers = (weight / unit).round().to(dtype)
        scale = torch.full(weight.shape[:1], unit, device=DEVICE)
        for engine in ("event", "dense"):
            sides[f"kernel, {engine}, {dtype}"] = integer_product(bits, integers, scale, engine, named)
    if compiled:
        fast = torch.compile(plain)
        try:
            fast()
        except Exception as error:  # it needs Triton and a compiler of the host
            print(f"{name}: not compiled: {error}")
        else:
            sides["PyTorch, compiled"] = fast
    want = reference.spiking_conv2d(bits.cpu(), weight.cpu(), **named)[0]
    for key in [key for key in sides if key.startswith("kernel")]:
        if not torch.equal(sides[key]()[0].cpu(), want):
            raise SystemExit(f"{name} at {rate:.0%}: the spikes of {key} differ from PyTorch's on the CPU")
    counts: Sides = {f"counts, {engine}": count_product(engine) for engine in ("auto", "event", "dense")}
    integers, scale = (weight * 2**8).round().to(torch.int8), torch.full(weight.shape[:1], 2**-8, device=DEVICE)
    packed_integers = ops.pack_weight(integers)
    for engine in ("event", "dense"):
        how = {**geometry, "scale": scale, "packed": packed_integers, "engine": engine}
        counts[f"counts, {engine}, torch.int8"] = partial(ops.count_conv2d, bits, integers, **how)
    expected = reference.count_conv2d(bits.cpu(), weight.cpu(), **geometry)
    for key, side_ in counts.items():
        if not torch.equal(side_().cpu(), expected):
            raise SystemExit(f"{name} at {rate:.0%}: {key} differ from PyTorch's on the CPU")
    sides |= counts
    sides["ANN"] = lambda: F.conv2d(count, weight, **geometry)
    sides["ANN, channels last"] = lambda: F.conv2d(last, last_weight, **geometry)
    return medians(sides)


def training_step(net: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return step


def network(batch: int, build: Callable[[Any], nn.Sequential] = cifar_net) -> dict[str, float]:
    """Inference and a training step of a network at a firing rate of 5 %, and of its ANN."""
    torch.manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, device=DEVICE)
    net = settle(build(tc).to(DEVICE), [x])
    labels = torch.arange(batch, device=DEVICE) % 10
    ann = ann_twin(net).to(DEVICE)
    folded = fused(ann_twin(net).to(DEVICE)).to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)

    def inference(model: nn.Module, value: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return model(value)

        return run

    found = medians({"SNN, inference": inference(net, x), "ANN, inference": inference(folded, last)})
    sides = {"SNN, training step": training_step(net.train(), x, labels)}
    ann = ann.train().to(memory_format=torch.channels_last)
    sides["ANN, training step"] = training_step(ann, last, labels)
    return found | medians(sides)


def ceilings() -> dict[str, float]:
    """GB/s of a copy, TOP/s of an int8 matrix product, GB/s of the neuron loop and its share of the copy's."""
    big = torch.empty(256 << 20, device=DEVICE)
    into = torch.empty_like(big)
    a = torch.randint(-128, 128, (8192, 8192), device=DEVICE, dtype=torch.int8)
    current = torch.randn(1 << 24, 1, device=DEVICE)
    neurons: dict[str, Any] = {"want_sum": False, "want_state": False}
    found = medians(
        {
            "copy": lambda: into.copy_(big),
            "matmul": lambda: torch._int_mm(a, a.t()),
            "neurons": lambda: ops.integrate_and_fire(current, STEPS, **neurons),
        }
    )
    copy = 2 * big.nbytes / found["copy"] / 1e6
    loop = (current.nbytes + current.numel()) / found["neurons"] / 1e6
    return {
        "copy, GB/s": copy,
        "int8 matrix product, TOP/s": 2 * 8192**3 / found["matmul"] / 1e9,
        "neuron loop, GB/s": loop,
        "neuron loop over copy": loop / copy,
    }


def measure(batch: int, figures: dict[str, Any], out: Path | None) -> None:
    """Measure everything; whatever ends the run, the file holds what has been measured."""

    def keep(key: str, found: dict[str, Any]) -> None:
        figures[key] = found
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / "cuda.json").write_text(json.dumps(figures, indent=1) + "\n")

    def report(key: str, found: dict[str, float], of: str) -> None:
        keep(key, found)
        print(key)
        for side, time in found.items():
            print(f"  {side:30} {time:8.3f} ms   {time / found[of]:6.2f} x")

    keep("ceilings", ceilings())
    for name, value in figures["ceilings"].items():
        print(f"{name}: {value:.4g}")
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        suffix = f"TF32 {'on' if tf32 else 'off'}"
        for name in SHAPES:
            for rate in (0.01, 0.05, 0.2):
                # Compiling takes most of the time: once for each layer.
                found = layer(name, batch, rate, compiled=tf32 and rate == 0.05)
                report(f"{name} at {rate:.0%}, {suffix}", found, "kernel, auto")
        report(f"CifarNet, {suffix}", network(batch), "SNN, inference")
    keep("SpikingJelly at 5%, TF32 on", spikingjelly_implementations(batch))
    for name, found in figures["SpikingJelly at 5%, TF32 on"].items():
        print(f"SpikingJelly, {name}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder for cuda.json")
    parser.add_argument("--spikingjelly", action="store_true", help="measure nothing but SpikingJelly's layers")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/compare_cuda.py: torch finds no CUDA device; nothing was measured")
    if options.spikingjelly:
        print(json.dumps(spikingjelly(options.batch)))
        return
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, batch {options.batch}, T = {STEPS}")
    measure(options.batch, {"device": device}, options.out)


if __name__ == "__main__":
    main()
