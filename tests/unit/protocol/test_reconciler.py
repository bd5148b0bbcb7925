"""When a sync session is opened, refused, given up and tried again (PROTOCOL 2, SCENARIOS T12)."""

from random import Random

import pytest
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import (
    SYNC_INBOUND_MAX,
    SYNC_INBOUND_PER_PEER_MAX,
    SYNC_OUTBOUND_MAX,
    SYNC_PROGRESS_TIMEOUT_S,
)
from crdt_merge_protocol.messages.sync import Busy, End, Open
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.reconciler import GRACE_S, RETRY_S, RETRY_S_MAX, YIELD_S, Reconciler
from crdt_merge_protocol.state import CRDTMergeState
from support.authors import Author, make_genesis

LOW, HIGH, THIRD, FOURTH = (bytes([number]) * 32 for number in (1, 2, 3, 4))
GENESES = [make_genesis(weight_cap=number) for number in range(1, 7)]
GROUP = GENESES[0].group
OTHER_ROOT = b"r" * 32


class Side:
    """A reconciler, and the states that it reads."""

    def __init__(self, node: bytes, *, seed: int = 1) -> None:
        self.node = node
        self.states = {genesis.group: CRDTMergeState(genesis) for genesis in GENESES}
        self.reconciler = Reconciler(
            node=node, states=self.states.get, random_bytes=Random(f"{node.hex()}{seed}").randbytes
        )

    @property
    def root(self) -> bytes:
        return self.states[GROUP].sync_root

    def hears(self, peer: bytes, *, group: bytes = GROUP, root: bytes = OTHER_ROOT, now: float = 0.0) -> None:
        self.reconciler.announced(peer, group, root, 1, now=now)

    def opens(self, now: float) -> list[tuple[bytes, bytes]]:
        return [(peer, m.group) for peer, m in self.reconciler.tick(now=now) if isinstance(m, Open)]

    def receive(self, peer: bytes, message: object, now: float = 0.0) -> list:
        """Take a message in; whatever operations it brings become durable at once."""
        outgoing, group, operations = self.reconciler.receive(peer, message, now=now)  # type: ignore[arg-type]
        ids = []
        for wire in operations:
            signed = SignedOperation.parse(wire)
            self.states[group].apply(signed)
            ids.append(signed.id)
        return outgoing + (self.reconciler.stored(group, ids, now=now) if ids else [])


def open_message(number: int, *, group: bytes = GROUP) -> Open:
    return Open(session=bytes([number]) * 4, group=group, root=OTHER_ROOT, count=1, nonce=bytes(8))


def fails(side: Side, peer: bytes, *, now: float) -> float:
    """Let the one session under way run into its deadline; return the time after that."""
    after = now + SYNC_PROGRESS_TIMEOUT_S
    side.reconciler.tick(now=after)
    return after


def test_equal_roots_need_no_session() -> None:
    side = Side(LOW)
    side.hears(HIGH, root=side.root)

    assert side.reconciler.next_due() is None
    assert side.reconciler.is_equal(HIGH, GROUP)


def test_a_differing_root_opens_a_session_after_a_grace_period() -> None:
    side = Side(LOW)
    side.hears(HIGH)

    assert side.reconciler.next_due() == GRACE_S
    assert side.opens(GRACE_S - 0.01) == []
    assert side.opens(GRACE_S) == [(HIGH, GROUP)]
    assert side.opens(GRACE_S) == []


def test_the_larger_of_two_nodes_waits_longer() -> None:
    side = Side(HIGH)
    side.hears(LOW)

    assert side.reconciler.next_due() == GRACE_S + YIELD_S


def test_a_root_that_became_equal_meanwhile_opens_nothing() -> None:
    side = Side(LOW)
    author = Author(GENESES[0])
    signed = author.add()
    side.hears(HIGH, root=author.state.sync_root)
    side.states[GROUP].apply(signed)
    side.reconciler.changed(GROUP, now=0.1)

    assert side.reconciler.next_due() is None


def test_so_many_sessions_of_our_own_run_at_once() -> None:
    side = Side(LOW)
    for peer in (HIGH, THIRD, FOURTH):
        side.hears(peer)

    assert len(side.opens(1.0)) == SYNC_OUTBOUND_MAX
    assert side.reconciler.next_due() == 1.0 + SYNC_PROGRESS_TIMEOUT_S


