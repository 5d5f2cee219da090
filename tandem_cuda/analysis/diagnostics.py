"""How well the spiking network and its ANN twin agree, layer by layer: counts, activations and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import EncodedInput, SpikingAdaptiveAvgPool2d, SpikingAvgPool2d, SpikingMaxPool2d, TandemAdd
from ..nn.modes import evaluating
from ..nn.tandem import TandemLayer, stored
from ..spike_train import SpikeTrain
from .table import table

_POOLS = (SpikingAvgPool2d, SpikingAdaptiveAvgPool2d, SpikingMaxPool2d)


@dataclass(frozen=True)
class LayerAgreement:
    """How far one tandem layer (or TandemAdd) and its ANN twin agree, averaged over the samples."""

    name: str
    """Qualified name in the model, as in ``named_modules``."""
    count_error: float
    """Mean of abs(c - a) over neurons and samples, in spikes; a is the ANN activation given the counts from below."""
    count_cosine: float
    """Cosine of the angle between a sample's counts c and those activations a."""
    accumulated_error: float
    """As ``count_error``, with the activation that the ANN has by itself, of its own activations from below."""
    accumulated_cosine: float
    """As ``count_cosine``, with the activation that the ANN has by itself."""
    gradient_cosine: float
    """Cosine between the tandem rule's and the ANN's gradient of the loss with respect to the layer's weights (those of
    all branches of a TandemAdd)."""
    gradient_norm_ratio: float
    """Euclidean norm of the tandem rule's gradient over that of the ANN's; infinite where the latter alone is 0, nan
    where both are."""


class AgreementTable(list[LayerAgreement]):
    """A list of :class:`LayerAgreement`, one per layer in order of execution, that prints as a table."""

    def __str__(self) -> str:
        header = ["layer", "count error", "cosine", "accumulated error", "cosine", "gradient cosine", "norm ratio"]
        rows = [
            [
                layer.name,
                f"{layer.count_error:.4f}",
                f"{layer.count_cosine:.4f}",
                f"{layer.accumulated_error:.4f}",
                f"{layer.accumulated_cosine:.4f}",
                f"{layer.gradient_cosine:.4f}",
                f"{layer.gradient_norm_ratio:.4f}",
            ]
            for layer in self
        ]
        return table([header, *rows])


def diagnose(model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor]) -> AgreementTable:
    """Compare a tandem network with its ANN twin on one batch.

    The tandem rule lets the ANN receive actual spike counts and back-propagates through the ANN's activations (Wu et
    al., "A Tandem Learning Rule", IEEE TNNLS 2021, doi:10.1109/TNNLS.2021.3095724), which works as far as counts are
    near the activations that they stand for. That paper judges this, after Anderson & Berg, "The High-Dimensional
    Geometry of Binary Neural Networks", ICLR 2018, arXiv:1705.07199, by the angle between the two as vectors: what
    ``count_cosine`` measures. The others separate what one layer adds (the ANN fed with the counts from below) from
    what has piled up since the input (the ANN by itself), and say what is left of the ANN's exact gradient.

    With v = W * (amplitude * c_below) + b, batch norm applied, the activation is relu(v) / threshold for IF neurons and
    T times :func:`tandem_cuda.neuron.lif.lif_rate` of v for LIF neurons; where neurons have ``clip``, at most T.
    Pooling is the ANN's, of counts or activations. Both networks run in eval mode: batch norm's running statistics, no
    dropout.

    Cosines of two zero vectors, and of one, are 0.

    Args:
        model: any module with tandem layers in it, each of which runs once in a forward pass.
        inputs: one batch for it.
        loss: takes what ``model`` returns; a scalar Tensor, such as ``lambda y: F.cross_entropy(y, labels)``.

    Returns:
        One LayerAgreement per tandem layer, in order of execution; a list whose ``str`` is a table. Modes, gradients
        (``.grad``) and statistics of the model are left as they were.

    Raises:
        TypeError: ``model`` is no nn.Module, or ``loss`` does not return a Tensor.
        ValueError: no tandem layer ran, one ran twice, a layer has no weights that require gradients, or ``loss`` is
            no scalar.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"diagnose: model must be an nn.Module, got {type(model).__name__}")
    modules = {path or type(module).__name__: module for path, module in model.named_modules()}
    layers = {name: module for name, module in modules.items() if isinstance(module, (TandemLayer, TandemAdd))}
    with evaluating(model), torch.enable_grad():
        with _recorded("diagnose", layers) as found:
            tandem_loss = _scalar(loss(model(inputs)))
        weights = [_weights(name, layer) for name, (layer, _, _) in found.items()]
        flat = [weight for group in weights for weight in group]
        tandem = iter(torch.autograd.grad(tandem_loss, flat, allow_unused=True))
        pools = {name: module for name, module in modules.items() if isinstance(module, _POOLS)}
        alone: dict[str, Tensor] = {}
        with _ann({**layers, **pools}, alone):
            exact = iter(torch.autograd.grad(_scalar(loss(model(inputs))), flat, allow_unused=True))
    gradients = [(_gathered(group, tandem), _gathered(group, exact)) for group in weights]
    return AgreementTable(
        LayerAgreement(
            name=name,
            count_error=float((count - activation).abs().mean()),
            count_cosine=_cosine(count, activation),
            accumulated_error=float((count - alone[name]).abs().mean()),
            accumulated_cosine=_cosine(count, alone[name]),
            gradient_cosine=_cosine(ours, theirs),
            gradient_norm_ratio=float(ours.double().norm() / theirs.double().norm()),
        )
        for (name, (_, count, activation)), (ours, theirs) in zip(found.items(), gradients, strict=True)
    )


def counts_and_activations(model: nn.Module, inputs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Spike counts of each tandem layer (or TandemAdd) and what :func:`diagnose` compares them with.

    Args:
        model: any module with tandem layers in it, each of which runs once in a forward pass. Runs in eval mode without
            gradient; each submodule gets its own mode back.
        inputs: one batch for it.

    Returns:
        By qualified name, in order of execution: counts and the ANN activations given the counts from below, both
        [N, ...] and of one dtype.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: no tandem layer ran, or one ran twice.
    """
    op = "counts_and_activations"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module, got {type(model).__name__}")
    modules = {path or type(module).__name__: module for path, module in model.named_modules()}
    layers = {name: module for name, module in modules.items() if isinstance(module, (TandemLayer, TandemAdd))}
    with evaluating(model), torch.no_grad(), _recorded(op, layers) as found:
        model(inputs)
    return {name: (count, activation) for name, (_, count, activation) in found.items()}


