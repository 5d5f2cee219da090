"""The parametrisation that rounds weights to a few bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import checks
from ..ops.division import divided

WIDTHS = (*range(2, 9), 16)
"""Numbers of bits that weights can have."""

# Candidate scales, as fractions of the smallest scale that clips nothing. For channels of 576 Gaussian weights the best
# fraction is on average 0.38 with 2 bits, 0.76 with 4 and 1 with 8; for 4,096 weights it is 0.33, 0.66 and 1.
_SHARES = [share / 20 for share in range(20, 4, -1)]


class WeightQuantiser(nn.Module):
    """A parametrisation (torch.nn.utils.parametrize) that rounds weights to scale * {-q, ..., q}.

    q is 2^(bits-1) - 1 for 2 to 8 bits, and 32639 = 256 * 127 + 127 for 16.

    The gradient passes to the weights as if they were not rounded: the straight-through estimator (Bengio, Leonard &
    Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation", 2013,
    arXiv:1308.3432). Clipped weights receive it too, so that none gets stuck.

    Each output channel has its own scale, as in Krishnamoorthi ("Quantizing deep convolutional networks for efficient
    inference: A whitepaper", 2018, arXiv:1806.08342), so that batch norm, whose gain differs between channels, can be
    folded into it. With 8 and 16 bits the scale is the channel's largest weight over q. With fewer it is a fraction of
    that: of 16 fractions from 0.25 to 1, the one with the least squared error. With 2 bits, fraction 1 would round
    every weight below half of the largest one to zero; for 576 Gaussian weights the error would be 84 % of their norm
    instead of 43 % (with 4 bits, 14 % instead of 11 %). The scale is recomputed whenever the weights are used; only the
    weights are stored.

    Args:
        bits: 2 to 8, or 16.
        groups: the ``groups`` of a transposed convolution, whose weights are [C, O/groups, ...]; None for all other
            layers, whose weights are [O, ...].

    Shape:
        Tensor -> Tensor of the same shape and dtype, float32 or float64.

    Raises:
        TypeError: ``bits`` is not an int.
        ValueError: ``bits`` is none of these numbers.

    Examples:
        >>> from tandem_cuda.quantisation import WeightQuantiser
        >>> WeightQuantiser(2)(torch.tensor([[0.9, -1.1, 0.1, 1.0]]))
        tensor([[ 0.9900, -0.9900,  0.0000,  0.9900]])
    """

    input_scale: Tensor | None
    """A factor that broadcasts over the weights, or None: integers then stand for weight * input_scale, because they
    multiply spikes that differ in weight (``input_scale`` of a tandem layer). Set by conversion."""

    def __init__(self, bits: int, groups: int | None = None) -> None:
        super().__init__()
        check_bits("WeightQuantiser", bits)
        self.bits = bits
        self.groups = groups
        self.register_buffer("input_scale", None, persistent=False)

    _transparent: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def transparent(cls) -> Iterator[None]:
        """Return weights as they are, so that a graph of the network reads the parameters themselves."""
        before, cls._transparent = cls._transparent, True
        try:
            yield
        finally:
            cls._transparent = before

    def forward(self, weight: Tensor) -> Tensor:
        if self._transparent:
            return weight
        with torch.no_grad():
            whole, scale = self._rounded(self._by_channel(weight.detach()))
            rounded = (whole * scale).view(weight.shape)
            rounded = rounded if self.input_scale is None else rounded / self.input_scale
        return _StraightThrough.apply(weight, rounded)  # type: ignore[no-untyped-call]  # torch's

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise to integers and scales, in the form that ``ops.spiking_conv2d`` takes.

        Args:
            weight: the full-precision weights, as ``forward`` takes them.

        Returns:
            ``(integers, scale)``: int8, or int16 for 16 bits, in the shape of ``weight``, and [O] in its dtype. Their
            product is the result of ``forward``, times ``input_scale``.

        Raises:
            ValueError: on the CPU, a weight that is not finite. (``forward`` passes NaN on.)
        """
        checks.check_finite("WeightQuantiser", "weight", weight)
        whole, scale = self._rounded(self._by_channel(weight.detach()))
        return whole.to(torch.int16 if self.bits > 8 else torch.int8).view(weight.shape), scale.flatten()

    def kernel(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Work as :meth:`integers`, for float32 weights [O, ...], output channels first, and times ``input_scale``."""
        if self.bits in ops.LARGEST:
            return ops.quantise_weight.trusted(weight.detach(), self.bits)
        checks.check_finite("WeightQuantiser", "weight", weight)
        whole, scale = self._rounded(weight.detach().reshape(1, 1, len(weight), -1))
        return whole.to(torch.int8).view(weight.shape), scale.flatten()

    @property
    def largest(self) -> int:
        """q, the largest integer."""
        return ops.LARGEST.get(self.bits, 2 ** (self.bits - 1) - 1)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def _by_channel(self, weight: Tensor) -> Tensor:
        """Return weight * input_scale as [G, C/G, O/G, taps]; G = 1 and C = 1 if output channels come first."""
        weight = weight if self.input_scale is None else weight * self.input_scale
        if self.groups is None:
            return weight.reshape(1, 1, weight.shape[0], -1)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def _rounded(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """Return whole numbers, in the dtype of the weights, and scales [G, 1, O/G, 1]; 1 for channels of zeros."""
        largest = divided(grouped.abs().amax((1, 3), keepdim=True), self.largest)
        best = torch.where(largest > 0, largest, torch.ones_like(largest))
        if self.bits in ops.LARGEST:
            return self._divided(grouped, best), best
        least = torch.full_like(best, torch.inf)
        for share in _SHARES:
            scale = torch.where(largest > 0, largest * share, best)
            error = (self._divided(grouped, scale) * scale - grouped).square_().sum((1, 3), keepdim=True)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return self._divided(grouped, best), best

    def _divided(self, grouped: Tensor, scale: Tensor) -> Tensor:
        return (grouped / scale).round_().clamp_(-self.largest, self.largest)


class _StraightThrough(torch.autograd.Function):
    """Return ``rounded`` and pass its gradient to ``weight``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def quantiser(layer: nn.Module) -> WeightQuantiser | None:
    """Return the WeightQuantiser of a layer's weight, or None if it has none.

    Examples:
        >>> from tandem_cuda.quantisation import quantiser
        >>> layer = TandemLinear(3, 2)
        >>> quantiser(layer) is None
        True
        >>> quantise(layer, 4)
        >>> quantiser(layer).bits
        4
    """
    return parametrisation(layer)[0]


def parametrisation(layer: nn.Module) -> tuple[WeightQuantiser | None, bool]:
    """Return a layer's WeightQuantiser or None, and whether other parametrisations compute weights or bias.

    Changes of their state go unnoticed.
    """
    every: Any = layer._modules.get("parametrizations")  # torch's own methods are written in Python
    if not isinstance(every, nn.ModuleDict):
        return None, "computed" in layer._modules
    every = every._modules
    of_weight = every.get("weight")
    modules = () if of_weight is None else (*of_weight._modules.values(),)
    if len(modules) == 1 and isinstance(modules[0], WeightQuantiser):
        return modules[0], len(every) > 1
    return None, True


def check_bits(op: str, bits: Any) -> None:
    """Raise TypeError or ValueError unless ``bits`` is an int from 2 to 8, or 16."""
    checks.check_int(op, "bits", bits)
    if bits not in WIDTHS:
        raise ValueError(f"{op}: bits must be from 2 to 8, or 16, got {bits}")
