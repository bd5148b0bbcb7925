"""Sync sessions that go as they should: what they transfer, in which order, and what it costs."""

from __future__ import annotations

import random

import pytest
from crdt_merge_protocol import sync_exchange, sync_list
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.limits import (
    SYNC_LIST_THRESHOLD,
    SYNC_PAGE_IDS_MAX,
    SYNC_PROGRESS_TIMEOUT_S,
    SYNC_ROUNDS_MAX,
    SYNC_WINDOW_BYTES,
)
from crdt_merge_protocol.merkle import Trie
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.sync import Ack, Busy, End, Lack, List, Nodes, Open, Operations
from crdt_merge_protocol.messages.walk import Halved, encode_entries
from crdt_merge_protocol.sync import SyncSession
from crdt_merge_protocol.sync_walk import Walk
from support.sync_pair import GROUP, MemoryState, Pair, expire, make_operation, share


@pytest.fixture(scope="module")
def ten_thousand() -> MemoryState:
    return share(10_000, 0, 0)[0]


def test_equal_sets_cost_one_round_trip_of_at_most_100_bytes_each_way(ten_thousand: MemoryState) -> None:
    """TARGETS A9."""
    pair = Pair(ten_thousand, ten_thousand).run()
    assert pair.outcomes == ("equal", "equal")
    assert pair.turn_count == 2
    assert pair.bytes_of(0) <= 100
    assert pair.bytes_of(1) <= 100


@pytest.mark.parametrize(
    ("different", "bytes_max", "sample_count"),
    [(1, 600, 6), (10, 3_500, 3), (100, 18_000, 1), (1_000, 70_000, 1)],
)
def test_cost_grows_with_the_difference_not_with_the_set(
    ten_thousand: MemoryState, different: int, bytes_max: int, sample_count: int
) -> None:
    """TARGETS A10: all bytes but the operations themselves, among 10,000, within four round trips."""
    costs = []
    for sample in range(2 * sample_count):
        first, second = ten_thousand.copy(), ten_thousand.copy()
        for number in range(different):
            side = first if number < different // 2 else second
            side.apply(make_operation(1 << 100 | sample << 32 | number))
        # Either side may be the one that opens.
        pair = Pair(second, first) if sample % 2 else Pair(first, second)
        pair.run()
        assert pair.outcomes == ("equal", "equal")
        assert pair.turn_count <= 8
        assert sum(len(side.received_ids) for side in pair.sides) == different
        costs.append(pair.overhead_bytes)
    assert max(costs) <= bytes_max


def search(first: Trie, second: Trie) -> tuple[int, int, int, tuple[Walk, Walk]]:
    """Walk two tries against each other; return (steps, bytes, comparisons, walks)."""
    walks = (Walk(first, b"k" * 32, is_first=True), Walk(second, b"k" * 32, is_first=False))
    steps = size = 0
    while True:
        entries = walks[steps % 2].step()
        steps += 1
        size += len(encode_entries(entries))
        if not entries or steps > 200:
            return steps, size, sum(walk.comparison_count for walk in walks), walks
        for entry in entries:
            walks[steps % 2].absorb(entry)


def test_one_change_among_100_000_is_found_in_few_comparisons() -> None:
    """SCENARIOS S11."""
    rng = random.Random(11)
    ids = [rng.randbytes(32) for _ in range(100_000)]
    trie = Trie(ids)
    changed = trie.copy()
    changed.discard(ids[5])
    changed.insert(bytes(32))
    _, _, comparisons, walks = search(trie, changed)
    assert comparisons < 200
    assert walks[0].to_send == {ids[5]}
    assert walks[1].to_send == {bytes(32)}


def test_ground_prefixes_cost_no_more_rounds_or_bytes() -> None:
    """SCENARIOS T11, B41: 10,000 ids that share 32 bits."""
    rng = random.Random(12)
    tails = [rng.randbytes(28) for _ in range(10_000)]
    extra = [rng.randbytes(28) for _ in range(10)]
    results = []
    for head in (b"\x00\x00\x00\x00", b"\x5a\xa5\x5a\xa5"):
        ground = Trie(head + tail for tail in tails)
        other = ground.copy()
        for tail in extra:
            other.insert(head + tail)
        steps, size, _, walks = search(ground, other)
        assert walks[1].to_send == {head + tail for tail in extra}
        assert not walks[0].to_send
        assert steps <= 8
        results.append(size)
    assert max(results) <= 3_500


