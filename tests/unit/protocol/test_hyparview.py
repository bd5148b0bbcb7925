"""The partial view of one node: who becomes a neighbour, who has to go, who is dialled (PROTOCOL 3)."""

import itertools
from random import Random

import pytest
from crdt_merge_protocol.active_view import ANSWER_S, Action, Close, Tell
from crdt_merge_protocol.address_book import AddressBook, Dial
from crdt_merge_protocol.hyparview import HyParView
from crdt_merge_protocol.limits import ACTIVE_MAX, ACTIVE_MIN, CHOSEN_MAX, PASSIVE_MAX, WALK_NOTE_STEP
from crdt_merge_protocol.lost_neighbours import LOST_INTERVAL_MIN_S
from crdt_merge_protocol.messages.overlay import (
    Accepted,
    ForwardJoin,
    Join,
    Leave,
    Neighbor,
    Shuffle,
    ShuffleReply,
)
from crdt_merge_protocol.seeking import SEED_INTERVAL_MAX_S
from crdt_merge_protocol.solitude import ISOLATED_S
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

NODE = bytes(32)


def peer_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def address_of(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250 + 1}:7946"


class Rig:
    """A view, its address book, and connections that always work."""

    def __init__(self, seed: int = 1) -> None:
        rng = Random(seed)
        self.book = AddressBook(NODE, rng.random)
        self.view = HyParView(self.book, jitter=rng.random, random_bytes=rng.randbytes)
        self.view.population = 100
        self.view.begin([], [], now=0.0)

    def connect(self, number: int, *, dialled: bool = False, now: float = 0.0) -> list[Action]:
        self.book.learn(peer_of(number), [address_of(number)])
        self.book.connected(peer_of(number))
        return self.view.connected(peer_of(number), address_of(number) if dialled else None, now=now)

    def accept(self, number: int, *, is_urgent: bool = False, now: float = 0.0) -> list[Action]:
        """Let a peer dial in and ask."""
        self.connect(number, now=now)
        return self.view.received(peer_of(number), Neighbor(is_urgent=is_urgent), now=now)

    def choose(self, number: int, *, now: float = 0.0) -> list[Action]:
        """Let this node dial a peer that accepts."""
        self.connect(number, dialled=True, now=now)
        return self.view.received(peer_of(number), Accepted(), now=now)


def told(actions: list[Action], kind: type) -> list[bytes]:
    return [one.peer for one in actions if isinstance(one, Tell) and isinstance(one.message, kind)]


def test_who_dials_in_gets_half_of_the_links_and_no_more() -> None:
    """SCENARIOS T27: hostile dialers cannot take the links that are this node's own choice."""
    rig = Rig()
    for number in range(1, 10):
        rig.accept(number)

    assert len(rig.view.links) == ACTIVE_MAX - CHOSEN_MAX


def test_an_urgent_dialer_displaces_another_dialer_and_never_a_chosen_link() -> None:
    rig = Rig()
    for number in range(1, CHOSEN_MAX + 1):
        rig.choose(number)
    for number in range(50, 90):
        rig.accept(number, is_urgent=True)

    chosen = {peer_of(number) for number in range(1, CHOSEN_MAX + 1)}
    assert chosen <= rig.view.links.keys()
    assert len(rig.view.links) == ACTIVE_MAX


def test_the_first_neighbour_is_joined_and_a_full_node_turns_others_away_with_contacts() -> None:
    rig = Rig()

    assert told(rig.connect(1, dialled=True), Join) == [peer_of(1)]
    rig.view.received(peer_of(1), Accepted(), now=0.0)
    for number in range(2, 7):
        actions = rig.accept(number)

    refusal = next(one for one in actions if isinstance(one, Tell) and isinstance(one.message, Leave))
    assert refusal.peer == peer_of(6)
    assert isinstance(refusal.message, Leave)
    assert refusal.message.peers


def test_a_connection_that_nobody_asks_on_is_closed_and_a_link_is_not() -> None:
    rig = Rig()
    rig.connect(1)
    rig.accept(2)

    assert rig.view.tick(now=ANSWER_S - 1) == []
    closed = [one.peer for one in rig.view.tick(now=ANSWER_S + 0.1) if isinstance(one, Close)]
    assert closed == [peer_of(1)]


def test_a_neighbour_whose_connection_broke_is_dialled_until_it_answers() -> None:
    rig = Rig()
    rig.accept(1)
    rig.book.disconnected(peer_of(1), now=1.0)
    rig.view.disconnected(peer_of(1), now=1.0)

    dialled = 0
    for second in range(1, 200):
        for action in rig.view.tick(now=1.0 + second * LOST_INTERVAL_MIN_S):
            if isinstance(action, Dial) and action.expect == peer_of(1):
                dialled += 1
                rig.view.failed(action, now=1.0 + second * LOST_INTERVAL_MIN_S)

    assert 6 <= dialled <= 20
    assert rig.view.is_lost(peer_of(1))
    rig.connect(1, now=200.0)
    assert not rig.view.is_lost(peer_of(1))


