"""Figures, and how a run prints and keeps them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timing import Sides, rounds


class Disagreement(AssertionError):
    """Two sides that are to be compared compute different things: their times mean nothing."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Disagreement(message)


@dataclass(frozen=True)
class Figure:
    """One figure. Without ``must`` it is information; without ``value`` it was not measured, ``note`` says why."""

    name: str
    value: float | None
    unit: str = "x"
    must: float | None = None
    aim: float | None = None
    higher_is_better: bool = True
    note: str = ""

    @property
    def met(self) -> str:
        if self.must is None or self.value is None:
            return ""
        return "aim" if self._reaches(self.aim) else "must" if self._reaches(self.must) else "NO"

    def _reaches(self, bound: float | None) -> bool:
        if bound is None or self.value is None:
            return False
        return self.value >= bound if self.higher_is_better else self.value <= bound

    def bound(self, bound: float | None) -> str:
        return "" if bound is None else f"{'>=' if self.higher_is_better else '<='} {bound:g}"

    def cells(self) -> list[str]:
        value = "not measured" if self.value is None else f"{self.value:.4g} {self.unit}".rstrip()
        return [self.name, value, self.bound(self.must), self.bound(self.aim), self.met, self.note]


def speed(name: str, value: float, must: float | None = None, aim: float | None = None, note: str = "") -> Figure:
    """How many times as fast: the more the better."""
    return Figure(name, value, "x", must, aim, True, note)


def cost(name: str, value: float, must: float | None = None, aim: float | None = None, note: str = "") -> Figure:
    """Share of the other side's time: the less the better."""
    return Figure(name, value, "x", must, aim, False, note)


@dataclass
class Run:
    """What a section needs: how to time, and where results go."""

    repeats: int
    seconds: float
    threads: int
    peers: bool
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def time(self, group: str, sides: Sides, prepare: Callable[[str], object] = lambda name: None) -> dict[str, float]:
        """Median seconds of each side; the seconds of every round are kept under the group's name."""
        self.times[group] = rounds(sides, self.repeats, self.seconds, prepare)
        medians = {name: statistics.median(seconds) for name, seconds in self.times[group].items()}
        print(f"\n{group}")
        for name, seconds in medians.items():
            print(f"    {name:44s} {seconds * 1e3:10.3f} ms   (fastest round {min(self.times[group][name]) * 1e3:.3f})")
        return medians

    def tell(self, key: str, value: Any) -> None:
        """Print and keep something that is no time."""
        self.details[key] = value
        print(f"\n{key}")
        for line in value if isinstance(value, list) else [value]:
            print(f"    {line}")


def fastest(medians: dict[str, float], start: str) -> tuple[str, float]:
    """The fastest of the sides whose names start so, and its seconds."""
    name = min((name for name in medians if name.startswith(start)), key=medians.__getitem__)
    return name, medians[name]


def table(figures: Iterable[Figure]) -> str:
    rows = [["figure", "measured", "must", "aim", "met", "note"], *(figure.cells() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(f"{line}  {row[5]}".rstrip() for line, row in zip(lines, rows, strict=True))


def write_json(path: Path, machine: dict[str, Any], options: dict[str, Any], run: Run, figures: list[Figure]) -> None:
    content = {
        "machine": machine,
        "options": options,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        "median_seconds": {
            group: {name: statistics.median(seconds) for name, seconds in sides.items()}
            for group, sides in run.times.items()
        },
        "seconds_of_each_round": run.times,
        "details": run.details,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
