"""Peers that break the rules of a sync session (SCENARIOS B39-B44, T12) meet an error or the deadline."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from crdt_merge_protocol import sync_exchange, sync_list, sync_stream
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import SYNC_WINDOW_BYTES
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Ping
from crdt_merge_protocol.messages.sync import Ack, Busy, End, Lack, List, Nodes, Open, Operations
from crdt_merge_protocol.messages.walk import Children, Halved, Leaf, Wanted
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.sync import SyncSession
from support.sync_pair import GROUP, MemoryState, Pair, Tamper, expire, make_operation, share

SESSION = b"sess"
HONEST = 0
Lie = Callable[[Any], Sequence[Message]]
"""What the other side sends instead of a message."""


def told(lie: Lie) -> Tamper:
    """Return a tamper by which everybody but side 0 lies."""
    return lambda sender, message: [message] if sender == HONEST else lie(message)


def refused(pair: Pair, lie: Lie, match: str) -> None:
    """Run with side 1 lying; side 0 must name the offence, fail, and keep its state."""
    before = pair.sides[HONEST].state.sync_root, len(pair.sides[HONEST].state)
    with pytest.raises(RemoteProtocolError, match=match):
        pair.run(tamper=told(lie))
    session = pair.sides[HONEST].session
    assert session.outcome == "failed"
    assert session.failure is not None
    known = {signed.id for signed in pair.sides[HONEST].state}
    assert len(known) - before[1] == len(pair.sides[HONEST].received_ids)


def on(kind: type[Message], change: Lie) -> Lie:
    """Return a lie about messages of one class."""
    return lambda message: change(message) if isinstance(message, kind) else [message]


def alter(kind: type[Message], **changes: object) -> Lie:
    """Return a lie that sets fields in messages of one class."""
    return on(kind, lambda message: [dataclasses.replace(message, **changes)])


def wires(*operations: SignedOperation) -> tuple[bytes, ...]:
    return tuple(signed.wire() for signed in operations)


# --- the walk ---------------------------------------------------------------------------------------------

SHORT = b"\x07" * 8
FULL = Children(b"", 0xFFFF, (SHORT,) * 16)


def entries(*chosen: object) -> Lie:
    return on(Nodes, lambda message: [dataclasses.replace(message, entries=chosen)])


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (entries(FULL, FULL), "answers nothing"),
        (entries(FULL, Children(b"\x01", 1, (SHORT,))), "answers nothing"),
        (entries(FULL, Leaf(b"\x01", ())), "answers nothing"),
        (entries(Leaf(b"\x01", (SHORT,))), "does not cover"),
        (entries(FULL, Halved(b"", 1, (SHORT,) * 8)), "answers nothing"),
        (entries(Wanted((SHORT,))), "not listed"),
        (alter(Nodes, nonce=b""), "Nodes while opened"),
        (alter(Nodes, is_last=False, entries=()), "says nothing"),
        (on(Nodes, lambda message: [message, message]), "Nodes while"),
    ],
    ids=[
        "the root twice",
        "a child behind its own parent",
        "a leaf behind its own parent",
        "a leaf of a part",
        "halves of what was described",
        "wants before any leaf",
        "no nonce",
        "a frame of nothing",
        "two steps at once",
    ],
)
def test_entries_that_answer_nothing_are_refused(lie: Lie, match: str) -> None:
    """SCENARIOS B40, B43."""
    refused(Pair(*share(60, 2, 2)), lie, match)


def test_a_place_is_answered_once_even_in_later_steps() -> None:
    seen: list[Nodes] = []

    def repeat(message: Message) -> list[Message]:
        assert isinstance(message, Nodes)
        seen.append(message)
        return [message] if len(seen) == 1 else [dataclasses.replace(message, entries=seen[0].entries)]

    refused(Pair(*share(3_000, 20, 20)), on(Nodes, repeat), "answers nothing")


def test_an_id_is_wanted_at_most_once() -> None:
    """SCENARIOS B43."""
    pair = Pair(*share(60, 2, 0))

    def want_twice(message: Message) -> list[Message]:
        assert isinstance(message, Nodes)
        wanted = [entry for entry in message.entries if isinstance(entry, Wanted)]
        return [dataclasses.replace(message, entries=(*message.entries, *wanted))]

    refused(pair, on(Nodes, want_twice), "wanted twice")


def test_endless_subdivision_ends_with_our_own_trie() -> None:
    """SCENARIOS B40: whatever differs, an honest side goes no deeper than it has ids."""
    rng = random.Random(40)
    state = share(2_000, 0, 0)[0]
    session = SyncSession(state=state, session=SESSION, initiator=True, nonce=bytes(16), now=0.0)
    session.start()
    places = [b""]
    for step in range(80):
        lies = tuple(
            Children(place, 0xFFFF, tuple(rng.randbytes(8) for _ in range(16))) for place in places[:400]
        )
        nonce = bytes(8) if step == 0 else b""
        replies = session.receive(Nodes(session=SESSION, nonce=nonce, entries=lies), now=0.0)
        answered = [entry for reply in replies if isinstance(reply, Nodes) for entry in reply.entries]
        places = [
            entry.prefix + bytes([nibble])
            for entry in answered
            if isinstance(entry, Children)
            for nibble in range(16)
            if entry.bitmap >> nibble & 1
        ]
        if not places:
            break
    assert step <= 4
    assert session.counters.round_count <= 10


def test_a_claim_of_equal_roots_changes_nothing_here() -> None:
    """SCENARIOS B39, T12: believed for this session, contradicted by every other peer's root."""
    first, second = share(20, 1, 1)
    root = first.sync_root
    session = SyncSession(state=first, session=SESSION, initiator=True, nonce=bytes(16), now=0.0)
    session.start()
    assert session.receive(End(session=SESSION, root=None), now=0.0) == []
    assert session.outcome == "equal"
    assert first.sync_root == root != second.sync_root


