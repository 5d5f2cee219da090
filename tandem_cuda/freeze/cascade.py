"""Early exit over networks: a sample goes on to the next network only if the one before was not sure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..nn.sizes import SPIKES
from . import anytime
from .network import FrozenNetwork


class Cascade:
    """Frozen networks with more and more time steps, for early exit where a single network cannot stop early.

    Neurons with ``two_phase`` wait for all T steps, so their network has no read-out before. But one set of weights can
    serve several T (see :meth:`TandemNetwork.set_time_steps`), and most samples need only the smallest::

        stages = []
        for steps in (2, 4, 8):
            net.set_time_steps(steps)
            stages.append(freeze(net))
        prediction = Cascade(stages).predict(images, exit_confidence=0.9)

    Each network runs as a whole, on the samples of which no network before was sure. Steps and operations of a sample
    are summed over all networks that it ran through.

    Args:
        networks: one or more networks with Encode that end in a read-out [N, K], with increasing T.

    Raises:
        TypeError: ``networks`` are not FrozenNetworks.
        ValueError: ``networks`` is empty, a network takes spikes, T does not increase from one network to the next, or
            only some networks end in a softmax.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> images = torch.rand(5, 1, 28, 28)
        >>> snn = convert(ann, time_steps=2, example=images).eval()
        >>> stages = []
        >>> for steps in (2, 4):
        ...     snn.set_time_steps(steps)
        ...     stages.append(freeze(snn))
        >>> prediction = Cascade(stages).predict(images, exit_confidence=0.9)
        >>> prediction.classes.shape
        torch.Size([5])
    """

    def __init__(self, networks: Sequence[FrozenNetwork]) -> None:
        self.networks = tuple(networks)
        for network in self.networks:
            if not isinstance(network, FrozenNetwork):
                raise TypeError(f"Cascade: networks must be FrozenNetworks, got {type(network).__name__}")
            if SPIKES in network.kinds.values():
                raise ValueError("Cascade: networks must take real input (spikes have a T of their own), got spikes")
        steps = [network.time_steps or 0 for network in self.networks]
        if not steps:
            raise ValueError("Cascade: networks must be one or more, got none")
        if sorted({*steps}) != steps:
            raise ValueError(f"Cascade: networks must have increasing T, got {steps}")
        self.probabilities = self.networks[0].probabilities
        """Whether the networks end in a softmax."""
        if any(network.probabilities != self.probabilities for network in self.networks):
            raise ValueError("Cascade: networks must all end in a softmax or none, got some of both")

    def stream(self, x: Any) -> CascadeRun:
        """Start a run on an input, as :meth:`FrozenNetwork.stream` does; each advance runs the next network."""
        first = self.networks[0].stream(x)  # which checks the input
        assert first.inputs is not None
        return CascadeRun(self.networks, first.inputs)

    def predict(self, x: Any, exit_confidence: float = 0.9) -> anytime.Prediction:
        """Classify; see :func:`tandem_cuda.freeze.predict`."""
        return anytime.predict(self, x, exit_confidence)

    def accuracy_curve(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        exit_confidences: Sequence[float] = anytime.EXIT_CONFIDENCES,
    ) -> anytime.AccuracyCurve:
        """Measure accuracy and cost over confidence; see :func:`tandem_cuda.freeze.accuracy_curve`.

        ``over_time`` has one point for each network, with what all samples have cost up to it.
        """
        return anytime.accuracy_curve(self, batches, exit_confidences)


class CascadeRun:
    """A run of a cascade's networks, one after the other; the interface of :class:`tandem_cuda.freeze.Stream`."""

    def __init__(self, networks: Sequence[FrozenNetwork], inputs: Sequence[Any]) -> None:
        self.left = list(networks)
        self.inputs = tuple(inputs)
        self.done = 0
        """The number of time steps done, of all networks so far."""

    @property
    def samples(self) -> int:
        """N."""
        return len(self.inputs[0])

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.inputs[0].device

    @property
    def remaining(self) -> int:
        """The number of time steps left."""
        return sum(network.time_steps or 0 for network in self.left)

    def check_chunk(self, op: str, chunk: int) -> None:
        """Do nothing: every network runs as a whole."""

    def advance(self, chunk: int = 1) -> Any:
        """Run the next network, whatever ``chunk`` is, and return its output."""
        network = self.left.pop(0)
        self.done += network.time_steps or 0
        return network(*self.inputs)

    def select(self, samples: Tensor) -> None:
        """Continue with only some of the samples, given by their indices, int64 [M]."""
        self.inputs = tuple(x[samples] for x in self.inputs)
