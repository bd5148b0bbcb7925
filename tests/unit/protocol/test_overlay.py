"""Full mesh or partial view: who hears of many keeps a partial view, and passes that on (PROTOCOL 3)."""

from random import Random

import pytest
from crdt_merge_protocol.active_view import Tell
from crdt_merge_protocol.limits import FULL_MESH_NODES_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.overlay import Neighbor, Shuffle, View
from crdt_merge_protocol.overlay import CALM_S, REVIEW_INTERVAL_S, Overlay

MANY = FULL_MESH_NODES_MAX + 1


def peer_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def overlay_with(*peers: int) -> Overlay:
    """Return the overlay of a node that was dialled by some peers."""
    rng = Random(1)
    overlay = Overlay(bytes(32), rng.random, random_bytes=rng.randbytes)
    for number in peers:
        dial_in(overlay, number)
    return overlay


def dial_in(overlay: Overlay, number: int, *, now: float = 0.0) -> list[Message]:
    """Let a peer connect; return what it is told at once."""
    overlay.learn(peer_of(number), [f"10.0.0.{number}:7946"])
    actions = overlay.peer_up(peer_of(number), None, now=now)
    return [action.message for action in actions if isinstance(action, Tell)]


def told(overlay: Overlay, number: int, message: Message, *, now: float = 0.0) -> list[tuple[bytes, Message]]:
    actions = overlay.received(peer_of(number), message, now=now)
    return [(action.peer, action.message) for action in actions if isinstance(action, Tell)]


def test_who_keeps_a_view_on_anothers_word_passes_the_word_on() -> None:
    """Who knew only such nodes took them for all there are, and waited half a minute for neighbours."""
    overlay = overlay_with(1, 2)

    sent = told(overlay, 1, View(population=5000))

    assert not overlay.is_mesh
    assert (peer_of(2), View(population=MANY)) in sent
    assert View(population=MANY) in dial_in(overlay, 3, now=1.0)


def test_a_word_is_not_passed_on_once_the_nodes_were_counted_again() -> None:
    overlay = overlay_with(1, 2)
    told(overlay, 1, View(population=MANY))
    overlay.tick(now=REVIEW_INTERVAL_S)

    assert View(population=3) in dial_in(overlay, 3, now=REVIEW_INTERVAL_S)


@pytest.mark.parametrize(
    "message", [View(population=MANY), Shuffle(nonce=bytes(8), population=MANY, steps=0, peers=())]
)
def test_a_node_of_a_mesh_that_hears_of_many_keeps_a_partial_view(message: Message) -> None:
    overlay = overlay_with(1)

    told(overlay, 1, message)

    assert not overlay.is_mesh


def test_a_node_of_a_mesh_that_hears_of_few_asks_to_be_a_neighbour_and_stays_in_its_mesh() -> None:
    overlay = overlay_with(1)

    assert told(overlay, 1, View(population=3)) == [(peer_of(1), Neighbor(is_urgent=True))]
    assert overlay.is_mesh


def test_few_nodes_go_back_to_a_mesh_a_minute_after_the_last_word_of_many() -> None:
    overlay = overlay_with(1)
    told(overlay, 1, View(population=MANY))
    time = 0.0
    while not overlay.is_mesh:
        time += 1.0
        overlay.tick(now=time)

    assert 2 * CALM_S <= time <= 2 * CALM_S + 2 * REVIEW_INTERVAL_S
