"""Sections on single operators: convolutions above all."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import peers
import tandem_cuda as tc
from report import Figure, Run, check, cost, fastest, speed
from sizes import LINEAR, OTHERS, POINTWISE, S1, S2, S3, SMALL, Case, ConvCase
from tandem_cuda import _C, ops, reference
from tandem_cuda.neuron import RadixIF

Sides = dict[str, Callable[[], Tensor]]
Bounds = tuple[float | None, float | None]  # must, aim
PACKING = "kernel, packing weights in every call"
RATE = 0.05
DENSITIES = (0, 1, 2, 5, 10, 20, 30, 40, 50, 75, 100)  # %
LAST = torch.channels_last


# ---------------------------------------------------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------------------------------------------------


def check_activity(name: str, bits: Tensor, time_steps: int) -> None:
    """Nobody is timed on zeros."""
    rate = float(ops.spike_count(bits).mean()) / time_steps
    check(0.002 < rate < 0.9, f"{name}: {rate:.1%} is no firing rate to measure at")


def kernel_sides(case: Case, bits: Tensor, weight: Tensor, bias: Tensor, **keywords: Any) -> Sides:
    """Inference with frozen weights, packed beforehand as a layer in eval mode does; and with packing in every call."""
    packed = ops.pack_weight(weight, case.groups)
    return {
        "kernel": lambda: case.run(ops, bits, weight, bias, packed=packed, **keywords),
        PACKING: lambda: case.run(ops, bits, weight, bias, **keywords),
    }


def reference_sides(case: ConvCase, spikes: Tensor, weight: Tensor, bias: Tensor, compiled: bool) -> Sides:
    """Every PyTorch form of the same spiking layer, all with the neuron loop; they return float spikes."""

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, bias, *case.geometry)

    def folded_form(x: Tensor, w: Tensor) -> Tensor:
        return reference.neuron_loop(convolve(x, w).chunk(case.time_steps))[0]

    folded = spikes.flatten(0, 1)
    folded_last, weight_last = folded.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)
    sides: Sides = {
        "PyTorch, loop": lambda: reference.neuron_loop([convolve(x, weight) for x in spikes])[0],
        "PyTorch, folded": lambda: folded_form(folded, weight),
        "PyTorch, folded, channels last": lambda: folded_form(folded_last, weight_last),
    }
    if compiled:
        torch.compiler.reset()  # else the shapes would add up to its limit of recompilations
        compiled_form = torch.compile(folded_form, fullgraph=True, dynamic=False)
        sides["PyTorch, folded, compiled"] = lambda: compiled_form(folded, weight)
        sides["PyTorch, folded, channels last, compiled"] = lambda: compiled_form(folded_last, weight_last)
    return sides


def ann_sides(case: ConvCase, spikes: Tensor, weight: Tensor, bias: Tensor) -> Sides:
    """The ANN's dense convolution of the spike counts, float32."""
    dense = spikes.sum(0)
    dense_last, weight_last = dense.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)
    return {
        "ANN": lambda: F.conv2d(dense, weight, bias, *case.geometry),
        "ANN, channels last": lambda: F.conv2d(dense_last, weight_last, bias, *case.geometry),
    }


def peer_sides(case: ConvCase, spikes: Tensor, weight: Tensor, bias: Tensor) -> Sides:
    layer = nn.Conv2d(case.channels, case.out_channels, case.kernel, *case.geometry)
    layer.load_state_dict({"weight": weight, "bias": bias})
    steps = case.time_steps
    sides: Sides = {}

    def add(name: str, network: nn.Module, x: Tensor) -> None:
        sides[name] = lambda: network(x)

    for node in peers.spikingjelly_nodes():
        add(f"SpikingJelly, {node}", peers.spikingjelly([layer], node, False, steps), spikes)
        last = peers.spikingjelly([layer], node, False, steps).to(memory_format=LAST)
        spikes_last = spikes.flatten(0, 1).contiguous(memory_format=LAST).unflatten(0, spikes.shape[:2])
        add(f"SpikingJelly, {node}, channels last", last, spikes_last)
    add("snnTorch", peers.snntorch([layer], False, steps), spikes)
    return sides


