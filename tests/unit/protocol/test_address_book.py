"""Whom to dial, when, and on whose word (PROTOCOL 3)."""

import pytest
from crdt_merge_protocol.address_book import (
    DIAL_INTERVAL_MAX_S,
    DIAL_INTERVAL_MIN_S,
    OUTCOME_S,
    REFUSED_INTERVAL_MAX_S,
    AddressBook,
    is_address,
)
from crdt_merge_protocol.limits import DIALS_MAX, HEARSAY_PER_PEER_MAX

ME, ALICE, BOB, MALLORY = (bytes([number]) * 32 for number in (1, 2, 3, 4))


@pytest.fixture
def book() -> AddressBook:
    return AddressBook(ME, lambda: 0.5)


def dialled(book: AddressBook, now: float) -> list[str]:
    return [dial.address for dial in book.due(now=now)]


@pytest.mark.parametrize("text", ["host:1", "10.0.0.1:65535", "[fe80::1]:7946", "a-b_c.example.org:80"])
def test_what_is_an_address(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize(
    "text", ["host", ":1", "[]:1", "host:01", "a:b:1", " host:1", "h:1\n", "h" * 64 + ":1"]
)
def test_what_is_not_an_address(text: str) -> None:
    assert not is_address(text)


def test_a_seed_is_dialled_until_somebody_answers_there(book: AddressBook) -> None:
    book.add_seed("seed:1")
    [dial] = book.due(now=0.0)
    book.failed("seed:1", None, "nobody", now=0.0)
    again = dialled(book, 10.0)
    book.reached("seed:1", ALICE)
    book.connected(ALICE)

    assert (dial.address, dial.expect) == ("seed:1", None)
    assert again == ["seed:1"]
    assert book.seeds == {}
    assert book.peers[ALICE].addresses == ["seed:1"]


def test_waiting_times_double_up_to_a_cap_and_a_connection_resets_them(book: AddressBook) -> None:
    book.learn(ALICE, ["alice:1"])
    now, waits = 0.0, []
    for _ in range(7):
        [_] = book.due(now=now)
        book.failed("alice:1", ALICE, "unreachable", now=now)
        due = book.next_due(now=now)
        assert due is not None
        waits.append(due - now)
        now = due
    book.connected(ALICE)
    book.disconnected(ALICE, now=now)

    assert waits == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert waits[-1] == DIAL_INTERVAL_MAX_S
    assert book.next_due(now=now) == now + DIAL_INTERVAL_MIN_S


def test_who_refuses_us_is_asked_more_rarely(book: AddressBook) -> None:
    book.learn(ALICE, ["alice:1"])
    now = 0.0
    for _ in range(12):
        book.due(now=now)
        book.failed("alice:1", ALICE, "blocked", now=now, is_refusal=True)
        due = book.next_due(now=now)
        assert due is not None
        wait, now = due - now, due

    assert wait == REFUSED_INTERVAL_MAX_S


def test_an_attempt_is_not_repeated_before_its_outcome(book: AddressBook) -> None:
    book.learn(ALICE, ["alice:1"])
    book.due(now=0.0)

    assert book.due(now=OUTCOME_S - 0.1) == []
    assert book.next_due(now=0.0) == OUTCOME_S
    assert dialled(book, OUTCOME_S) == ["alice:1"]


def test_at_most_so_many_dials_run_at_a_time(book: AddressBook) -> None:
    for number in range(2 * DIALS_MAX):
        book.learn(bytes([100 + number]) * 32, [f"host{number}:1"])
    first = dialled(book, 0.0)
    book.failed(first[0], bytes([100]) * 32, "unreachable", now=0.0)

    assert len(first) == DIALS_MAX
    assert len(dialled(book, 0.0)) == 1


def test_the_addresses_of_a_peer_are_tried_in_turn(book: AddressBook) -> None:
    book.learn(ALICE, ["one:1", "two:1"])
    tried = []
    for now in (0.0, 10.0, 20.0):
        [dial] = book.due(now=now)
        tried.append(dial.address)
        book.failed(dial.address, ALICE, "unreachable", now=now)

    assert tried == ["one:1", "two:1", "one:1"]


def test_hearsay_never_displaces_what_a_peer_said_itself(book: AddressBook) -> None:
    """Or a liar could cut two honest nodes off from each other (SCENARIOS T27)."""
    book.learn(ALICE, ["alice:1"])
    for number in range(50):
        book.hear(ALICE, [f"lie{number}:1"], MALLORY)

    assert book.peers[ALICE].addresses == ["alice:1"]
    assert len(book.peers[ALICE].heard) == 2
    assert dialled(book, 0.0) == ["alice:1"]


def test_hearsay_is_tried_where_a_peer_does_not_answer_any_more(book: AddressBook) -> None:
    book.learn(ALICE, ["old:1"])
    book.hear(ALICE, ["new:1"], BOB)
    tried = []
    for now in (0.0, 10.0):
        [dial] = book.due(now=now)
        tried.append(dial.address)
        book.failed(dial.address, ALICE, "unreachable", now=now)

    assert tried == ["old:1", "new:1"]


def test_who_tells_of_too_many_loses_the_oldest_it_told_of(book: AddressBook) -> None:
    book.hear(BOB, ["bob:1"], ALICE)
    made_up = [number.to_bytes(32, "big") for number in range(HEARSAY_PER_PEER_MAX + 5)]
    for peer in made_up:
        book.hear(peer, ["nowhere:1"], MALLORY)

    assert BOB in book.peers
    assert [peer for peer in made_up if peer not in book.peers] == made_up[:5]


def test_hearsay_becomes_knowledge_when_the_peer_is_met(book: AddressBook) -> None:
    book.hear(BOB, ["bob:1"], ALICE)
    before = list(book.introductions())
    book.reached("bob:1", BOB)
    book.connected(BOB)

    assert before == []
    assert list(book.introductions()) == [(BOB, ("bob:1",))]


def test_nobody_tells_us_about_ourselves(book: AddressBook) -> None:
    book.hear(ME, ["me:1"], ALICE)
    book.learn(ME, ["me:1"])

    assert book.peers == {}


def test_offences_are_forgotten_after_a_while(book: AddressBook) -> None:
    for _ in range(5):
        book.offended(MALLORY, now=0.0)
    refused_long = book.refusal(MALLORY, now=15.0)
    book.offended(MALLORY, now=5000.0)

    assert refused_long is not None
    assert book.refusal(MALLORY, now=5001.0) is None


def test_who_offended_is_not_dialled_either(book: AddressBook) -> None:
    book.learn(MALLORY, ["mallory:1"])
    book.offended(MALLORY, now=0.0)

    assert book.due(now=0.9) == []
    assert book.next_due(now=0.0) == 1.0
    assert dialled(book, 1.0) == ["mallory:1"]
