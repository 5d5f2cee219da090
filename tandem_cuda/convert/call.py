"""A call in the ANN's forward, as a conversion rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..nn.batch_norm import FrozenBatchNorm2d
from ..nn.movements import END
from .advice import BY_A_TENSOR, COUNTED, FUNCTION_ADVICE, MULTIPLIED, NEGATIVE, NOTHING_ELSE, advice_against
from .constants import constant_of, is_constant, names_of, of_channels
from .leaks import leaking
from .nodes import asks_for_size, keeps_samples, kind_of, leading_to, module_of, owner_of, reads_batch_size
from .pixels import check_sizes
from .proxy_types import NUMBERS, class_of
from .values import (
    BATCH,
    SPIKES,
    UNKNOWN,
    Average,
    Branch,
    Current,
    Grouped,
    Pieces,
    Pooled,
    Real,
    Resize,
    Size,
    Sizes,
    Slope,
    Train,
    number_of,
    number_of_channels,
    shape_of,
)
from .weight_rules import RULES, Unconvertible, WeightRule, weights_of
from .writer import Writer


class Call:
    """A call in the ANN's forward, as a rule sees it.

    A rule returns the result of one of these methods, or ``input`` itself for a call that changes nothing. Rules are
    not used before the first weight layer or after the last one, where all inputs are real: calls there stay as they
    are.

    Examples:
        >>> from tandem_cuda.convert.rules import register
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> register(Double, lambda call: call.affine(2.0))
        >>> ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), Double(), nn.ReLU(), nn.Linear(3, 2))
        >>> convert(ann, time_steps=8)(torch.rand(1, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(self, writer: Writer, node: fx.Node, module: nn.Module | None = None) -> None:
        self._writer = writer
        self.node = node
        """The call's node in the torch.fx graph."""
        self.module: Any = module_of(writer.ann, node) if module is None else module
        """The module that is called; None for a function."""
        named = {name: x for name, x in node.kwargs.items() if node.args or name != "input"}
        self._inputs = node.args or tuple(x for name, x in node.kwargs.items() if name == "input")
        self.args: tuple[Any, ...] = fx.node.map_arg(self._inputs, self._argument)
        """The positional arguments, and torch's ``input`` first. In place of a tensor stands its value in the SNN, in
        place of a known size its number."""
        self.kwargs: dict[str, Any] = fx.node.map_arg(named, self._argument)
        """The keyword arguments but ``input``, with the same replacements."""
        self._other_input: Any = None

    def _argument(self, node: fx.Node) -> Any:
        x = self._writer.value(node)
        if isinstance(x, Real) and class_of(node) in NUMBERS:
            x = self._size_of_input(node)
        return tuple(map(number_of, x.sizes)) if isinstance(x, Sizes) else number_of(x)

    def _size_of_input(self, node: fx.Node) -> Size:
        """Return a size of a real value: the batch size if all spikes have it, too, else a size that is not known."""
        before = [x for x in leading_to([self.node]) if isinstance(self._writer.values.get(x), Real)]
        tensors = [x for x in before if class_of(x) is torch.Tensor and x not in self._writer.gates]
        is_batch = reads_batch_size(node) and all(keeps_samples(x, self._writer.ann) for x in tensors)
        return BATCH if is_batch else UNKNOWN

    @property
    def engine(self) -> str:
        """The ``engine`` argument of ``convert``, for spiking products."""
        return self._writer.options.engine

    @property
    def sizes(self) -> torch.Size | None:
        """The sizes of the first input without the batch size; None in a network that takes images of all sizes."""
        first = self._first()
        return None if first is None or self._other_input is not None else self._writer.trace.fixed_sizes(first)

    @property
    def sizes_after(self) -> torch.Size | None:
        """The sizes of the call's result in the ANN, as :attr:`sizes`."""
        return self._writer.trace.fixed_sizes(self.node)

    @property
    def example_size(self) -> torch.Size | None:
        """The size of the ANN's first argument for the example; None without an example."""
        first = self._first()
        return None if first is None else self._writer.trace.sizes.get(first)

    @property
    def value(self) -> Any:
        """The first argument: spikes, or the currents of weight layers before their neurons.

        Raises:
            Unconvertible: the first argument is something else.
        """
        first = self._first()
        x = self._other_input or (None if first is None else self._writer.value(first))
        if not isinstance(x, SPIKES):
            is_module = self.node.op == "call_module"
            advice = NOTHING_ELSE if is_module else FUNCTION_ADVICE.get(self.node.target, NOTHING_ELSE)
            raise Unconvertible(advice_against(x) or advice)
        return x

    @property
    def input(self) -> Any:
        """:attr:`value`, for rules that transform it. Currents that are used elsewhere, too, get neurons.

        Raises:
            Unconvertible: the first argument is neither spikes nor currents.
        """
        x, first = self.value, self._first()
        if self._other_input is not None or not isinstance(x, Current):
            return x
        is_shared = sum(not asks_for_size(user) for user in first.users) > 1
        return self._writer.train(first) if is_shared else x

    def fire(
        self, bound: Any = None, slope: Slope | None = None, both: bool = False, of: Any = None, level: Any = None
    ) -> Any:
        """Replace an activation by neurons. Spikes stay as they are.

        Args:
            bound: the largest value that the activation returns, as 6 for a ReLU6. The neurons saturate there.
            slope: the slope of the activation below zero, a number or the ANN's parameter, of one slope or of one for
                each channel along dimension 1. There are then neurons for both signs.
            both: the activation returns values from -bound to bound, and there are neurons for both signs.
            of: what the activation reads, in place of the input: the result of another method.
            level: T times the threshold, or the level of RadixIF neurons. By default, calibration finds it.
        """
        if slope is not None:
            return leaking(self, self._writer, slope)
        x = self.input if of is None else of
        if bound is not None and isinstance(x, Current) and x.rescales:
            x = self.spikes()
        signed = both and not (x.is_positive if isinstance(x, Current) else not x.signed)
        return self._writer.write_neurons(self.node, x, signed=signed, bound=bound, level=level)

    def apply(self, module: nn.Module, *, commutes: bool = False, pairs: bool = False) -> Any:
        """Replace the call by a module that takes a SpikeTrain and returns one.

        Args:
            module: a new module for each call.
            commutes: whether the ANN's call gives the same result before and after a ReLU, as max pooling does. Such a
                call may come before the ReLU; the module is then put after the neurons.
            pairs: whether the module takes trains that are ``paired``, whose values may be negative, and returns such
                trains.

        Raises:
            Unconvertible: without ``pairs``, the input may be negative, and no ReLU follows.
        """
        x = self.input if commutes else self.spikes()
        x = self._writer.spikes(x) if isinstance(x, Pooled) else x
        if isinstance(x, Train) and x.signed and not pairs:
            raise Unconvertible(NEGATIVE)

        def step(value: Any) -> Any:
            value = self._writer.by_channel(value) if isinstance(value, Train) else value
            return self._writer.called(value, self.node, module)

        x = self._writer.apply_or_defer(x, step)
        return replace(x, wants_relu=self.node) if isinstance(x, Current) and not pairs else x

    def rearrange(self, how: str, *arguments: int) -> Any:
        """Move neurons, as :class:`tandem_cuda.nn.SpikeRearrange` does."""
        x = self.input
        if x.dims not in (None, 4) and how not in ("channels", "channel_shuffle", "channel_pad", "unflatten"):
            raise Unconvertible("use images [N, C, H, W], for which it has a spiking form")
        x = self._writer.spikes(x) if isinstance(x, Pooled) else x
        return self._writer.apply_or_defer(x, lambda train: self._writer.rearranged(train, how, *arguments))

    def sliced(self, parts: dict[int, slice], single: Collection[int] = ()) -> Any:
        """Slice dimensions behind the batch; ``single`` are dimensions whose one element is taken, without them."""
        x = self.input
        x = self._writer.spikes(x) if isinstance(x, Pooled) else x
        numbers = [
            (dim, part.start or 0, END if part.stop is None else part.stop, part.step or 1)
            for dim, part in parts.items()
        ]

        def step(train: Any) -> Any:
            for part in numbers:
                train = self._writer.rearranged(train, "slice", *part)
            return train

        x = self._writer.apply_or_defer(x, step)
        if not single:
            return x
        return self._writer.flattened(x, 2 if x.dims == 4 and len(single) == 1 else 1, 3 if x.dims == 4 else 2)

    def average(self, pool: Average, *, keepdim: bool = True) -> Any:
        """Pool spikes by averaging, and flatten the result if not ``keepdim``.

        The averages get neurons; in a calibrated network only where nothing else is possible.
        """
        x = self.input
        x = self.spikes() if isinstance(x, Current) else x
        pooled = Pooled(self.node, pool, x, dims=x.dims)
        average = pooled if self._writer.options.calibrated else self._writer.spikes(pooled)
        return average if keepdim else self._writer.flattened(average)

    def drop(self, kind: type[Any]) -> Any:
        """Apply dropout to spikes with a module of class ``kind``, or the ANN's own module to real averages."""

        def make(train: Train) -> Any:
            dropout = kind(self.module.p)
            dropout.copies = train.windows
            return dropout

        return self._drop(make)

    def drop_samples(self, make: Callable[[], nn.Module]) -> Any:
        """Apply a module that silences samples to spikes, or the ANN's own module to real averages."""
        return self._drop(lambda train: make())

    def _drop(self, make: Callable[[Train], Any]) -> Any:
        def step(value: Any) -> Any:
            return self._writer.called(value, self.node, self.module if isinstance(value, Real) else make(value))

        x = self._writer.apply_or_defer(self.input, step)
        return replace(x, rescales=True) if isinstance(x, Current) else x

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> Any:
        """Apply ``SpikeTrain.flatten``."""
        return self._writer.flattened(self.input, start_dim, end_dim)

    def flatten_to(self, features: int) -> Any:
        """Flatten all dimensions but the first. The SNN's forward raises if the result does not have ``features``."""
        return self._writer.flattened_to(self.input, features)

    def add(self, *, subtract: bool = False, alpha: float = 1.0) -> Any:
        """Add all arguments, which may be currents of weight layers and spikes. A ReLU of the sum is a TandemAdd.

        Args:
            subtract: take the second argument from the first.
            alpha: the factor of the second argument.
        """
        branches: list[Branch] = []
        summands = (*self._inputs, *(x for name, x in self.node.kwargs.items() if name not in ("input", "alpha")))
        factors = [1.0, *[-alpha if subtract else alpha] * (len(summands) - 1)]
        for argument, factor in zip(summands, factors, strict=True):
            node = self._spiking(argument, "add")
            x = self._writer.value(node)
            once = len(node.users) == 1 and summands.count(node) == 1
            if isinstance(x, Current) and factor == 1 and once and x.is_sum:
                branches += x.branches
            else:
                branches.append(Branch(self._writer.train(node), factor=factor))
        if len({branch.features for branch in branches if branch.dims != 2}) > 1:
            # Pairs would lie along two dimensions.
            nodes = [self._spiking(argument, "add") for argument in summands]
            trains = [self._writer.by_channel(self._writer.train(node)) for node in nodes]
            branches = [
                Branch(self._writer.counted(train, node), factor=factor)
                for train, node, factor in zip(trains, nodes, factors, strict=True)
            ]
        channels = Current(branches).of_neurons[0]
        for branch in branches:
            if branch.layer is None and branch.channels is None:
                branch.train = replace(branch.train, channels=channels)
                if channels is None and not branch.is_plain:
                    raise Unconvertible(COUNTED)
        check_sizes(self._writer.trace.sizes, self._writer.pixels, self.node.all_input_nodes)
        return Current(branches)

    def _spiking(self, argument: Any, verb: str) -> fx.Node:
        """Return the node of an argument of the call that is spikes or currents.

        Raises:
            Unconvertible: it is something else. ``verb`` says what to do with spikes: "add" or "concatenate".
        """
        x = self._writer.value(argument) if isinstance(argument, fx.Node) else argument
        if isinstance(argument, fx.Node) and isinstance(x, SPIKES):
            return argument
        if isinstance(x, Real) and is_constant(argument):
            if verb == "add":
                raise Unconvertible(
                    "add a number, or to each channel the bias of a layer such as nn.Conv2d(8, 8, 1, groups=8): this "
                    "is a tensor of constants"
                )
            raise Unconvertible("leave out the tensor of constants: spikes are concatenated only with spikes")
        if isinstance(x, Real):
            raise Unconvertible(
                f"{verb} only spikes: put a weight layer, such as nn.Conv2d, between the network's input and this"
            )
        raise Unconvertible(advice_against(x) or NOTHING_ELSE)

    def fold(self, norm: Any) -> Any:
        """Fold batch norm into the weight layer before it. Elsewhere it needs neurons of its own.

        Raises:
            Unconvertible: ``norm`` has no running statistics.
        """
        x = self.input
        if norm.running_mean is None:
            raise Unconvertible("set track_running_stats=True: the spiking twin folds them")
        branch = x.branches[0] if isinstance(x, Current) and len(x.branches) == 1 and not x.deferred else None
        of_rows = branch is not None and branch.features and branch.dims is not None  # the norm is of rows
        if branch is not None and branch.norm is None and not of_rows:
            if branch.layer is not None:
                fitting = weights_of(branch.layer).norm
                if kind_of(norm) not in (fitting, nn.SyncBatchNorm, FrozenBatchNorm2d):
                    raise Unconvertible(f"use nn.{fitting.__name__} after {branch.name}")
            if branch.layer is not None or (branch.resize is not None and type(norm) is not nn.BatchNorm1d):
                return replace(x, branches=[replace(branch, norm=norm)])
        return Current([Branch(self._writer.by_channel(self.spikes()), self._name(), norm=norm)])

    def of_line(self, pool: Callable[[Call], Any]) -> Any:
        """Apply the rule of a pooling of images to lines [N, C, L], as images of height 1."""
        pooled = pool(self._on(self._writer.rearranged(self.spikes(), "unsqueeze")))
        return self._on(pooled).flatten(2, 3)

    def affine(self, factor: float | Tensor = 1.0, offset: float | Tensor = 0.0) -> Any:
        """Multiply by a number and add another. Each may be a tensor of one number for each channel."""
        if not isinstance(factor, Tensor) and not isinstance(offset, Tensor) and (factor, offset) == (1, 0):
            return self.input
        x = self.input
        before = x.branches[0] if isinstance(x, Current) and x.is_fixed and not x.deferred else None
        if before is not None and before.layer is None and before.resize is None:  # constants of channels before these
            factor, offset = factor * before.factor, factor * before.offset + offset
            return Current([replace(before, name=self._name(), factor=factor, offset=offset)])
        branch = Branch(self.spikes(), self._name(), factor=factor, offset=offset)
        if branch.channels is None:
            raise Unconvertible(COUNTED)
        return Current([branch])

    def mapped(self, layer: nn.Module) -> Current:
        """Apply a layer of torch whose weights are constants, made by :func:`.constants.constant_layer`."""
        if isinstance(layer, nn.Linear):
            train = self._writer.by_feature(self._first(), self.spikes())
        else:
            train = self._writer.by_channel(self.spikes(), True)
        return Current([Branch(train, self._name(), layer)], origin=self.node)

    def constant(self, place: int | str) -> Tensor | None:
        """Return an argument that is a tensor of constants, by place or name, in double precision, or else None."""
        given = self._inputs[place : place + 1] if isinstance(place, int) else [self.node.kwargs.get(place)]
        node = next(iter(given), None)
        if not isinstance(node, fx.Node) or not isinstance(self._writer.value(node), Real):
            return None
        found = constant_of(node, self._writer.ann)
        if found is not None:
            self._writer.constants |= names_of(node)
        return found

    def parameter(self, place: int, name: str) -> nn.Parameter | None:
        """Return an argument that is a parameter of the ANN; None for others."""
        node = self.node.args[place] if len(self.node.args) > place else self.node.kwargs.get(name)
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        found = getattr(*owner_of(self._writer.ann, str(node.target)))
        return found if isinstance(found, nn.Parameter) else None

    def constants_of_channels(self, place: int, other: int) -> float | Tensor | None:
        """Return constants that broadcast to the argument at place ``other``: a number, or one for each channel."""
        x, node = self.constant(place), self._inputs[other]
        spikes = self._writer.value(node) if isinstance(node, fx.Node) else None
        if x is None or not isinstance(spikes, SPIKES):
            return None
        found = of_channels(x, shape_of(spikes).channels, spikes.dims, spikes.features)
        return found if found is None or found.dim() else float(found)

    def repeated(self, times: int) -> Any:
        """Concatenate the input several times along the channels."""
        train = self.spikes()
        return train if times == 1 else self._writer.joined(self.node, (self.node.all_input_nodes[0],) * times)

    def interpolate(self, resize: Resize) -> Any:
        """Interpolate images. The result has neurons, or is computed by the ANN's call where it goes into the read-out.

        Raises:
            Unconvertible: the input is no images.
        """
        train = self._writer.by_channel(self.spikes(), True)
        if train.dims not in (None, 4):
            raise Unconvertible("use images [N, C, H, W], for which it has a spiking form")
        if train.channels is None:
            raise Unconvertible(COUNTED)
        return Current([Branch(train, self._name(), resize=resize)])

    def cat(self) -> Any:
        """Concatenate the values in the first argument, a list, along the channels."""
        tensors = self.node.args[0] if self.node.args else self.node.kwargs.get("tensors")
        if not isinstance(tensors, (list, tuple)):
            raise Unconvertible("list what it concatenates, as in torch.cat([a, b], 1)")
        nodes = tuple(self._spiking(argument, "concatenate") for argument in tensors)
        return self._writer.joined(self.node, nodes)

    def pieces(self, bounds: Callable[[int], list[tuple[int, int]]]) -> Any:
        """Split along the channels; ``bounds`` maps their number to the first channel and the end of each piece."""
        train = self.spikes()
        channels = number_of_channels(train)
        if train.features and channels is None:
            size = self._writer.trace.sizes.get(self.node.all_input_nodes[0])
            channels = None if size is None else size[1]
        if channels is None:
            raise Unconvertible(COUNTED)
        return Pieces(train, bounds(channels))

    def piece(self, pieces: Pieces, index: int) -> Any:
        """Return one of the pieces that a split returned."""
        if any(start >= stop for start, stop in pieces.bounds):
            raise Unconvertible("leave out pieces without channels")
        if not -len(pieces.bounds) <= index < len(pieces.bounds):
            raise Unconvertible(f"use one of its {len(pieces.bounds)} pieces, not number {index}")
        return self._writer.rearranged(pieces.train, "channels", *pieces.bounds[index])

    def shuffled(self, grouped: Grouped) -> Any:
        """Return a train whose channels, in groups, are transposed."""
        return self._on(grouped.x).rearrange("channel_shuffle", grouped.groups)

    def swapped(self) -> Call:
        """Return the call with its only input that is spikes as the first argument."""
        spikes = [node for node in self.node.all_input_nodes if isinstance(self._writer.value(node), SPIKES)]
        return self._on(self._writer.train(spikes[0])) if spikes else self

    def flattened(self, x: Any, start_dim: int = 1, end_dim: int = -1) -> Any:
        """Flatten dimensions of the result of another method."""
        return self._writer.flattened(x, start_dim, end_dim)

    def gate(self) -> Any:
        """Multiply spikes by a gate computed from them.

        Raises:
            Unconvertible: this is no such product.
        """
        nodes = self.node.all_input_nodes
        values = [self._writer.value(node) for node in nodes]
        trains = [node for node, x in zip(nodes, values, strict=True) if isinstance(x, SPIKES)]
        gates = [x for x in values if isinstance(x, Real)]
        if len(trains) > 1 and not self._writer.tainted.isdisjoint(nodes):
            return self._writer.train(trains[0])  # the problem has been reported
        if len(trains) == 1 and len(gates) == 1:
            if self.node in self._writer.gates.values():
                return self._writer.gated(self.node, self._writer.train(trains[0]), gates[0])
            if any(map(is_constant, nodes)):
                raise Unconvertible(BY_A_TENSOR)
        raise Unconvertible(next(filter(None, map(advice_against, values)), MULTIPLIED))

    def _name(self) -> str:
        return str(self.node.target) if self.node.op == "call_module" else self.node.name

    def like(self, module: nn.Module) -> Any:
        """Convert the call as if it called ``module``, such as ``nn.MaxPool2d(2)`` for an equivalent function.

        Raises:
            TypeError: there is no rule for the class of ``module``, or ``module`` has weights.
        """
        rule = RULES.get(kind_of(module))
        if rule is None or isinstance(rule, WeightRule):
            raise TypeError(f"like: module must be of a class with a rule and without weights, got {module}")
        return rule(self._on(self._other_input, module))

    def _first(self) -> Any:
        """Return the node of the first argument; None if that is no node."""
        inputs = self.node.all_input_nodes if self.node.op == "call_module" else self._inputs[:1]
        return inputs[0] if inputs and isinstance(inputs[0], fx.Node) else None

    def spikes(self) -> Train:
        """Return the input as spikes. Currents without a ReLU get neurons for both signs; averages get neurons, too."""
        x = self.input
        return self._writer.train(self._first()) if self._other_input is None else self._writer.spikes(x)

    def _on(self, x: Train | Pooled | None, module: nn.Module | None = None) -> Call:
        """Return a copy of the call, with another input and optionally another module."""
        call = Call(self._writer, self.node, module or self.module)
        call._other_input = x
        return call
