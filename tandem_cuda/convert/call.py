"""An ATen call of the ANN, as a conversion rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .values import SPIKES, Analogue, Branch, Current, Grouped, Pieces, Pooled, Real, Resize, Slope, Train
from .weights import bound_arguments
from .writer import Writer


class Call:
    """An ATen call of the ANN.

    ``call["dim"]`` is the argument of this name in the call's schema, or its default: a number, a list, or a
    ``torch.fx.Node`` for a tensor or for a size that depends on the batch. The first argument is :attr:`input`.

    Rules are used only where the input is spikes, or linear in spikes, and a weight layer follows.

    Examples:
        >>> from tandem_cuda.convert import Analogue, Call
        >>> def clamp_min(call: Call):  # the rule of x.clamp_min(0)
        ...     if call["min"] != 0:
        ...         raise Analogue("its bound is not 0")
        ...     return call.fire()
    """

    def __init__(self, writer: Writer, node: fx.Node, part: fx.Node | None = None) -> None:
        self.writer, self.node, self._part = writer, node, part
        """``node``: the call's node in the ANN's graph; ``writer``: the spiking twin's graph, for built-in rules."""
        self._given = bound_arguments(node)
        self.source: fx.Node = node.all_input_nodes[0]
        """The node of the first argument."""

    def __getitem__(self, name: str) -> Any:
        return self._given[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the input behind the batch."""
        return self.writer.shape(self.source)

    @property
    def shape_after(self) -> tuple[int, ...]:
        """The sizes of the result behind the batch; of a part of the result, its sizes."""
        return self.writer.shape(self._part or self.node)

    @property
    def index(self) -> int:
        """The number of the part of the result that is converted."""
        assert self._part is not None
        index: Any = self._part.args[1]
        return index

    @property
    def keeps_samples(self) -> bool:
        """Whether the result has as many samples as the input."""
        one, other = self.source.meta["val"].shape[0], self.node.meta["val"].shape[0]
        return str(one) == str(other)

    @property
    def value(self) -> Any:
        """The input as it is known: spikes, an average, or a current.

        Raises:
            Analogue: the input is something else.
        """
        x = self.writer.value(self.source)
        if not isinstance(x, SPIKES):
            raise Analogue("its input is real")
        return x

    @property
    def input(self) -> Any:
        """:attr:`value`, for rules that transform it. Currents that are used elsewhere, too, get neurons."""
        x = self.value
        if isinstance(x, Current) and len(self.source.users) > 1:
            return self.writer.spikes(self.source)
        return x

    def ints(self, name: str) -> Any:
        """Return an argument that is a number or a list of numbers.

        Raises:
            Analogue: a size in it depends on the batch.
        """
        x = self[name]
        if isinstance(x, fx.Node) or (isinstance(x, (list, tuple)) and any(isinstance(i, fx.Node) for i in x)):
            raise Analogue(f"its {name} depends on the batch")
        return x

    # -- what a rule returns

    def parts(self, rule: Callable[[Call], Any]) -> Any:
        """Convert a call that returns several tensors: each one by ``rule``, when it is taken."""
        _ = self.value
        return Pieces(lambda part: rule(Call(self.writer, self.node, part)))

    def passed(self) -> Any:
        """Return the input as it is."""
        x = self.writer.value(self.source)
        if not isinstance(x, (*SPIKES, Grouped)):
            raise Analogue("its input is real")
        if isinstance(x, Current) and len(self.source.users) > 1:
            return self.writer.spikes(self.source)
        return x

    @property
    def is_grouped(self) -> bool:
        """Whether the channels of the input are viewed as groups."""
        return isinstance(self.writer.value(self.source), Grouped)

    def grouped(self, groups: int) -> Any:
        """View the channels of images as groups."""
        x = self.writer.spikes(self.source)
        if x.features:
            raise Analogue("it splits a dimension of pixels")
        return Grouped(x, groups)

    def swapped_groups(self) -> Any:
        """Transpose the groups and the channels in a group."""
        x: Grouped = self.writer.value(self.source)
        return replace(x, swapped=not x.swapped)

    def ungrouped(self) -> Any:
        """View groups of channels as channels again, which are shuffled if groups were transposed."""
        x: Grouped = self.writer.value(self.source)
        if self.shape_after != x.x.shape:
            raise Analogue("it has no form for spikes with these sizes")
        if not x.swapped:
            return x.x
        return self.writer.rearranged(x.x, "channel_shuffle", x.groups, shape=x.x.shape)

    def unflattened(self, shape: tuple[int, ...]) -> Any:
        """Make lines or images of features [N, F]."""
        x = self.writer.spikes(self.source)
        channels, *rest = shape
        image = (channels, *[1] * (2 - len(rest)), *rest)
        train = self.writer.rearranged(x, "unflatten", *image, shape=image)
        return train if len(rest) == 2 else self.writer.flattened(train, 2, 3, shape)

    def sliced(self, dim: int, part: slice, single: bool = False) -> Any:
        """Take a range of a dimension behind the batch; ``single``: the range is one value, without its dimension."""
        x, after = self.input, self.shape_after
        if isinstance(x, Pooled) or (isinstance(x, Current) and (single or x.deferred)):
            x = self.writer.spikes(self.source)
        size = self.shape[dim - 1]
        start, stop, step = part.indices(size)
        shape = list(self.shape)
        shape[dim - 1] = len(range(start, stop, step))

        def taken(train: Train) -> Train:
            if dim == 1 and not train.features and step == 1:
                train = self.writer.rearranged(train, "channels", start, stop, shape=tuple(shape))
            else:
                train = self.writer.rearranged(train, "slice", dim, start, stop, step, shape=tuple(shape))
            if not single:
                return train
            return self.writer.flattened(train, *((dim, dim + 1) if dim < len(shape) else (dim - 1, dim)), after)

        return self._deferred(x, taken)

    def of_line(self, module: nn.Module) -> Any:
        """Apply a module for images to lines [N, C, L], as images of height 1."""
        return self._line(self.writer.called(self._image(), self.node, module))

    def line_or_image(self, how: str, arguments: Any) -> Any:
        """Rearrange the pixels of an image, or of a line as an image of height 1."""
        if len(self.shape) == 3:
            return self.rearrange(how, *arguments)
        return self._line(self.writer.rearranged(self._image(), how, *arguments))

    def _image(self) -> Train:
        """Return the spikes of lines as images of height 1."""
        x = self.writer.spikes(self.source, features=False)
        return self.writer.rearranged(x, "unsqueeze", shape=(x.shape[0], 1, x.shape[1]))

    def _line(self, image: Train) -> Train:
        """Return images of height 1 as lines, or without pixels if the call drops these."""
        channels, *length = self.shape_after
        image = replace(image, shape=(channels, 1, *(length or [1])))
        return self.writer.flattened(image, 2 if length else 1, 3, self.shape_after)

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
        x = self.input if of is None else of
        if slope is not None:
            return self._leaking(x, slope)
        if bound is not None and isinstance(x, Current) and x.rescales:
            x = self.writer.spikes(self.source)
        signed = both and not (x.is_positive if isinstance(x, Current) else not x.signed)
        return self.writer.write_neurons(self.node, x, signed=signed, bound=bound, level=level)

    def _leaking(self, x: Any, slope: Slope) -> Any:
        """Write neurons for both signs, whose negative ones count times the slope."""
        if not isinstance(x, Current):
            if not x.signed:
                return x
            x = Current([Branch(self.writer.spikes(self.source))])
        if x.is_positive:
            return self.writer.write_neurons(self.node, x)
        slopes = torch.as_tensor(slope)
        if bool((slopes < 0).any()) and not self.writer.options.neuron.two_phase:
            raise Analogue("its slope is negative, and its neurons do not wait for all time steps")
        rows = slopes.numel() > 1 and x.features  # channels are dimension 1, features are the last
        if rows or x.deferred:
            x = Current([Branch(self.writer.spikes(self.source, features=False if rows else None))])
        return self.writer.write_neurons(self.node, x, signed=True, slope=slope)

    def apply(self, module: nn.Module, *, commutes: bool = False, pairs: bool = False) -> Any:
        """Replace the call by a module that takes a SpikeTrain and returns one.

        Args:
            module: a new module for each call.
            commutes: whether the ANN's call gives the same result before and after a ReLU, as max pooling does. Such a
                call may come before the ReLU; the module is then put after the neurons.
            pairs: whether the module takes trains that are ``paired``, whose values may be negative, and returns such
                trains.

        Raises:
            Analogue: without ``pairs``, the input may be negative, and no ReLU follows.
        """
        x = self.input if commutes else self.spikes()
        x = self.writer.spikes(self.source) if isinstance(x, Pooled) else x
        if isinstance(x, Train):
            x = self._by_channel(x)
            if x.signed and not pairs:
                raise Analogue("its input may be negative")
        shape, pixels = self.shape_after, len(self.shape)

        def step(train: Train) -> Train:
            pooled = self.writer.called(train, self.node, module)
            if len(shape) == pixels:
                return replace(pooled, shape=shape)
            return self._without_pixels(replace(pooled, shape=self._kept(shape)), shape)

        x = self._deferred(x, step)
        return replace(x, wants_relu=True) if isinstance(x, Current) and not pairs else x

    def _kept(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of a reduction's result as if it had kept the reduced dimensions."""
        dims = self["dim"]
        reduced = {d % (1 + len(self.shape)) for d in ([dims] if isinstance(dims, int) else dims)}
        return tuple(1 if i in reduced else size for i, size in enumerate(self.shape, 1))

    def _without_pixels(self, train: Train, shape: tuple[int, ...]) -> Train:
        """Drop the dimensions of size 1 that a reduction leaves."""
        end = len(train.shape)
        return self.writer.flattened(train, 1 if len(shape) == 1 else end - 1, end, shape)

    def _by_channel(self, x: Train) -> Train:
        if x.features:
            return self.writer.spikes(self.source, features=False)
        return x

    def _deferred(self, x: Any, step: Callable[[Train], Train], flat: bool = False) -> Any:
        """Apply a step to spikes, or defer it: until after the neurons, or until the average has its form."""
        if isinstance(x, Train):
            return step(x)
        if isinstance(x, Pooled):
            return replace(x, shape=self.shape_after, deferred=[*x.deferred, step], flat=x.flat or flat)
        return replace(x, deferred=[*x.deferred, step], origin=x.origin or self.source)

    def rearrange(self, how: str, *arguments: int) -> Any:
        """Move neurons, as :class:`tandem_cuda.nn.SpikeRearrange` does."""
        x = self.input
        if isinstance(x, Pooled):
            x = self.writer.spikes(self.source)
        if isinstance(x, Train) and x.features and how not in ("slice", "unsqueeze"):
            x = self._by_channel(x)
        shape = self.shape_after
        return self._deferred(x, lambda train: self.writer.rearranged(train, how, *arguments, shape=shape))

    def flatten(self, start: int = 1, end: int = -1) -> Any:
        """Flatten dimensions ``start`` to ``end``; the result has the sizes of the call's result."""
        x, shape = self.input, self.shape_after
        end = end % (1 + len(self.shape))
        whole = len(shape) == 1

        def step(train: Train) -> Train:
            return self.writer.flattened(train, start, end, shape)

        if isinstance(x, Current) and not whole and (x.features or start < 2):
            x = self.writer.spikes(self.source)
        return self._deferred(x, step, flat=whole)

    def average(self, pool: Any) -> Any:
        """Pool images of spikes by averaging, as ``pool`` does. What reads the averages decides on their form."""
        x = self.input
        x = self.writer.spikes(self.source) if isinstance(x, Current) else x
        if isinstance(x, Train) and len(self.shape) > 2:
            x = self._by_channel(x)
        if isinstance(x, Pooled) and x.deferred:
            x = self.writer.spikes(self.source)
        own = after = self.shape_after
        steps: list[Callable[[Train], Train]] = []
        if len(self.shape) == 2:
            x, steps = self._image(), [self._line]
            own = (after[0], 1, after[1] if len(after) > 1 else 1)
        elif len(after) < len(self.shape):
            own = self._kept(after)
            steps = [lambda train: self._without_pixels(train, after)]
        pooled = Pooled(self.node, pool, x, own, after, steps, len(after) == 1)
        return pooled if self.writer.options.calibrated else self.writer.pooled(pooled, "neurons")

    def drop(self, kind: Any) -> Any:
        """Apply dropout to spikes with a module of class ``kind``; to real averages, torch's own."""
        x, p = self.input, self["p"]

        def step(train: Train) -> Train:
            dropout = kind(p)
            dropout.copies = train.windows
            dropped = self.writer.called(train, self.node, dropout)
            return replace(dropped, dropout=train.dropout / (1 - p) if p < 1 else 0.0)

        x = self._deferred(x, step)
        return replace(x, rescales=True) if isinstance(x, Current) else x

    def add(self, *, subtract: bool = False, alpha: float = 1.0) -> Any:
        """Add two tensors, which may be currents of weight layers and spikes. A ReLU of the sum is a TandemAdd.

        Args:
            subtract: take the second argument from the first.
            alpha: the factor of the second argument.
        """
        summands = [x for x in (self["self"], self["other"]) if isinstance(x, fx.Node)]
        writer = self.writer
        shapes = [writer.shape(x) for x in summands]
        if len({*shapes}) > 1 or not all(
            str(x.meta["val"].shape[0]) == str(self.node.meta["val"].shape[0]) for x in summands
        ):
            raise Analogue("it broadcasts")
        values = [writer.value(x) for x in summands]
        if not all(isinstance(x, SPIKES) for x in values):
            raise Analogue("it adds a real value to spikes")
        branches: list[Branch] = []
        for node, factor in zip(summands, [1.0, -alpha if subtract else alpha], strict=True):
            x = writer.value(node)
            once = len(node.users) == 1 and summands.count(node) == 1
            if isinstance(x, Current) and factor == 1 and once and x.is_sum:
                branches += x.branches
            else:
                train = writer.spikes(node)
                if train.windows > 1:
                    raise Analogue("it adds windows")
                branches.append(Branch(train, factor=factor))
        if len({branch.features for branch in branches if branch.train.dims != 2}) > 1:
            # Pairs would lie along two dimensions.
            if any(branch.layer is not None for branch in branches):
                raise Analogue("it adds features and channels")
            branches = [
                Branch(writer.spikes(node, features=False), factor=branch.factor)
                for node, branch in zip(summands, branches, strict=True)
            ]
        return Current(branches)

    def fold(self, norm: Any) -> Any:
        """Fold batch norm into the weight layer before it. Elsewhere it needs neurons of its own."""
        x = self.input
        branch = x.branches[0] if isinstance(x, Current) and len(x.branches) == 1 and not x.deferred else None
        of_rows = branch is not None and branch.features  # the norm is of rows
        if branch is not None and branch.norm is None and not of_rows and branch.layer is not None:
            return replace(x, branches=[replace(branch, norm=norm, normed=self.node)])
        if (
            branch is not None
            and branch.norm is None
            and branch.resize is not None
            and type(norm) is not nn.BatchNorm1d
        ):
            return replace(x, branches=[replace(branch, norm=norm, normed=self.node)])
        train = self._by_channel(self.spikes())
        return Current([Branch(train, self.writer.name(self.node), norm=norm, normed=self.node)])

    def affine(self, factor: float | Tensor = 1.0, offset: float | Tensor = 0.0, of: fx.Node | None = None) -> Any:
        """Multiply by a number and add another. Each may be a tensor of one number for each channel.

        ``of``: the node of the argument that is multiplied, if it is not the first.
        """
        source = self.source if of is None else of
        x = self.writer.value(source)
        if not isinstance(x, SPIKES):
            raise Analogue("its input is real")
        if not isinstance(factor, Tensor) and not isinstance(offset, Tensor) and (factor, offset) == (1, 0):
            return x
        before = x.branches[0] if isinstance(x, Current) and len(x.branches) == 1 and not x.deferred else None
        constant = before is not None and before.layer is None and before.resize is None and before.norm is None
        if before is not None and constant and len(source.users) == 1:  # a map of channels before this one
            factor, offset = factor * before.factor, factor * before.offset + offset
            return Current([replace(before, name=self.node.name, factor=factor, offset=offset)])
        train = self.writer.spikes(source)
        if train.windows > 1:
            raise Analogue("it scales windows")
        return Current([Branch(train, self.node.name, factor=factor, offset=offset)])

    def multiplied(self, layer: Any, of: fx.Node) -> Any:
        """Multiply images by a factor for each channel that depends on parameters: a depthwise layer of torch."""
        return Current([Branch(self.writer.spikes(of, features=False), self.node.name, layer)])

    def interpolate(self, resize: Resize) -> Any:
        """Interpolate images. The result has neurons, or is computed by the ANN's call where it is read as real."""
        train = self.writer.spikes(self.source, features=False)
        if train.dims != 4:
            raise Analogue("it interpolates no images")
        return Current([Branch(train, self.node.name, resize=resize)])

    def cat(self) -> Any:
        """Concatenate the values in the first argument, a list, along the channels."""
        nodes, rank = tuple(self["tensors"]), len(self.node.meta["val"].shape)
        values = [self.writer.value(x) for x in nodes]
        if not any(isinstance(x, SPIKES) for x in values) or any(isinstance(x, Real) for x in values):
            raise Analogue("it concatenates real values")
        dim = self["dim"] % rank
        features = dim == rank - 1 and rank > 2
        if dim not in (1, rank - 1) or dim == 0:
            raise Analogue("it concatenates along another dimension than the channels")
        if any(isinstance(x, SPIKES) and not self._oriented(x, features) for x in values):
            raise Analogue("it concatenates along another dimension than the channels")
        return self.writer.joined(self.node, nodes, features)

    def _oriented(self, x: Any, features: bool) -> bool:
        if isinstance(x, Train):
            return x.features == features or x.dims == 2
        if isinstance(x, Current) and not x.deferred:
            return x.features == features or x.branches[0].train.dims == 2
        return not features

    def swapped(self) -> fx.Node:
        """Return the node of the only argument that is spikes or currents."""
        nodes = [x for x in self.node.all_input_nodes if isinstance(self.writer.value(x), SPIKES)]
        if len(nodes) != 1:
            raise Analogue("it multiplies values that depend on the input")
        return nodes[0]

    def constant(self, x: Any, of: fx.Node) -> float | Tensor | None:
        """Return an argument that is a number, or a constant that broadcasts over the channels of ``of``; else None.

        The number, or one for each channel, is in double precision.
        """
        if isinstance(x, (int, float)):
            return float(x)
        calls = self.writer.calls
        if not isinstance(x, fx.Node) or x not in calls.of_parameters or calls.is_learned(x):
            return None
        found = self._of_channels(calls.value(x).double(), of)
        if found is not None:
            self.writer.constants |= {str(leaf.target) for leaf in calls.leaves(x)}
        return found

    def _of_channels(self, x: Tensor, of: fx.Node) -> float | Tensor | None:
        """Return the number for each channel in a tensor that broadcasts over a value."""
        shape = self.writer.shape(of)
        value = self.writer.value(of)
        features = value.features if isinstance(value, (Train, Current)) else False
        if x.numel() == 1 and x.dim() <= 1 + len(shape):
            return float(x)
        channel = len(shape) if features and len(shape) > 1 else 1
        sizes = [1] * (1 + len(shape) - x.dim()) + list(x.shape)
        if len(sizes) != 1 + len(shape) or any(n != 1 for i, n in enumerate(sizes) if i != channel):
            return None
        return x.flatten().cpu()

    def parameter(self, x: Any) -> nn.Parameter | None:
        """Return an argument that is a Parameter of the ANN; None for all else."""
        if not isinstance(x, fx.Node) or x.op != "get_attr":
            return None
        found = self.writer.source.tensor(str(x.target))
        return found if isinstance(found, nn.Parameter) else None

    def spikes(self) -> Train:
        """Return the input as spikes. Currents without a ReLU get neurons for both signs; averages get neurons, too."""
        _ = self.value
        return self.writer.spikes(self.source)
