"""A quantised network in one form, whatever it was read from: steps that pass integers on, in order of execution."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, fx, nn


class Unreadable(ValueError):
    """Says why a part of a quantised network has no spiking form: what was expected, and what was got."""


class Code(NamedTuple):
    """What integers stand for: q from 0 to 2^bits - 1 for the real number scale * (q - zero)."""

    scale: float
    zero: int
    bits: int

    @classmethod
    def of(cls, scale: float, zero_point: int, least: int, most: int) -> Code:
        """Return the code of integers from ``least`` to ``most``, less ``least``."""
        bits = (most - least + 1).bit_length() - 1
        if most - least + 1 != 2**bits or not 1 <= bits <= 8:
            raise Unreadable(f"activations must be integers with a power of two of values, got {least} to {most}")
        return cls(float(scale), int(zero_point) - least, bits)

    def positive(self) -> Code:
        """Return the code of the integers from ``zero`` on, less ``zero``: all that a ReLU leaves."""
        bits = (2**self.bits - self.zero).bit_length() - 1
        if 2**self.bits - self.zero != 2**bits:
            raise Unreadable(f"the zero point behind a ReLU must be the least integer, got {self.zero} more")
        return Code(self.scale, 0, bits)


class Product(NamedTuple):
    """Integer weights, which stand for scale * weight, and a bias."""

    kind: str
    """The tandem layer."""
    arguments: dict[str, Any]
    """What defines its connections, by the names of its SETTINGS."""
    weight: Tensor
    """int8, in the shape of the layer's weight."""
    scale: Tensor
    """[O], float64."""
    bias: Tensor | None
    """[O]."""


class Spikes(NamedTuple):
    """Integers, which become radix spikes."""

    name: str
    """The step that returns them."""
    code: Code


class Move(NamedTuple):
    """A pooling or flatten."""

    name: str
    kind: str
    """The spiking layer, or Flatten."""
    arguments: dict[str, Any]
    """Its settings."""


Branch = tuple[Spikes, Product | None]
"""Spikes and the weights that read them; None for the values themselves."""


class Sums(NamedTuple):
    """Real numbers between two quantisations: the sum of branches, then perhaps a ReLU, then moves."""

    name: str
    branches: tuple[Branch, ...]
    relu: bool = False
    bound: float | None = None
    """The largest output of the ReLU, as 6 of ReLU6."""
    moves: tuple[Move, ...] = ()
    nodes: tuple[fx.Node, ...] = ()
    """The nodes that make the numbers of dequantised integers or of a product, if these can be kept as they are."""

    @property
    def source(self) -> Spikes | None:
        """The spikes, if there are no others and no weights."""
        (spikes, product), *others = self.branches
        return spikes if not others and product is None else None


class Real(NamedTuple):
    """Real numbers before the first quantisation or behind the last."""

    name: str
    is_output: bool = False
    """Whether they are made of integers."""


# -- what the spiking network consists of


class Encoding(NamedTuple):
    """Real numbers become integers."""

    name: str
    source: str
    code: Code


class Neurons(NamedTuple):
    """Neurons that the sum of branches drives."""

    name: str
    branches: tuple[Branch, ...]
    code: Code
    shape: list[int]
    """The shape of the example's sum."""


class Moving(NamedTuple):
    """A spiking pooling layer, or flatten."""

    name: str
    move: Move
    source: Spikes


class Decoding(NamedTuple):
    """Integers become real numbers."""

    name: str
    source: Spikes


class ReadOut(NamedTuple):
    """A product whose sums nobody quantises."""

    name: str
    source: Spikes
    product: Product


class Kept(NamedTuple):
    """A node of the quantised network that stays as it is: it maps real numbers to real numbers."""

    name: str
    node: fx.Node
    function: Any = None
    """The functional operator that does the same as the node's operator. None: its target."""


Step = Encoding | Neurons | Moving | Decoding | ReadOut | Kept


class Network(NamedTuple):
    """What a reader has found."""

    inputs: list[str]
    steps: list[Step]
    output: Any
    """The names of steps in the structure of the network's output."""
    root: nn.Module
    """The owner of the modules and tensors of kept nodes."""
    integers: dict[str, Tensor]
    """By the names of steps, the integers that the quantised network has for the example."""
