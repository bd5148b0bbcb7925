"""Credit of a peer: what it allows at once and on end, whatever the pattern."""

from __future__ import annotations

import pytest
from crdt_merge_protocol.credit import Bucket, Credit
from crdt_merge_protocol.limits import (
    OPERATION_BYTES_BURST,
    OPERATION_BYTES_PER_S,
    OPERATIONS_BURST,
    OPERATIONS_PER_S,
    OPERATIONS_PER_TURN_MAX,
)
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

STEPS = st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 400)), min_size=1, max_size=60)


@examples(100)
@given(steps=STEPS, burst=st.floats(1.0, 500.0), per_s=st.floats(0.5, 300.0))
def test_whoever_waits_as_told_never_gets_more_than_burst_and_rate(
    steps: list[tuple[float, int]], burst: float, per_s: float
) -> None:
    bucket, now, taken, largest = Bucket(per_s=per_s, burst=burst, now=0.0), 0.0, 0, 0
    for pause_s, amount in steps:
        now += pause_s + bucket.take(amount, now=now + pause_s)
        taken, largest = taken + amount, max(largest, amount)

        assert taken <= (burst + per_s * now) * (1 + 1e-9) + 1e-6


@examples(100)
@given(steps=STEPS)
def test_whoever_stays_below_the_rate_never_waits(steps: list[tuple[float, int]]) -> None:
    bucket, now = Bucket(per_s=100.0, burst=400.0, now=0.0), 0.0
    for pause_s, amount in steps:
        now += max(pause_s, amount / 100.0)

        assert bucket.take(amount, now=now) < 1e-9  # Times are added up, and so is their rounding.


def test_time_that_goes_backwards_gives_nothing() -> None:
    bucket = Bucket(per_s=1.0, burst=1.0, now=10.0)

    assert bucket.take(1.0, now=10.0) == 0.0
    assert bucket.take(1.0, now=5.0) == 1.0
    assert bucket.take(0.0, now=10.0) == 1.0
    assert bucket.take(0.0, now=11.0) == 0.0


def test_a_joining_node_gets_a_hundred_thousand_operations_without_a_wait() -> None:
    credit = Credit(now=0.0)
    waits = [credit.spend(200, 200 * 400, now=0.0) for _ in range(500)]

    assert all(wait_s in (None, 0.0) for wait_s in waits)


def test_a_flood_is_slowed_to_the_rate() -> None:
    credit, now, sent = Credit(now=0.0), 0.0, 0
    while now < 100.0:
        now += credit.spend(64, 64 * 300, now=now) or 0.0
        sent += 64

    assert sent == pytest.approx(OPERATIONS_BURST + 100 * OPERATIONS_PER_S, rel=0.01)


def test_large_operations_are_slowed_by_their_bytes() -> None:
    credit, now, sent = Credit(now=0.0), 0.0, 0
    while now < 100.0:
        now += credit.spend(1, 60_000, now=now) or 0.0
        sent += 60_000

    assert sent == pytest.approx(OPERATION_BYTES_BURST + 100 * OPERATION_BYTES_PER_S, rel=0.01)


def test_others_have_their_turn_after_so_many_operations() -> None:
    credit = Credit(now=0.0)
    answers = [credit.spend(1, 300, now=0.0) for _ in range(3 * OPERATIONS_PER_TURN_MAX)]

    assert answers.count(0.0) == 3
    assert all(answers[number] == 0.0 for number in (63, 127, 191))


def test_a_credit_that_was_not_used_of_late_may_be_forgotten() -> None:
    credit = Credit(now=0.0)
    assert credit.is_full(now=0.0)
    credit.spend(1024, 0, now=0.0)

    assert not credit.is_full(now=0.5)
    assert credit.is_full(now=1.5)
