"""The parameters of neuron models: a parameter's range and meaning are stated once, here or beside its model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """A parameter of a neuron model. Checks, changes of units, files and tests follow from it.

    Examples:
        >>> from tandem_cuda.neuron import Parameter
        >>> leak = Parameter("leak", "in (0, 1]", 0, 1, "(]")
        >>> leak.holds(0), leak.holds(0.5), leak.holds(1)
        (False, True, True)
    """

    name: str
    rule: str
    """The range, as messages say it: "positive and finite"."""
    low: float
    high: float
    ends: str = "[]"
    """Whether the range contains its ends: "[" and "]" if it does, "(" and ")" if not."""
    whole: bool = False
    """Whether values are whole numbers."""
    flag: bool = False
    """Whether values are bools."""
    potential: bool = False
    """Whether it is measured in units of the membrane potential."""
    optional: bool = False
    """Whether 0 means "without it". NIR describes only 0."""
    not_in_nir: str = "NIR has no such neurons"
    """Why NIR describes only 0."""

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range."""
        # Comparisons, which torch.compile traces with numbers that it does not know; an int may exceed every float.
        above = self.low <= value if self.ends[0] == "[" else self.low < value
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below and (not self.whole or value % 1 == 0)

    def check(self, owner: str, value: Any) -> None:
        """Raise a TypeError or ValueError unless the parameter may have this value. ``owner``: the class with it."""
        if self.flag:
            if not isinstance(value, bool):
                raise TypeError(f"{owner}: {self.name} must be {self.rule}, got {type(value).__name__}")
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{owner}: {self.name} must be a number, got {type(value).__name__}")
        if not self.holds(value):
            raise ValueError(f"{owner}: {self.name} must be {self.rule}, got {value}")


THRESHOLD = Parameter("threshold", "positive and finite", 0, sys.float_info.max, "(]", potential=True)
CLIP = Parameter("clip", "True or False", 0, 1, flag=True)
AMPLITUDE = Parameter("amplitude", "positive and finite", 0, sys.float_info.max, "(]")
LEAK = Parameter("leak", "in (0, 1]", 0, 1, "(]")
INITIAL = Parameter(
    "initial",
    "in [0, 1)",
    0,
    1 - 2.0**-25,  # what is nearer to 1 is 1 in float32
    "[)",
    optional=True,
    not_in_nir="NIR has no field for the potential at the start",
)
