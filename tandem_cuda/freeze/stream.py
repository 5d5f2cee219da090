"""A run of a frozen network over chunks of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops import checks
from ..spike_train import SpikeTrain
from .forms import Span
from .graph import NetworkState

if TYPE_CHECKING:
    from .network import FrozenNetwork


class Stream:
    """A run of a frozen network over chunks of time; what :meth:`FrozenNetwork.stream` returns.

    After the last of the T steps the output is, to the bit, that of the network on all of them at once. Where a
    network ends in a spiking layer, each output is the train of its chunk.
    """

    def __init__(self, network: FrozenNetwork, inputs: Sequence[Tensor | SpikeTrain] | None, time_steps: int) -> None:
        self.network = network
        self.time_steps = time_steps
        """T."""
        self.done = 0
        """Time steps that are over."""
        self.state: NetworkState = {}
        """What layers carry: membrane potentials and counts, [N, ...]."""
        self.inputs = None if inputs is None else tuple(inputs)
        """The inputs, where all of them were given."""
        self.samples: int | None = None
        """N; None where no spikes have arrived yet."""
        if self.inputs is not None:
            sizes = [len(x) for x in self.inputs]
            if len({*sizes}) > 1:
                raise ValueError(f"stream: inputs must have the same number of samples, got {sizes}")
            self.samples = sizes[0]

    @property
    def remaining(self) -> int:
        """Time steps that are to come."""
        return self.time_steps - self.done

    def advance(self, chunk: int | SpikeTrain = 1) -> Any:
        """Run the next time steps.

        Args:
            chunk: how many; or their spikes, [N, ...] of that many steps, where the stream began without input.

        Returns:
            The output after these steps: the read-out of the counts so far, times T / (steps so far) unless the input
            was an impulse.

        Raises:
            TypeError: a chunk of the wrong type.
            ValueError: more steps than remain, or another number of samples than before.
        """
        whole = self.inputs
        if whole is None and not isinstance(chunk, SpikeTrain):
            raise TypeError(f"advance: chunk must be a SpikeTrain, got {type(chunk).__name__}")
        if whole is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
            raise TypeError(f"advance: chunk must be a number of time steps, got {type(chunk).__name__}")
        now = chunk.time_steps if isinstance(chunk, SpikeTrain) else chunk
        if not 1 <= now <= self.remaining:
            raise ValueError(f"advance: chunk must be of 1 to {self.remaining} time steps (the rest), got {now}")
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

    def select(self, samples: Tensor) -> None:
        """Go on with some of the samples.

        Args:
            samples: their indices, int64 [M].

        Raises:
            TypeError: no such tensor.
            IndexError: an index of no sample.
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
