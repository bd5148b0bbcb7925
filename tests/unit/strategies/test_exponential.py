"""Exponential, logarithm, softmax and angles of arrays: right to a few last units, and pinned."""

import hashlib
import math

import numpy as np
import pytest
from crdt_merge_protocol.strategies import angles, trigonometry
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.exponential import exponential, logarithm, softmax
from crdt_merge_protocol.strategies.reductions import tree_sum
from crdt_merge_protocol.strategies.rows import row_sums

RNG = np.random.default_rng(3)
EXPONENTS = np.concatenate([RNG.uniform(-700, 709.7, 3000), RNG.normal(size=3000), [0.0, -0.0, 1e-300]])
NUMBERS = np.concatenate(
    [2.0 ** RNG.uniform(-1000, 1000, 3000), 1 + RNG.normal(size=3000) * 1e-4, [0.5, 2.0, 1.5]]
)
COSINES = np.concatenate([RNG.uniform(-1, 1, 2000), 1 - 10.0 ** RNG.uniform(-16, -1, 2000), [1.0, -1.0, 0.0]])
TURNS = np.concatenate([RNG.uniform(0, math.pi, 2000), [0.0, 1e-9, math.pi / 2]])


def units_off(found, true):
    """Return the largest error in units of the last place of the true value."""
    true = np.array(true)
    return np.max(np.abs(found - true) / np.spacing(np.maximum(np.abs(true), 1e-300)))


def test_the_exponential_is_within_two_units():
    assert units_off(exponential(EXPONENTS), [math.exp(x) for x in EXPONENTS]) <= 2


def test_subnormal_exponentials_are_within_one_step_of_the_smallest():
    deep = np.linspace(-745, -709, 50)

    assert np.abs(exponential(deep) - [math.exp(x) for x in deep]).max() <= 5e-324


def test_exponentials_beyond_the_range_are_zero_or_infinite():
    out = exponential(np.array([-np.inf, -746.0, 0.0, 710.0, np.inf]))

    assert out.tolist() == [0.0, 0.0, 1.0, math.inf, math.inf]


def test_the_logarithm_is_within_two_units():
    assert units_off(logarithm(NUMBERS), [math.log(x) for x in NUMBERS]) <= 2
    assert logarithm(np.array([1.0])).tolist() == [0.0]


@pytest.mark.parametrize("width", [1, 2, 7, 300, LEAF_ELEMENTS + 3])
def test_row_sums_are_tree_sums(width):
    matrix = RNG.normal(size=(3, width))

    assert row_sums(matrix).tolist() == [tree_sum(row) for row in matrix]


def test_softmax_adds_up_to_one_and_follows_the_definition():
    matrix = RNG.normal(size=(5, 37)) * 20
    naive = [[math.exp(x - max(row)) for x in row] for row in matrix.tolist()]

    out = softmax(matrix)

    np.testing.assert_allclose(out, [[e / math.fsum(row) for e in row] for row in naive], rtol=1e-15)
    np.testing.assert_allclose(out.sum(axis=1), 1, rtol=1e-15)
    assert softmax(matrix[:0]).shape == (0, 37)


def test_softmax_of_huge_values_is_finite():
    assert softmax(np.array([[1e300, -1e300, 1e300]])).tolist() == [[0.5, 0.0, 0.5]]


def test_angles_of_arrays_agree_with_exact_trigonometry():
    for found, exact, values, units in (
        (angles.acos, trigonometry.acos, COSINES, 8),
        (angles.sin, trigonometry.sin, TURNS, 3),
        (angles.cos, trigonometry.cos, TURNS, 3),
    ):
        some = values[::37].copy()
        assert units_off(found(some), [exact(x) for x in some]) <= units


def test_the_bits_are_the_same_however_arrays_are_cut():
    whole = [exponential(EXPONENTS), logarithm(NUMBERS), angles.acos(COSINES), angles.sin(TURNS)]
    parts = [
        np.concatenate([function(x[:5]), function(x[5:1001]), function(x[1001:])])
        for function, x in (
            (exponential, EXPONENTS), (logarithm, NUMBERS), (angles.acos, COSINES), (angles.sin, TURNS),
        )
    ]  # fmt: skip

    assert [x.tobytes() for x in whole] == [x.tobytes() for x in parts]


def test_the_bits_are_those_of_every_release():
    """Pinned. The arguments are made with integers, so that nothing but these functions can differ."""
    x = (np.random.Philox(key=3).random_raw(50_000) >> 11).astype(np.float64) * 2.0**-53
    results = [
        exponential(x * 1400 - 690),
        logarithm(x + 2.0**-60),
        angles.acos(2 * x - 1),
        angles.sin(3 * x),
        angles.cos(3 * x),
        softmax(x[:49_000].reshape(70, 700) * 30).reshape(-1),
    ]

    digest = hashlib.sha256(b"".join(y.tobytes() for y in results)).hexdigest()

    assert digest == "78b30224cd815ab4add582234a53e33a9989d6b8e57c1ed19a21730401778a60"
