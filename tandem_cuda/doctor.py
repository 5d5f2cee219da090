"""The spot check behind ``python -m tandem_cuda``: do kernels of this machine compute what the reference computes?"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops, reference
from .build_info import build_info
from .neuron import IF

TIME_STEPS = 12  # more than one bit plane


def verdict() -> tuple[bool, str]:
    """Pack spikes and convolve them on every usable device, compare with the reference, and say what to do.

    This is a spot check: other operators, shapes and instruction sets than the one in use are not run.

    Returns:
        Whether the check passed, and one line that says so, or what to do.
    """
    info = build_info()
    for device in ("cpu", "cuda") if info["cuda_usable"] else ("cpu",):
        if problem := _problem(device):
            return False, (
                f"Something is wrong on {device}: {problem}. Reinstall tandem_cuda; if that does not help, report this "
                "output as a bug."
            )
    if info["cuda_usable"]:
        line = "All is well: in a spot check, the CPU and CUDA kernels compute what the reference computes."
    elif torch.cuda.is_available():
        why = info["cuda_unusable_because"]
        line = f"The CPU kernels pass the spot check. The CUDA device cannot be used: {why}."
    else:
        line = "All is well: in a spot check, the CPU kernels compute what the reference computes; "
        line += "no CUDA device was found."
    return True, line


def _problem(device: str) -> str | None:
    """Compare operators with the reference, to the bit. Return the first difference, or the error that was raised."""
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(TIME_STEPS, 2, 8, 9, 9, generator=generator) < 0.2).float()
    integers = torch.randint(-64, 65, (16, 8, 3, 3), generator=generator)
    bias = torch.randint(-8, 9, (16,), generator=generator) / 64
    # Multiples of 1 / 64: sums are exact, so that every order of summation leads to the same bits.
    cases: dict[str, tuple[Tensor, Tensor | None]] = {
        "float32": (integers / 64, None),
        "int8": (integers.to(torch.int8), torch.full((16,), 1 / 64)),
    }
    bits = reference.pack_spikes(spikes)
    try:
        if not torch.equal(ops.pack_spikes(spikes.to(device)).cpu(), bits):
            return "pack_spikes differs from the reference"
        for name, (weight, scale) in cases.items():
            on_device = None if scale is None else scale.to(device)
            got = ops.spiking_conv2d(
                *(bits.to(device), weight.to(device), bias.to(device)),
                padding=1,
                scale=on_device,
                time_steps=TIME_STEPS,
                neuron=IF(0.5),
            )
            expected = reference.spiking_conv2d(
                bits, weight, bias, padding=1, scale=scale, time_steps=TIME_STEPS, neuron=IF(0.5)
            )
            if not all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True)):
                return f"spiking_conv2d with {name} weights differs from the reference"
    except Exception as error:  # whatever fails is the diagnosis
        return summary(error)
    return None


def summary(error: Exception) -> str:
    """Return the type of an error and the first line of its text, if it has any."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].removesuffix(": ")
