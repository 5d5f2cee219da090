"""Rows that stand for a product: nothing that was asked for is missing."""

from itertools import combinations, product

import pytest

from pairwise import covering

SIZES = [(1,), (3, 2), (2, 2, 2), (61, 2, 2), (5, 4, 3, 2), (3, 3, 3, 3), (2, 7, 1, 4, 6), (12, 2, 2, 2, 2)]
every_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


@every_size
def test_every_pair_is_there(sizes):
    rows = covering(*sizes)
    for i, j in combinations(range(len(sizes)), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(range(sizes[i]), range(sizes[j])))
    assert len(set(rows)) == len(rows)
    two_largest = sorted(sizes)[-2:]
    least = two_largest[0] * two_largest[-1] if len(sizes) > 1 else 1
    assert least <= len(rows) <= least * 1.7
    assert rows == covering(*sizes)


@every_size
def test_every_value_is_there(sizes):
    rows = covering(*sizes, strength=1)
    assert len(rows) == max(sizes)
    for i, size in enumerate(sizes):
        assert {row[i] for row in rows} == set(range(size))


def test_small_factors_mix():
    assert {row[1:] for row in covering(61, 2, 2, 2, strength=1)} == set(product(range(2), repeat=3))
