"""``python -m tandem_cuda``: show what was built, and run a spot check on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

try:
    from . import _C, benchmark, doctor
    from .build_info import build_info
except ImportError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(str(error)) from error  # it says what to do


def report() -> str:
    """Format :func:`tandem_cuda.build_info` as readable lines."""
    info = build_info()

    def listed(key: str) -> str:
        values = info[key]
        assert isinstance(values, list)
        return " ".join(values) or "none"

    cap = info["TANDEM_CPU_ISA"]
    lines = [
        (
            "torch",
            f"{info['torch']} (built against {info['torch_built_against']}, needs >= {info['torch_stable_abi']})",
        ),
        ("library", _C.library_path),
        ("compiler", str(info["compiler"])),
        ("processor", str(info["processor"])),
        ("CPU kernels", f"{info['cpu_isa']} in use, {info['threads']} threads"),
        ("", f"compiled: {listed('cpu_isas_compiled')}; this processor runs: {listed('cpu_isas_runnable')}"),
        ("", f"TANDEM_CPU_ISA={cap} caps the choice" if cap else "TANDEM_CPU_ISA is not set: the widest is used"),
        ("CUDA kernels", "usable" if info["cuda_usable"] else f"not usable: {info['cuda_unusable_because']}"),
    ]
    if info["cuda_toolkit"]:
        lines += [("", f"compiled by CUDA {info['cuda_toolkit']} for {listed('cuda_architectures')}")]
        lines += [("", f"driver: {info['cuda_driver'] or 'none'}")]
    return "\n".join([f"tandem_cuda {info['version']}", *(f"  {name:<14}{text}" for name, text in lines)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="python -m tandem_cuda", description="Show what was built, and run a spot check on this machine."
    )
    bench = "instead time frozen SNNs against their ANN, and print a table to paste into an issue"
    parser.add_argument("command", nargs="?", choices=["bench"], help=bench)
    command = parser.parse_args(argv).command
    try:
        _C.cpu_isa()
    except ValueError as error:  # TANDEM_CPU_ISA names no instruction set
        print(error, file=sys.stderr)
        return 1
    if command == "bench":
        print("This takes about half a minute. Other programs that run meanwhile disturb it.", file=sys.stderr)
        print(benchmark.report())
        return 0
    print(report(), flush=True)
    well, line = doctor.verdict()
    print(line)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
