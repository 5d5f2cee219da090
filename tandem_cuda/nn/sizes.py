"""What is known about the values of a network before there is an input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

REAL, ENCODED, SPIKES, ANY = "a Tensor", "the output of Encode", "spikes", "anything"
"""Kinds of values, as error messages name them."""

LARGEST = 2**31
"""The most values that a layer may take or return per sample. Only a damaged file asks for more."""


class Size(NamedTuple):
    """What is known about a size before there is an input."""

    least: int = 1
    """A lower bound of the size."""
    exact: bool = False
    """Whether the size is exactly ``least``."""
    factor: int = 1
    """A divisor of the size."""
    slope: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    """The network's input has at least slope * size + offset values along this axis."""
    regular: bool = True
    """Whether the network's input also has less than slope * (size + 1) + offset values."""

    def check(self, what: str, size: int) -> None:
        """Raise a ValueError unless this size can be ``size``."""
        if size != self.least if self.exact else size < self.least or size % self.factor:
            multiple = "" if self.factor == 1 else f" and a multiple of {self.factor}"
            raise ValueError(f"{what} must be {self if self.exact else f'at least {self.least}{multiple}'}, got {size}")

    @property
    def needs(self) -> int:
        """The minimum size of the network's input along this axis."""
        return max(1, math.ceil(self.slope * self.least + self.offset))

    def at_least(self, size: int) -> Size:
        """Require at least ``size``; raise a ValueError if the size is known to be smaller."""
        if self.exact and self.least < size:
            raise ValueError(f"the window must fit into the padded input: it needs {size}, got {self.least}")
        return self if self.exact else self._replace(least=max(self.least, size))

    def through(
        self, f: Callable[[int], int], slope: Fraction | int, offset: Fraction | int, *, regular: bool = True
    ) -> Size:
        """Return a layer's output size, given by the non-decreasing function ``f`` of its input size.

        For an output of size n, the layer needs an input of at least slope * n + offset.
        """
        return Size(
            max(f(self.least), 1),
            self.exact,
            slope=self.slope * slope,
            offset=self.slope * offset + self.offset,
            regular=self.regular and regular,
        )

    def fixed(self, least: int, exact: bool = True, *, regular: bool = True) -> Size:
        """Return an output size that does not grow with this size, its input: ``least`` or, if not exact, more."""
        return Size(least, exact, 1, Fraction(0), Fraction(self.needs), regular)

    def times(self, factor: int) -> Size:
        """Return the size times ``factor``."""
        return Size(self.least * factor, self.exact, factor)

    def over(self, factor: int, what: str) -> Size:
        """Return the size over ``factor``; raise a ValueError that names ``what`` if there is a remainder."""
        if self.exact and self.least % factor:
            raise ValueError(f"{what} must be a multiple of {factor}, got {self}")
        return Size(-(-self.least // factor), self.exact)

    def __str__(self) -> str:
        return str(self.least) if self.exact else f">={self.least}"


class Value(NamedTuple):
    """What is known about an input or output of a layer before there is an input."""

    kind: str = ANY
    shape: tuple[Size, ...] | None = None
    """The shape without the batch dimension; None if not even the number of dimensions is known."""
    source: str | None = None
    """The input of the network on whose sizes ``shape`` depends, if there is exactly one."""
    pair_dim: int | None = None
    """The ``pair_dim`` of a spike train."""
    features: Size | None = None
    """The size of the last dimension if ``shape`` is None, where that much is known."""
    radix: bool | None = None
    """The ``radix`` of a spike train; None if it is not known."""

    @property
    def last(self) -> Size | None:
        """What is known about the size of the last dimension."""
        return self.features if self.shape is None else (self.shape or (None,))[-1]

    def check_kind(self, *kinds: str) -> None:
        """Raise a ValueError unless the value may be of one of these kinds."""
        if self.kind not in (*kinds, ANY):
            raise ValueError(f"input must be {' or '.join(kinds)}, got {self.kind}")

    def check_dims(self, *dims: int) -> None:
        """Raise a ValueError unless the number of dimensions, without the batch, may be one of these."""
        if self.shape is not None and len(self.shape) not in dims:
            raise ValueError(f"input must have {' or '.join(str(1 + d) for d in dims)} dimensions, got {self}")

    def __str__(self) -> str:
        return "[N, ...]" if self.shape is None else f"[{', '.join(['N', *map(str, self.shape)])}]"


def without_pairs(x: Value, pair_dim: int | None) -> Value:
    """Return the value with one element for each pair along ``pair_dim``, or as it is for None."""
    if pair_dim is None:
        return x
    return _resized(x, pair_dim, lambda size: size.over(2, "signed channels"))._replace(pair_dim=None)


def with_pairs(x: Value, pair_dim: int | None) -> Value:
    """Return the value with two elements along ``pair_dim`` in place of each one, or as it is for None."""
    if pair_dim is None:
        return x
    return _resized(x, pair_dim, lambda size: size.times(2))._replace(pair_dim=pair_dim)


def _resized(x: Value, dim: int, resize: Callable[[Size], Size]) -> Value:
    if x.shape is None:
        return x._replace(features=None if dim == 1 or x.features is None else resize(x.features))
    at = dim % (1 + len(x.shape)) - 1
    return x._replace(shape=(*x.shape[:at], resize(x.shape[at]), *x.shape[at + 1 :])) if x.shape else x


def check_count(what: str, sizes: Sequence[int]) -> None:
    """Raise a ValueError if one sample would have more than LARGEST values."""
    if math.prod(sizes) > LARGEST:
        raise ValueError(f"{what} must be at most {LARGEST} values, got {' x '.join(map(str, sizes))}")


def agreed(branch: int, a: Value, b: Value) -> Value:
    """Combine what two branches say about the same value."""
    if a.shape is None or b.shape is None:
        return b if a.shape is None else a
    known = a.source is not None and a.source == b.source
    pairs = list(zip(a.shape, b.shape, strict=False))
    if len(a.shape) != len(b.shape) or not all(_may_agree(*pair, known) for pair in pairs):
        raise ValueError(f"branches must agree in shape, got {a} and, for branch {branch}, {b}")
    shape = tuple(one if one.exact or one.least >= other.least else other for one, other in pairs)
    return Value(a.kind, shape, a.source if known else None)


def _may_agree(one: Size, other: Size, same_source: bool) -> bool:
    """Whether two sizes can be equal, given what is known about them."""
    if one.exact or other.exact:
        exact, rest = (one, other) if one.exact else (other, one)
        return rest.least == exact.least if rest.exact else rest.least <= exact.least
    if same_source and one.regular and other.regular and one.slope == other.slope:
        return abs(one.offset - other.offset) < one.slope
    return True
