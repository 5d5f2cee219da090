"""What a tandem layer is made of: weights, batch norm, a threshold that may learn, and neurons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..neuron import IF, Neuron, check_neuron
from ..ops.product import check_engine
from . import learned_threshold
from .batch_norm import Norm
from .spiking import Spiking
from .synapses import Synapses
from .trained_code import TrainingCall
from .weight_cache import WeightCache
from .wiring import Wiring

OF_CONVERSION = ("input_scale", "correction", "thresholds")
"""Buffers of tandem layers that conversion sets."""


class WeightedLayer(Spiking, ABC):
    """The tensors and settings of a tandem layer, which lists torch's weight layer after this class in its bases.

    A converted network sets what its layers share with the ANN: ``wiring`` (:class:`.wiring.Wiring`), and the buffers
    ``input_scale``, [C], a factor of the weights of each input, ``correction`` and ``thresholds``, [O]. They are not in
    the state dict. With ``thresholds`` the neuron model has threshold 1. With a LeakyReLU or PReLU, there is a buffer
    or a parameter of the ANN, ``slope``.
    """

    weight: Tensor
    bias: Any  # Tensor | None; torch's layers annotate it differently
    norm: Norm | None
    norm_class: type[Norm]
    """The class of batch norm that folds into the layer."""
    log_threshold: nn.Parameter | None
    neuron: Neuron
    engine: str
    wiring: Wiring | None = None
    input_scale: Tensor | None
    correction: Tensor | None
    thresholds: Tensor | None
    trained_radix: bool | None = None
    """Whether the weights have learned from radix spikes; None if not from spikes. See :mod:`.trained_code`."""
    _training_call: TrainingCall | None = None
    slope: Tensor
    """The slope below zero of each value, [1] or [C], if the wiring says that there is one."""

    def __init__(
        self,
        *args: Any,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        if norm not in (None, "batch"):
            raise ValueError(f"{name}: norm must be None or 'batch', got {norm!r}")
        check_neuron(name, neuron)
        check_engine(name, engine)
        self.neuron = neuron
        self.engine = engine
        self._cache = WeightCache()
        w = self.weight
        self.norm = None if norm is None else self.norm_class(self.synapses.outputs, device=w.device, dtype=w.dtype)
        log_threshold = learned_threshold.new_log_threshold(name, learn_threshold, w)
        self.register_parameter("log_threshold", log_threshold)
        for name in OF_CONVERSION:
            self.register_buffer(name, None, persistent=False)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            computed = self.__dict__.get("_modules", {}).get("computed")
            if computed is not None and name in computed:
                return computed.tensor(name)
        return super().__getattr__(name)

    def reset_parameters(self) -> None:
        """Draw new weights and return to the neuron's own threshold."""
        super().reset_parameters()  # type: ignore[misc]  # of torch's layer
        log_threshold = self._parameters.get("log_threshold")  # torch's constructor calls this, too
        if log_threshold is not None:
            nn.init.zeros_(log_threshold)

    @property
    @abstractmethod
    def synapses(self) -> Synapses:
        """The products of this layer's weights."""

    @property
    def fires_pairs(self) -> bool:
        """Whether neurons 2i and 2i + 1 are for v and -v."""
        return self.wiring is not None and (self.wiring.paired_outputs or self.wiring.in_pairs)

    def pair_dim(self, dims: int | None) -> int | None:
        """Return the ``pair_dim`` of outputs [N, O, ...] or [N, ..., O] with ``dims`` dimensions; None if not known."""
        if not self.fires_pairs:
            return None
        return 1 if dims == 2 else self.synapses.features

    def set_slope(self, slope: float | nn.Parameter, like: Tensor) -> None:
        """Take the slope below zero: a number, in the dtype and on the device of ``like``, or the ANN's parameter."""
        assert self.wiring is not None
        if isinstance(slope, nn.Parameter):
            self.slope, self.wiring = slope, replace(self.wiring, slopes="learned")
            return
        folds = tuple(range(self.synapses.outputs // 2)) if slope < 0 else ()
        self.wiring = replace(self.wiring, slopes="constant", folds=folds)
        self.register_buffer("slope", like.new_tensor([slope]), persistent=False)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments that define the connections, as JSON types (but tuples for lists)."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        learns = "" if self.log_threshold is None else ", learn_threshold=True"
        return f"{super().extra_repr()}, neuron={self.neuron}{engine}{learns}"
