"""Slerp and the Karcher mean: lengths, influence, every way of having no direction (SCENARIOS S16, S17)."""

import math

import numpy as np
import pytest
from crdt_merge_protocol.strategies.reference import merge_arrays

RNG = np.random.default_rng(5)
U, V, W = (vector / np.sqrt((vector**2).sum()) for vector in RNG.normal(size=(3, 12)))


def slerp(vectors, params=None, **options):
    result = merge_arrays("slerp", [{"t": vector} for vector in vectors], None, params, **options)
    return result.tensors["t"], result.decisions


def length(vector):
    return math.sqrt((vector**2).sum())


def test_the_midpoint_has_equal_angles_and_the_mean_length():
    out, decisions = slerp([2 * U, 4 * V])

    assert length(out) == pytest.approx(3.0)
    assert (out * U).sum() == pytest.approx((out * V).sum())
    assert decisions["tensors"]["t"]["rule"] == "slerp"


def test_the_karcher_mean_is_stationary():
    out, decisions = slerp([U, V, W], weights=(1, 2, 3))
    angles = [math.acos((out * x).sum() / length(out)) for x in (U, V, W)]
    pull = sum(
        weight * angle / math.sin(angle) * (x - math.cos(angle) * out / length(out))
        for weight, angle, x in zip((1, 2, 3), angles, (U, V, W), strict=True)
    )

    assert decisions["tensors"]["t"]["rule"] == "karcher"
    assert length(pull) < 1e-12
    assert length(out) == pytest.approx(1.0)


def test_karcher_with_a_vanishing_third_weight_is_slerp():
    """The rule for many models continues the rule for two."""
    two, _ = slerp([U, V], weights=(1, 3))
    three, _ = slerp([U, V, W], weights=(1, 3, "0.000000000001"))

    np.testing.assert_allclose(three, two, atol=1e-10)


@pytest.mark.parametrize("params", [{}, {"profile": "mergekit"}, {"dot_threshold": "1"}])
@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_antiparallel_vectors_give_something_finite_and_no_longer(params, scale):
    """SCENARIOS S16."""
    out, decisions = slerp([U, -scale * U], params)

    assert np.isfinite(out).all()
    assert length(out) <= max(1.0, scale)
    assert "averaged instead" in decisions["warnings"][0]


@pytest.mark.parametrize("angle", [math.pi - 1e-3, math.pi - 1e-6, math.pi - 1e-9])
def test_nearly_antiparallel_vectors_are_no_longer_either(angle):
    """SCENARIOS S16."""
    side = V - (U * V).sum() * U
    other = math.cos(angle) * U + math.sin(angle) * side / length(side)

    out, _ = slerp([U, 0.25 * other], {"dot_threshold": "1"})

    assert np.isfinite(out).all()
    assert length(out) <= 1.0


@pytest.mark.parametrize("params", [{}, {"magnitude": "raw"}])
def test_vectors_too_opposite_for_an_arc_are_averaged(params):
    """At this angle the cosine is still above -1, but the arc's direction is rounding noise."""
    side = V - (U * V).sum() * U
    other = math.cos(math.pi - 3e-8) * U + 3e-8 * side / length(side)

    _, decisions = slerp([U, other], {"dot_threshold": "1", **params})

    assert decisions["tensors"]["t"] == {"rule": "linear", "coefficients": [0.5, 0.5]}


@pytest.mark.parametrize("vectors", [[U, -U, V, -V], [U, V, -U], [U, U * 0, -U]])
def test_many_vectors_that_cancel_out_never_fail(vectors):
    """SCENARIOS S16."""
    out, _ = slerp(vectors)

    assert np.isfinite(out).all()
    assert length(out) <= 1.0 + 1e-12


def test_a_zero_vector_keeps_its_share_of_the_length():
    out, _ = slerp([0 * U, U])
    three, _ = slerp([0 * U, U, 2 * U])

    np.testing.assert_allclose(out, 0.5 * U, rtol=1e-15)
    np.testing.assert_allclose(three, U, rtol=1e-14)


def test_a_zero_vector_is_at_a_right_angle_in_the_mergekit_profile():
    out, _ = slerp([0 * U, U], {"profile": "mergekit"})

    np.testing.assert_allclose(out, math.sqrt(0.5) * U, rtol=1e-15)


def test_only_zero_vectors_give_zero():
    assert not slerp([0 * U, -0.0 * U, 0 * V])[0].any()


def test_one_model_is_itself():
    assert slerp([U])[0].tolist() == U.tolist()


def test_all_weight_on_one_model_gives_that_model():
    assert slerp([U, V], weights=(1, 0))[0].tolist() == U.tolist()


def test_squares_that_overflow_fall_back_to_the_mean():
    out, decisions = slerp([1e200 * U, 1e200 * V])

    np.testing.assert_allclose(out, 1e200 * (U + V) / 2, rtol=1e-15)
    assert "float64" in decisions["warnings"][0]


def test_wide_sets_are_warned_about():
    _, decisions = slerp([U, -U + 0.2 * V, W])

    assert "may not be the only one" in decisions["warnings"][0]


def test_norm_gains_can_be_averaged_instead():
    gains, matrix = {"gain": U, "matrix": U.reshape(3, 4)}, {"gain": 3 * V, "matrix": 3 * V.reshape(3, 4)}

    result = merge_arrays("slerp", [gains, matrix], None, {"norms": "linear"})

    np.testing.assert_allclose(result.tensors["gain"], (U + 3 * V) / 2, rtol=1e-14)
    assert length(result.tensors["matrix"]) == pytest.approx(2.0)


@pytest.mark.parametrize("strategy", ["slerp", "linear", "weight_average"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_equal_weights_have_equal_influence(strategy, k):
    """SCENARIOS S17: moving any one of k nearby models by e moves the output by e / k."""
    near = [{"t": U + 1e-3 * RNG.normal(size=U.size)} for _ in range(k)]
    step = 1e-6 * RNG.normal(size=U.size)
    before = merge_arrays(strategy, near, None).tensors["t"]
    for i in range(k):
        moved = [{"t": model["t"] + (step if i == j else 0)} for j, model in enumerate(near)]

        change = merge_arrays(strategy, moved, None).tensors["t"] - before

        np.testing.assert_allclose(change, step / k, atol=5e-9)