def test_so_many_sessions_of_others_run_at_once_and_the_refusal_names_the_cap() -> None:
    side = Side(LOW)
    groups = [genesis.group for genesis in GENESES]
    answers = [
        side.receive(peer, open_message(number, group=groups[number]))
        for number, peer in enumerate((HIGH, THIRD, FOURTH, bytes([5]) * 32))
    ]
    [(_, refusal)] = answers[-1]

    assert side.reconciler.session_count == SYNC_INBOUND_MAX
    assert isinstance(refusal, Busy)
    assert f"at most {SYNC_INBOUND_MAX} sessions" in refusal.reason


def test_one_peer_cannot_take_all_the_sessions() -> None:
    side = Side(LOW)
    groups = [genesis.group for genesis in GENESES]
    answers = [side.receive(HIGH, open_message(number, group=groups[number])) for number in range(3)]
    [(_, refusal)] = answers[-1]

    assert side.reconciler.session_count == SYNC_INBOUND_PER_PEER_MAX
    assert isinstance(refusal, Busy)
    assert not isinstance(side.receive(THIRD, open_message(9))[0][1], Busy)


def test_if_both_open_at_once_one_session_serves_both() -> None:
    low, high = Side(LOW), Side(HIGH)
    low.hears(HIGH)
    high.hears(LOW)
    [(_, from_low)] = low.reconciler.tick(now=2.0)
    [(_, from_high)] = high.reconciler.tick(now=2.0)
    [(_, low_says)] = low.receive(HIGH, from_high, 2.0)
    [(_, high_says)] = high.receive(LOW, from_low, 2.0)

    assert isinstance(low_says, Busy)
    assert not isinstance(high_says, Busy)


def test_a_refused_session_is_tried_again_but_not_in_49_days() -> None:
    """The delay is the peer's word: what it claims is capped."""
    side = Side(LOW)
    side.hears(HIGH)
    [(_, opened)] = side.reconciler.tick(now=1.0)
    busy = Busy(session=opened.session, reason="so much to do", retry_after_ms=2**32 - 1)
    side.receive(HIGH, busy, 1.0)

    assert side.reconciler.next_due() == 1.0 + RETRY_S_MAX


def test_a_silent_peer_is_asked_ever_more_rarely_and_never_given_up() -> None:
    side = Side(LOW)
    side.hears(HIGH)
    now, waits = GRACE_S, []
    for _ in range(8):
        assert side.opens(now) == [(HIGH, GROUP)]
        ended = fails(side, HIGH, now=now)
        due = side.reconciler.next_due()
        assert due is not None
        waits.append(due - ended)
        now = due

    assert waits[0] == pytest.approx(RETRY_S)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(RETRY_S_MAX)


def test_a_peer_that_brings_nothing_for_weeks_is_waited_for_as_long_as_ever() -> None:
    """A power of two of the sessions that brought nothing is no number that a float can hold."""
    side = Side(LOW)
    side.hears(HIGH)
    now = GRACE_S
    for _ in range(1100):
        assert side.opens(now) == [(HIGH, GROUP)]
        ended = fails(side, HIGH, now=now)
        now = side.reconciler.next_due() or 0.0

    assert now - ended == pytest.approx(RETRY_S_MAX)


def test_two_roots_between_which_a_session_brought_nothing_are_not_compared_again_at_once() -> None:
    """A release that cannot read a REVOKE has, and goes on having, what it excludes here."""
    side, other = Side(HIGH), Side(LOW, seed=2)
    kept = Author(GENESES[0]).add("on this side")
    side.states[GROUP].apply(kept)
    other.states[GROUP].apply(Author(GENESES[0], 1).add("on the other"))
    side.states[GROUP].apply = lambda _: False  # type: ignore[method-assign]
    other.states[GROUP].apply = lambda _: False  # type: ignore[method-assign]
    answers = []
    for now in (0.0, 0.5, 1.0):
        other.hears(HIGH, root=side.root, now=now)
        other.reconciler.hasten(HIGH, GROUP, now=now)
        [*messages] = other.reconciler._open(HIGH, GROUP, now=now)
        pending = [(other, message) for _, message in messages]
        while pending:
            sender, message = pending.pop(0)
            receiver, peer = (side, LOW) if sender is other else (other, HIGH)
            replies = receiver.receive(peer, message, now)
            answers += [reply for _, reply in replies if isinstance(reply, Busy)]
            pending += [(receiver, reply) for _, reply in replies]

    assert [one.reason for one in answers] == ["a session between these two roots has just brought nothing"]
    assert 0 < answers[0].retry_after_ms <= RETRY_S_MAX * 1000


