"""The fetch planner: whom it asks for what, what it does about providers that fail (PROTOCOL 5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

import pytest
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.fetch import LIKELY_PATIENCE_S, Ask, FetchPlanner, Item, ItemKind
from crdt_merge_protocol.limits import FETCH_BYTES_MAX, FETCH_STALL_S, MIB, PROVIDER_BAN_S, WANT_CHUNKS_MAX

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
BLOB = Item(ItemKind.BLOB, b"\x01" * 32)
OBJECT = Item(ItemKind.OBJECT, b"\x02" * 32)


def planner_with(*providers: bytes, budget_bytes: int = FETCH_BYTES_MAX) -> FetchPlanner:
    planner = FetchPlanner(rng=Random(7), budget_bytes=budget_bytes)
    for provider in providers:
        planner.add_provider(provider, now=0.0)
    return planner


def want_blob(planner: FetchPlanner, count: int, *, shares: dict[bytes, int], item: Item = BLOB) -> None:
    """Want a blob of ``count`` chunks whose providers have said what they have."""
    planner.add(item, nbytes=count * MIB, count=count, now=0.0)
    planner.next_requests(now=0.0)
    for provider, share in shares.items():
        planner.available(provider, item, share, now=0.0)


def pieces_of(asks: list[Ask], provider: bytes) -> list[int]:
    return sorted(piece for ask in asks if ask.provider == provider for piece in ask.pieces)


def accept(planner: FetchPlanner, ask: Ask, *, now: float) -> None:
    for piece in ask.pieces:
        assert planner.received(ask.provider, ask.item, piece, now=now)
        planner.accepted(ask.item, piece, now=now)


def test_a_blob_of_several_chunks_begins_with_asking_everyone_what_they_have() -> None:
    planner = planner_with(A, B)
    planner.add(BLOB, nbytes=8 * MIB, count=8, now=0.0)

    assert planner.next_requests(now=0.0) == [Ask(A, BLOB), Ask(B, BLOB)]
    assert planner.next_requests(now=0.1) == []


def test_a_single_piece_is_asked_for_directly_and_of_one_provider() -> None:
    planner = planner_with(A, B)
    planner.add(OBJECT, nbytes=1000, now=0.0)

    asks = planner.next_requests(now=0.0)

    assert [(ask.item, ask.pieces) for ask in asks] == [(OBJECT, (0,))]


def test_a_provider_that_lacks_a_single_piece_leads_to_the_next_provider_at_once() -> None:
    planner = planner_with(A, B)
    planner.add(OBJECT, nbytes=1000, now=0.0)
    first = planner.next_requests(now=0.0)[0].provider
    planner.failed(first, OBJECT, now=0.1)

    asks = planner.next_requests(now=0.1)

    assert [ask.provider for ask in asks] == [A if first == B else B]


def test_no_piece_is_asked_of_two_providers_at_a_time() -> None:
    planner = planner_with(A, B, C)
    want_blob(planner, 64, shares=dict.fromkeys((A, B, C), (1 << 64) - 1))

    asked = [piece for ask in planner.next_requests(now=0.0) for piece in ask.pieces]

    assert len(asked) == len(set(asked)) == 12


def test_only_what_a_provider_has_is_asked_of_it() -> None:
    planner = planner_with(A, B)
    want_blob(planner, 8, shares={A: 0b1111_0000, B: 0b0000_0011})

    asks = planner.next_requests(now=0.0)

    assert pieces_of(asks, A) == [4, 5, 6, 7]
    assert pieces_of(asks, B) == [0, 1]


def test_pieces_that_are_here_already_are_not_asked_for() -> None:
    planner = planner_with(A)
    planner.add(BLOB, nbytes=4 * MIB, count=4, present=0b1011, now=0.0)
    planner.next_requests(now=0.0)
    planner.available(A, BLOB, 0b1111, now=0.0)

    assert pieces_of(planner.next_requests(now=0.0), A) == [2]


@pytest.mark.parametrize("rank", range(4))
def test_the_own_slice_comes_first(rank: int) -> None:
    planner = planner_with(A)
    planner.add(BLOB, nbytes=16 * MIB, count=16, own_slice=(rank, 4), now=0.0)
    planner.next_requests(now=0.0)
    planner.available(A, BLOB, (1 << 16) - 1, now=0.0)

    assert pieces_of(planner.next_requests(now=0.0), A) == [4 * rank + step for step in range(4)]


def test_beyond_the_own_slice_the_rarest_come_first() -> None:
    rare = 1 << 13 | 1 << 3
    planner = planner_with(A, B)
    planner.add(BLOB, nbytes=16 * MIB, count=16, present=0, own_slice=(0, 16), now=0.0)
    planner.next_requests(now=0.0)
    planner.available(A, BLOB, (1 << 16) - 1, now=0.0)
    planner.available(B, BLOB, ((1 << 16) - 1) & ~rare, now=0.0)

    assert set(pieces_of(planner.next_requests(now=0.0), A)) >= {3, 13}


def test_the_rest_is_taken_at_random_so_that_two_fetchers_differ() -> None:
    chosen = set()
    for seed in range(8):
        planner = FetchPlanner(rng=Random(seed))
        planner.add_provider(A, now=0.0)
        planner.add(BLOB, nbytes=1000 * MIB, count=1000, own_slice=(0, 1000), present=1, now=0.0)
        planner.next_requests(now=0.0)
        planner.available(A, BLOB, (1 << 1000) - 1, now=0.0)
        chosen.add(tuple(pieces_of(planner.next_requests(now=0.0), A)))

    assert len(chosen) == 8


def test_objects_go_before_the_chunks_of_blobs() -> None:
    planner = planner_with(A)
    want_blob(planner, 64, shares={A: (1 << 64) - 1})
    planner.add(OBJECT, nbytes=1000, now=0.0)

    asks = planner.next_requests(now=0.0)

    assert asks[0] == Ask(A, OBJECT, (0,))


def test_what_is_owed_stays_within_the_budget_over_all_providers() -> None:
    planner = planner_with(A, B, C, budget_bytes=6 * MIB)
    want_blob(planner, 64, shares=dict.fromkeys((A, B, C), (1 << 64) - 1))

    asked = [piece for ask in planner.next_requests(now=0.0) for piece in ask.pieces]

    assert len(asked) == 8  # A run of four begins while there is room for one.


def test_pieces_that_wait_for_the_disk_still_count_against_the_budget() -> None:
    planner = planner_with(A, budget_bytes=4 * MIB)
    want_blob(planner, 64, shares={A: (1 << 64) - 1})
    ask = planner.next_requests(now=0.0)[0]
    for piece in ask.pieces:
        assert planner.received(A, BLOB, piece, now=0.1)

    assert planner.next_requests(now=0.1) == []
    for piece in ask.pieces:
        planner.accepted(BLOB, piece, now=0.2)
    assert planner.next_requests(now=0.2)


def test_a_wrong_piece_bans_its_sender_for_an_hour_and_is_asked_of_another() -> None:
    planner = planner_with(A, B)
    planner.add(OBJECT, nbytes=10, now=0.0)
    liar = planner.next_requests(now=0.0)[0].provider
    honest = A if liar == B else B
    assert planner.received(liar, OBJECT, 0, now=0.1)
    planner.rejected(liar, OBJECT, 0, now=0.1)

    assert planner.next_requests(now=0.1) == [Ask(honest, OBJECT, (0,))]
    assert planner.is_banned(liar, now=PROVIDER_BAN_S)
    assert not planner.is_banned(liar, now=0.1 + PROVIDER_BAN_S)


def test_everything_a_banned_provider_owes_is_asked_of_the_others() -> None:
    planner = planner_with(A, B)
    want_blob(planner, 8, shares={A: 0xFF})
    wrong, *owed = pieces_of(planner.next_requests(now=0.0), A)
    planner.available(B, BLOB, 0xFF, now=0.1)
    assert planner.received(A, BLOB, wrong, now=0.1)
    planner.rejected(A, BLOB, wrong, now=0.1)
    asked: set[int] = set()
    while asks := planner.next_requests(now=0.2):
        assert pieces_of(asks, A) == []
        for ask in asks:
            asked.update(ask.pieces)
            accept(planner, ask, now=0.2)

    assert asked == set(range(8)) >= {wrong, *owed}
    assert planner.missing(BLOB) == 0


def test_a_ban_outlives_the_connection() -> None:
    planner = planner_with(A)
    planner.ban(A, now=0.0)
    planner.provider_gone(A)
    planner.add_provider(A, now=1.0)
    planner.add(OBJECT, nbytes=10, now=1.0)

    assert planner.next_requests(now=1.0) == []
    assert planner.next_wakeup(now=1.0) == PROVIDER_BAN_S
    assert planner.next_requests(now=PROVIDER_BAN_S) == [Ask(A, OBJECT, (0,))]


def test_what_a_vanished_provider_owed_is_asked_of_the_others() -> None:
    planner = planner_with(A, B)
    want_blob(planner, 4, shares={A: 0b1111})
    assert pieces_of(planner.next_requests(now=0.0), A) == [0, 1, 2, 3]
    planner.available(B, BLOB, 0b1111, now=0.1)
    planner.provider_gone(A)

    assert pieces_of(planner.next_requests(now=0.1), B) == [0, 1, 2, 3]


def test_a_provider_without_progress_loses_what_it_owes_and_rests_longer_each_time() -> None:
    planner = planner_with(A)
    want_blob(planner, 4, shares={A: 0b1111})
    planner.next_requests(now=0.0)
    assert planner.stalled(now=FETCH_STALL_S - 0.1) == ()
    assert planner.stalled(now=FETCH_STALL_S) == (A,)

    assert pieces_of(planner.next_requests(now=FETCH_STALL_S + 0.9), A) == []
    again = FETCH_STALL_S + 1.0
    assert pieces_of(planner.next_requests(now=again), A)
    assert planner.stalled(now=again + FETCH_STALL_S) == (A,)
    assert pieces_of(planner.next_requests(now=again + FETCH_STALL_S + 1.9), A) == []
    assert pieces_of(planner.next_requests(now=again + FETCH_STALL_S + 2.0), A)


def test_bytes_on_the_way_keep_a_slow_provider_from_being_given_up() -> None:
    planner = planner_with(A)
    want_blob(planner, 4, shares={A: 0b1111})
    planner.next_requests(now=0.0)
    for second in range(60):
        planner.progress(A, now=float(second))
        assert planner.stalled(now=float(second)) == ()


def test_a_slow_piece_is_asked_a_second_time_once_a_provider_has_nothing_else_to_do() -> None:
    planner = planner_with(A, B)
    want_blob(planner, 4, shares={A: 0b1111})
    planner.next_requests(now=0.0)
    planner.available(B, BLOB, 0b1111, now=0.0)
    assert pieces_of(planner.next_requests(now=0.4), B) == []

    doubled = pieces_of(planner.next_requests(now=0.5), B)

    assert doubled == [0, 1, 2, 3]


def test_the_first_of_two_answers_cancels_the_other_request() -> None:
    planner = planner_with(A, B)
    want_blob(planner, 1, shares={}, item=BLOB)
    planner.add(OBJECT, nbytes=10, now=0.0)
    planner.discard(BLOB)
    first = planner.next_requests(now=0.0)[0]
    second = planner.next_requests(now=1.0)[0]
    assert {first.provider, second.provider} == {A, B}
    assert planner.received(second.provider, OBJECT, 0, now=1.1)

    cancelled = planner.accepted(OBJECT, 0, now=1.1)

    assert cancelled == [Ask(first.provider, OBJECT, (0,))]
    assert not planner.received(first.provider, OBJECT, 0, now=1.2)


def test_no_more_than_eight_pieces_are_asked_twice() -> None:
    planner = planner_with(A, B)
    want_blob(planner, 32, shares={A: (1 << 32) - 1})
    for _ in range(40):  # Widen A's window until it owes every chunk.
        for ask in planner.next_requests(now=0.0):
            if ask.provider == A and planner.missing(BLOB).bit_count() > 16:
                accept(planner, Ask(A, BLOB, ask.pieces[:1]), now=0.0)
    planner.available(B, BLOB, (1 << 32) - 1, now=0.0)
    for turn in range(10):
        planner.next_requests(now=1.0 + turn)

    doubled = [ask for ask in planner.discard(BLOB) if ask.provider == B]

    assert sum(len(ask.pieces) for ask in doubled) <= 8


def test_a_provider_that_is_fetching_itself_is_asked_again_soon_and_less_often_without_news() -> None:
    planner = planner_with(A)
    want_blob(planner, 8, shares={A: 0})
    times = []
    now = 0.0
    for _ in range(6):
        wakeup = planner.next_wakeup(now=now)
        assert wakeup is not None
        now = wakeup
        assert planner.next_requests(now=now) == [Ask(A, BLOB)]
        planner.available(A, BLOB, 0, now=now)
        times.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    planner.available(A, BLOB, 0b1, now=now)

    assert gaps[-1] == 2.0
    assert gaps == sorted(gaps)
    assert pieces_of(planner.next_requests(now=now), A) == [0]


def test_a_query_without_answer_counts_as_no() -> None:
    planner = planner_with(A)
    planner.add(BLOB, nbytes=8 * MIB, count=8, now=0.0)
    planner.next_requests(now=0.0)
    assert not planner.is_stuck(BLOB, now=4.9)
    planner.next_requests(now=5.0)

    assert planner.is_stuck(BLOB, now=5.0)
    assert planner.next_requests(now=5.5) == [Ask(A, BLOB)]


def test_an_item_is_stuck_once_everybody_has_said_no_and_not_before() -> None:
    planner = planner_with(A, B)
    planner.add(OBJECT, nbytes=10, now=0.0)
    first = planner.next_requests(now=0.0)[0].provider
    planner.failed(first, OBJECT, now=0.0)
    assert not planner.is_stuck(OBJECT, now=0.0)
    second = planner.next_requests(now=0.0)[0].provider
    planner.failed(second, OBJECT, now=0.0)

    assert planner.is_stuck(OBJECT, now=0.0)


def test_with_no_provider_everything_is_stuck_and_nothing_needs_a_timer() -> None:
    planner = planner_with()
    planner.add(OBJECT, nbytes=10, now=0.0)
    planner.next_requests(now=0.0)

    assert planner.is_stuck(OBJECT, now=0.0)
    assert planner.next_wakeup(now=0.0) is None


def test_a_new_provider_is_asked_at_once() -> None:
    planner = planner_with(A)
    want_blob(planner, 8, shares={A: 0})
    planner.add_provider(B, now=0.1)

    assert planner.next_requests(now=0.1) == [Ask(B, BLOB)]


def test_discarding_gives_back_what_is_in_flight_and_frees_the_budget() -> None:
    planner = planner_with(A, budget_bytes=4 * MIB)
    want_blob(planner, 64, shares={A: (1 << 64) - 1})
    asked = planner.next_requests(now=0.0)
    other = Item(ItemKind.BLOB, b"\x09" * 32)

    assert planner.discard(BLOB) == asked
    want_blob(planner, 8, shares={A: 0xFF}, item=other)
    assert len(pieces_of(planner.next_requests(now=0.0), A)) == 4


def test_answers_about_items_nobody_wants_change_nothing() -> None:
    planner = planner_with(A)

    assert not planner.received(A, BLOB, 3, now=0.0)
    assert not planner.received(C, BLOB, 3, now=0.0)
    planner.available(A, BLOB, 0b1, now=0.0)
    planner.failed(A, BLOB, now=0.0)
    assert planner.accepted(BLOB, 3, now=0.0) == []
    assert planner.next_requests(now=0.0) == []


def test_a_late_answer_to_a_request_that_was_given_up_is_still_good() -> None:
    planner = planner_with(A)
    want_blob(planner, 4, shares={A: 0b1111})
    planner.next_requests(now=0.0)
    planner.stalled(now=FETCH_STALL_S)

    assert planner.received(A, BLOB, 2, now=FETCH_STALL_S + 0.1)


def test_one_request_names_at_most_64_chunks() -> None:
    planner = FetchPlanner(rng=Random(1), budget_bytes=1 << 40)
    planner.add_provider(A, now=0.0)
    planner.add(BLOB, nbytes=4096 * MIB, count=4096, now=0.0)
    planner.next_requests(now=0.0)
    planner.available(A, BLOB, (1 << 4096) - 1, now=0.0)
    sizes = []
    for _ in range(300):
        asks = planner.next_requests(now=0.0)
        sizes += [len(ask.pieces) for ask in asks]
        for ask in asks:
            accept(planner, ask, now=0.0)

    assert max(sizes) <= WANT_CHUNKS_MAX


def test_wanting_the_same_item_twice_is_a_bug_of_the_driver() -> None:
    planner = planner_with()
    planner.add(OBJECT, nbytes=10, now=0.0)

    with pytest.raises(LocalProtocolError):
        planner.add(OBJECT, nbytes=10, now=0.0)


def test_of_those_who_may_have_a_single_piece_the_likely_one_is_asked() -> None:
    for seed in range(20):
        planner = FetchPlanner(rng=Random(seed))
        for provider in (A, B, C):
            planner.add_provider(provider, now=0.0)
        planner.add(BLOB, nbytes=1000, likely=(B,), now=0.0)

        assert planner.next_requests(now=0.0) == [Ask(B, BLOB, (0,))]


def test_others_are_asked_once_the_likely_one_has_nothing() -> None:
    planner = planner_with(A, B, C)
    planner.add(BLOB, nbytes=1000, likely=(B,), now=0.0)
    planner.next_requests(now=0.0)
    planner.failed(B, BLOB, now=0.1)
    asks = planner.next_requests(now=0.1)

    assert not planner.is_stuck(BLOB, now=0.1)
    assert [ask.pieces for ask in asks] == [(0,)]
    assert asks[0].provider in (A, C)


@pytest.mark.parametrize("loss", [FetchPlanner.provider_gone, FetchPlanner.ban, FetchPlanner.rest])
def test_others_are_asked_at_once_if_the_likely_one_cannot_be(loss: Callable[..., None]) -> None:
    planner = planner_with(A, B)
    planner.add(BLOB, nbytes=1000, likely=(B,), now=0.0)
    planner.next_requests(now=0.0)
    if loss is FetchPlanner.provider_gone:
        loss(planner, B)
    else:
        loss(planner, B, now=0.1)

    assert planner.next_requests(now=0.1) == [Ask(A, BLOB, (0,))]


def test_others_are_asked_too_if_the_likely_one_is_slow() -> None:
    planner = planner_with(A, B)
    planner.add(BLOB, nbytes=1000, likely=(B,), now=0.0)
    planner.next_requests(now=0.0)

    assert planner.next_requests(now=LIKELY_PATIENCE_S - 0.01) == []
    assert planner.next_requests(now=LIKELY_PATIENCE_S) == [Ask(A, BLOB, (0,))]


def test_a_likely_one_that_is_not_connected_keeps_nobody_waiting() -> None:
    planner = planner_with(A)
    planner.add(BLOB, nbytes=1000, likely=(B,), now=0.0)

    assert planner.next_requests(now=0.0) == [Ask(A, BLOB, (0,))]
