"""The frozen form of tandem layers: their spiking twin."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from .. import ops
from ..neuron import IF, LIF, Neuron
from ..spike_train import SpikeTrain
from .conv import TandemConv2d
from .encode import EncodedInput
from .frozen import FrozenLayer, Settings, Span, State, Tensors, check_tensors, frozen_tensor, register
from .layer import SpikingWeights, TandemLayer
from .linear import TandemLinear


class FrozenTandem(FrozenLayer):
    """A tandem layer's spiking twin: batch norm folded, weights packed.

    Args:
        layer: says how to multiply and when neurons fire; made without bias and norm. Its parameter is replaced.
        weight: of the shape of the layer's own; where ``takes_encoded``, with batch norm's gain in it.
        scale: [O], batch norm's gain of sums over spikes; None for 1.
        bias: [O], to be spread over the T time steps.
        takes_encoded: the input is what Encode returns, not a SpikeTrain.
    """

    scale: Tensor | None
    bias: Tensor | None
    packed: Tensor | None

    def __init__(
        self, layer: TandemLayer, weight: Tensor, scale: Tensor | None, bias: Tensor | None, takes_encoded: bool
    ) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        self.takes_encoded = takes_encoded
        del layer.weight
        layer.register_buffer("weight", frozen_tensor(weight))
        self.layer = layer
        self.register_buffer("scale", None if scale is None else frozen_tensor(scale))
        self.register_buffer("bias", None if bias is None else frozen_tensor(bias))
        self.register_buffer("packed", None, persistent=False)
        self.pack()
        self.register_load_state_dict_post_hook(_pack_again)  # type: ignore[no-untyped-call]  # torch's

    @classmethod
    @torch.no_grad()
    def of(cls, layer: TandemLayer, encoded: bool) -> FrozenTandem:
        """Fold batch norm where eval mode does: into the weights for real input, into sums for spikes."""
        twin = _bare(nn.utils.parametrize.type_before_parametrizations(layer), _settings(layer))
        if encoded:
            weight, bias = layer._folded()
            return cls(twin, weight, None, bias, encoded)
        gain = None if layer.norm is None else layer._gain()
        bias = layer.bias if gain is None else layer._folded_bias(gain)
        return cls(twin, layer.weight, gain, bias, encoded)

    @classmethod
    def load(cls, layer_class: type[TandemLayer], settings: Settings, tensors: Tensors) -> FrozenTandem:
        kind, given = layer_class.__name__, dict(settings)
        encoded = given.pop("takes_encoded", None)
        if not isinstance(encoded, bool):
            raise ValueError(f"{kind}: setting takes_encoded must be true or false, got {encoded!r}")
        if any(isinstance(value, bool) for value in tree_leaves(given)):  # which passes for a number
            raise ValueError(f"{kind}: settings must not be true or false, got {given}")
        layer = _bare(layer_class, given)
        if json.dumps(_settings(layer), sort_keys=True) != json.dumps(given, sort_keys=True):
            raise ValueError(f"{kind}: settings must be those of a layer, {_settings(layer)}, got {given}")
        outputs = (layer.out_channels if isinstance(layer, _ConvNd) else cast(nn.Linear, layer).out_features,)
        shapes = {"weight": tuple(layer.weight.shape), "bias": outputs} | ({} if encoded else {"scale": outputs})
        check_tensors(kind, tensors, shapes, optional=("scale", "bias"))
        return cls(layer, tensors["weight"], tensors.get("scale"), tensors.get("bias"), encoded)

    def settings(self) -> Settings:
        return {**_settings(self.layer), "takes_encoded": self.takes_encoded}

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"weight": self.layer.weight, "scale": self.scale, "bias": self.bias}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def encoded(self, *inputs: bool) -> bool:
        if inputs != (self.takes_encoded,):
            expected = "what Encode returns" if self.takes_encoded else "spikes"
            raise ValueError(f"{self.kind}: input must be {expected}, and one")
        return False

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[SpikeTrain, State | None]:
        bias = None if self.bias is None else self.bias / span.total
        if self.takes_encoded:
            bits, carried = self._from_encoded(span, state, x, bias)
        elif isinstance(x, SpikeTrain):
            bits, _, potential = self.layer._spiking_product(
                x,
                SpikingWeights(self.layer.weight, self.packed, self.scale, bias),
                want_sum=False,
                potential=None if state is None else state[0],
                want_potential=not span.ends,
            )
            carried = (potential,)
        else:
            raise TypeError(f"{self.kind}: input must be a SpikeTrain, got {type(x).__name__}")
        return SpikeTrain(bits, span.now, dtype=self.layer.weight.dtype), None if span.ends else carried

    def _from_encoded(
        self, span: Span, state: State | None, x: EncodedInput, bias: Tensor | None
    ) -> tuple[Tensor, State]:
        layer, constant = self.layer, x.mode == "constant"
        if state is None:
            weight, value = layer.weight, layer._checked_value(x.value)
            current = layer._current(value, weight, bias if constant else None)
            mode, potential = x.mode, None
        else:
            (current, potential), mode = state, "constant"
        bits, _, potential = ops.integrate_and_fire(
            current,
            span.now,
            None if constant else bias,
            potential,
            mode=mode,
            threshold=layer.neuron.threshold,
            leak=layer.neuron.leak,
            want_sum=False,
            want_potential=not span.ends,
        )
        # Of an impulse nothing is left after the first step but the bias.
        return bits, (current if constant else torch.zeros_like(current), potential)

    def pack(self) -> None:
        """Arrange the weights for the kernels of their device."""
        if not self.takes_encoded:  # else the product is torch's
            self.packed = ops.pack_weight(self.layer.weight, getattr(self.layer, "groups", 1))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        converted = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        self.pack()
        return converted


def _pack_again(module: FrozenTandem, incompatible_keys: Any) -> None:
    module.pack()


def _settings(layer: TandemLayer) -> Settings:
    """The arguments of the layer's constructor, without bias, norm, device and dtype."""
    neuron = {"threshold": float(layer.neuron.threshold), "leak": float(layer.neuron.leak)}
    return {**layer._geometry(), "neuron": neuron, "engine": layer.engine}


def _bare(layer_class: type[TandemLayer], settings: Settings) -> TandemLayer:
    """A layer made from its settings, without bias, norm and values."""
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    neuron = _neuron(layer_class.__name__, arguments.pop("neuron", None))
    return layer_class(**arguments, neuron=neuron, bias=False, device="meta")


def _neuron(kind: str, settings: Any) -> Neuron:
    if not isinstance(settings, dict) or settings.keys() != {"threshold", "leak"}:
        raise ValueError(f"{kind}: setting neuron must hold threshold and leak, got {settings!r}")
    threshold, leak = settings["threshold"], settings["leak"]
    return IF(threshold) if leak == 1 else LIF(threshold, leak)


for layer_class in (TandemConv2d, TandemLinear):
    register(layer_class, FrozenTandem.of, partial(FrozenTandem.load, layer_class))
