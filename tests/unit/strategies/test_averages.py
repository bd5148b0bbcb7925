"""Averages and task vectors: signed weights, two ends, refusals."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.errors import BaseMissingError, EmptySetError, ParameterError
from crdt_merge_protocol.strategies.reference import merge_arrays

X = {"t": np.array([1.0, 2.0, -4.0])}
Y = {"t": np.array([3.0, 0.0, 8.0])}
BASE = {"t": np.array([1.0, 1.0, 1.0])}
ENDS = (b"\x02" * 32, b"\x01" * 32)


def merged(strategy, inputs, base=None, params=None, **options):
    return merge_arrays(strategy, inputs, base, params, **options).tensors["t"].tolist()


def test_the_mean_weighs_contributions():
    assert merged("weight_average", [X, Y], weights=(3, 1)) == [1.5, 1.5, -1.0]


def test_weights_need_not_be_binary_fractions():
    assert merged("weight_average", [X, X], weights=("0.1", "0.2")) == pytest.approx(
        [1.0, 2.0, -4.0], rel=1e-15
    )


def test_linear_takes_negative_weights_and_can_leave_them_undivided():
    assert merged("linear", [X, Y], weights=(2, -1)) == [-1.0, 4.0, -16.0]
    assert merged("linear", [X, Y], None, {"normalize": "false"}, weights=(1, -1)) == [-2.0, 2.0, -12.0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_t_names_its_origin_so_that_order_does_not_matter(order):
    inputs, digests = [[X, Y][i] for i in order], [ENDS[i] for i in order]

    out = merged("linear", inputs, None, {"t": "0.25", "t_origin": ENDS[0].hex()}, digests=digests)

    assert out == [1.5, 1.5, -1.0]


def test_a_t_without_meaning_is_refused_offline_and_ignored_with_a_warning_in_a_group():
    params = {"t": "0.25", "t_origin": ENDS[0].hex()}
    with pytest.raises(ParameterError, match="exactly two models"):
        merge_arrays("linear", [X], None, params, is_strict=True)

    result = merge_arrays("linear", [X], None, params)

    assert result.tensors["t"].tolist() == X["t"].tolist()
    assert "weights were used instead" in result.decisions["warnings"][0]


def test_task_arithmetic_adds_scaled_differences():
    assert merged("task_arithmetic", [X, Y], BASE, {"lambda": "0.5"}) == [2.0, 1.0, 2.0]
    assert merged("task_arithmetic", [X, Y], BASE, {"normalize": "true"}) == [2.0, 1.0, 2.0]


def test_a_negative_task_forgets():
    assert merged("task_arithmetic", [X], BASE, weights=(-1,)) == [1.0, 0.0, 6.0]


def test_auto_lambda_shrinks_from_four_models_on():
    inputs = [{"t": BASE["t"] + 2.0**i} for i in range(4)]

    few = merged("task_arithmetic", inputs[:3], BASE, {"lambda": "auto"})
    many = merged("task_arithmetic", inputs, BASE, {"lambda": "auto"})

    assert few == [8.0, 8.0, 8.0]
    assert many == pytest.approx([5.5, 5.5, 5.5])


@pytest.mark.parametrize("strategy", ["task_arithmetic", "ties", "dare", "dare_ties"])
def test_differences_need_a_base(strategy):
    with pytest.raises(BaseMissingError, match=strategy):
        merge_arrays(strategy, [X])


def test_nothing_cannot_be_resolved():
    with pytest.raises(EmptySetError):
        merge_arrays("weight_average", [])


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        ("weight_average", (1, -1)),
        ("slerp", (1, -1)),
        ("linear", (1, -1)),
        ("ties", (0, 0)),
        ("dare", (1, -1)),
    ],
)
def test_weights_without_meaning_are_refused(strategy, weights):
    with pytest.raises(ParameterError, match=r"negative weight|add up to zero"):
        merge_arrays(strategy, [X, Y], BASE, weights=weights)


def test_weights_are_exact_fractions():
    """1/3 in floating point would leave a rest of 2^-54."""
    context_weights = (Fraction(1, 3), Fraction(1, 3), Fraction(1, 3))

    out = merged("weight_average", [X, Y, BASE], weights=context_weights)

    assert out == pytest.approx([5 / 3, 1.0, 5 / 3], rel=1e-15)


def test_shares_are_rounded_once():
    """0.1 / 0.6 in floating point is not the number that is nearest to a sixth."""
    one, none = {"t": np.array([1.0])}, {"t": np.array([0.0])}

    assert 0.1 / 0.6 != 1 / 6
    assert merged("weight_average", [one, none, none], weights=("0.1", "0.2", "0.3")) == [1 / 6]
