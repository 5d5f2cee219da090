"""Quantisation-aware training: weights of a few bits, with one scale per output channel."""

from __future__ import annotations

from typing import Any

from torch import nn

from .convert import TandemNetwork
from .nn.quantised import Named, check_quantisable, quantised_layers, unquantise_layers, weight_layers
from .nn.quantiser import WeightQuantiser, check_bits, quantiser

__all__ = ["WeightQuantiser", "quantise", "quantiser", "unquantise"]


def quantise(model: nn.Module, bits: int) -> None:
    """Quantise the weights of all weight layers of a network, for training and inference; see WeightQuantiser.

    The Parameters are unchanged and keep training in full precision, and existing optimisers stay valid; the layers'
    ``weight`` attribute returns the rounded values. Biases and batch norm are not quantised. ``state_dict`` keeps its
    names and full precision, so quantised and other networks can load each other's checkpoints.

    A TandemNetwork is quantised in both twins. :func:`tandem_cuda.convert` takes a quantised ANN, too. With
    ``weights="int8"`` or ``"int16"`` it calibrates on the ANN as it is, and then quantises both twins. The spiking twin
    computes with the integers themselves: their sums are exact, so that the spikes are the same to the bit on every
    engine, instruction set and device. (float64 layers compute with rounded floats.) :func:`tandem_cuda.freeze` keeps
    the integers. Like every parametrised module, a quantised network supports ``copy.deepcopy`` but not pickling.

    Args:
        model: the network; its tandem layers, nn.Linear and convolutions are changed in place.
        bits: 2 to 8, or 16. A network that is already quantised is changed to this number of bits.

    Raises:
        TypeError: ``model`` is not an nn.Module, ``bits`` is not an int, or a weight is neither float32 nor float64.
        ValueError: ``bits`` is neither from 2 to 8 nor 16, ``model`` has no weight layer, or a weight has another
            parametrisation, is computed by a hook, is empty, or is NaN or infinite; or calls of one layer of a
            converted network read channels of different thresholds. The model is then unchanged.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> quantise(net, 8)
        >>> len(net[1].weight[0].unique()) <= 255
        True
    """
    check_bits("quantise", bits)
    layers = _layers("quantise", model)
    if not layers:
        raise ValueError(f"quantise: model must have weight layers, got a {type(model).__name__} without any")
    check_quantisable("quantise", "model", layers)
    try:
        with quantised_layers(layers, bits):
            _tie(model)
    except ValueError:
        _tie(model)
        raise


def unquantise(model: nn.Module) -> None:
    """Undo :func:`quantise`: layers compute with their trained full-precision weights.

    Raises:
        TypeError: ``model`` is not an nn.Module.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> before = net[1].weight.clone()
        >>> quantise(net, 8)
        >>> unquantise(net)
        >>> torch.equal(net[1].weight, before)
        True
    """
    unquantise_layers(layer for _, layer in _layers("unquantise", model))
    _tie(model)


def _networks(model: nn.Module) -> list[TandemNetwork]:
    return [module for module in model.modules() if isinstance(module, TandemNetwork)]


def _layers(op: str, model: Any) -> Named:
    """Return each weight layer of the model and of ANN twins once, with its name."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module, got {type(model).__name__}")
    return weight_layers(model, *(network.ann() for network in _networks(model)))


def _tie(model: nn.Module) -> None:
    for network in _networks(model):
        network.tie_names()
