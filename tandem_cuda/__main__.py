"""``python -m tandem_cuda``: report what was built and what runs on this machine."""

from __future__ import annotations

from . import _C
from .build_info import build_info


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
        ("CPU kernels", f"{info['cpu_isa']} in use, {info['threads']} threads"),
        ("", f"compiled: {listed('cpu_isas_compiled')}; this processor runs: {listed('cpu_isas_runnable')}"),
        ("", f"TANDEM_CPU_ISA={cap} caps the choice" if cap else "TANDEM_CPU_ISA is not set: the widest is used"),
        ("CUDA kernels", "usable" if info["cuda_usable"] else f"not usable: {info['cuda_unusable_because']}"),
    ]
    if info["cuda_toolkit"]:
        lines += [("", f"compiled by CUDA {info['cuda_toolkit']} for {listed('cuda_architectures')}")]
        lines += [("", f"driver: {info['cuda_driver'] or 'none'}")]
    return "\n".join([f"tandem_cuda {info['version']}", *(f"  {name:<14}{text}" for name, text in lines)])


if __name__ == "__main__":
    print(report())