def test_a_node_that_lost_everybody_counts_as_isolated_after_ten_seconds() -> None:
    rig = Rig()
    assert rig.view.is_isolated  # It never had a neighbour, so there is nothing to wait for.
    rig.accept(1)
    assert not rig.view.is_isolated
    rig.book.disconnected(peer_of(1), now=5.0)
    rig.view.disconnected(peer_of(1), now=5.0)

    rig.view.tick(now=5.0 + ISOLATED_S - 0.1)
    assert not rig.view.is_isolated
    rig.view.tick(now=5.0 + ISOLATED_S)
    assert rig.view.is_isolated


def test_a_peer_that_left_is_disconnected_and_kept_as_a_contact() -> None:
    rig = Rig()
    rig.accept(1)

    actions = rig.view.received(peer_of(1), Leave(), now=1.0)

    assert [one for one in actions if isinstance(one, Close)]
    assert peer_of(1) in rig.view.passive
    assert not rig.view.is_lost(peer_of(1))


def test_the_answer_to_a_shuffle_goes_back_the_way_it_came() -> None:
    rig = Rig()
    rig.accept(1)
    rig.accept(2)
    contact = (peer_of(9), (address_of(9),))
    shuffle = Shuffle(nonce=b"12345678", population=100, steps=WALK_NOTE_STEP, peers=(contact,))

    passed = rig.view.received(peer_of(1), shuffle, now=0.0)
    answer = ShuffleReply(nonce=b"12345678", peers=())

    assert told(passed, Shuffle) == [peer_of(2)]
    assert rig.view.received(peer_of(2), answer, now=0.0) == [Tell(peer_of(1), answer)]
    assert rig.view.received(peer_of(2), answer, now=0.0) == []  # Once only.


def test_a_walk_ends_at_a_node_with_room_and_that_node_dials_the_newcomer() -> None:
    rig = Rig()
    rig.accept(1)
    walk = ForwardJoin(contact=(peer_of(9), (address_of(9),)), steps=0)

    assert rig.view.received(peer_of(1), walk, now=0.0) == [Dial(address=address_of(9), expect=peer_of(9))]


@pytest.mark.parametrize("kind", [Shuffle, ForwardJoin])
def test_walks_are_taken_from_neighbours_only(kind: type) -> None:
    rig = Rig()
    rig.accept(1)
    rig.connect(2)
    contact = (peer_of(9), (address_of(9),))
    walk = (
        Shuffle(nonce=b"12345678", population=100, steps=0, peers=(contact,))
        if kind is Shuffle
        else ForwardJoin(contact=contact, steps=0)
    )

    assert rig.view.received(peer_of(2), walk, now=0.0) == []


def test_who_did_not_answer_is_not_taken_in_again_for_a_while() -> None:
    rig = Rig()
    contact = (peer_of(9), (address_of(9),))
    rig.view.note([contact], now=0.0)
    rig.view.failed(Dial(address=address_of(9), expect=peer_of(9)), now=1.0)

    rig.view.note([contact], now=2.0)
    assert peer_of(9) not in rig.view.passive
    rig.view.note([contact], now=100.0)
    assert peer_of(9) in rig.view.passive


@examples(40)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 80), st.booleans()), max_size=120))
def test_whatever_happens_the_views_stay_within_their_bounds(steps: list[tuple[int, int, bool]]) -> None:
    rig, now = Rig(), 0.0
    for what, number, flag in steps:
        now += 0.3
        peer = peer_of(number)
        is_connected = peer in rig.book.active
        contacts = tuple((peer_of(other), (address_of(other),)) for other in range(number, number + 8))
        if what == 0:
            rig.connect(number, dialled=flag, now=now)
        elif what == 1 and is_connected:
            rig.view.received(peer, Neighbor(is_urgent=flag), now=now)
        elif what == 2 and is_connected:
            rig.view.received(peer, Accepted(peers=contacts), now=now)
        elif what == 3 and is_connected:
            rig.book.disconnected(peer, now=now)
            rig.view.disconnected(peer, now=now)
        elif what == 4 and is_connected:
            rig.view.received(peer, Leave(peers=contacts), now=now)
        elif what == 5 and is_connected:
            rig.view.received(peer, Join(), now=now)
        elif what == 6:
            rig.view.tick(now=now)
        else:
            rig.view.note(contacts, now=now)

        assert len(rig.view.links) <= ACTIVE_MAX + 1  # One that both ends asked for at the same time.
        assert sum(link.is_chosen for link in rig.view.links.values()) <= CHOSEN_MAX + 1
        assert len(rig.view.passive) <= PASSIVE_MAX
        assert not rig.view.links.keys() & rig.view.passive.keys()
        assert rig.view.links.keys() <= rig.book.active


