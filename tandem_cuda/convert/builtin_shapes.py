"""The conversion rules for what reads or changes shapes: sizes, views, flattening, parts of a tensor."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from .advice import EXAMPLE, NOTHING_ELSE, NUMBER, SIZES
from .nodes import asks_for_size
from .rules import Call, Rule, Unconvertible, converts, register, register_all
from .values import BATCH, Grouped, Maxima, Pieces, Shape, Size, Sizes, number_of_channels, shape_of

_SIZED = "use nn.Flatten in place of a computed shape"
_SQUEEZED = "use torch.flatten(x, 1)"
DIVIDED = "divide by a number other than 0: spikes cannot be divided by others"
_COMPARISONS = operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge
WHOLE_IMAGE = (Size(1, (2,), (None,)), Size(1, (3,), (None,)))


@converts(torch.flatten, torch.Tensor.flatten)
def _flatten_function(call: Call, start_dim: int = 0, end_dim: int = -1) -> Any:
    return call.flatten(start_dim, end_dim)


def _reshape(call: Call, sizes: tuple[Any, ...]) -> Any:
    """Flatten all dimensions but the first, or all but the first two."""
    x = call.input
    shape = shape_of(x)
    features = Size(1, tuple(range(1, x.dims or 2)))
    if shape.channels is not None:
        features = Size(shape.channels, tuple(dim for dim in features.dims if dim != shape.channel_dim))
    batch, *rest = sizes
    if len(rest) == 1:
        (number,) = rest
        if batch in (BATCH, -1) and isinstance(number, int):
            return call.flatten() if number == -1 else call.flatten_to(number)
        # With as many samples as before, the number of features cannot be another one.
        keeps_samples = batch == BATCH or (batch == -1 and number == features and are_of_input(number, call))
        if isinstance(number, Size) and keeps_samples:
            return call.flatten()
    fits_every_image = rest[-1] == -1 or not isinstance(rest[-1], int)
    if len(rest) == 2 and x.dims == 4 and batch == BATCH and rest[0] == number_of_channels(x) and fits_every_image:
        return call.flatten(2)
    raise Unconvertible(_advice_on_sizes(call, sizes))


def _advice_on_sizes(call: Call, sizes: tuple[Any, ...]) -> str:
    """Return the advice for a shape that is not understood: if it has sizes that are no numbers, these may help."""
    return NUMBER if call.sizes is None and any(isinstance(size, (Size, Shape)) for size in sizes) else _SIZED


def are_of_input(size: Size, call: Call) -> bool:
    """Whether a size is a size of the call's input, or a product of its sizes."""
    return all(of is call.node.all_input_nodes[0] for of in size.of)