def compare(run: Run, case: ConvCase, rate: float, compiled: bool = True, with_peers: bool = False) -> dict[str, float]:
    """Median seconds of all sides of a convolution, once all of them have given the same spikes or sums."""
    spikes, weight, bias = case.spikes(rate), case.weight(), case.bias()
    at = f"{case.name} at {rate * 100:g} %"
    bits = ops.pack_spikes(spikes)
    kernels = kernel_sides(case, bits, weight, bias)
    others = reference_sides(case, spikes, weight, bias, compiled)
    if with_peers:
        others |= peer_sides(case, spikes, weight, bias)
    anns = ann_sides(case, spikes, weight, bias)

    expected = kernels["kernel"]()
    check_activity(at, expected, case.time_steps)
    check(torch.equal(kernels[PACKING](), expected), f"{at}: packed weights change the spikes")
    for name, side in others.items():
        check(torch.equal(ops.pack_spikes(side()), expected), f"{at}: kernel and {name} give different spikes")
    sums = ops.count_conv2d(bits, weight, bias, *case.geometry)
    for name, side in anns.items():
        check(torch.equal(side(), sums), f"{at}: kernel and {name} give different sums")
    return run.time(f"{at}: {case}", {**kernels, **others, **anns})


def against_pytorch_and_ann(
    at: str, medians: dict[str, float], faster: Bounds = (None, None), cheaper: Bounds = (None, None)
) -> list[Figure]:
    form, seconds = fastest(medians, "PyTorch")
    layout, ann = fastest(medians, "ANN")
    return [
        speed(f"{at}: speed over the fastest PyTorch form", seconds / medians["kernel"], *faster, note=form),
        cost(f"{at}: time over the ANN's convolution", medians["kernel"] / ann, *cheaper, note=layout),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The sections
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def conv(run: Run) -> list[Figure]:
    """The kernel at 5 % against PyTorch, the ANN and the peers."""
    figures = []
    for case, faster, cheaper in ((S1, (7, 10), (None, None)), (S2, (9, 13), (0.9, 0.6)), (S3, (9, 13), (0.9, 0.6))):
        medians = compare(run, case, RATE, with_peers=run.peers)
        figures += against_pytorch_and_ann(f"{case.name} at 5 %", medians, faster, cheaper)
        kernel, packing = medians["kernel"], medians[PACKING]
        figures += [
            speed(
                f"{case.name} at 5 %, packing in every call: speed over PyTorch",
                fastest(medians, "PyTorch")[1] / packing,
            ),
            cost(
                f"{case.name} at 5 %, packing in every call: time over the ANN's", packing / fastest(medians, "ANN")[1]
            ),
        ]
        for peer in ("SpikingJelly", "snnTorch") if run.peers else ():
            form, seconds = fastest(medians, peer)
            figures.append(
                speed(f"{case.name} at 5 %: speed over {peer}", seconds / kernel, note=f"{form}; equal spikes")
            )
    return figures


@torch.no_grad()
def rates(run: Run) -> list[Figure]:
    """Busier inputs: 10 and 20 %."""
    figures = []
    for case in (S1, S2, S3):
        for rate, bounds in ((0.1, (5, 8)), (0.2, (3, 4.5))):
            figures += against_pytorch_and_ann(f"{case.name} at {rate * 100:g} %", compare(run, case, rate), bounds)
    return figures


@torch.no_grad()
def shapes(run: Run) -> list[Figure]:
    """Other shapes, for information."""
    figures = []
    for case in OTHERS:
        figures += against_pytorch_and_ann(f"{case.name} at 5 %", compare(run, case, RATE, compiled=False))
    return figures


@torch.no_grad()
def int8(run: Run) -> list[Figure]:
    """Integer weights at 5 %, against the ANN in float32 and in PyTorch's own int8."""
    figures = []
    for case in (S2, S3):
        spikes, bias = case.spikes(RATE), case.bias()
        bits = ops.pack_spikes(spikes)
        weight, scale = case.int8_weight()
        float_weight = weight * scale.view(-1, 1, 1, 1)
        kernels = kernel_sides(case, bits, weight, bias, scale=scale)
        anns = ann_sides(case, spikes, float_weight, bias)
        quantised = quantised_sides(case, spikes, float_weight, scale, bias)

        expected = case.run(reference, bits, weight, bias, scale=scale)
        check_activity(case.name, expected, case.time_steps)
        for name, side in kernels.items():
            check(torch.equal(side(), expected), f"{case.name}, int8: {name} and the reference give different spikes")
        v = anns["ANN"]()
        for name, side in quantised.items():
            step = quantised_step(v)
            error = float((side().dequantize() - v).abs().max())
            check(error <= 0.51 * step, f"{case.name}: {name} is off by {error / step:.2f} steps of its output")

        medians = run.time(f"{case.name} at 5 %, int8 weights: {case}", {**kernels, **anns, **quantised})
        kernel, packing = (medians[name] for name in kernels)
        layout, ann = fastest(medians, "ANN")
        engine, integer = fastest(medians, "PyTorch int8")
        at = f"{case.name} at 5 %, int8"
        figures += [
            cost(f"{at}: time over the ANN's float32 convolution", kernel / ann, 0.55, 0.35, note=layout),
            cost(f"{at}, packing in every call: time over the ANN's", packing / ann),
            cost(f"{at}: time over PyTorch's int8 convolution", kernel / integer, note=engine),
            cost(f"{at}: PyTorch's int8 time over its float32 time", integer / ann),
        ]
    return figures


def quantised_step(v: Tensor) -> float:
    return float(v.abs().max()) / 127


def quantised_sides(case: ConvCase, spikes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Sides:
    """The ANN's convolution in PyTorch's int8, with weights packed beforehand; counts are exact in uint8."""
    counts = spikes.sum(0).contiguous(memory_format=LAST)
    step = quantised_step(F.conv2d(counts, weight, bias, *case.geometry))
    stride, padding, dilation, groups = case.geometry
    sides: Sides = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces another interface to the same kernels
        x = torch.quantize_per_tensor(counts, 1.0, 0, torch.quint8)
        w = torch.quantize_per_channel(
            weight, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8
        )
    before = torch.backends.quantized.engine
    for engine in ("x86", "onednn"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        packed = torch.ops.quantized.conv2d_prepack(w, bias, [stride] * 2, [padding] * 2, [dilation] * 2, groups)

        def run(packed: Any = packed, engine: str = engine) -> Tensor:
            torch.backends.quantized.engine = engine
            return torch.ops.quantized.conv2d(x, packed, step, 128)

        sides[f"PyTorch int8, {engine}"] = run
    torch.backends.quantized.engine = before
    return sides


@torch.no_grad()
def density(run: Run) -> list[Figure]:
    """The choice of engine over the whole range of firing rates."""
    worst: dict[str, tuple[float, str]] = {}
    for case in (S1, S2, S3, SMALL, LINEAR, POINTWISE):
        weight, bias = case.weight(), case.bias()
        packed = ops.pack_weight(weight, case.groups)
        for percent in DENSITIES:
            bits = case.bits(percent / 100)
            auto = partial(case.run, ops, bits, weight, bias, packed=packed)
            sides: Sides = {engine: partial(auto, engine=engine) for engine in ("auto", "event", "dense")}
            expected = case.run(reference, bits, weight, bias)
            if percent > 1:  # below, silence is the expected result
                check_activity(f"{case.name} at {percent} %", expected, case.time_steps)
            for engine, side in sides.items():
                same = torch.equal(side(), expected)
                check(same, f"{case.name} at {percent} %: engine {engine!r} and the reference give different spikes")
            group = f"density, {case.name}, {percent} %: {case}"
            medians = run.time(group, sides)
            better = min(("event", "dense"), key=medians.__getitem__)
            # Round by round: mostly both sides are the same kernel, of which some rounds may be disturbed.
            seconds = run.times[group]
            ratio = statistics.median(a / b for a, b in zip(seconds["auto"], seconds[better], strict=True))
            worst[case.name] = max(
                worst.get(case.name, (0.0, "")), (ratio, f"at {percent} %, where {better} is better")
            )
    name, (ratio, note) = max(worst.items(), key=lambda item: item[1])
    return [
        cost("density sweep: worst time of engine auto over the better one's", ratio, 1.1, 1.03, f"{name} {note}"),
        *(cost(f"density sweep, {name}: worst", ratio, note=note) for name, (ratio, note) in worst.items()),
    ]


@torch.no_grad()
def threads(run: Run) -> list[Figure]:
    """Two threads over one."""
    name = "S3 at 5 %: speed of 2 threads over 1"
    if (usable := len(os.sched_getaffinity(0))) < 2:
        return [Figure(name, None, note=f"{usable} processor usable", must=1.8, aim=1.95)]
    bits, weight, bias = S3.bits(RATE), S3.weight(), S3.bias()
    kernel = kernel_sides(S3, bits, weight, bias)["kernel"]

    def use(side: str) -> None:
        torch.set_num_threads(int(side.split()[0]))
        kernel()  # the first run after a change of threads starts them

    results = []
    before = torch.get_num_threads()
    try:
        for side in ("1 thread", "2 threads"):
            use(side)
            results.append(kernel())
        check_activity("S3", results[0], S3.time_steps)
        check(torch.equal(*results), "S3: 1 and 2 threads give different spikes")
        medians = run.time(f"threads, S3 at 5 %: {S3}", {"1 thread": kernel, "2 threads": kernel}, prepare=use)
    finally:
        torch.set_num_threads(before)
    return [speed(name, medians["1 thread"] / medians["2 threads"], 1.8, 1.95)]


@torch.no_grad()
def isa(run: Run) -> list[Figure]:
    """What is left of the speed on a machine without AVX-512."""
    runnable, best = tc.build_info()["cpu_isas_runnable"], _C.cpu_isa()
    figures = []
    for case in (S2, S3):
        name = f"{case.name} at 5 %: speed under avx2 over {best}"
        if "avx2" not in runnable or not best.startswith("avx512"):
            figures.append(Figure(name, None, must=0.45, aim=0.6, note=f"the instruction set in use is {best}"))
            continue
        bits, weight, bias = case.bits(RATE), case.weight(), case.bias()

        kernel = kernel_sides(case, bits, weight, bias)["kernel"]
        results = []
        try:
            for isa in ("avx2", best):
                _C.set_cpu_isa(isa)
                results.append(kernel())
            check_activity(case.name, results[0], case.time_steps)
            check(torch.equal(*results), f"{case.name}: avx2 and {best} give different spikes")
            group = f"instruction sets, {case.name} at 5 %: {case}"
            medians = run.time(group, {"avx2": kernel, best: kernel}, prepare=_C.set_cpu_isa)
        finally:
            _C.set_cpu_isa(best)
        figures.append(speed(name, medians[best] / medians["avx2"], 0.45, 0.6))
    return figures


@torch.no_grad()
def neurons(run: Run) -> list[Figure]:
    """integrate_and_fire with a constant current, and radix_spikes, against copying a tensor: bound by memory."""
    shape = (16, 2**20)
    current = torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 0.2
    target = torch.empty_like(current)
    sample, radix = current[:1], RadixIF(1.0)

    def fire(x: Tensor) -> Tensor:
        return ops.integrate_and_fire(x, 8, want_sum=False, want_state=False)[0]

    def spell(x: Tensor) -> Tensor:
        return ops.radix_spikes(x, 8, radix)

    expected = reference.integrate_and_fire(sample, 8, want_sum=False, want_state=False)[0]
    for name, kernel, want in (
        ("integrate_and_fire", fire, expected),
        ("radix_spikes", spell, reference.radix_spikes(sample, 8, radix)),
    ):
        check_activity(name, want, 8)
        check(torch.equal(kernel(current)[:, :1], want), f"{name} and the reference give different spikes")
    medians = run.time(
        "integrate_and_fire, constant current, and radix_spikes, 2^24 neurons, T = 8",
        {
            "integrate_and_fire": lambda: fire(current),
            "radix_spikes": lambda: spell(current),
            "copy, clone()": lambda: current.clone(),
            "copy, copy_() into the same memory": lambda: target.copy_(current),
        },
    )
    loop, digits, new, same = (
        bytes_ * current.numel() / t / 1e9 for bytes_, t in zip((5, 5, 8, 8), medians.values(), strict=True)
    )
    return [
        speed("integrate_and_fire: bytes/s over a copy's", loop / max(new, same), 0.5, 0.8, "the faster of two copies"),
        speed("integrate_and_fire: bytes/s over clone()'s", loop / new),
        speed("radix_spikes: bytes/s over a copy's", digits / max(new, same)),
        Figure("integrate_and_fire: bytes/s", loop, "GB/s"),
        Figure("radix_spikes: bytes/s", digits, "GB/s"),
        Figure("clone(): bytes/s", new, "GB/s"),
        Figure("copy_() into the same memory: bytes/s", same, "GB/s"),
    ]
