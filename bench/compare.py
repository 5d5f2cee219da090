"""The speed of an event-driven spiking convolution against plain PyTorch and against the ANN's own convolution.

    python bench/compare.py [--rate 0.05] [--threads 2] [--repeats 9]

All sides alternate in one process; results are checked for equality before anything is timed.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import tandem_cuda as tc
from cases import S1, S2, S3, ConvCase
from tandem_cuda import ops, reference
from timing import medians


def sides(case: ConvCase, rate: float) -> dict[str, Callable[[], Tensor]]:
    """The kernel, every PyTorch form of the reference, and the ANN's dense convolution."""
    spikes, weight, bias = case.spikes(rate), case.weight(), case.bias()
    bits = ops.pack_spikes(spikes)
    folded = spikes.flatten(0, 1)
    last = torch.channels_last
    folded_last, weight_last = folded.contiguous(memory_format=last), weight.contiguous(memory_format=last)
    dense = spikes.sum(0)
    dense_last = dense.contiguous(memory_format=last)

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, bias, case.stride, 1)

    return {
        "kernel": lambda: ops.spiking_conv2d(
            bits, weight, bias, case.stride, 1, time_steps=case.time_steps, want_sum=False, want_potential=False
        )[0],
        "loop": lambda: reference.neuron_loop([convolve(x, weight) for x in spikes])[0],
        "folded": lambda: reference.neuron_loop(convolve(folded, weight).chunk(case.time_steps))[0],
        "folded, channels last": lambda: reference.neuron_loop(
            convolve(folded_last, weight_last).chunk(case.time_steps)
        )[0],
        "ANN": lambda: convolve(dense, weight),
        "ANN, channels last": lambda: convolve(dense_last, weight_last),
    }


def measure(case: ConvCase, rate: float, repeats: int) -> dict[str, float]:
    """Median seconds per side, after all SNN sides have agreed to the bit."""
    runs = sides(case, rate)
    bits = runs["kernel"]()
    for name in ("loop", "folded", "folded, channels last"):
        if not torch.equal(bits, ops.pack_spikes(runs[name]())):
            raise AssertionError(f"{case.name}: the kernel and the reference ({name}) give different spikes")
    return medians(runs, repeats)


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.05, help="mean firing rate of the input, spikes per step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--repeats", type=int, default=9, help="rounds; the median is reported")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    info = tc.build_info()
    print(f"{processor()}, {options.threads} threads, {info['cpu_isa']}, ", end="")
    print(f"torch {torch.__version__}; T = 8, batch 8, rate {options.rate:.0%}, medians of {options.repeats}")
    for case in (S1, S2, S3):
        times = measure(case, options.rate, options.repeats)
        fastest = min(times[name] for name in ("loop", "folded", "folded, channels last"))
        ann = min(times["ANN"], times["ANN, channels last"])
        print(f"{case.name}: {case.channels}->{case.out_channels} 3x3 stride {case.stride} on {case.size}x{case.size}")
        for name, seconds in times.items():
            print(f"    {name:24s} {seconds * 1e3:8.2f} ms")
        print(f"    fastest reference over kernel {fastest / times['kernel']:.2f}")
        print(f"    kernel over ANN               {times['kernel'] / ann:.2f}")


if __name__ == "__main__":
    main()
