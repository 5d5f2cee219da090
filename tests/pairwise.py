"""Parameters of tests where a full product would repeat itself: every pair of values, or every value, in some row."""

from collections.abc import Mapping
from itertools import combinations, product

import pytest


def covering(*sizes, strength=2):
    """Rows of one index per factor, fewer than the product's, in which any `strength` factors meet in all their values.

    ``sizes`` are the numbers of values. With strength 1, every value stands in some row, and those of small factors
    mix. The rows are the same in every run.
    """
    if strength == 1:
        return [_in_turn(row, sizes) for row in range(max(sizes))]
    if len(sizes) <= strength:
        return list(product(*map(range, sizes)))
    missing = {
        pair
        for i, j in combinations(range(len(sizes)), 2)
        for pair in product([i], range(sizes[i]), [j], range(sizes[j]))
    }
    rows = []
    for wanted in sorted(missing, key=lambda pair: (-sizes[pair[0]] * sizes[pair[2]], pair)):
        if wanted not in missing:
            continue
        row = {wanted[0]: wanted[1], wanted[2]: wanted[3]}
        for i in sorted(set(range(len(sizes))) - row.keys(), key=lambda i: -sizes[i]):
            news = [sum(_pair(i, value, j, row[j]) in missing for j in row) for value in range(sizes[i])]
            turn = len(rows) % sizes[i]  # of equals each in its turn
            row[i] = max(
                range(sizes[i]), key=lambda value, news=news, n=sizes[i], t=turn: (news[value], (t - value) % n)
            )
        missing -= {_pair(i, row[i], j, row[j]) for i, j in combinations(row, 2)}
        rows.append(tuple(row[i] for i in range(len(sizes))))
    return rows


def _pair(i, a, j, b):
    return (i, a, j, b) if i < j else (j, b, i, a)


def _in_turn(row, sizes):
    """The row's number in the longest factor; the other factors take turns of different lengths."""
    longest = sizes.index(max(sizes))
    block = max((size for i, size in enumerate(sizes) if i != longest), default=1)
    turns = [row if i == longest or i == 0 else row + row // block**i for i in range(len(sizes))]
    return tuple(turn % size for turn, size in zip(turns, sizes, strict=True))


def parametrize(strength=2, **factors):
    """``pytest.mark.parametrize`` with rows of `covering`. A factor is a sequence of values, or values by their id."""
    names = list(factors)
    values = [
        [*factor.items()] if isinstance(factor, Mapping) else [(_id(value), value) for value in factor]
        for factor in factors.values()
    ]
    rows = [
        [column[index] for column, index in zip(values, row, strict=True)]
        for row in covering(*map(len, values), strength=strength)
    ]
    return pytest.mark.parametrize(
        names, [pytest.param(*(v for _, v in row), id="-".join(key for key, _ in row)) for row in rows]
    )


def _id(value):
    """The same in every process, as that of a function without its address."""
    return getattr(value, "__name__", str(value)).removeprefix("torch.")


def pairs(**factors):
    """Every two values of different factors in some test."""
    return parametrize(2, **factors)


def each(**factors):
    """Every value of every factor in some test: for factors that do not interact."""
    return parametrize(1, **factors)
