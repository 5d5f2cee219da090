"""Fair timing on a shared machine: all sides take turns in one process."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping

Sides = Mapping[str, Callable[[], object]]
# Seconds that a side fills with repetitions when its turn comes: the first one finds the caches full of what other
# sides left there, as a program that does the same again and again does not.
SLICE = 0.1


def rounds(
    sides: Sides, repeats: int, seconds: float, prepare: Callable[[str], object] = lambda name: None
) -> dict[str, list[float]]:
    """Seconds per run of each side, one value a round.

    In every round each side has its turn, in random order, so that no side always finds the caches as the same other
    one left them. There are ``repeats`` rounds, or more if they take less than ``seconds``. ``prepare`` gets a side's
    name before its turn.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    runs: dict[str, int] = {}
    for name, side in sides.items():
        prepare(name)
        side()  # warms up
        # The fastest of a few: sides of equal speed must get equally many runs, over which each turn spreads its start.
        runs[name] = max(1, math.ceil(SLICE / min(_time(side, 1) for _ in range(5))))
    order, shuffle = list(sides), random.Random(0).shuffle
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(times[order[0]]) < repeats or time.perf_counter() < end:
            shuffle(order)
            for name in order:
                prepare(name)
                times[name].append(_time(sides[name], runs[name]))
    finally:
        if collects:
            gc.enable()
    return times


def _time(side: Callable[[], object], runs: int) -> float:
    """Mean seconds of some runs in a row."""
    start = time.perf_counter()
    for _ in range(runs):
        side()
    return (time.perf_counter() - start) / runs
