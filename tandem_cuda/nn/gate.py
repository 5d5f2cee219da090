"""TandemGate: spikes weighted by a real number for each sample and channel, as in squeeze-and-excitation."""

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
from .encode import Decode
from .frozen import Span, State
from .schema import Settings, Tensors
from .sizes import ANY, REAL, SPIKES, Value
from .spiking import Spiking
from .synapses import Synapses


class TandemGate(Spiking):
    """Neurons for x * gate, where the gate is computed from the spikes of all time steps.

    Squeeze-and-excitation (Hu et al., "Squeeze-and-Excitation Networks", 2018, arXiv:1709.01507) scales the channels of
    an image by factors that depend on the image. The factors stay real numbers, and are known only after the last
    time step. So the neurons wait, whether or not ``neuron`` has ``two_phase``, and then spike in T steps. With
    v = gate * amplitude * c, and c the counts of the input or the values of radix spikes, their current is v / T in
    every step; with ``two_phase`` and RadixIF they integrate v at once.

    Args:
        neuron: a neuron model, such as IF(...).
        signed: whether channels 2i and 2i + 1 of the spikes are the positive and the negative part of channel i, as
            in the output. A train that is ``paired`` says so itself, and along which dimension.

    Shape:
        SpikeTrain [N, C, ...] and Tensor that broadcasts over its values, such as [N, C, 1, 1] -> SpikeTrain
        [N, C, ...]. Channels of spikes count twice if ``signed``.

    Raises:
        TypeError: the first input is not a SpikeTrain, or the gate is not a Tensor of its dtype.
        ValueError: the gate does not broadcast over the spikes.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(8, 1, 2, 1, 1))
        >>> gate = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
        >>> TandemGate()(x, gate).count.flatten()
        tensor([8., 4.])
    """

    reads = ANY
    needs_all_steps = True
    file_format = 2

    def __init__(self, neuron: Neuron = IF(), signed: bool = False) -> None:
        super().__init__()
        check_neuron("TandemGate", neuron)
        self.neuron = neuron
        self.decode = Decode(signed)

    def forward(self, x: SpikeTrain, gate: Tensor) -> SpikeTrain:
        v = self.potential(x, gate)
        steps = x.time_steps
        bits = self.fired(v, steps)
        fired = coupled(self.neuron, bits, v if needs_gradient(v) else None, steps, x.dtype)
        pair_dim = self.decode.pair_dim(x)
        return fired if pair_dim is None else fired.replace_unchecked(pair_dim=pair_dim)

    def potential(self, x: SpikeTrain, gate: Tensor) -> Tensor:
        """Return gate * amplitude * c, [N, C, ...]; if signed, and its negative, as the neurons are arranged."""
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"TandemGate: input must be a SpikeTrain, got {type(x).__name__}")
        checks.check_tensor("TandemGate", "gate", gate)
        if gate.dtype in (torch.float16, torch.bfloat16) and autocast.is_on(gate.device):
            gate = gate.to(x.dtype)  # autocast computes layers of the ANN in the lower precision
        if gate.dtype != x.dtype:
            raise TypeError(f"TandemGate: gate must have the dtype of the spikes, {x.dtype}, got {gate.dtype}")
        value: Tensor = self.decode(x)
        alike = gate.dim() == value.dim() and all(g in (1, s) for g, s in zip(gate.shape, value.shape, strict=True))
        if not alike:
            raise ValueError(f"TandemGate: gate must broadcast over {list(value.shape)}, got {list(gate.shape)}")
        v = value * gate
        pair_dim = self.decode.pair_dim(x)
        return v if pair_dim is None else interleaved(v, -v, pair_dim)

    def fired(self, v: Tensor, steps: int) -> Tensor:
        """Return the bits of neurons that integrate v."""
        current, mode = (v, "once") if self.neuron.radix else (divided(v.detach(), steps), "constant")
        bits, _, _ = ops.integrate_and_fire.trusted(
            current, steps, mode=mode, neuron=self.neuron, want_sum=False, want_state=False
        )
        return bits

    def settings(self) -> Settings:
        return {"neuron": self.neuron.settings(), "signed": False, **self.decode.settings()}

    def constants(self) -> dict[str, Tensor]:
        return self.decode.constants()

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        schema.check_settings("TandemGate", settings, {"neuron", "signed", *({"of_features"} & settings.keys())})
        Decode.of({}, tensors)
        return cls.made(settings, tensors)

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        neuron = of_settings("TandemGate", settings["neuron"])
        schema.check_scales("TandemGate", neuron)
        gate = cls(neuron)
        gate.decode = Decode.made({name: value for name, value in settings.items() if name != "neuron"}, tensors)
        return gate

    def out_size(self, *inputs: Value) -> Value:
        if len(inputs) != 2:
            raise ValueError(f"number of inputs must be 2, spikes and gate, got {len(inputs)}")
        x, gate = inputs
        gate.check_kind(REAL)
        decoded = self.decode.out_size(x)
        if decoded.shape is not None and gate.shape is not None:
            sizes = list(zip(decoded.shape, gate.shape, strict=False))
            wrong = any(g.exact and g.least != 1 and s.exact and g.least != s.least for s, g in sizes)
            if wrong or len(decoded.shape) != len(gate.shape):
                raise ValueError(f"the gate must broadcast over {decoded}, got {gate}")
        return x._replace(kind=SPIKES, pair_dim=self.decode.pair_dim(x), radix=self.neuron.radix)

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[SpikeTrain, None]:
        x, gate = inputs
        bits = self.fired(self.potential(x, gate), span.now)
        return fired_train(self.neuron, bits, span.now, None, x.dtype, self.decode.pair_dim(x)), None

    def extra_repr(self) -> str:
        return f"neuron={self.neuron}{', signed=True' if self.decode.signed else ''}"

    def synapses_by_input(self) -> Sequence[Synapses | None]:
        """Return that each spike reaches one neuron, or the two of a signed value; see :mod:`.operations`."""
        return [None]
