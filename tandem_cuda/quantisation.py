"""Quantisation-aware training: weights of a few bits, with one scale per output channel."""

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

# Candidate scales, as fractions of the smallest scale that clips nothing. For channels of 576 Gaussian weights the best
# fraction is on average 0.38 with 2 bits, 0.76 with 4 and 1 with 8; for 4,096 weights it is 0.33, 0.66 and 1.
_SHARES = [share / 20 for share in range(20, 4, -1)]


class WeightQuantiser(nn.Module):
    """A parametrisation (torch.nn.utils.parametrize) that rounds weights to scale * {-q, ..., q}, q = 2^(bits-1) - 1.

    The gradient passes to the weights as if they were not rounded: the straight-through estimator (Bengio, Leonard &
    Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation", 2013,
    arXiv:1308.3432). Clipped weights receive it too, so that none gets stuck.

    Each output channel has its own scale, as in Krishnamoorthi ("Quantizing deep convolutional networks for efficient
    inference: A whitepaper", 2018, arXiv:1806.08342), so that batch norm, whose gain differs between channels, can be
    folded into it. The scale is a fraction of the channel's largest weight over q: of 16 fractions from 0.25 to 1, the
    one with the least squared error. Fraction 1 alone would serve few bits badly. With 2 bits it would round every
    weight below half of the largest one to zero; for 576 Gaussian weights the error would be 84 % of their norm instead
    of 43 % (with 4 bits, 14 % instead of 11 %). The scale is recomputed whenever the weights are used; only the weights
    are stored.

    Args:
        bits: 2 to 8.
        groups: the ``groups`` of a transposed convolution, whose weights are [C, O/groups, ...]; None for all other
            layers, whose weights are [O, ...].

    Shape:
        Tensor -> Tensor of the same shape and dtype, float32 or float64.

    Raises:
        TypeError: ``bits`` is not an int.
        ValueError: ``bits`` is not from 2 to 8.
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
        """Quantise to integers and scales, in the form that ``ops.spiking_conv2d`` takes.

        Args:
            weight: the full-precision weights, as ``forward`` takes them.

        Returns:
            ``(integers, scale)``: int8 in the shape of ``weight``, and [O] in its dtype. Their product is the result of
            ``forward``.
        """
        grouped = self._by_channel(weight.detach())
        scale = self._scale(grouped)
        return self._rounded(grouped, scale).to(torch.int8).view(weight.shape), scale.flatten()

    @property
    def largest(self) -> int:
        """q, the largest integer."""
        return 2 ** (self.bits - 1) - 1

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def _by_channel(self, weight: Tensor) -> Tensor:
        """Reshape to [G, C/G, O/G, taps]; G = 1 and C = 1 if output channels come first."""
        if self.groups is None:
            return weight.reshape(1, 1, weight.shape[0], -1)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def _scale(self, grouped: Tensor) -> Tensor:
        """Return the scales [G, 1, O/G, 1]; 1 for channels whose weights are all zero."""
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
    """Return ``rounded`` and pass its gradient to ``weight``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def quantise(model: nn.Module, bits: int) -> None:
    """Quantise the weights of all weight layers of a network, for training and inference; see WeightQuantiser.

    The Parameters are unchanged and keep training in full precision, and existing optimisers stay valid; the layers'
    ``weight`` attribute returns the rounded values. Biases and batch norm are not quantised. ``state_dict`` keeps its
    names and full precision, so quantised and other networks can load each other's checkpoints.

    A TandemNetwork is quantised in both twins; converting a quantised ANN with :func:`tandem_cuda.convert` has the same
    effect. :func:`tandem_cuda.freeze` freezes the rounded weights. Layers quantise in every call and cache nothing in
    eval mode, so freeze a network for fast inference. Like every parametrised module, a quantised network supports
    ``copy.deepcopy`` but not pickling.

    Args:
        model: the network; its tandem layers, nn.Linear and convolutions are changed in place.
        bits: 2 to 8. A network that is already quantised is changed to this number of bits.

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``bits`` is not an int.
        ValueError: ``bits`` is not from 2 to 8, ``model`` has no weight layer, or a weight has another parametrisation.
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


def quantiser(layer: nn.Module) -> WeightQuantiser | None:
    """Return the WeightQuantiser of a layer's weight, or None if it has none."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    parametrizations: Any = layer.parametrizations
    first = parametrizations.weight[0]
    return first if isinstance(first, WeightQuantiser) else None


def check_bits(op: str, bits: Any) -> None:
    """Raise TypeError or ValueError unless ``bits`` is an int from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{op}: bits must be an int, got {type(bits).__name__}")
    if not 2 <= bits <= 8:
        raise ValueError(f"{op}: bits must be from 2 to 8, got {bits}")


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
