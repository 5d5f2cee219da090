"""Which spikes a layer's weights have learned from: spikes that all weigh the same, or radix spikes.

Both fit into every product, so a network that gets the wrong ones would be wrong in silence. A layer notes the code of
the train of a training call. If its weights have changed at a later call, they have learned from such trains. Copies,
pickles, frozen networks and their files keep this, and so do the metadata of state dicts, whose keys are the ANN's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class TrainingCall(NamedTuple):
    """A call after which weights may change."""

    radix: bool
    """Whether the spikes were radix spikes."""
    version: int | None
    """Autograd's version of the weights; None where nobody counts changes."""


def trained_radix(layer: Any) -> bool | None:
    """Return whether the weights have learned from radix spikes; None if they have not learned from spikes."""
    call: TrainingCall | None = layer._training_call
    # Compiled code notes no calls: it would be compiled again after the first one.
    if call is not None and not torch.compiler.is_compiling() and call.version != _version(layer):
        layer.trained_radix, layer._training_call = call.radix, None
    return layer.trained_radix


def check_train(layer: Any, radix: bool, name: str) -> None:
    """Raise ValueError if the weights have learned from other spikes than a train's; note a training call.

    Args:
        layer: the layer with the weights.
        radix: whether the train has radix spikes.
        name: of the layer that got the train, for the message.
    """
    call = layer._training_call
    if call is not None or layer.trained_radix is not None:
        if trained_radix(layer) is not None:
            check_code(layer, radix, name)
            return
        if call.radix is radix:
            return
    if layer.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        layer._training_call = TrainingCall(radix, _version(layer))


def check_code(layer: Any, radix: bool | None, name: str | None = None) -> None:
    """Raise ValueError if the weights have learned from other spikes than these.

    Args:
        layer: the layer with the weights.
        radix: whether the spikes are radix spikes; None if it is not known.
        name: of the layer that gets the spikes, for the message; None where the caller adds it.
    """
    known = trained_radix(layer)
    if known is None or radix is None or radix is known:
        return
    codes = {True: "radix spikes", False: "spikes that all weigh the same"}
    raise ValueError(
        f"{f'{name}: ' if name else ''}input must be {codes[known]} (radix={known}), with which the layer was trained, "
        f"got {codes[radix]}; make the train with radix={known}, or set the layer's trained_radix to None to train it "
        f"with {codes[radix]}"
    )


def written_code(layer: Any) -> dict[str, bool]:
    """Return what the metadata of a state dict say of the layer: with which spikes it was trained, if it was."""
    radix = trained_radix(layer)
    return {} if radix is None else {"trained_radix": radix}


def read_code(layer: Any, metadata: Mapping[str, Any]) -> None:
    """Take over the note of a state dict. Without one, the weights may be the layer's own: its note stays."""
    forget_untrained(layer)
    layer.trained_radix = metadata.get("trained_radix", layer.trained_radix)


def forget_untrained(layer: Any) -> None:
    """Forget a call after which the weights have not changed: a file changes them now, or a copy counts anew."""
    trained_radix(layer)
    layer._training_call = None


def _version(layer: Any) -> int | None:
    weight = layer._parameters.get("weight")
    if weight is None and "parametrizations" in layer._modules:  # dictionaries, since each training call asks
        computed = layer._modules["parametrizations"]._modules.get("weight")
        weight = None if computed is None else next(iter(computed._parameters.values()), None)
    return None if weight is None or weight.is_inference() else weight._version
