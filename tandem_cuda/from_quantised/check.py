"""Compare the integers of a spiking network, layer by layer, with the quantised network's."""

from __future__ import annotations

import platform
import warnings
from typing import Any

import torch
from torch import Tensor

from ..freeze import FrozenNetwork
from ..nn.frozen import Span
from ..spike_train import SpikeTrain
from .steps import Network

_WHY = "; the model computes something else than the attributes of its modules say"


def check_integers(snn: FrozenNetwork, network: Network, example: tuple[Tensor, ...], saturates: bool) -> None:
    """Raise a RuntimeError if an integer of a layer differs by more than one.

    Each layer reads the integers of the quantised network, so that differences do not add up. If the quantised network
    ``saturates``, this is a warning.
    """
    found = {name: largest for name, (_, largest) in differences(snn, network.integers, example).items() if largest > 1}
    if not found:
        return
    name, largest = next(iter(found.items()))
    if not saturates:
        raise RuntimeError(
            f"from_quantised: the integers of layer {name} must be those of the quantised network, got a difference of "
            f"{largest}{_WHY}"
        )
    warnings.warn(
        f"from_quantised: integers of {len(found)} layers could not be compared, such as layer {name} (a difference of "
        f"{largest}). On processors without VNNI, torch adds two products of 8-bit integers with saturation to 16 "
        "bits; the spiking network is exact. Observers with reduce_range=True keep torch exact, too",
        stacklevel=3,
    )


def saturates_here() -> bool:
    """Whether torch's own products of 8-bit integers saturate on this processor."""
    return platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported()


@torch.no_grad()
def differences(
    snn: FrozenNetwork, integers: dict[str, Tensor], example: tuple[Tensor, ...]
) -> dict[str, tuple[float, int]]:
    """Return, for each layer, the share of integers that differ, and by how much at most.

    Args:
        snn: the spiking network, with as many time steps as integers have bits.
        integers: the quantised network's, by the names of layers. Each layer reads these.
        example: the inputs of both networks.
    """
    steps = snn.time_steps
    assert steps is not None
    values: dict[str, Any] = dict(zip(snn.kinds, example, strict=True))
    found = {}
    for name, layer, inputs in snn.nodes:
        y, _ = layer(Span(steps, 0, steps), None, *(values[source] for source in inputs))
        expected = integers.get(name)
        if isinstance(y, SpikeTrain) and expected is not None:
            if y.shape != expected.shape:
                raise RuntimeError(
                    f"from_quantised: the shape of layer {name} must be {list(expected.shape)} as in the quantised "
                    f"network, got {list(y.shape)}{_WHY}"
                )
            difference = (y.value.int() - expected.int()).abs()
            found[name] = (float((difference > 0).float().mean()), int(difference.max()))
            y = y.replace_unchecked(bits=expected.to(y.bits).unsqueeze(0))
        values[name] = y
    return found
