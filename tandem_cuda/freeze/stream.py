"""A run of a frozen network over chunks of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..nn.frozen import Span
from ..ops import checks
from ..spike_train import SpikeTrain
from .graph import NetworkState, Node


class Network(Protocol):
    """What a run needs of a :class:`FrozenNetwork`."""

    steady: bool

    @property
    def nodes(self) -> list[Node]: ...

    @property
    def layers(self) -> Iterable[nn.Module]: ...

    def advance(self, x: Any, state: NetworkState, span: Span) -> tuple[Any, NetworkState]: ...

    def check_chunk(self, op: str, now: int, total: int) -> None: ...


class Run(Protocol):
    """A run over time: :class:`Stream`, or one of a :class:`Cascade`, whose networks run one after the other."""

    done: int

    @property
    def samples(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def remaining(self) -> int: ...

    def advance(self, chunk: int) -> Any: ...

    def select(self, samples: Tensor) -> None: ...

    def check_chunk(self, op: str, chunk: int) -> None: ...


class Answers(Protocol):
    """What predicts classes: a :class:`FrozenNetwork`, or a :class:`Cascade` of networks."""

    probabilities: bool

    @property
    def networks(self) -> Sequence[Network]: ...

    def stream(self, x: Any) -> Run: ...


class Stream:
    """A run of a frozen network over chunks of time, started by :meth:`FrozenNetwork.stream`.

    After the last of the T steps the output equals, bit for bit, the output of a run on all steps at once. If the
    network ends in a spiking layer, each output is the spike train of one chunk.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> x = torch.rand(2, 784)
        >>> stream = freeze(net).stream(x)
        >>> early = stream.advance(1)  # the logits after one step
        >>> torch.equal(stream.advance(3), net(x))
        True
    """

    def __init__(self, network: Network, inputs: Sequence[Tensor | SpikeTrain] | None, time_steps: int) -> None:
        self.network = network
        self.time_steps = time_steps
        """T."""
        self.done = 0
        """The number of time steps done."""
        self.state: NetworkState = {}
        """The layers' membrane potentials and counts, [N, ...]."""
        self.inputs = None if inputs is None else tuple(inputs)
        """The inputs; None if spikes arrive chunk by chunk."""
        self.samples: int | None = None
        """N; None if no spikes have arrived yet."""
        if self.inputs is not None:
            sizes = [len(x) for x in self.inputs]
            if len({*sizes}) > 1:
                raise ValueError(f"stream: inputs must have the same number of samples, got {sizes}")
            self.samples = sizes[0]

    @property
    def device(self) -> torch.device:
        """Device of the inputs, which must be there from the start."""
        assert self.inputs is not None
        return self.inputs[0].device

    @property
    def remaining(self) -> int:
        """The number of time steps left."""
        return self.time_steps - self.done

    def advance(self, chunk: int | SpikeTrain = 1) -> Any:
        """Run the next time steps.

        Args:
            chunk: the number of time steps; or, if the stream was started without input, their spikes, [N, ...].

        Returns:
            The output after these steps: the read-out of the counts so far. Unless the input was an impulse, the counts
            are scaled by T / (steps so far).

        Raises:
            TypeError: ``chunk`` has the wrong type.
            ValueError: ``chunk`` has more steps than remain, or a different number of samples than before; or fewer
                than T, and there are neurons that wait for all T (``two_phase``, or a TandemNeurons's).
        """
        whole = self.inputs
        if whole is None and not isinstance(chunk, SpikeTrain):
            raise TypeError(f"advance: chunk must be a SpikeTrain, got {type(chunk).__name__}")
        if whole is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
            raise TypeError(f"advance: chunk must be a number of time steps, got {type(chunk).__name__}")
        now = chunk.time_steps if isinstance(chunk, SpikeTrain) else chunk
        if not 1 <= now <= self.remaining:
            raise ValueError(f"advance: chunk must be 1 to {self.remaining} time steps (all that remain), got {now}")
        if isinstance(chunk, SpikeTrain):
            if self.samples not in (None, len(chunk)):
                raise ValueError(f"advance: chunk must hold {self.samples} samples, got {len(chunk)}")
            self.samples = len(chunk)
            inputs: tuple[Any, ...] = (chunk,)
        else:
            assert whole is not None
            done = self.done
            inputs = tuple(x.window(done, done + now) if isinstance(x, SpikeTrain) else x for x in whole)
        output, self.state = self.network.advance(
            inputs if len(inputs) > 1 else inputs[0],
            self.state,
            Span(now, self.done, self.time_steps, self.network.steady),
        )
        self.done += now
        return output

    def check_chunk(self, op: str, chunk: int) -> None:
        """Raise a ValueError if neurons need more than ``chunk`` time steps at once."""
        self.network.check_chunk(op, chunk, self.time_steps)

    def select(self, samples: Tensor) -> None:
        """Continue with only some of the samples.

        Args:
            samples: the indices of the samples to keep, int64 [M].

        Raises:
            TypeError: ``samples`` is not such a tensor.
            IndexError: an index is out of range.
        """
        checks.check_tensor("select", "samples", samples)
        if samples.dtype != torch.int64 or samples.dim() != 1:
            raise TypeError(f"select: samples must be int64 [M], got {samples.dtype} {list(samples.shape)}")
        self.state = {name: tuple(x[samples] for x in carried) for name, carried in self.state.items()}
        if self.inputs is not None:
            self.inputs = tuple(
                x.rearranged(lambda values: values[:, samples]) if isinstance(x, SpikeTrain) else x[samples]
                for x in self.inputs
            )
        if self.samples is not None:
            self.samples = len(samples)
