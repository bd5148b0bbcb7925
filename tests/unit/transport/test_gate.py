"""Who may begin a handshake (SCENARIOS T15, T16)."""

from __future__ import annotations

from crdt_merge_node.transport.gate import BUCKETS_MAX, AcceptGate
from crdt_merge_protocol.limits import (
    ACCEPT_BURST,
    ACCEPT_RATE_PER_S,
    CONNECTIONS_MAX,
    UNAUTHENTICATED_MAX,
    UNAUTHENTICATED_PER_ADDRESS_MAX,
)


def test_a_source_may_burst_and_then_comes_at_the_rate() -> None:
    gate = AcceptGate()
    burst = [gate.admit(ticket, "a", now=0).refusal for ticket in range(ACCEPT_BURST + 1)]
    later = [gate.admit(1000 + ticket, "a", now=1).refusal for ticket in range(int(ACCEPT_RATE_PER_S) + 1)]

    assert not any(burst[:-1])
    assert burst[-1] == "more than 50 connections a second from a"
    assert [bool(refusal) for refusal in later] == [False] * int(ACCEPT_RATE_PER_S) + [True]


def test_one_flooding_source_takes_nothing_from_another() -> None:
    gate = AcceptGate()
    for ticket in range(10_000):
        gate.admit(ticket, "flood", now=0)
    admission = gate.admit(20_000, "honest", now=0)

    assert (admission.refusal, admission.evict) == ("", None)
    assert gate.unauthenticated_count <= UNAUTHENTICATED_PER_ADDRESS_MAX + 1


def test_a_source_at_its_cap_pushes_out_its_own_oldest() -> None:
    gate = AcceptGate()
    gate.admit(1000, "honest", now=0)
    evicted = [gate.admit(ticket, "a", now=0).evict for ticket in range(UNAUTHENTICATED_PER_ADDRESS_MAX + 3)]

    assert evicted == [None] * UNAUTHENTICATED_PER_ADDRESS_MAX + [0, 1, 2]


def test_a_flood_from_many_addresses_pushes_out_the_oldest_of_all() -> None:
    gate = AcceptGate()
    evicted = [gate.admit(ticket, f"a{ticket}", now=0).evict for ticket in range(UNAUTHENTICATED_MAX + 2)]

    assert evicted == [None] * UNAUTHENTICATED_MAX + [0, 1]
    assert gate.unauthenticated_count == UNAUTHENTICATED_MAX


def test_one_host_may_run_many_nodes() -> None:
    """Whoever authenticates gives slot and token back: 300 in one instant from one address."""
    gate = AcceptGate()
    for ticket in range(300):
        admission = gate.admit(ticket, "a", now=0)
        assert (admission.refusal, admission.evict) == ("", None)
        gate.authenticated(ticket)

    assert gate.unauthenticated_count == 0


def test_all_connections_together_have_a_cap() -> None:
    gate = AcceptGate()
    for ticket in range(CONNECTIONS_MAX):
        gate.admit(ticket, "a", now=0)
        gate.authenticated(ticket)

    assert gate.admit(9999, "b", now=0).refusal == "all 512 connections are in use"
    gate.release(0)
    assert gate.admit(10_000, "b", now=0).refusal == ""


def test_released_connections_leave_no_trace() -> None:
    gate = AcceptGate()
    for ticket in range(50):
        gate.admit(ticket, "a", now=ticket)
        gate.release(ticket)
        gate.release(ticket)
        gate.authenticated(ticket)

    assert gate.unauthenticated_count == 0
    assert gate.admit(99, "a", now=50).evict is None


def test_the_gate_remembers_a_bounded_number_of_sources() -> None:
    gate = AcceptGate()
    for ticket in range(BUCKETS_MAX + 100):
        gate.admit(ticket, f"a{ticket}", now=0)

    assert len(gate._buckets) == BUCKETS_MAX
