"""The speed of tandem_cuda against plain PyTorch, the ANN and other libraries of spiking neural networks.

    python bench/compare.py [--only conv,network] [--threads 2] [--repeats 9] [--out bench/results]

All sides of a comparison take turns in one process, after their results have been checked against each other; figures
are ratios of median times. Prints everything, and writes results.json and pictures. Ends with status 1 if sides
disagree; a figure that misses its bound is only reported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

import integer_sections
import layer_sections
import machine
import network_sections
import peers
import pictures
from report import Disagreement, Figure, Run, table, write_json

SECTIONS: dict[str, Callable[[Run], list[Figure]]] = {
    "conv": layer_sections.conv,
    "int8": layer_sections.int8,
    "rates": layer_sections.rates,
    "density": layer_sections.density,
    "network": network_sections.network,
    "training": network_sections.training,
    "two_phase": network_sections.two_phase,
    "latency": network_sections.latency,
    "memory": network_sections.memory_growth,
    "threads": layer_sections.threads,
    "isa": layer_sections.isa,
    "neurons": layer_sections.neurons,
    "shapes": layer_sections.shapes,
    "integer_layers": integer_sections.layers,
    "integer_networks": integer_sections.networks,
    "integer_two_phase": integer_sections.two_phase,
    "integer_radix": integer_sections.radix,
    "integer_training": integer_sections.training,
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch's threads")
    parser.add_argument("--repeats", type=int, default=9, help="rounds at least, whose medians are compared")
    parser.add_argument("--quick", action="store_true", help="3 rounds: a test of this program, not a measurement")
    parser.add_argument(
        "--without-peers", action="store_true", help="leave SpikingJelly, snnTorch and ONNX Runtime out"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    chosen = parser.parse_args()
    if unknown := set(chosen.only.split(",")) - set(SECTIONS):
        parser.error(f"--only: no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return chosen


def main() -> int:
    chosen = options()
    if not chosen.without_peers:
        peers.require()
    torch.set_num_threads(chosen.threads)
    run = Run(
        repeats=3 if chosen.quick else chosen.repeats,
        seconds=0 if chosen.quick else 1,
        threads=chosen.threads,
        peers=not chosen.without_peers,
    )
    described = machine.describe()
    for key, value in described.items():
        print(f"{key}: {value}")
    print(f"T = 8 and batch 8 unless said otherwise; medians of {run.repeats} rounds or more")

    start = time.perf_counter()
    figures: list[Figure] = []
    disagreements = []
    for name, section in SECTIONS.items():
        if name in chosen.only.split(","):
            try:
                figures += section(run)
            except Disagreement as error:
                disagreements.append(f"{name}: {error}")
                print(f"\nDISAGREEMENT in {disagreements[-1]}")
    print(f"\n{table(figures)}\n\n{time.perf_counter() - start:.0f} s")

    chosen.out.mkdir(parents=True, exist_ok=True)
    arguments = {"repeats": run.repeats, "threads": run.threads, "quick": chosen.quick, "only": chosen.only}
    write_json(chosen.out / "results.json", described, arguments, run, figures)
    for path in ["results.json", *pictures.draw(chosen.out, run.times)]:
        print(f"wrote {chosen.out / path}")
    for message in disagreements:
        print(f"DISAGREEMENT in {message}")
    return 1 if disagreements else 0


if __name__ == "__main__":
    raise SystemExit(main())