def test_who_must_make_room_is_usually_one_that_the_tree_does_not_need() -> None:
    rig = Rig()
    places = ACTIVE_MAX - CHOSEN_MAX
    rig.view.active.need = lambda peer: int(peer != peer_of(places))
    evicted = []
    for number in range(1, 200):
        if number == places + 1:
            assert len(rig.view.links) == places
        evicted += told(rig.accept(number, is_urgent=True), Leave)
        rig.view.active.need = lambda peer, newest=number: int(peer != peer_of(newest))

    newest = [peer_of(number) for number in range(places, 199)]
    same = sum(gone == new for gone, new in zip(evicted, newest, strict=True))
    assert 0.8 * len(newest) < same < len(newest)


def test_a_node_whose_chosen_links_are_all_needed_rarely_crosses_over() -> None:
    rig = Rig()
    for number in range(1, CHOSEN_MAX + 1):
        rig.choose(number)
    rig.view.note([(peer_of(number), (address_of(number),)) for number in range(20, 60)], now=0.0)

    def crossings() -> int:
        return sum(bool(rig.view._seeking.cross(now=float(number))) for number in range(100))

    before = crossings()
    rig.view._seeking.wishes.clear()
    rig.view.active.need = lambda _: 1

    assert crossings() < before / 2


def test_a_node_that_has_enough_asks_for_more_in_calm() -> None:
    """Each refusal is a connection, and the last free places are found by refusals only."""
    rig = Rig()
    for number in range(1, ACTIVE_MIN + 1):
        rig.accept(number)
    rig.view.note([(peer_of(number), (address_of(number),)) for number in range(20, 60)], now=0.0)
    dials = 0
    for tenth in range(1, 601):
        now = tenth / 10
        for action in rig.view.tick(now=now):
            if isinstance(action, Dial) and action.expect is not None:
                dials += 1
                rig.book.connected(action.expect)
                rig.view.connected(action.expect, action.address, now=now)
                rig.view.received(action.expect, Leave(), now=now)
                rig.book.disconnected(action.expect, now=now)
                rig.view.disconnected(action.expect, now=now)

    assert 0 < dials < 15


SEED = "first.example:7946"


def seed_dials(rig: Rig, seconds: range, *, fails: bool = True) -> list[float]:
    """Let time pass; return when the seed was dialled."""
    dials = []
    for second in seconds:
        now = float(second)
        for action in rig.view.tick(now=now):
            if isinstance(action, Dial) and action.expect is None:
                assert action.address == SEED
                dials.append(now)
                if fails:
                    rig.book.failed(SEED, None, "refused", now=now)
                    rig.view.failed(action, now=now)
    return dials


def test_a_seed_at_which_nobody_answered_is_dialled_until_somebody_does_and_is_asked_urgently() -> None:
    """Who started after all who look for it there, and knows nobody, is found in no other way."""
    rig = Rig()
    rig.book.add_seed(SEED)
    for number in range(1, ACTIVE_MAX + 1):
        (rig.choose if number <= CHOSEN_MAX else rig.accept)(number)
    rig.view.active.need = lambda _: 1
    rig.book.failed(SEED, None, "refused", now=0.0)

    dials = seed_dials(rig, range(1, 3601))
    gaps = [later - before for before, later in itertools.pairwise(dials)]
    assert max([dials[0], *gaps]) <= 1.3 * SEED_INTERVAL_MAX_S + 1
    assert len(dials) < 200  # A seed that is gone for ever costs little.

    assert seed_dials(rig, range(3601, 3641), fails=False)
    rig.book.learn(peer_of(99), [SEED])
    rig.book.reached(SEED, peer_of(99))
    rig.book.connected(peer_of(99))
    actions = rig.view.connected(peer_of(99), SEED, now=3641.0)
    assert Tell(peer_of(99), Neighbor(is_urgent=True)) in actions
    assert not seed_dials(rig, range(3642, 3800))


def test_a_node_without_links_leaves_its_seeds_to_the_address_book() -> None:
    rig = Rig()
    rig.book.add_seed(SEED)
    rig.book.failed(SEED, None, "refused", now=0.0)

    assert not seed_dials(rig, range(1, 100))
    assert rig.view.is_isolated
