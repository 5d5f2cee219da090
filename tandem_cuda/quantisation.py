"""Quantisation-aware training: weights of few bits, one scale per output channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .convert import TandemNetwork
from .nn.tandem import TandemLayer

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHT_LAYERS = (TandemLayer, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

# Scales that are tried, as shares of the least that clips nothing. Of channels of 576 Gaussian weights, those of least
# error are on average 0.38 of it for 2 bits, 0.76 for 4 and all of it for 8; of 4,096 weights, 0.33, 0.66 and all.
_SHARES = [share / 20 for share in range(20, 4, -1)]


class WeightQuantiser(nn.Module):
    """A parametrisation (torch.nn.utils.parametrize) that rounds weights to scale * {-q, ..., q}, q = 2^(bits-1) - 1.

    The gradient is handed on to the weights as if they were not rounded: the straight-through estimator (Bengio,
    Leonard & Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
    2013, arXiv:1308.3432), of weights that are clipped too, so that none is stuck.

    There is one scale for each output channel, as in Krishnamoorthi ("Quantizing deep convolutional networks
    for efficient inference: A whitepaper", 2018, arXiv:1806.08342): batch norm, whose gains differ from channel to
    channel, folds into it. It is the one of least squared error among 16 shares, 0.25 to 1, of the largest weight of
    the channel over q. The largest weight by itself serves few bits badly: with two, whatever is below half of it
    would be zero, and of 576 Gaussian weights the error 84 % of their norm instead of 43 % (4 bits: 14 % instead of
    11 %). The scale is found anew whenever the weights are used; nothing is stored but the weights.

    Args:
        bits: 2 to 8.
        groups: of a transposed convolution, whose weights are [C, O/groups, ...]; None for all others, [O, ...].

    Shape:
        Tensor -> Tensor of the same shape and dtype, float32 or float64.

    Raises:
        TypeError: ``bits`` is no int.
        ValueError: ``bits`` are not 2 to 8.
    """

    def __init__(self, bits: int, groups: int | None = None) -> None:
        super().__init__()
        check_bits("WeightQuantiser", bits)
        self.bits = bits
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            grouped = self._by_channel(weight.detach())
            scale = self._scale(grouped)
            rounded = (self._rounded(grouped, scale) * scale).view(weight.shape)
        return _StraightThrough.apply(weight, rounded)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The quantised weights as whole numbers, such as ``ops.spiking_conv2d`` takes them with their ``scale``.

        Args:
            weight: as of a call.

        Returns:
            int8 in the shape of ``weight``, and the scales [O] in its dtype: their product is what a call returns.
        """
        grouped = self._by_channel(weight.detach())
        scale = self._scale(grouped)
        return self._rounded(grouped, scale).to(torch.int8).view(weight.shape), scale.flatten()

    @property
    def largest(self) -> int:
        """q, the largest whole number."""
        return 2 ** (self.bits - 1) - 1

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def _by_channel(self, weight: Tensor) -> Tensor:
        """As [G, C/G, O/G, taps], G = 1 and C = 1 where output channels come first."""
        if self.groups is None:
            return weight.reshape(1, 1, weight.shape[0], -1)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def _scale(self, grouped: Tensor) -> Tensor:
        """[G, 1, O/G, 1]; 1 for channels of zeros."""
        largest = grouped.abs().amax((1, 3), keepdim=True) / self.largest
        best = torch.where(largest > 0, largest, torch.ones_like(largest))
        least = torch.full_like(best, torch.inf)
        for share in _SHARES:
            scale = torch.where(largest > 0, largest * share, best)
            error = (self._rounded(grouped, scale) * scale - grouped).square_().sum((1, 3), keepdim=True)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best

    def _rounded(self, grouped: Tensor, scale: Tensor) -> Tensor:
        return (grouped / scale).round_().clamp_(-self.largest, self.largest)


class _StraightThrough(torch.autograd.Function):
    """``rounded`` with the gradient of ``weight``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def quantise(model: nn.Module, bits: int) -> None:
    """Let all weight layers of a network compute with weights of few bits, in training too; see WeightQuantiser.

    Parameters stay as they are and train on, in full precision; what the layers read as ``weight`` are rounded
    values. Optimisers made before hold the same Parameter objects. Biases and batch norm are not quantised.
    ``state_dict`` keeps names and full precision, so that checkpoints of quantised and other networks load into each
    other.

    Of a TandemNetwork both twins are quantised, as they are where :func:`tandem_cuda.convert` is given a quantised ANN,
    and :func:`tandem_cuda.freeze` freezes the rounded weights. Layers quantise at every call: they keep no folded
    weights in eval mode, so freeze what is to be fast. Of a quantised network a copy can be made by ``copy.deepcopy``,
    but not by pickling, as of all parametrised modules.

    Args:
        model: changed in place: its tandem layers, nn.Linear and convolutions.
        bits: 2 to 8. A network that is quantised already gets the new number.

    Raises:
        TypeError: ``model`` is no nn.Module, ``bits`` no int.
        ValueError: ``bits`` are not 2 to 8; no weight layer; a layer whose weight has another parametrisation. Nothing
            is changed then.
    """
    check_bits("quantise", bits)
    layers = _layers("quantise", model)
    if not layers:
        raise ValueError(f"quantise: model must have weight layers, got {type(model).__name__} without")
    for name, layer in layers:
        if parametrize.is_parametrized(layer, "weight") and quantiser(layer) is None:
            raise ValueError(f"quantise: model must have weights without parametrisations, got one of {name}")
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
    """Undo :func:`quantise`: layers compute with the full-precision weights that have been trained.

    Raises:
        TypeError: ``model`` is no nn.Module.
    """
    for _, layer in _layers("unquantise", model):
        if quantiser(layer) is not None:
            _remove_parametrisation(layer)
            _remove_hooks(layer)
    _tie(model)


def quantiser(layer: nn.Module) -> WeightQuantiser | None:
    """What quantises the weight of a layer, None where nothing does."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    parametrizations: Any = layer.parametrizations
    first = parametrizations.weight[0]
    return first if isinstance(first, WeightQuantiser) else None


def check_bits(op: str, bits: Any) -> None:
    """TypeError or ValueError unless a number of bits is an int from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{op}: bits must be an int, got {type(bits).__name__}")
    if not 2 <= bits <= 8:
        raise ValueError(f"{op}: bits must be from 2 to 8, got {bits}")


def _networks(model: nn.Module) -> list[TandemNetwork]:
    return [module for module in model.modules() if isinstance(module, TandemNetwork)]


def _layers(op: str, model: Any) -> list[tuple[str, nn.Module]]:
    """Weight layers with their names, each once, those of ANN twins among them."""
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


# State dicts have the weight where it would be without a parametrisation.

_PARAMETRISED = "parametrizations.weight.original"


def _plain_name(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    items = list(state_dict.items())
    state_dict.clear()
    state_dict.update((prefix + "weight" if key == prefix + _PARAMETRISED else key, value) for key, value in items)


def _parametrised_name(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    if prefix + "weight" in state_dict:
        state_dict[prefix + _PARAMETRISED] = state_dict.pop(prefix + "weight")


def _remove_parametrisation(layer: Any) -> None:
    if len(layer.parametrizations) > 1:  # of the bias, by somebody else
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return
    # torch's own takes the property off the class, which copies of the layer share.
    weight, plain = layer.parametrizations.weight.original, parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = plain
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer.register_parameter("weight", weight)  # first, as it was
    layer._parameters.update(others)


def _remove_hooks(layer: nn.Module) -> None:
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_plain_name, _parametrised_name):
                del hooks[key]