@contextmanager
def _recorded(op: str, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[nn.Module, Tensor, Tensor]]]:
    """Layers that run, with their counts, and activations of the counts from below."""
    found: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def on_layer(name: str, layer: nn.Module, args: tuple[Any, ...], output: SpikeTrain) -> None:
        if name in found:
            raise ValueError(f"{op}: model must run each tandem layer once, got {name!r} twice")
        with torch.no_grad():
            found[name] = layer, output.count.detach(), _activation(layer, *args).detach()

    handles = [layer.register_forward_hook(partial(on_layer, name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(f"{op}: model must run a tandem layer (TandemConv2d, TandemLinear), got none that ran")


def _weights(name: str, layer: nn.Module) -> list[Tensor]:
    branches = layer.branches if isinstance(layer, TandemAdd) else [layer]
    weights = [getattr(*stored(branch, "weight")) for branch in branches if isinstance(branch, TandemLayer)]
    if not weights or not all(weight.requires_grad for weight in weights):
        raise ValueError(f"diagnose: model must have layers with weights that require gradients, got {name!r} without")
    return weights


def _gathered(weights: list[Tensor], gradients: Iterator[Tensor | None]) -> Tensor:
    """The next gradients, of these weights, as one vector [1, ...]; zero where the loss does not depend on them."""
    parts = ((weight, next(gradients)) for weight in weights)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for w, g in parts]).unsqueeze(0)


def _activation(layer: Any, *inputs: SpikeTrain | EncodedInput) -> Tensor:
    """The layer's ANN activation in eval mode, differentiable; its inputs are the counts of trains."""
    x = inputs[0]
    if isinstance(layer, SpikingMaxPool2d):
        return nn.MaxPool2d.forward(layer, _value(x))
    if isinstance(layer, SpikingAvgPool2d):
        return nn.AvgPool2d.forward(layer, _value(x)) / layer.threshold
    if isinstance(layer, SpikingAdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool2d.forward(layer, _value(x)) / layer.threshold
    branches = layer.branches if isinstance(layer, TandemAdd) else [layer]
    v = torch.stack([_pre_activation(branch, x) for branch, x in zip(branches, inputs, strict=True)]).sum(0)
    activation: Tensor = layer.neuron.activation(v, x.time_steps)
    return activation.clamp(max=layer.neuron.largest(x.time_steps)) if layer.neuron.clip else activation


def _pre_activation(layer: Any, x: SpikeTrain | EncodedInput) -> Tensor:
    value = _value(x)
    if isinstance(x, SpikeTrain) and x.amplitude != 1:
        value = value * x.amplitude
    if not isinstance(layer, TandemLayer):  # the identity in a join
        return value
    v = layer.dense_product(value, layer.kernel_weight(), layer.bias)
    return v if layer.norm is None else layer.normalise(v)


def _value(x: SpikeTrain | EncodedInput) -> Tensor:
    """What the ANN receives, but for the amplitude."""
    if isinstance(x, SpikeTrain):
        return x.count
    return x.value * x.time_steps if x.mode == "constant" else x.value


@contextmanager
def _ann(layers: dict[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Let layers and pooling hand on ANN activations instead of counts, and note them."""

    def forward(name: str, layer: Any, *inputs: Any) -> SpikeTrain:
        activation, x = _activation(layer, *inputs), inputs[0]
        found[name] = activation.detach()
        # Whatever stands between the layers handles a train, but nothing reads the spikes of this one.
        planes = -(-x.time_steps // 8)
        no_spikes = torch.zeros((), dtype=torch.uint8, device=activation.device).expand(planes, *activation.shape)
        amplitude = (
            x.amplitude * getattr(layer, "amplitude", 1.0) if isinstance(layer, _POOLS) else layer.neuron.amplitude
        )
        return SpikeTrain.unchecked(no_spikes, x.time_steps, activation, amplitude=amplitude)

    try:
        for name, layer in layers.items():
            layer.forward = partial(forward, name, layer)
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"diagnose: loss must return a Tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"diagnose: loss must return a scalar, got {list(loss.shape)}")
    return loss


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean over samples of the cosine between vectors."""
    return float(nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1).mean())