def of_sizes(operation: Callable[..., Any], rule: Rule) -> Rule:
    """Make the rule of an operation on numbers. ``rule`` is for calls with tensors."""

    def either(call: Call) -> Any:
        sizes = [Size(x) if isinstance(x, (int, float)) else x for x in call.args]
        if call.kwargs or not all(isinstance(x, Size) for x in sizes):
            if any(isinstance(x, (Size, Shape)) for x in call.args):
                raise Unconvertible(NUMBER)
            return rule(call)
        if operation is operator.mul:
            return _product(sizes)
        if operation is operator.floordiv and sizes[1].dims:
            return _quotient(*sizes)
        if len(sizes) == 2 and operation in (operator.truediv, operator.floordiv) and sizes[1].number == 0:
            raise Unconvertible(DIVIDED)
        if operation is operator.floordiv and sizes[0].number % sizes[1].number == 0:
            return replace(sizes[0], number=sizes[0].number // sizes[1].number)
        if any(x.dims for x in sizes):
            raise Unconvertible(EXAMPLE if operation in _COMPARISONS else NUMBER)
        return Size(operation(*(x.number for x in sizes)))

    return either


def _product(sizes: list[Size]) -> Size:
    parts = sorted(((dim, of) for x in sizes for dim, of in zip(x.dims, x.of, strict=True)), key=lambda part: part[0])
    dims, of = tuple(dim for dim, _ in parts), tuple(of for _, of in parts)
    return Size(math.prod(x.number for x in sizes), dims, of)


def _quotient(one: Size, other: Size) -> Size:
    """Cancel sizes, as in ``x.numel() // x.size(0)``."""
    rest = Counter(zip(one.dims, one.of, strict=True))
    rest.subtract(zip(other.dims, other.of, strict=True))
    if min(rest.values()) < 0 or one.number % other.number:
        raise Unconvertible(NUMBER)
    parts = [Size(1, (dim,), (of,)) for dim, of in rest.elements()]
    return _product([Size(one.number // other.number), *parts])


def _transpose(call: Call) -> Any:
    x, one, other = (*call.args, None, None)[:3]
    if isinstance(x, Grouped) and {one, other} == {1, 2}:
        return replace(x, swapped=not x.swapped)
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)


def _permuted(call: Call) -> Any:
    x, *dims = *call.args, *call.kwargs.values()
    dims = [*dims[0]] if dims and isinstance(dims[0], (tuple, list)) else dims
    if isinstance(x, Grouped) and dims == [0, 2, 1, 3, 4]:
        return replace(x, swapped=not x.swapped)
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)


def _contiguous(call: Call) -> Any:
    return call.args[0] if isinstance(call.args[0], Grouped) else call.input


def _viewed(call: Call) -> Any:
    """Convert a view or reshape: it flattens, or is a step of shuffling channels."""
    sizes = (*call.args[1:], *call.kwargs.values())
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    x, sizes = call.args[0], _as_symbols(call, sizes)
    if call.sizes is not None and call.sizes == call.sizes_after:
        return call.input
    if isinstance(x, Grouped):
        channels = number_of_channels(x.x)
        if channels is None or not _views(sizes, [(channels, -1)]):
            raise Unconvertible(_advice_on_sizes(call, sizes))
        return call.shuffled(x) if x.swapped else x.x
    if len(sizes) == 5:
        train = call.spikes()
        groups, channels = sizes[1], number_of_channels(train)
        if channels is None or not isinstance(groups, int) or groups < 1 or channels % groups or train.dims == 5:
            raise Unconvertible(_advice_on_sizes(call, sizes))
        if not _views(sizes, [(groups,), (channels // groups, -1)]):
            raise Unconvertible(_advice_on_sizes(call, sizes))
        return Grouped(train, groups)
    if len(sizes) < 2:
        _ = call.input
        raise Unconvertible(_advice_on_sizes(call, sizes))
    if len(sizes) in (3, 4) and call.value.dims in (2, None) and sizes[0] in (BATCH, -1):
        return _unflattened(call, sizes[1:])
    return _reshape(call, sizes)


def _as_symbols(call: Call, sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the sizes of a view as networks for images of all sizes compute them, whatever the numbers."""
    before, after = call.sizes, call.sizes_after
    if before is None or after is None:
        return sizes
    if len(after) == 1:
        return BATCH, -1
    if len(after) == 2:
        return BATCH, after[0], -1
    return (BATCH, *after[:-2], *WHOLE_IMAGE) if after[-2:] == before[-2:] else sizes


def _unflattened(call: Call, sizes: Sequence[Any]) -> Any:
    """Convert features [N, F] to images or lines of these sizes, of which one may be -1."""
    features = shape_of(call.value).channels or (None if call.example_size is None else call.example_size[1])
    known = [size for size in sizes if size != -1]
    unknown = len(sizes) - len(known)
    if not all(isinstance(size, int) and size > 0 for size in known) or unknown > (features is not None):
        raise Unconvertible("give the sizes of images as numbers, as in x.view(-1, 8, 7, 7)")
    channels, *rest = (features // math.prod(known) if size == -1 else size for size in sizes)
    image = call.rearrange("unflatten", channels, *[1] * (2 - len(rest)), *rest)
    return image if len(rest) == 2 else call.flattened(image, 2, 3)


def unflattened(call: Call, dim: Any, sizes: Any) -> Any:
    """Convert a call that splits a dimension, here only the features of [N, F]."""
    if call.value.dims not in (2, None) or dim not in (1, -1) or not 2 <= len(sizes) <= 3:
        raise Unconvertible("make images or lines of features [N, F]: other dimensions are not split")
    return _unflattened(call, sizes)


@converts(torch.squeeze, torch.Tensor.squeeze)
def _squeeze(call: Call, dim: Any = None) -> Any:
    _, size = call.value, call.example_size
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if size is None or len(size) not in (3, 4) or not all(isinstance(d, int) for d in dims):
        raise Unconvertible(_SQUEEZED)
    squeezed = sorted({d % len(size) for d in dims if size[d] == 1})
    if not squeezed:
        return call.input
    if squeezed[0] < 2:
        raise Unconvertible(_SQUEEZED)
    return call.flatten(2 if len(size) == 4 and len(squeezed) == 1 else 1)


def _views(sizes: tuple[Any, ...], channels: list[tuple[int, ...]]) -> bool:
    """Whether these are the sizes of images whose channels have one of the sizes given, in order."""
    if len(sizes) != 3 + len(channels) or sum(size == -1 for size in sizes) > 1 or sizes[-2:] != WHOLE_IMAGE:
        return False
    batch, *middle = sizes[:-2]
    fits = all(size in allowed for size, allowed in zip(middle, channels, strict=True))
    return fits and batch in (BATCH, -1)


def _shape(call: Call) -> Shape:
    return shape_of(call.value, call.node.all_input_nodes[0])


def _size(call: Call) -> Any:
    shape = _shape(call)
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if dim is None:
        return shape
    if not isinstance(dim, int):
        raise Unconvertible(NUMBER)
    return _size_at(shape, dim)


def _size_at(shape: Shape, dim: int) -> Size:
    if dim < 0:
        if shape.dims is None:
            raise Unconvertible("count dimensions from the first: the number of dimensions is not known")
        dim += shape.dims
    return Size(1, (dim,), (shape.of,)) if dim != shape.channel_dim or shape.channels is None else Size(shape.channels)


def _numel(call: Call) -> Any:
    shape = _shape(call)
    if shape.dims is None:
        raise Unconvertible(NUMBER)
    return _product([_size_at(shape, dim) for dim in range(shape.dims)])


def _length(call: Call) -> Any:
    x = call.args[0]
    if isinstance(x, Shape) and x.dims is not None:
        return Size(x.dims)
    return replace(BATCH, of=(_shape(call).of,))


def _rank(call: Call) -> Any:
    dims = call.value.dims
    if dims is None:
        raise Unconvertible(EXAMPLE)
    return Size(dims)


def _attribute(call: Call) -> Any:
    if isinstance(call.args[0], Maxima) and call.args[1] == "values":
        return call.args[0].values
    x, word = call.value, call.args[1]
    if word == "shape":
        return _shape(call)
    if word == "ndim":
        return _rank(call)
    if word == "data" and all(map(asks_for_size, call.node.users)):
        return x
    raise Unconvertible(NOTHING_ELSE)


def _asserted(call: Call) -> Any:
    condition = call.args[0] if call.args else call.kwargs.get("condition")
    if condition is True:
        return Size(1)
    raise Unconvertible(EXAMPLE)


def _item(call: Call) -> Any:
    x, index = call.args
    if isinstance(x, Shape):
        if isinstance(index, int):
            return _size_at(x, index)
        if isinstance(index, slice) and x.dims is not None:
            return Sizes(tuple(_size_at(x, dim) for dim in range(x.dims)[index]))
        raise Unconvertible(NUMBER)
    if isinstance(x, tuple):  # a part of a shape
        x = tuple(Size(size) if isinstance(size, int) else size for size in x)
        return x[index] if isinstance(index, int) else Sizes(x[index])
    if isinstance(x, Pieces) and isinstance(index, int):
        return call.piece(x, index)
    if isinstance(x, Maxima) and (index == 0 or not call.node.users):
        return x.values if index == 0 else x
    return _indexed(call, index)


_SELECTED = "select ranges behind the batch, as in x[:, :8, ::2], or one row or column, as in x[:, :, -1]"


def _indexed(call: Call, index: Any) -> Any:
    """Select ranges of channels, rows and columns, or one row or column."""
    x = call.input
    index = [*index] if isinstance(index, tuple) else [index]
    if ... in index:
        at = index.index(...)
        if index[at + 1 :] and x.dims is None:
            raise Unconvertible(SIZES)
        missing = 0 if x.dims is None else x.dims - len(index) + 1
        index[at : at + 1] = [slice(None)] * missing
    parts = {dim: part for dim, part in enumerate(index) if part != slice(None)}
    if 0 in parts or (x.dims is not None and len(index) > x.dims) or not all(map(_is_part, parts.values())):
        raise Unconvertible(_SELECTED)
    if not parts:
        return x
    channels = parts.get(1)
    if isinstance(channels, slice) and len(parts) == 1 and channels.step in (None, 1):
        return call.piece(call.pieces(lambda number: [channels.indices(number)[:2]]), 0)
    single = [dim for dim, part in parts.items() if isinstance(part, int)]
    if single and x.dims is None:
        raise Unconvertible(SIZES)
    if any(dim == 1 and not (x.features and x.dims == 3) for dim in single) or (single and x.dims not in (3, 4)):
        raise Unconvertible(_SELECTED)
    return call.sliced({dim: _as_slice(part) for dim, part in parts.items()}, single)


def _is_part(part: Any) -> bool:
    """Whether an index is a number, or a range with a positive step and ends that are numbers."""
    if not isinstance(part, slice):
        return isinstance(part, int) and not isinstance(part, bool)
    ends = [end for end in (part.start, part.stop) if end is not None]
    return all(isinstance(end, int) for end in ends) and (part.step is None or (_is_part(part.step) and part.step > 0))


def _as_slice(part: slice | int) -> slice:
    return part if isinstance(part, slice) else slice(part, None if part == -1 else part + 1)


def _compared(call: Call) -> Any:
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)


converts(torch.unflatten, torch.Tensor.unflatten)(unflattened)
register_all(_viewed, torch.reshape, torch.Tensor.reshape, torch.Tensor.view)
register_all(_transpose, torch.transpose, torch.Tensor.transpose)
register_all(_permuted, torch.permute, torch.Tensor.permute)
for _compare in _COMPARISONS:
    register(_compare, of_sizes(_compare, _compared))
register(torch.Tensor.size, _size)
register_all(_numel, torch.numel, torch.Tensor.numel, torch.Tensor.nelement)
register_all(_rank, torch.Tensor.dim, torch.Tensor.ndimension)
register(len, _length)
register(getattr, _attribute)
register(torch._assert, _asserted)
register(operator.getitem, _item)
register(torch.Tensor.contiguous, _contiguous)