def test_orphans_of_a_peer_that_brought_nothing_do_not_hurry_us() -> None:
    side = Side(LOW)
    side.hears(HIGH)
    side.opens(GRACE_S)
    now = fails(side, HIGH, now=GRACE_S)
    side.reconciler.hasten(HIGH, GROUP, now=now)

    assert side.opens(now) == []


def test_a_session_that_ends_is_told_once() -> None:
    side = Side(LOW)
    side.hears(HIGH)
    side.opens(1.0)
    fails(side, HIGH, now=1.0)
    [ended] = side.reconciler.take_ended()

    assert (ended.peer, ended.group, ended.outcome) == (HIGH, GROUP, "failed")
    assert ended.duration_s == SYNC_PROGRESS_TIMEOUT_S
    assert side.reconciler.take_ended() == []


def test_a_peer_that_has_gone_leaves_nothing() -> None:
    side = Side(LOW)
    side.hears(HIGH)
    side.hears(HIGH, group=GENESES[1].group)
    side.opens(1.0)
    side.reconciler.peer_down(HIGH)

    assert side.reconciler.session_count == 0
    assert side.reconciler.roots(GROUP) == {}
    assert side.reconciler.next_due() is None


def test_while_nothing_can_be_stored_no_session_is_opened() -> None:
    side = Side(LOW)
    side.hears(HIGH)
    side.hears(THIRD)
    side.opens(1.0)
    side.reconciler.pause(6.0)

    assert side.reconciler.session_count == 0
    assert side.opens(5.9) == []
    assert side.reconciler.next_due() == 6.0
    assert sorted(side.opens(6.0)) == [(HIGH, GROUP), (THIRD, GROUP)]


def test_a_message_of_a_session_that_has_ended_here_is_ignored() -> None:
    side = Side(LOW)

    assert side.receive(HIGH, End(session=b"gone", root=None)) == []


def test_a_session_id_is_used_once_at_a_time() -> None:
    side = Side(LOW)
    side.receive(HIGH, open_message(1))
    with pytest.raises(RemoteProtocolError, match="is open already"):
        side.receive(HIGH, open_message(1, group=GENESES[1].group))


def test_who_breaks_the_rules_of_a_session_ends_it() -> None:
    side = Side(LOW)
    side.hears(HIGH)
    [(_, opened)] = side.reconciler.tick(now=1.0)
    with pytest.raises(RemoteProtocolError):
        side.receive(HIGH, End(session=opened.session, root=OTHER_ROOT), 1.0)

    assert side.reconciler.session_count == 0


def test_a_group_that_is_not_here_is_refused() -> None:
    side = Side(LOW)
    [(_, refusal)] = side.receive(HIGH, open_message(1, group=bytes(32)))

    assert isinstance(refusal, Busy)


def test_two_nodes_end_with_one_root() -> None:
    low, high = Side(LOW), Side(HIGH)
    authors = [Author(GENESES[0], 0), Author(GENESES[0], 1)]
    for side, author in zip((low, high), authors, strict=True):
        for number in range(20):
            side.states[GROUP].apply(author.add(f"content {number}"))
    low.hears(HIGH, root=high.root)
    high.hears(LOW, root=low.root)
    sides = {LOW: low, HIGH: high}
    queue = [(LOW, peer, message) for peer, message in low.reconciler.tick(now=GRACE_S)]
    while queue:
        sender, receiver, message = queue.pop(0)
        queue += [(receiver, to, reply) for to, reply in sides[receiver].receive(sender, message, GRACE_S)]

    assert low.root == high.root
    assert [ended.outcome for ended in low.reconciler.take_ended()] == ["equal"]
    assert low.reconciler.is_equal(HIGH, GROUP)
    assert high.reconciler.is_equal(LOW, GROUP)
    assert low.reconciler.next_due() is None
