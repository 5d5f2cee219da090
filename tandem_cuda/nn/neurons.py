"""TandemNeurons: spikes for a real value, such as the output of a SiLU or of layer norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..neuron import IF, Neuron, check_neuron, of_settings
from ..ops import autocast, checks
from ..ops.division import divided
from ..spike_train import SpikeTrain, interleaved
from . import schema
from .coupling import coupled, fired_train, needs_gradient
from .frozen import Span, State, single
from .schema import Settings, Tensors
from .sizes import REAL, SPIKES, Value, with_pairs
from .spiking import Spiking
from .synapses import Synapses


class TandemNeurons(Spiking):
    """Neurons whose input is a real value v, [N, C, ...]: they turn what has no spiking form into spikes again.

    The value is known only after the last time step of the spikes that it depends on. So the neurons wait for it,
    whether or not ``neuron`` has ``two_phase``, and then spike in T steps. Their current is v / T in every step; with
    ``two_phase`` and RadixIF they integrate v at once. The count has the value of the spikes and the gradient of the
    neuron's activation of v, as in every tandem layer (Wu et al. 2021, section III).

    Args:
        time_steps: T.
        neuron: a neuron model, such as IF(...).
        signed: whether the values may be negative. There are then two neurons for each value, 2i and 2i + 1, for v and
            -v.
        features: whether channels are along the last dimension and not along dimension 1.

    Shape:
        Tensor [N, C, ...] -> SpikeTrain [N, C, ...]; [N, 2 * C, ...] if ``signed``. With ``features``
        Tensor [N, ..., C] -> SpikeTrain [N, ..., C] or [N, ..., 2 * C].

    Raises:
        TypeError: the input is not a Tensor of floats, or ``time_steps`` is not an int.
        ValueError: ``time_steps`` < 1, or the input lacks dimensions.

    Examples:
        >>> TandemNeurons(4)(torch.tensor([[0.0, 2.0, 9.0]])).count
        tensor([[0., 2., 4.]])
    """

    reads = REAL
    needs_all_steps = True
    thresholds: Tensor | None
    """The threshold of each channel, [C], set by conversion; the neuron model then has threshold 1."""

    def __init__(self, time_steps: int, neuron: Neuron = IF(), signed: bool = False, features: bool = False) -> None:
        super().__init__()
        checks.check_time_steps("TandemNeurons", time_steps)
        check_neuron("TandemNeurons", neuron)
        self.time_steps, self.neuron, self.signed, self.features = time_steps, neuron, signed, features
        self.register_buffer("thresholds", None, persistent=False)

    def forward(self, x: Tensor) -> SpikeTrain:
        v = self.potential(x)
        bits = self.fired(v)
        pair_dim = self.pair_dim(v.dim())
        train = coupled(self.neuron, bits, v if needs_gradient(v) else None, self.time_steps, v.dtype)
        return train if pair_dim is None else train.replace_unchecked(pair_dim=pair_dim)

    def pair_dim(self, dims: int) -> int | None:
        """Return the dimension along which pairs lie; None if there are none."""
        if not self.signed:
            return None
        return -1 if self.features and dims > 2 else 1

    def potential(self, x: Tensor) -> Tensor:
        """Return v over the threshold of its channel, and if signed, its negative, as the neurons are arranged."""
        checks.check_tensor("TandemNeurons", "input", x)
        if x.dim() < 2:
            raise ValueError(f"TandemNeurons: input must be [N, C, ...], got {list(x.shape)}")
        if x.dtype in (torch.float16, torch.bfloat16) and autocast.is_on(x.device):
            x = x.float()
        if x.dtype not in checks.FLOATING:
            raise TypeError(f"TandemNeurons: input must be float32 or float64, got {x.dtype}")
        dim = -1 if self.features else 1
        if self.thresholds is not None:
            if x.shape[dim] != len(self.thresholds):
                raise ValueError(
                    f"TandemNeurons: input must have {len(self.thresholds)} channels along dimension {dim}, got "
                    f"{list(x.shape)}"
                )
            x = x / (self.thresholds if dim == -1 else self.thresholds.view(-1, *[1] * (x.dim() - 2)))
        return interleaved(x, -x, dim) if self.signed else x

    def fired(self, v: Tensor) -> Tensor:
        """Return the bits of neurons that integrate v."""
        steps, v = self.time_steps, v.detach()
        current, mode = (v, "once") if self.neuron.two_phase else (divided(v, steps), "constant")
        bits, _, _ = ops.integrate_and_fire.trusted(
            current, steps, mode=mode, neuron=self.neuron, want_sum=False, want_state=False
        )
        return bits

    def settings(self) -> Settings:
        settings = {"time_steps": self.time_steps, "neuron": self.neuron.settings()}
        return settings | {"signed": self.signed, "features": self.features}

    def constants(self) -> dict[str, Tensor]:
        return {} if self.thresholds is None else {"thresholds": self.thresholds}

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        schema.check_settings("TandemNeurons", settings, {"time_steps", "neuron", "signed", "features"})
        for name in ("signed", "features"):
            schema.flag("TandemNeurons", name, settings[name])
        schema.frozen_numbers("TandemNeurons", "time_steps", settings["time_steps"], 1, 2**24)
        if tensors:
            number = next(iter(tensors.values())).numel()
            schema.check_tensors("TandemNeurons", tensors, {"thresholds": (number,)})
            if not number or not bool((tensors["thresholds"] > 0).all()):
                raise ValueError("TandemNeurons: thresholds must be positive")
        return cls.made(settings, tensors)

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        neuron = of_settings("TandemNeurons", settings["neuron"])
        schema.check_scales("TandemNeurons", neuron)
        layer = cls(settings["time_steps"], neuron, settings["signed"], settings["features"])
        layer.thresholds = schema.frozen_tensor(tensors["thresholds"]) if tensors else None
        return layer

    def out_size(self, *inputs: Value) -> Value:
        x = single(inputs, REAL)
        if self.thresholds is not None and x.shape:
            x.shape[-1 if self.features else 0].check("channels", len(self.thresholds))
        known = None if x.shape is None else 1 + len(x.shape)
        pair_dim = self.pair_dim(3 if known is None else known)
        return with_pairs(x._replace(kind=SPIKES, radix=self.neuron.radix), pair_dim)

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[SpikeTrain, None]:
        v = self.potential(*inputs)
        return fired_train(self.neuron, self.fired(v), span.now, None, v.dtype, self.pair_dim(v.dim())), None

    def extra_repr(self) -> str:
        flags = "".join(f", {name}=True" for name in ("signed", "features") if getattr(self, name))
        return f"{self.time_steps}, neuron={self.neuron}{flags}"

    def synapses_by_input(self) -> Sequence[Synapses | None]:
        """Return that no spikes are read; see :mod:`.operations`."""
        return []
