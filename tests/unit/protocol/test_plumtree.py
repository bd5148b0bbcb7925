"""The broadcast tree of one node: what it pushes, announces, fetches and keeps (PROTOCOL 3)."""

import pytest
from crdt_merge_protocol.limits import ANNOUNCED_PER_PEER_MAX, IHAVE_IDS_MAX
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.overlay import Graft, IHave, Prune
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.plumtree import (
    EAGER_AT_FIRST,
    GRAFT_S,
    IHAVE_FLUSH_S,
    OPTIMISE_BURST,
    OPTIMISE_S,
    Plumtree,
)
from support.authors import Author, make_genesis

NODE, A, B, C = (bytes([number]) * 32 for number in range(1, 5))
AUTHOR = Author(make_genesis())
GROUP = AUTHOR.state.group
SIGNED: SignedOperation = AUTHOR.add("one")
OTHER: SignedOperation = AUTHOR.add("two")


def tree_of(*peers: bytes) -> Plumtree:
    tree = Plumtree(NODE)
    for peer in peers:
        tree.neighbour_up(peer)
    return tree


def pass_on(tree: Plumtree, *operations: SignedOperation, now: float = 0.0) -> list[tuple[bytes, object]]:
    outgoing, _ = tree.stored(GROUP, operations, synced_max=512, now=now)
    return list(outgoing)


def nothing_in_flight(_group: bytes, _id: bytes) -> bool:
    return False


def test_what_a_neighbour_pushed_goes_to_all_others_once_it_is_durable() -> None:
    tree = tree_of(A, B, C)

    assert tree.pushed(A, new=[SIGNED.id], known=[], now=0.0) == []
    outgoing = pass_on(tree, SIGNED)

    assert [peer for peer, _ in outgoing] == [B, C]
    assert all(message == Gossip(group=GROUP, operations=(SIGNED.wire(),)) for _, message in outgoing)


def test_a_second_push_prunes_the_slower_link_and_is_not_answered_with_the_same() -> None:
    tree = tree_of(A, B)
    tree.pushed(A, new=[SIGNED.id], known=[], now=0.0)

    assert tree.pushed(B, new=[], known=[SIGNED.id], now=0.0) == [(B, Prune())]
    assert pass_on(tree, SIGNED) == []
    assert list(tree.eager) == [A]
    assert list(tree.lazy) == [B]


def test_what_came_by_anti_entropy_prunes_nobody_and_is_announced_only() -> None:
    tree = tree_of(A, B)
    tree.synced(A, [SIGNED.id])

    assert pass_on(tree, SIGNED) == []
    assert tree.tick(nothing_in_flight, now=IHAVE_FLUSH_S) == [(B, IHave(group=GROUP, ids=(SIGNED.id,)))]
    assert tree.pushed(B, new=[], known=[SIGNED.id], now=0.0) == []


def test_whoever_catches_up_on_much_announces_little() -> None:
    tree = tree_of(A, B)
    tree.synced(A, [SIGNED.id, OTHER.id])

    _, count = tree.stored(GROUP, [SIGNED, OTHER], synced_max=1, now=0.0)

    assert count == 1
    assert tree.tick(nothing_in_flight, now=1.0) == [(B, IHave(group=GROUP, ids=(SIGNED.id,)))]


def test_a_pruned_neighbour_gets_ids_after_the_flush_interval() -> None:
    tree = tree_of(A, B)
    tree.pruned(B)
    tree.pushed(A, new=[SIGNED.id], known=[], now=0.0)

    assert pass_on(tree, SIGNED, now=1.0) == []
    assert tree.next_due() == 1.0 + IHAVE_FLUSH_S
    assert tree.tick(nothing_in_flight, now=1.0) == []
    assert tree.tick(nothing_in_flight, now=1.0 + IHAVE_FLUSH_S) == [
        (B, IHave(group=GROUP, ids=(SIGNED.id,)))
    ]


def test_an_announced_operation_that_does_not_come_is_fetched_and_the_link_joins_the_tree() -> None:
    tree = tree_of(A)
    tree.pruned(A)
    tree.announced(A, IHave(group=GROUP, ids=(SIGNED.id,)), lambda _id: False, now=0.0)

    assert tree.tick(nothing_in_flight, now=GRAFT_S / 2) == []
    assert tree.tick(nothing_in_flight, now=GRAFT_S) == [(A, Graft(group=GROUP, ids=(SIGNED.id,)))]
    assert list(tree.eager) == [A]


def test_an_operation_on_its_way_to_the_disk_is_not_fetched_again() -> None:
    """Seen means durable, but what is verified and being written needs no second copy."""
    tree = tree_of(A)
    tree.announced(A, IHave(group=GROUP, ids=(SIGNED.id,)), lambda _id: False, now=0.0)

    assert tree.tick(lambda _group, _id: True, now=GRAFT_S) == []
    assert tree.next_due() is not None


def test_a_graft_is_answered_with_what_is_durable_here() -> None:
    tree = tree_of(A)
    tree.pruned(A)
    graft = Graft(group=GROUP, ids=(OTHER.id, SIGNED.id))

    outgoing = tree.grafted(A, graft, {SIGNED.id: SIGNED}.get)

    assert outgoing == [(A, Gossip(group=GROUP, operations=(SIGNED.wire(),)))]
    assert list(tree.eager) == [A]


