"""How well the spiking network and its ANN twin agree, layer by layer: counts, activations and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._table import table
from ..nn.modes import evaluating
from ..nn.weights import stored
from ..spike_train import SpikeTrain
from .inputs import arguments, inputs_of


@dataclass(frozen=True)
class LayerAgreement:
    """The agreement of one tandem layer or TandemAdd with its ANN twin, averaged over the samples.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.analysis import diagnose
        >>> layer = diagnose(net, torch.rand(8, 784), lambda logits: logits.square().mean())[0]
        >>> -1 <= layer.count_cosine <= 1
        True
    """

    name: str
    """Qualified name in the model, as in ``named_modules``."""
    count_error: float
    """Mean of abs(c - a) over neurons and samples, in spikes. c are the counts, and a the activations that the ANN
    layer computes from the counts of the layer before."""
    count_cosine: float
    """Cosine of the angle between a sample's counts c and activations a."""
    accumulated_error: float
    """As ``count_error``, with a computed from the ANN's own activations in all layers before."""
    accumulated_cosine: float
    """As ``count_cosine``, with a computed from the ANN's own activations in all layers before."""
    gradient_cosine: float
    """Cosine between the tandem rule's and the ANN's gradient of the loss with respect to the layer's weights (for a
    TandemAdd, the weights of all branches)."""
    gradient_norm_ratio: float
    """Euclidean norm of the tandem rule's gradient divided by the norm of the ANN's gradient; infinite if only the
    ANN's is 0, nan if both are."""


