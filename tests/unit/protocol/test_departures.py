"""Leaving for good: believed on one's own word, told on once, undone by coming back."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TypeVar

import pytest
from crdt_merge_protocol.address_book import LEFT_PEERS_MAX, AddressBook
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.events import (
    DialPeer,
    Disconnect,
    Effect,
    Event,
    MessageReceived,
    PeerDown,
    PeerForgotten,
    PeerLeft,
    PeerUp,
    Send,
    Tick,
)
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import DEPARTURES_PER_PEER_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Departed, Peers, departure
from support.authors import KEYS
from support.overlays import Crowd

E = TypeVar("E", bound=Effect)
PEER, OTHER, LEAVER = (KEYS[number].node_id for number in (1, 2, 3))
ADDRESS = "10.0.0.3:7946"


class Node:
    """An engine with a clock."""

    def __init__(self, number: int = 0) -> None:
        self.engine = Engine(KEYS[number], random_bytes=Random(number).randbytes)
        self.now = 100.0

    def handle(self, event: Event) -> list[Effect]:
        return self.engine.handle(event, now=self.now)

    def up(self, peer: bytes, *addresses: str) -> list[Effect]:
        return self.handle(PeerUp(peer=peer, addresses=addresses))

    def down(self, peer: bytes) -> list[Effect]:
        return self.handle(PeerDown(peer=peer, reason="it went"))

    def receive(self, peer: bytes, message: Message) -> list[Effect]:
        return self.handle(MessageReceived(peer=peer, message=message))

    def dialled(self, *, within_s: float = 60.0) -> set[str]:
        """Return every address that is dialled in a while."""
        found: set[str] = set()
        end = self.now + within_s
        while self.now < end:
            for effect in self.handle(Tick()):
                if isinstance(effect, DialPeer):
                    found.add(effect.dial.address)
            self.now += 1.0
        return found


def _of(key: NodeKey) -> Departed:
    return Departed(node=key.node_id, signature=key.sign(departure(key.node_id)))


def _all(kind: type[E], effects: Iterable[Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


@pytest.fixture
def node() -> Node:
    node = Node()
    node.up(PEER, "10.0.0.1:7946")
    node.up(OTHER, "10.0.0.2:7946")
    return node


def test_who_leaves_tells_everybody_it_is_connected_to(node: Node) -> None:
    sends = _all(Send, node.engine.leave())

    assert {send.peer for send in sends} == {PEER, OTHER}
    assert {send.message for send in sends} == {_of(KEYS[0])}


def test_who_has_left_is_not_dialled_any_more_and_the_others_are_told_once(node: Node) -> None:
    node.up(LEAVER, ADDRESS)
    effects = node.receive(LEAVER, _of(KEYS[3]))
    again = node.receive(PEER, _of(KEYS[3]))
    node.down(LEAVER)

    assert _all(PeerLeft, effects) == [PeerLeft(peer=LEAVER)]
    assert {send.peer for send in _all(Send, effects)} == {PEER, OTHER}
    assert again == []
    assert ADDRESS not in node.dialled()
    assert LEAVER in node.engine.overlay.left


def test_a_node_that_is_not_connected_has_left_when_another_passes_its_word_on(node: Node) -> None:
    node.up(LEAVER, ADDRESS)
    node.down(LEAVER)
    assert ADDRESS in node.dialled()

    effects = node.receive(PEER, _of(KEYS[3]))

    assert _all(PeerLeft, effects) == [PeerLeft(peer=LEAVER)]
    assert [send.peer for send in _all(Send, effects)] == [OTHER]
    assert ADDRESS not in node.dialled()


def test_of_a_connected_node_only_its_own_word_counts(node: Node) -> None:
    """An old departure of a node that came back is nothing to hold against it."""
    node.up(LEAVER, ADDRESS)

    assert node.receive(PEER, _of(KEYS[3])) == []
    node.down(LEAVER)
    assert ADDRESS in node.dialled()


def test_nobody_can_make_another_leave(node: Node) -> None:
    node.up(LEAVER, ADDRESS)
    node.down(LEAVER)
    forged = Departed(node=LEAVER, signature=KEYS[1].sign(departure(LEAVER)))

    [effect] = _all(Disconnect, node.receive(PEER, forged))

    assert effect.code == "E1204"
    assert ADDRESS in node.dialled()


def test_hearsay_does_not_bring_a_node_back_but_it_itself_does(node: Node) -> None:
    node.up(LEAVER, ADDRESS)
    node.receive(LEAVER, _of(KEYS[3]))
    node.down(LEAVER)
    node.receive(PEER, Peers(peers=((LEAVER, (ADDRESS,)),)))
    assert ADDRESS not in node.dialled()

    node.up(LEAVER, ADDRESS)
    node.down(LEAVER)

    assert LEAVER not in node.engine.overlay.left
    assert ADDRESS in node.dialled()


def test_a_person_can_give_a_peer_up(node: Node) -> None:
    node.up(LEAVER, ADDRESS)
    node.down(LEAVER)

    effects = node.handle(PeerForgotten(peer=LEAVER))

    assert effects == [PeerLeft(peer=LEAVER)]
    assert ADDRESS not in node.dialled()


def test_ones_own_departure_does_not_come_back(node: Node) -> None:
    assert node.receive(PEER, _of(KEYS[0])) == []


def test_departures_of_nodes_that_never_were_are_bounded(node: Node) -> None:
    keys = [NodeKey(Random(number).randbytes(32)) for number in range(DEPARTURES_PER_PEER_MAX + 5)]
    told = sum(bool(node.receive(PEER, _of(key))) for key in keys)

    assert told == DEPARTURES_PER_PEER_MAX


def test_the_memory_of_who_left_is_bounded() -> None:
    book = AddressBook(bytes(32), lambda: 0.5)
    for number in range(LEFT_PEERS_MAX + 3):
        book.forget(number.to_bytes(32, "big"))

    assert len(book.left) == LEFT_PEERS_MAX
    assert (0).to_bytes(32, "big") not in book.left


def test_in_a_partial_view_who_left_is_neither_kept_nor_looked_for() -> None:
    node = Node()
    keys = [NodeKey(Random(f"view {number}").randbytes(32)) for number in range(20)]
    for number, key in enumerate(keys):
        node.up(key.node_id, f"10.0.1.{number}:7946")
    assert not node.engine.overlay.is_mesh
    leaver, address = keys[0], "10.0.1.0:7946"
    if not node.engine.overlay.is_neighbour(leaver.node_id):
        leaver = next(key for key in keys if node.engine.overlay.is_neighbour(key.node_id))
        address = f"10.0.1.{keys.index(leaver)}:7946"

    node.receive(leaver.node_id, _of(leaver))
    node.down(leaver.node_id)

    assert not node.engine.overlay.view.is_lost(leaver.node_id)
    assert leaver.node_id not in node.engine.overlay.view.passive
    assert address not in node.dialled(within_s=300.0)


def test_in_a_crowd_everybody_hears_of_it_and_nobody_dials_again() -> None:
    """Forty nodes with partial views; the one that leaves knows only a few of them."""
    crowd = Crowd(40)
    for index in range(40):
        crowd.start(index, *([0] if index else []))
    crowd.run(60.0)
    leaver = crowd.nodes[23]
    crowd._carry_out(leaver, leaver.engine.leave())
    crowd.run(0.2)
    crowd.kill(23)
    crowd.run(10.0)
    others = [node for node in crowd.nodes if node is not leaver]
    dials: list[str] = []
    for node in others:
        dials += [dial.address for dial in node.engine.overlay.due(now=crowd.now + 60.0)]

    assert not crowd.nodes[0].engine.overlay.is_mesh
    assert sum(leaver.key.node_id in node.engine.overlay.left for node in others) == 39
    assert leaver.address not in dials
    assert all(leaver.key.node_id not in node.engine.overlay.view.passive for node in others)
