"""Quantisation-aware training: weights of a few bits, with one scale per output channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .convert import TandemNetwork
from .nn.quantiser import WeightQuantiser, check_bits, quantiser
from .nn.tandem import TandemLayer

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHT_LAYERS = (TandemLayer, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def quantise(model: nn.Module, bits: int) -> None:
    """Quantise the weights of all weight layers of a network, for training and inference; see WeightQuantiser.

    The Parameters are unchanged and keep training in full precision, and existing optimisers stay valid; the layers'
    ``weight`` attribute returns the rounded values. Biases and batch norm are not quantised. ``state_dict`` keeps its
    names and full precision, so quantised and other networks can load each other's checkpoints.

    A TandemNetwork is quantised in both twins; converting a quantised ANN with :func:`tandem_cuda.convert` has the same
    effect. The spiking twin computes with the integers themselves: their sums are exact, so that the spikes are the
    same to the bit on every engine, instruction set and device. (float64 layers compute with rounded floats.)
    :func:`tandem_cuda.freeze` keeps the integers. Like every parametrised module, a quantised network supports
    ``copy.deepcopy`` but not pickling.

    Args:
        model: the network; its tandem layers, nn.Linear and convolutions are changed in place.
        bits: 2 to 8, or 16. A network that is already quantised is changed to this number of bits.

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``bits`` is not an int.
        ValueError: ``bits`` is none of these, ``model`` has no weight layer, or a weight has another parametrisation.
            The model is then unchanged.
    """
    check_bits("quantise", bits)
    layers = _layers("quantise", model)
    if not layers:
        raise ValueError(f"quantise: model must have weight layers, got a {type(model).__name__} without any")
    for name, layer in layers:
        if parametrize.is_parametrized(layer, "weight") and quantiser(layer) is None:
            raise ValueError(f"quantise: model must have no other parametrisations of weights, got one in layer {name}")
    for _, layer in layers:
        present = quantiser(layer)
        if present is not None:
            present.bits = bits
            continue
        groups = layer.groups if isinstance(layer, _TRANSPOSED) else None
        parametrize.register_parametrization(layer, "weight", WeightQuantiser(bits, groups))
        layer.register_state_dict_post_hook(_plain_name)  # type: ignore[no-untyped-call]
        layer.register_load_state_dict_pre_hook(_parametrised_name)  # type: ignore[no-untyped-call]
    _tie(model)


def unquantise(model: nn.Module) -> None:
    """Undo :func:`quantise`: layers compute with their trained full-precision weights.

    Raises:
        TypeError: ``model`` is not an nn.Module.
    """
    for _, layer in _layers("unquantise", model):
        if quantiser(layer) is not None:
            _remove_parametrisation(layer)
            _remove_hooks(layer)
    _tie(model)


def _networks(model: nn.Module) -> list[TandemNetwork]:
    return [module for module in model.modules() if isinstance(module, TandemNetwork)]


def _layers(op: str, model: Any) -> list[tuple[str, nn.Module]]:
    """Return each weight layer once, with its name, including those of ANN twins."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module, got {type(model).__name__}")

    def modules() -> Iterator[tuple[str, nn.Module]]:
        yield from model.named_modules()
        for network in _networks(model):
            yield from network.ann().named_modules()

    return list({id(layer): (name, layer) for name, layer in modules() if isinstance(layer, _WEIGHT_LAYERS)}.values())


def _tie(model: nn.Module) -> None:
    for network in _networks(model):
        network.tie_names()


# State dicts keep the weight under the name that it has without a parametrisation.

_PARAMETRISED = "parametrizations.weight.original"


def _plain_name(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    items = list(state_dict.items())
    state_dict.clear()
    state_dict.update((prefix + "weight" if key == prefix + _PARAMETRISED else key, value) for key, value in items)


def _parametrised_name(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    if prefix + "weight" in state_dict:
        state_dict[prefix + _PARAMETRISED] = state_dict.pop(prefix + "weight")


def _remove_parametrisation(layer: Any) -> None:
    if len(layer.parametrizations) > 1:  # another one, for example of the bias
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return
    # Not torch's remove_parametrizations: it deletes the property from the class, which copies of the layer share.
    weight, plain = layer.parametrizations.weight.original, parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = plain
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer.register_parameter("weight", weight)  # weight comes first, as before
    layer._parameters.update(others)


def _remove_hooks(layer: nn.Module) -> None:
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_plain_name, _parametrised_name):
                del hooks[key]
