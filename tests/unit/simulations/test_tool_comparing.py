"""Comparing: what got worse is said, by how much, and what only moved is not."""

import dataclasses
from collections import Counter

import pytest
from crdt_merge_simulations.comparing import Figure, compare, quantile
from crdt_merge_simulations.result import Result
from support.stories import make_plan, make_result


def _result(**changes: object) -> Result:
    return dataclasses.replace(make_result(make_plan()), **changes)


def test_equal_results_have_no_regression() -> None:
    comparison = compare(_result(), _result())

    assert not comparison.is_regression()
    assert comparison.is_same_trace
    assert {figure.verdict(0.1) for figure in comparison.figures} == {"same"}


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({"converged_after_s": 3.0}, {"convergence"}),
        ({"converged_after_s": None}, {"convergence"}),
        ({"duplicates": 6}, {"duplicates per delivery"}),
        ({"hops": Counter({1: 4, 2: 8, 5: 1})}, {"hops, last", "hops, mean"}),
        ({"delivery_s": [0.1, 0.2, 0.3, 0.9]}, {"delivery, p99"}),
    ],
)
def test_what_got_worse_is_named(changes: dict[str, object], worse: set[str]) -> None:
    comparison = compare(_result(), _result(**changes))

    assert {figure.name for figure in comparison.worse()} == worse
    assert comparison.is_regression()


def test_a_little_worse_is_within_the_tolerance() -> None:
    comparison = compare(_result(), _result(converged_after_s=1.6))

    assert not comparison.is_regression(0.1)
    assert comparison.is_regression(0.01)


def test_a_new_violation_is_a_regression_whatever_the_figures() -> None:
    before = make_result(make_plan())
    after = make_result(make_plan(), violations={"I1": "gone"})

    assert compare(before, after).newly_violated == ["I1: gone"]
    assert compare(before, after).is_regression(10.0)
    assert compare(after, before).no_longer_violated == ["I1: gone"]


@pytest.mark.parametrize(
    ("before", "after", "verdict", "change"),
    [
        (100.0, 150.0, "worse", 0.5),
        (100.0, 50.0, "better", -0.5),
        (100.0, 105.0, "same", 0.05),
        (0.0, 3.0, "worse", None),
        (None, 3.0, "better", None),
        (3.0, None, "worse", None),
        (0.0, 0.0, "same", 0.0),
    ],
)
def test_figures_are_judged_by_relative_change(
    before: float | None, after: float | None, verdict: str, change: float | None
) -> None:
    figure = Figure(name="x", unit="", before=before, after=after)

    assert figure.verdict(0.1) == verdict
    assert figure.change == (change if change is None else pytest.approx(change))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 5), (0.9, 9), (0.91, 10), (1.0, 10)])
def test_quantiles_are_values_that_occurred(share: float, expected: int) -> None:
    assert quantile(list(range(10, 0, -1)), share) == expected
    assert quantile([], share) is None
