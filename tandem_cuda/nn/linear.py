"""The fully connected tandem layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ..neuron import IF, Neuron
from . import schema
from .synapses import LinearSynapses
from .tandem import TandemLayer


class TandemLinear(TandemLayer, nn.Linear):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A fully connected tandem layer: nn.Linear whose neurons spike (Wu et al. 2021, section III).

    Args:
        in_features: F.
        out_features: O.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm1d).
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_linear`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, ..., F] (or EncodedInput from Encode) -> SpikeTrain [N, ..., O].

    Raises:
        TypeError: the input is a Tensor, or its dtype is not the weights'; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape.

    Examples:
        >>> layer = TandemLinear(20, 5)
        >>> spikes = layer(Encode(time_steps=8)(torch.rand(2, 20)))
        >>> spikes.count.sum().backward()  # through the ANN
        >>> layer.weight.grad.shape
        torch.Size([5, 20])
    """

    SETTINGS: ClassVar = {"in_features": schema.whole(0), "out_features": schema.whole(0)}
    norm_class = nn.BatchNorm1d

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        tandem: dict[str, Any] = {"norm": norm, "neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(in_features, out_features, bias, device, dtype, **tandem)

    @property
    def synapses(self) -> LinearSynapses:
        return LinearSynapses(self)
