"""Sums: one tree, whatever the blocks."""

import math

import numpy as np
import pytest
from crdt_merge_protocol.strategies import reductions
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.reductions import (
    add_leaves,
    check_arithmetic,
    leaf_products,
    leaf_sums,
    tree_sum,
)


def halve(values):
    """Return the same sum by the definition: pad with zeros to a power of two, add halves."""
    width = 1
    while width < len(values):
        width *= 2
    row = list(values) + [0.0] * (width - len(values))
    while len(row) > 1:
        middle = len(row) // 2
        row = [row[i] + row[middle + i] for i in range(middle)]
    return row[0] if row else 0.0


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 1000])
def test_a_leaf_is_summed_by_halves(size):
    values = np.random.default_rng(size).normal(size=size) * 10.0 ** np.arange(size).clip(0, 12)

    assert halve(values.tolist()) == tree_sum(values)


def test_sums_of_leaves_do_not_depend_on_blocks():
    values = np.random.default_rng(1).normal(size=3 * LEAF_ELEMENTS + 17)
    pieces = [values[:LEAF_ELEMENTS], values[LEAF_ELEMENTS : 3 * LEAF_ELEMENTS], values[3 * LEAF_ELEMENTS :]]

    assert tree_sum(values) == add_leaves(np.concatenate([leaf_sums(piece) for piece in pieces]))
    assert tree_sum(values) == pytest.approx(math.fsum(values), rel=1e-12)


def test_leaves_are_added_by_halves_like_what_is_in_them():
    """One after the other would lose all ones beside 2^53."""
    assert add_leaves([2.0**53, 1.0, -(2.0**53), 1.0]) == 2.0
    assert add_leaves([2.0**53, 1.0, 1.0, 1.0, -(2.0**53)]) == 3.0


def test_inner_products_are_sums_of_products():
    first, second = np.random.default_rng(2).normal(size=(2, LEAF_ELEMENTS + 5))

    assert tree_sum(first * second) == add_leaves(leaf_products(first, second))


def test_inputs_are_not_written_to():
    values = np.random.default_rng(3).normal(size=1000)
    values.flags.writeable = False

    assert tree_sum(values) == tree_sum(values.copy())
    assert add_leaves(values) == add_leaves(values.copy())


def test_plain_arithmetic_passes_the_check():
    check_arithmetic()


def test_flush_to_zero_is_refused(monkeypatch):
    full = np.full
    monkeypatch.setattr(reductions.np, "full", lambda shape, _: full(shape, 0.0))

    with pytest.raises(reductions.ResolveError, match="IEEE 754"):
        check_arithmetic()