class AgreementTable(list[LayerAgreement]):
    """A list of :class:`LayerAgreement`, one per layer in order of execution, that prints as a table.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.analysis import diagnose
        >>> print(str(diagnose(net, torch.rand(8, 784), lambda logits: logits.square().mean())).splitlines()[0])
        layer  count error  cosine  accumulated error  cosine  gradient cosine  norm ratio
    """

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

    The tandem rule feeds actual spike counts into the ANN and back-propagates through the ANN's activations (Wu et al.,
    "A Tandem Learning Rule", IEEE TNNLS 2021, doi:10.1109/TNNLS.2021.3095724). It works as long as the counts are close
    to the activations that they replace. Following Anderson & Berg, "The High-Dimensional Geometry of Binary Neural
    Networks", ICLR 2018, arXiv:1705.07199, the paper measures this by the angle between the two as vectors, which is
    ``count_cosine``. The other measures separate the error of one layer (the ANN layer fed with counts) from the error
    accumulated since the input (the ANN by itself), and compare the tandem gradient with the ANN's exact gradient.

    With v = W * (amplitude * c_below) + b after batch norm, divided by exp(log_threshold) if the threshold learns, the
    activation is the one of the neuron model: relu(v) / threshold for ``IF(threshold)``. For neurons with ``clip`` it
    is at most ``neuron.largest(T)``. Pooling is the ANN's, applied to counts or activations. Both networks run in eval
    mode: batch norm uses its running statistics, and dropout is off.

    The cosine is 0 if one or both vectors are zero.

    Args:
        model: any module that contains tandem layers, each of which runs once in a forward pass.
        inputs: one batch for ``model``: what its forward takes, or a tuple of several inputs.
        loss: a function that takes the output of ``model`` and returns a scalar Tensor, such as
            ``lambda y: F.cross_entropy(y, labels)``.

    Returns:
        A list whose ``str`` is a table: one LayerAgreement per tandem layer, in order of execution. Modes, gradients
        (``.grad``) and statistics of the model are unchanged.

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``loss`` does not return a Tensor.
        ValueError: no tandem layer ran; one ran twice; a layer has no weights that require gradients; or ``loss`` does
            not return a scalar.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.analysis import diagnose
        >>> labels = torch.arange(8)
        >>> table = diagnose(net, torch.rand(8, 784), lambda logits: nn.functional.cross_entropy(logits, labels))
        >>> table[0].name
        '1'
    """
    twins = _ann_twins("diagnose", model)
    given = arguments(model, inputs) if inputs_of(model) > 1 else (inputs,)
    with evaluating(model), torch.enable_grad():
        with _recorded("diagnose", twins) as found:
            tandem_loss = _scalar(loss(model(*given)))
        weights = [_weights(name, layer) for name, (layer, _, _) in found.items()]
        flat = [weight for group in weights for weight in group]
        tandem = iter(torch.autograd.grad(tandem_loss, flat, allow_unused=True))
        alone: dict[str, Tensor] = {}
        with _ann(twins, alone):
            exact = iter(torch.autograd.grad(_scalar(loss(model(*given))), flat, allow_unused=True))
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
    """Return the spike counts of each tandem layer or TandemAdd, and the activations of the ANN twin.

    Args:
        model: any module that contains tandem layers, each of which runs once in a forward pass. It runs in eval mode
            without gradient; afterwards each submodule has its own mode again.
        inputs: one batch for ``model``: what its forward takes, or a tuple of several inputs.

    Returns:
        For each qualified name, in order of execution: the counts (of radix spikes, their values), and the ANN's
        activations computed from the counts of the layer before, both [N, ...] and of the same dtype. :func:`diagnose`
        compares these.

    Raises:
        TypeError: ``model`` is not an nn.Module.
        ValueError: no tandem layer ran, or one ran twice.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.analysis import counts_and_activations
        >>> counts, activations = counts_and_activations(net, torch.rand(8, 784))["1"]
        >>> counts.shape, activations.shape
        (torch.Size([8, 50]), torch.Size([8, 50]))
    """
    op = "counts_and_activations"
    twins = _ann_twins(op, model)
    given = arguments(model, inputs) if inputs_of(model) > 1 else (inputs,)
    with evaluating(model), torch.no_grad(), _recorded(op, twins) as found:
        model(*given)
    return {name: (count, activation) for name, (_, count, activation) in found.items()}


@contextmanager
def _recorded(op: str, twins: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[nn.Module, Tensor, Tensor]]]:
    """Record the tandem layers that run, their counts, and the activations of the counts of the layer before."""
    found: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def on_layer(name: str, layer: Any, args: tuple[Any, ...], output: SpikeTrain) -> None:
        if name in found:
            raise ValueError(f"{op}: model must run each tandem layer once, got {name!r} twice")
        with torch.no_grad():
            found[name] = layer, output.value.detach(), layer.ann_twin(*args).value.detach()

    counted = [(name, layer) for name, layer in twins.items() if _is_counted(layer)]
    handles = [layer.register_forward_hook(partial(on_layer, name)) for name, layer in counted]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(f"{op}: model must run a tandem layer such as TandemConv2d, but none ran")


def _is_counted(module: nn.Module) -> bool:
    return hasattr(type(module), "synapses_by_input")


def _ann_twins(op: str, model: Any) -> dict[str, nn.Module]:
    """Return layers and pooling that have an ANN twin, by their names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module, got {type(model).__name__}")
    modules = {path or type(module).__name__: module for path, module in model.named_modules()}
    return {name: module for name, module in modules.items() if hasattr(type(module), "ann_twin")}


def _weights(name: str, layer: nn.Module) -> list[nn.Parameter]:
    held = (
        getattr(*stored(part, "weight")) for part in layer.modules() if _is_counted(part) and hasattr(part, "weight")
    )
    weights = [weight for weight in held if isinstance(weight, nn.Parameter)]  # an elementwise layer has constants
    if not weights or not all(weight.requires_grad for weight in weights):
        raise ValueError(f"diagnose: every layer must have weights that require gradients, but {name!r} has none")
    return weights


def _gathered(weights: Sequence[Tensor], gradients: Iterator[Tensor | None]) -> Tensor:
    """Return the next gradients, one for each weight, as one vector [1, ...]; zero where the loss has none."""
    parts = ((weight, next(gradients)) for weight in weights)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for w, g in parts]).unsqueeze(0)


@contextmanager
def _ann(layers: dict[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Make layers and pooling pass on ANN activations instead of counts, and record the activations."""

    def forward(name: str, layer: Any, *inputs: Any) -> SpikeTrain:
        train: SpikeTrain = layer.ann_twin(*inputs)
        found[name] = train.value.detach()
        return train

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
    """Return the cosine between vectors, averaged over samples."""
    return float(nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1).mean())