# --- operations -------------------------------------------------------------------------------------------


def chain(count: int) -> list[SignedOperation]:
    made: list[SignedOperation] = []
    for number in range(count):
        made.append(make_operation(number, {made[-1].id} if made else ()))
    return made


def lacking(count: int = 6, *, extra: int = 0) -> Pair:
    """Return a pair whose honest side lacks the end of a chain, and may have what the liar lacks."""
    operations = chain(20 + count)
    own = [make_operation(1 << 80 | number) for number in range(extra)]
    return Pair(MemoryState([*operations[:20], *own]), MemoryState(operations))


def sending(change: Lie) -> Lie:
    return on(Operations, change)


KNOWN = make_operation(0)
UNKNOWN = make_operation(1 << 70)
ORPHAN = make_operation(1 << 71, {b"?" * 32})


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (sending(lambda m: [dataclasses.replace(m, operations=m.operations[::-1])]), "before its past"),
        (
            sending(lambda m: [dataclasses.replace(m, operations=(*m.operations[1:], *wires(ORPHAN)))]),
            "before",
        ),
        (sending(lambda m: [dataclasses.replace(m, operations=wires(KNOWN))]), "it is here"),
        (sending(lambda m: [dataclasses.replace(m, operations=m.operations[:1] * 6)]), "it is here"),
        (sending(lambda m: [dataclasses.replace(m, left_count=3), m]), "were announced"),
        (
            sending(lambda m: [m, Operations(session=m.session, left_count=0, operations=wires(UNKNOWN))]),
            "1 op",
        ),
        (sending(lambda m: [dataclasses.replace(m, operations=(b"\x00",))]), "signed operation"),
        (sending(lambda m: [End(session=m.session, root=bytes(32))]), "End while"),
        (sending(lambda m: [Lack(session=m.session, bitmap=b"\x01")]), "Lack while"),
        (sending(lambda m: [Busy(session=m.session, reason="", retry_after_ms=0)]), "Busy while"),
        (sending(lambda m: [Ack(session=m.session, count=9)]), "9 operations are acknowledged"),
    ],
    ids=[
        "reversed",
        "an orphan at the end",
        "known here",
        "the same six times",
        "left count shrinks wrongly",
        "more than announced",
        "garbage",
        "end instead",
        "lack instead",
        "busy instead",
        "acknowledges what was not sent",
    ],
)
def test_streams_that_break_the_rules_are_refused(lie: Lie, match: str) -> None:
    """SCENARIOS B44: unwanted, twice, out of causal order, orphans, more or less than announced."""
    refused(lacking(), lie, match)


def test_an_acknowledgement_grows() -> None:
    twice = sending(lambda m: [Ack(session=m.session, count=1), Ack(session=m.session, count=1)])
    refused(lacking(extra=2), twice, "1 operations are acknowledged, 2 were sent")