def test_a_liar_about_operations_fills_its_own_share_only_and_is_given_up() -> None:
    tree = tree_of(A, B)
    made_up = [number.to_bytes(32, "big") for number in range(3 * IHAVE_IDS_MAX)]
    for start in range(0, len(made_up), IHAVE_IDS_MAX):
        ids = tuple(made_up[start : start + IHAVE_IDS_MAX])
        tree.announced(A, IHave(group=GROUP, ids=ids), lambda _id: False, now=0.0)
    tree.announced(B, IHave(group=GROUP, ids=(SIGNED.id,)), lambda _id: False, now=0.0)

    first = tree.tick(nothing_in_flight, now=1.0)
    asked = [
        id_ for peer, message in first if isinstance(message, Graft) and peer == A for id_ in message.ids
    ]
    assert len(asked) == ANNOUNCED_PER_PEER_MAX
    assert (B, Graft(group=GROUP, ids=(SIGNED.id,))) in first
    for second in range(2, 12):
        tree.tick(nothing_in_flight, now=float(second))

    assert tree.next_due() is None


def test_a_neighbour_that_went_is_neither_asked_nor_pushed_to() -> None:
    tree = tree_of(A, B, C)
    tree.announced(A, IHave(group=GROUP, ids=(OTHER.id,)), lambda _id: False, now=0.0)
    tree.pushed(C, new=[SIGNED.id], known=[], now=0.0)
    tree.neighbour_down(A)

    assert [peer for peer, _ in pass_on(tree, SIGNED)] == [B]
    assert tree.tick(nothing_in_flight, now=1.0) == []


def in_state(_id: bytes) -> bool:
    return True


def test_an_announcer_that_would_have_pushed_much_earlier_joins_the_tree() -> None:
    tree = tree_of(A, B)
    tree.pruned(B)
    tree.pushed(A, new=[SIGNED.id], known=[], now=1.0)
    pass_on(tree, SIGNED, now=1.0)
    message = IHave(group=GROUP, ids=(SIGNED.id,))

    nearer = tree.announced(B, message, in_state, now=1.0 + IHAVE_FLUSH_S - 1.5 * OPTIMISE_S)

    assert nearer == [(B, Graft(group=GROUP, ids=()))]
    assert list(tree.eager) == [A, B]


@pytest.mark.parametrize("ids", [(SIGNED.id,), (OTHER.id, SIGNED.id)])
def test_an_announcer_that_is_no_nearer_or_may_have_waited_less_stays_lazy(ids: tuple[bytes, ...]) -> None:
    tree = tree_of(A, B)
    tree.pruned(B)
    tree.pushed(A, new=[SIGNED.id], known=[], now=1.0)
    pass_on(tree, SIGNED, now=1.0)
    late_s = OPTIMISE_S / 2 if len(ids) == 1 else 1.5 * OPTIMISE_S

    assert tree.announced(B, IHave(group=GROUP, ids=ids), in_state, now=1.0 + IHAVE_FLUSH_S - late_s) == []
    assert list(tree.lazy) == [B]


def test_an_announcer_that_came_before_the_push_joins_the_tree_without_being_asked_for_it() -> None:
    tree = tree_of(A, B)
    tree.pruned(B)
    tree.announced(B, IHave(group=GROUP, ids=(SIGNED.id,)), lambda _id: False, now=1.0)

    assert tree.pushed(A, new=[SIGNED.id], known=[], now=1.0 + GRAFT_S / 2) == [
        (B, Graft(group=GROUP, ids=()))
    ]


def test_links_are_not_changed_at_every_announcement() -> None:
    """Under load ids wait less than the flush interval, which makes announcers look nearer than they are."""
    tree = tree_of(A, B)
    tree.pushed(A, new=[SIGNED.id], known=[], now=1.0)
    pass_on(tree, SIGNED, now=1.0)
    changes = []
    for number in range(100):
        tree.pruned(B)
        now = 1.0 + number / 1000
        changes += tree.announced(B, IHave(group=GROUP, ids=(SIGNED.id,)), in_state, now=min(now, 1.01))

    assert len(changes) == OPTIMISE_BURST


def test_who_loses_its_parent_puts_the_nearest_announcer_in_its_place() -> None:
    tree = tree_of(A, B, C)
    for peer in (B, C):
        tree.pruned(peer)
    tree.pushed(A, new=[SIGNED.id], known=[], now=1.0)
    pass_on(tree, SIGNED, now=1.0)
    for peer, time in ((B, 1.2), (C, 1.1)):
        tree.announced(peer, IHave(group=GROUP, ids=(SIGNED.id,)), in_state, now=time)

    assert tree.neighbour_down(A) == [(C, Graft(group=GROUP, ids=()))]
    assert (list(tree.eager), list(tree.lazy)) == ([C], [B])
    assert tree.neighbour_down(B) == []


def test_a_new_link_is_lazy_once_there_is_a_tree() -> None:
    tree = tree_of(A, B)
    tree.pushed(A, new=[SIGNED.id], known=[], now=0.0)

    tree.neighbour_up(C)

    assert (list(tree.eager), list(tree.lazy)) == ([A, B], [C])


def test_before_anything_was_pushed_some_links_are_eager_and_stay_so_many() -> None:
    peers = [bytes([number]) * 32 for number in range(10, 10 + 2 * EAGER_AT_FIRST)]
    tree = tree_of(*peers)
    assert list(tree.eager) == peers[:EAGER_AT_FIRST]

    tree.neighbour_down(peers[0])
    tree.neighbour_up(C)

    assert list(tree.eager) == [*peers[1:EAGER_AT_FIRST], C]


def test_the_one_that_pushes_is_needed_most_and_a_lazy_neighbour_not_at_all() -> None:
    tree = tree_of(A, B, C)
    tree.pruned(C)
    tree.pushed(A, new=[SIGNED.id], known=[], now=0.0)

    assert [tree.need(peer) for peer in (A, B, C, NODE)] == [2, 1, 0, 0]