def test_a_comb_of_ever_longer_prefixes_stays_within_the_rounds() -> None:
    """The deepest trie there can be: one id leaves the common path at every nibble."""
    comb = [bytes(n // 2) + (b"\x10" if n % 2 == 0 else b"\x01") + bytes(31 - n // 2) for n in range(64)]
    trie = Trie(comb)
    other = trie.copy()
    other.insert(bytes(32))
    steps, _, _, walks = search(trie, other)
    assert steps <= SYNC_ROUNDS_MAX
    assert walks[1].to_send == {bytes(32)}


def test_prepared_short_digest_collisions_do_not_survive_another_key() -> None:
    """SCENARIOS T11: short digests depend on the nonces of both sides."""
    walk, other = (Walk(Trie(), bytes([n]) * 32, is_first=True) for n in range(2))
    assert walk.short(b"x" * 32) != other.short(b"x" * 32)


def test_a_lone_difference_is_asked_for_by_halves() -> None:
    first, second = share(2_000, 0, 1)
    pair = Pair(first, second).run()
    steps = [message for side in pair.sides for message in side.sent if isinstance(message, Nodes)]
    assert any(isinstance(entry, Halved) for message in steps for entry in message.entries)
    assert pair.outcomes == ("equal", "equal")


@pytest.mark.parametrize("seed", range(12))
def test_two_differences_below_one_place_are_found_although_halves_cannot_tell(seed: int) -> None:
    rng = random.Random(seed)
    trie = Trie(rng.randbytes(32) for _ in range(3_000))
    other = trie.copy()
    extra = {bytes([0x77, n * 16 + seed]) + rng.randbytes(30) for n in (2, 9)}
    for identifier in extra:
        other.insert(identifier)
    _, _, _, walks = search(trie, other)
    assert walks[1].to_send == extra
    assert not walks[0].to_send


@pytest.mark.parametrize(("first_extra", "second_extra"), [(0, 7), (7, 0), (3, 4), (40, 300)])
def test_each_side_gets_exactly_what_it_lacks(first_extra: int, second_extra: int) -> None:
    first, second = share(50, first_extra, second_extra)
    expected = set(first.trie), set(second.trie)
    pair = Pair(first, second).run()
    assert pair.outcomes == ("equal", "equal")
    assert set(pair.sides[0].received_ids) == expected[1] - expected[0]
    assert set(pair.sides[1].received_ids) == expected[0] - expected[1]
    assert (
        pair.sides[0].session.counters.received_count
        == pair.sides[1].session.counters.sent_count
        == second_extra
    )
    assert pair.sides[1].session.counters.received_bytes == pair.sides[0].session.counters.sent_bytes
    assert first.sync_root == second.sync_root


@pytest.mark.parametrize("is_swapped", [False, True])
def test_an_empty_side_is_filled(is_swapped: bool) -> None:
    first, second = share(0, 0, 100)
    pair = Pair(second, first).run() if is_swapped else Pair(first, second).run()
    assert pair.outcomes == ("equal", "equal")
    assert len(first) == len(second) == 100


def test_the_end_waits_for_the_disk() -> None:
    first, second = share(20, 5, 5)
    pair = Pair(first, second)
    for side in pair.sides:
        side.is_storing = False
    pair.run()
    assert not any(isinstance(message, End) for side in pair.sides for message in side.sent)
    assert pair.outcomes == ("", "")
    pair.post(1, pair.sides[1].store(pair.now))
    pair.post(0, pair.sides[0].store(pair.now))
    pair.run()
    assert pair.outcomes == ("equal", "equal")


def test_a_sender_stops_at_the_window_until_the_receiver_has_stored() -> None:
    first = MemoryState()
    second = MemoryState(make_operation(number, size=50_000) for number in range(60))
    pair = Pair(first, second)
    pair.sides[0].is_storing = False
    pair.run()
    arrived = sum(len(signed.wire()) for signed in pair.sides[0].waiting)
    assert SYNC_WINDOW_BYTES - 51_000 < arrived <= SYNC_WINDOW_BYTES
    rounds = 0
    while not pair.sides[0].session.is_finished:
        rounds += 1
        assert rounds < 10
        pair.post(0, pair.sides[0].store(pair.now))
        pair.run()
    assert pair.outcomes == ("equal", "equal")
    assert any(isinstance(message, Ack) for message in pair.sides[0].sent)
    assert len(first) == 60


def test_an_insert_during_the_session_ends_it_unequal_and_the_next_one_heals() -> None:
    first, second = share(100, 3, 3)

    def insert(sender: int, message: Message) -> list[Message]:
        if isinstance(message, Operations) and sender == 0:
            second.apply(make_operation(1 << 90))
        return [message]

    assert Pair(first, second).run(tamper=insert).outcomes == ("unequal", "unequal")
    pair = Pair(first, second, seed=8).run()
    assert pair.outcomes == ("equal", "equal")
    assert [len(side.received_ids) for side in pair.sides] == [1, 0]


def test_what_broadcast_delivers_meanwhile_does_no_harm() -> None:
    first, second = share(100, 0, 6)

    def deliver(sender: int, message: Message) -> list[Message]:
        if sender == 1 and isinstance(message, Nodes):
            for signed in second.causal():
                first.apply(signed)
        return [message]

    pair = Pair(first, second).run(tamper=deliver)
    assert pair.outcomes == ("equal", "equal")


# --- lists ------------------------------------------------------------------------------------------------


PAGE = 16


@pytest.fixture
def fuller(monkeypatch: pytest.MonkeyPatch) -> MemoryState:
    """Three pages, the last one short, where a page has 16 ids."""
    monkeypatch.setattr(sync_exchange, "SYNC_LIST_THRESHOLD", PAGE)
    monkeypatch.setattr(sync_list, "SYNC_PAGE_IDS_MAX", PAGE)
    return share(2 * PAGE + 4, 0, 0, seed=3)[0]


def pages_of(messages: list[Message]) -> list[tuple[int, int]]:
    return [(len(page.ids), page.left_count) for page in messages if isinstance(page, List)]


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_node_that_lacks_more_than_the_threshold_is_told_page_by_page(
    fuller: MemoryState, is_swapped: bool
) -> None:
    emptier = MemoryState(fuller.causal()[:10])
    pair = Pair(fuller.copy(), emptier) if is_swapped else Pair(emptier, fuller.copy())
    pair.run()
    lister, listed = pair.sides if is_swapped else pair.sides[::-1]
    assert pages_of(lister.sent) == [(16, 20), (16, 4), (4, 0)]
    assert listed.received_ids == [signed.id for signed in fuller.causal()[10:]]
    assert pair.outcomes == ("equal", "equal")
    assert listed.session.cursor is None


def test_the_threshold_is_1024_missing() -> None:
    whole = MemoryState(make_operation(number) for number in range(SYNC_LIST_THRESHOLD + 1))
    emptier = MemoryState()
    pair = Pair(emptier, whole)
    pair.run()
    assert pages_of(pair.sides[1].sent) == [(SYNC_PAGE_IDS_MAX, 1), (1, 0)]
    assert pair.outcomes == ("equal", "equal")
    one_more = whole.copy()
    one_more.apply(make_operation(1 << 94))
    assert not pages_of(Pair(emptier, one_more).run().sides[1].sent)


def test_a_list_also_ends_when_the_told_side_has_operations_of_its_own(fuller: MemoryState) -> None:
    emptier = MemoryState([make_operation(1 << 91)])
    whole = fuller.copy()
    assert Pair(emptier, whole).run().outcomes == ("unequal", "unequal")
    pair = Pair(emptier, whole, seed=9).run()
    assert pair.outcomes == ("equal", "equal")
    assert [len(side.received_ids) for side in pair.sides] == [0, 1]


def broken_off(fuller: MemoryState) -> tuple[MemoryState, bytes]:
    """Return a state that got the first page of a list, and the cursor of that session."""
    emptier = MemoryState()
    pair = Pair(emptier, fuller)

    def cut(sender: int, message: Message) -> list[Message]:
        is_second = isinstance(message, Lack) and len(pair.sides[0].received_ids) >= PAGE
        return [] if sender == 0 and is_second else [message]

    pair.run(tamper=cut)
    expire(pair)
    cursor = pair.sides[0].session.cursor
    assert cursor is not None
    assert pair.outcomes == ("failed", "failed")
    return emptier, cursor


def test_a_broken_list_resumes_behind_the_last_complete_page(fuller: MemoryState) -> None:
    emptier, cursor = broken_off(fuller.copy())
    assert cursor == fuller.causal()[PAGE - 1].id
    assert len(emptier) == PAGE
    pair = Pair(emptier, fuller.copy(), after=cursor, seed=10).run()
    assert pages_of(pair.sides[1].sent) == [(16, 4), (4, 0)]
    assert pair.outcomes == ("equal", "equal")
    assert len(emptier) == len(fuller)


def test_a_cursor_that_the_other_side_does_not_know_starts_the_list_anew(fuller: MemoryState) -> None:
    emptier = MemoryState()
    pair = Pair(emptier, fuller.copy(), after=b"?" * 32).run()
    assert pair.outcomes == ("equal", "equal")


def test_what_appeared_before_the_cursor_is_not_held_against_the_peer(fuller: MemoryState) -> None:
    whole = fuller.copy()
    emptier, cursor = broken_off(whole)
    early = make_operation(1 << 92)
    whole.apply(early)
    whole.apply(make_operation(1 << 93, {early.id, whole.causal()[-1].id}))
    pair = Pair(emptier, whole, after=cursor, seed=10).run()
    assert pair.sides[0].session.outcome == "unequal"
    assert pair.sides[0].session.cursor is None
    pair = Pair(emptier, whole, seed=11).run()
    assert pair.outcomes == ("equal", "equal")


@pytest.mark.parametrize("limit", ["SYNC_ROUNDS_MAX", "SYNC_STEP_BYTES_MAX"])
def test_a_walk_beyond_its_caps_turns_into_a_list(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """SCENARIOS T11: rounds and bytes capped, then LIST."""
    monkeypatch.setattr(sync_exchange, limit, 1)
    first, second = share(200, 40, 40)
    outcomes = []
    for seed in range(4):
        pair = Pair(first, second, seed=seed) if seed % 2 else Pair(second, first, seed=seed)
        outcomes.append(pair.run().outcomes)
        if first.sync_root == second.sync_root:
            break
    assert any(isinstance(message, List) for side in pair.sides for message in side.sent)
    assert outcomes[-1] == ("equal", "equal")


def test_lists_in_place_of_walks_serve_both_directions_whoever_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_exchange, "SYNC_ROUNDS_MAX", 1)
    first, second = share(200, 4, 4)
    outcomes = [Pair(first, second, seed=seed).run().outcomes for seed in range(12)]
    assert outcomes[0] == ("unequal", "unequal")
    assert outcomes[-1] == ("equal", "equal")


def test_a_large_step_is_split_into_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_exchange, "_FRAME_ENTRY_BYTES", 150)
    first, second = share(400, 60, 60)
    pair = Pair(first, second).run()
    assert pair.outcomes == ("equal", "equal")
    assert any(not message.is_last for message in pair.sides[0].sent if isinstance(message, Nodes))


# --- beginnings and ends ----------------------------------------------------------------------------------


def new_session(state: MemoryState, *, initiator: bool) -> SyncSession:
    return SyncSession(state=state, session=b"sess", initiator=initiator, nonce=bytes(16), now=100.0)


def test_a_busy_peer_names_when_to_retry() -> None:
    session = new_session(MemoryState(), initiator=True)
    session.start()
    assert session.receive(Busy(session=b"sess", reason="3 sessions", retry_after_ms=1500), now=100.0) == []
    assert session.is_finished
    assert session.outcome == "failed"
    assert session.failure is None
    assert session.retry_after_s == 1.5


def test_a_silent_peer_meets_the_deadline() -> None:
    session = new_session(MemoryState(), initiator=True)
    session.start()
    assert session.deadline == 100.0 + SYNC_PROGRESS_TIMEOUT_S
    assert not session.expire(session.deadline - 0.1)
    assert session.expire(session.deadline)
    assert session.outcome == "failed"
    assert session.failure is not None


def test_progress_moves_the_deadline() -> None:
    first, second = share(10, 1, 1)
    responder = new_session(second, initiator=False)
    (opening,) = new_session(first, initiator=True).start()
    assert isinstance(opening, Open)
    responder.receive(opening, now=105.0)
    assert responder.deadline == 105.0 + SYNC_PROGRESS_TIMEOUT_S


def test_stored_operations_of_others_change_nothing() -> None:
    session = new_session(MemoryState(), initiator=True)
    session.start()
    assert session.stored([b"?" * 32], now=104.0) == []
    assert session.deadline == 100.0 + SYNC_PROGRESS_TIMEOUT_S


def test_only_an_initiator_starts_and_only_once() -> None:
    with pytest.raises(LocalProtocolError):
        new_session(MemoryState(), initiator=False).start()
    session = new_session(MemoryState(), initiator=True)
    session.start()
    with pytest.raises(LocalProtocolError):
        session.start()


def test_a_short_nonce_is_a_bug_of_the_caller() -> None:
    with pytest.raises(LocalProtocolError):
        SyncSession(state=MemoryState(), session=b"sess", initiator=True, nonce=b"short", now=0.0)


def test_long_session_ids_work() -> None:
    first, second = share(10, 1, 1)
    assert Pair(first, second, session=b"s" * 16).run().outcomes == ("equal", "equal")
    assert first.group == GROUP