def test_a_list_after_the_walk_is_refused() -> None:
    late = sending(lambda m: [List(session=m.session, left_count=0, ids=(bytes(32),))])
    refused(lacking(extra=2), late, "List while")


def test_what_was_wanted_must_be_sent() -> None:
    """SCENARIOS T12: short of the wanted ones, no announced end is believed."""
    pair = Pair(MemoryState(chain(3)), MemoryState(chain(9)))
    refused(pair, sending(lambda m: [dataclasses.replace(m, operations=m.operations[:1])]), "were not sent")


def test_an_operation_of_another_group_is_refused() -> None:
    """SCENARIOS T3."""
    foreign = dataclasses.replace(UNKNOWN.operation, group=bytes(32))
    signed = SignedOperation(foreign, foreign.encode(), bytes(64), foreign.id)
    refused(
        lacking(),
        sending(lambda m: [dataclasses.replace(m, operations=(*m.operations[1:], *wires(signed)))]),
        "before its past|another group",
    )
    refused(
        lacking(1), sending(lambda m: [dataclasses.replace(m, operations=wires(signed))]), "of another group"
    )


def test_a_flood_beyond_the_window_is_refused_before_it_fills_memory() -> None:
    pair = lacking()
    pair.sides[HONEST].is_storing = False
    session = pair.sides[HONEST].session

    def flood(message: Message) -> list[Message]:
        return [
            Operations(
                session=session.session,
                left_count=1_000 - number,
                operations=wires(make_operation(1 << 72 | number, size=60_000)),
            )
            for number in range(1_000)
        ]

    refused_at = pair.sides[HONEST].waiting
    with pytest.raises(RemoteProtocolError, match="overrun the window"):
        pair.run(tamper=told(on(Operations, flood)))
    assert sum(len(signed.wire()) for signed in refused_at) <= SYNC_WINDOW_BYTES


@pytest.mark.parametrize("silenced", [Nodes, Operations, End])
def test_withheld_messages_meet_the_deadline(silenced: type[Message]) -> None:
    """SCENARIOS T12: what is wanted and not sent costs a session, nothing else."""
    pair = lacking()
    pair.run(tamper=told(lambda message: [] if isinstance(message, silenced) else [message]))
    assert not pair.sides[HONEST].session.is_finished
    expire(pair)
    assert pair.sides[HONEST].session.outcome == "failed"


def test_a_closer_that_owes_operations_cannot_end() -> None:
    pair = Pair(MemoryState(chain(3)), MemoryState(chain(9)))
    refused(
        pair, sending(lambda m: [End(session=m.session, root=bytes(32))]), "6 listed operations were not sent"
    )


def test_an_end_before_everything_was_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_stream, "SYNC_WINDOW_BYTES", 1_500)
    pair = Pair(MemoryState(chain(40)), MemoryState(chain(3)))
    refused(pair, on(Ack, lambda m: [End(session=m.session, root=bytes(32))]), "End while")


# --- lists ------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """An honest side that lacks enough to be told, of which it knows the first ten."""
    monkeypatch.setattr(sync_exchange, "SYNC_LIST_THRESHOLD", 16)
    monkeypatch.setattr(sync_list, "SYNC_PAGE_IDS_MAX", 16)
    operations = chain(60)
    return Pair(MemoryState(operations[:10]), MemoryState(operations))


def listing(change: Lie) -> Lie:
    return on(List, change)


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (listing(lambda m: [dataclasses.replace(m, ids=m.ids[::-1])]), "do not ascend"),
        (listing(lambda m: [m, m]), "List while|does not follow"),
        (
            listing(lambda m: [dataclasses.replace(m, left_count=m.left_count + 5 * (m.left_count < 40))]),
            "follow",
        ),
        (on(Operations, lambda m: [dataclasses.replace(m, operations=m.operations[1:])]), "announced"),
        (on(Operations, lambda m: [Nodes(session=m.session, entries=())]), "Nodes while"),
    ],
    ids=[
        "reversed",
        "the same page twice",
        "a count that does not follow",
        "an operation left out",
        "nodes instead",
    ],
)
def test_lists_that_break_the_rules_are_refused(listed: Pair, lie: Lie, match: str) -> None:
    refused(listed, lie, match)


