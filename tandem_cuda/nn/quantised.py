"""Weight layers with and without quantised weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..ops import checks
from .computed import Computed
from .elementwise import TandemElementwise
from .quantiser import WeightQuantiser, quantiser
from .tandem import TandemLayer
from .weights import stored
from .wiring import over_inputs

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHT_LAYERS = (TandemLayer, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

Named = list[tuple[str, nn.Module]]
"""Layers and their names."""


def weight_layers(*models: nn.Module) -> Named:
    """Return each weight layer once."""
    found = {id(layer): (name, layer) for model in models for name, layer in model.named_modules()}
    return [
        (name, layer)
        for name, layer in found.values()
        if isinstance(layer, _WEIGHT_LAYERS) and not isinstance(layer, TandemElementwise) and not _is_constant(layer)
    ]


def _is_constant(layer: nn.Module) -> bool:
    """Whether the weights are constants of a converted ANN, such as the filter of a blur."""
    computed = Computed.in_(layer, "weight")
    if computed is not None:
        return next(computed.parameters(), None) is None
    return isinstance(layer, TandemLayer) and layer._buffers.get("weight") is not None


def check_quantisable(op: str, argument: str, layers: Named) -> None:
    """Raise a TypeError or ValueError if the weights of a layer cannot be quantised."""
    for name, layer in layers:
        where = f"in layer {name or type(layer).__name__}"
        if parametrize.is_parametrized(layer, "weight") and quantiser(layer) is None:
            raise ValueError(f"{op}: {argument} must have no other parametrisations of weights, got one {where}")
        if "weight" in vars(layer):
            raise ValueError(
                f"{op}: {argument} must have weights that are parameters, got one that a hook computes {where}; remove "
                "torch.nn.utils.prune, weight_norm or spectral_norm first"
            )
        if Computed.in_(layer, "weight") is not None:
            raise ValueError(f"{op}: {argument} must have weights that are parameters, got computed weights {where}")
        weight: Any = getattr(*stored(layer, "weight")).detach()
        if weight.dtype not in checks.FLOATING:
            raise TypeError(f"{op}: {argument} must have weights of float32 or float64, got {weight.dtype} {where}")
        if weight.numel() == 0:
            raise ValueError(f"{op}: {argument} must have weights that are not empty, got {list(weight.shape)} {where}")
        finite = weight.isfinite()
        if not weight.is_meta and not finite.all():
            raise ValueError(f"{op}: {argument} must have finite weights, got {weight[~finite][0].item()} {where}")


def quantise_layers(layers: Iterable[nn.Module], bits: int) -> None:
    """Give weights a WeightQuantiser, or change the bits of the one that they have."""
    for layer in layers:
        present = quantiser(layer)
        if present is not None:
            present.bits = bits
            continue
        groups = layer.groups if isinstance(layer, _TRANSPOSED) else None
        parametrize.register_parametrization(layer, "weight", WeightQuantiser(bits, groups))
        if isinstance(layer, TandemLayer):
            scale_integers(layer)
        hooks: Any = layer  # torch gives these two no types
        hooks.register_state_dict_post_hook(_plain_name)
        hooks.register_load_state_dict_pre_hook(_parametrised_name)


@contextmanager
def quantised_layers(layers: Named, bits: int) -> Iterator[None]:
    """Work as :func:`quantise_layers`, and undo it if the body of the context fails."""
    before = [(layer, getattr(quantiser(layer), "bits", None)) for _, layer in layers]
    quantise_layers((layer for _, layer in layers), bits)
    try:
        yield
    except BaseException:
        unquantise_layers(layer for layer, earlier in before if earlier is None)
        for layer, earlier in before:
            if earlier is not None:
                quantise_layers([layer], earlier)
        raise


def scale_integers(layer: Any, twin: nn.Module | None = None) -> None:
    """Make integers stand for what the products of a tandem layer take, also in a twin that shares its weights."""
    scale = layer.input_scale
    if scale is not None:
        shape = layer.weights.stored().shape
        if isinstance(layer, _TRANSPOSED):
            scale = scale.view(-1, 1, *[1] * (len(shape) - 2))
        else:
            scale = over_inputs(scale, shape, getattr(layer, "groups", 1))
    for module in (layer, *([] if twin is None else [twin])):
        of_weight = quantiser(module)
        if of_weight is not None:
            of_weight.input_scale = scale


def unquantise_layers(layers: Iterable[nn.Module]) -> None:
    """Remove WeightQuantisers."""
    for layer in layers:
        if quantiser(layer) is not None:
            _remove_parametrisation(layer)
            _remove_hooks(layer)


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