def test_a_list_of_what_is_known_cannot_go_round_in_circles(listed: Pair) -> None:
    ids = tuple(signed.id for signed in listed.sides[HONEST].state.causal())
    session = listed.sides[HONEST].session
    session.start()
    answers = session.receive(List(session=session.session, left_count=1_000, ids=ids), now=0.0)
    assert [type(answer) for answer in answers] == [Lack]
    with pytest.raises(RemoteProtocolError, match="do not ascend"):
        session.receive(List(session=session.session, left_count=990, ids=ids), now=0.0)


def test_operations_of_a_page_come_in_its_order(listed: Pair) -> None:
    def swap(message: Message) -> list[Message]:
        assert isinstance(message, Operations)
        return [dataclasses.replace(message, operations=message.operations[::-1])]

    refused(listed, on(Operations, swap), "not the next one of the list")


@pytest.mark.parametrize("bitmap", [b"", b"\xff", b"\xff\xff\xff", b"\xff\xff\x01"])
def test_an_answer_that_does_not_fit_its_page_is_refused(listed: Pair, bitmap: bytes) -> None:
    teller = Pair(listed.sides[1].state, listed.sides[0].state)  # The liar asks for a list and answers badly.

    def lie(message: Message) -> list[Message]:
        if isinstance(message, Lack) and message.bitmap:
            return [dataclasses.replace(message, bitmap=bitmap)]
        return [message]

    refused(teller, lie, "does not fit|behind its end")


def test_an_answer_has_no_bits_behind_its_page(listed: Pair) -> None:
    lister = sync_list.Lister(MemoryState(chain(12)), SESSION, None)
    assert len(lister.next_page().ids) == 12
    with pytest.raises(RemoteProtocolError, match="behind its end"):
        lister.answered(Lack(session=SESSION, bitmap=b"\x00\x10"))


def test_a_page_answered_with_an_end_is_refused(listed: Pair) -> None:
    teller = Pair(listed.sides[1].state, listed.sides[0].state)

    def lie(message: Message) -> list[Message]:
        is_answer = isinstance(message, Lack) and bool(message.bitmap)
        return [End(session=message.session, root=bytes(32))] if is_answer else [message]

    refused(teller, lie, "End while")


# --- sessions ---------------------------------------------------------------------------------------------

OPENING = Open(session=SESSION, group=GROUP, root=bytes(32), count=5, nonce=bytes(8))


def responder() -> SyncSession:
    state = share(30, 0, 0)[0]
    return SyncSession(state=state, session=SESSION, initiator=False, nonce=bytes(16), now=0.0)


@pytest.mark.parametrize(
    "message",
    [
        dataclasses.replace(OPENING, session=b"else"),
        dataclasses.replace(OPENING, group=bytes(32)),
        Nodes(session=SESSION, entries=()),
        Operations(session=SESSION, left_count=0, operations=wires(UNKNOWN)),
        Ack(session=SESSION, count=1),
        End(session=SESSION, root=None),
        Busy(session=SESSION, reason="", retry_after_ms=0),
        List(session=SESSION, left_count=0, ids=(bytes(32),)),
        Lack(session=SESSION, bitmap=b""),
        Ping(nonce=1),
    ],
)
def test_a_responder_hears_nothing_but_its_own_open(message: Message) -> None:
    session = responder()
    with pytest.raises(RemoteProtocolError):
        session.receive(message, now=0.0)
    assert session.outcome == "failed"
    with pytest.raises(RemoteProtocolError, match="no session under way"):
        session.receive(OPENING, now=0.0)


def test_a_session_is_opened_once() -> None:
    session = responder()
    assert session.receive(OPENING, now=0.0)
    with pytest.raises(RemoteProtocolError, match="Open while"):
        session.receive(OPENING, now=0.0)


def test_replayed_frames_of_another_session_change_nothing() -> None:
    """SCENARIOS T2: every sync has a session id and nonces of its own."""
    recorded = Pair(*share(40, 3, 3), seed=1).run()
    first, second = share(40, 3, 3)
    for message in recorded.sides[1].sent:
        fresh = Pair(first.copy(), second.copy(), seed=2)
        session = fresh.sides[HONEST].session
        session.start()
        with pytest.raises(RemoteProtocolError, match="no session"):
            session.receive(message, now=0.0)
        assert fresh.sides[HONEST].state.sync_root == first.sync_root
