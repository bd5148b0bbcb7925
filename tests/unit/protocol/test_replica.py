"""The way of an operation into a group: verified, in flight, durable; and what never gets in."""

import pytest
from crdt_merge_protocol.errors import BadSignatureError, LocalProtocolError, MalformedMessageError
from crdt_merge_protocol.operations import Kind, Operation, SignedOperation, sign_operation
from crdt_merge_protocol.replica import Replica
from support.authors import KEYS, Author, hash_of, make_genesis

GENESIS = make_genesis()
PEER, OTHER_PEER = hash_of("peer"), hash_of("other peer")


@pytest.fixture
def replica() -> Replica:
    return Replica(GENESIS, KEYS[7], bytes(16))


@pytest.fixture
def author() -> Author:
    return Author(GENESIS, 0)


def wires(*operations: SignedOperation) -> list[bytes]:
    return [signed.wire() for signed in operations]


def with_garbage_signature(signed: SignedOperation) -> bytes:
    return SignedOperation(signed.operation, signed.encoded, bytes(64), signed.id).wire()


def store(replica: Replica, *operations: SignedOperation) -> None:
    """Make accepted operations durable."""
    replica.stored(signed.id for signed in operations)


def broken_chain(author: Author) -> SignedOperation:
    """Return an operation whose prev is another author's, validly signed (SCENARIOS B24)."""
    stranger = Author(GENESIS, 1)
    first = author.add("first")
    operation = Operation(
        group=GENESIS.group,
        author=stranger.node_id,
        log=stranger.log,
        seq=1,
        prev=first.id,
        deps=(),
        refs=(),
        kind=200,
        body=b"\x01",
    )
    return sign_operation(operation, stranger.key)


def test_an_operation_counts_once_it_is_durable_and_not_before(replica, author) -> None:
    signed = author.add()
    receipt = replica.receive(wires(signed), PEER)

    assert receipt.accepted == (signed,)
    assert (len(replica.state), replica.in_flight_count) == (0, 1)
    assert replica.in_flight_bytes == len(signed.encoded)

    assert replica.stored([signed.id]) == [signed]
    assert signed.id in replica.state
    assert (replica.in_flight_count, replica.in_flight_bytes) == (0, 0)


def test_what_is_on_its_way_to_the_disk_is_not_stored_twice(replica, author) -> None:
    signed = author.add()
    replica.receive(wires(signed), PEER)
    again = replica.receive(wires(signed), OTHER_PEER)

    assert again.accepted == again.durable == ()
    assert again.refused is None


def test_what_is_durable_is_reported_so_that_a_sync_can_go_on(replica, author) -> None:
    signed = author.add()
    store(replica, *replica.receive(wires(signed), PEER).accepted)

    assert replica.receive(wires(signed), PEER).durable == (signed.id,)


def test_good_operations_before_a_bad_one_are_as_good_as_ever(replica, author) -> None:
    """Whoever mixes garbage into a batch must not make this node forget the honest part of it."""
    good, other = author.add("good"), author.add("other")
    receipt = replica.receive([good.wire(), b"garbage", other.wire()], PEER)

    assert receipt.accepted == (good,)
    assert isinstance(receipt.refused, MalformedMessageError)
    store(replica, good)
    assert replica.receive(wires(other), OTHER_PEER).accepted == (other,)


def test_a_garbage_signature_in_front_of_an_honest_id_censors_nothing(replica, author) -> None:
    """Refusals are remembered by the hash of the signed bytes, never by id (PROTOCOL 3)."""
    signed = author.add()
    forged = with_garbage_signature(signed)
    first = replica.receive([forged], PEER)
    second = replica.receive([forged], PEER)

    assert isinstance(first.refused, BadSignatureError)
    assert isinstance(second.refused, MalformedMessageError)
    assert replica.receive(wires(signed), OTHER_PEER).accepted == (signed,)


def test_a_copy_of_what_is_here_is_not_worth_a_verification(replica, author) -> None:
    signed = author.add()
    store(replica, *replica.receive(wires(signed), PEER).accepted)

    assert replica.receive([with_garbage_signature(signed)], PEER).durable == (signed.id,)
    assert replica.state.get(signed.id) == signed


def test_operations_of_another_group_are_refused(replica) -> None:
    """SCENARIOS T3."""
    stranger = Author(make_genesis(strategy="linear"))
    receipt = replica.receive(wires(stranger.add()), PEER)

    assert "another group" in str(receipt.refused)


def test_what_comes_before_its_past_waits_and_then_enters_in_order(replica, author) -> None:
    chain = [author.add(f"content {number}") for number in range(4)]
    waiting = [replica.receive(wires(signed), PEER) for signed in reversed(chain[1:])]
    receipt = replica.receive(wires(chain[0]), PEER)

    assert all(early.is_waiting and not early.accepted for early in waiting)
    assert receipt.accepted == tuple(chain)
    assert replica.orphan_count == 0


def test_an_orphan_with_two_missing_parents_waits_for_both(replica) -> None:
    authors = [Author(GENESIS, number) for number in range(3)]
    left, right = authors[0].add("left"), authors[1].add("right")
    authors[2].pull(*authors[:2])
    both = authors[2].add("both")
    replica.receive(wires(both), PEER)

    assert replica.receive(wires(left), PEER).accepted == (left,)
    assert replica.receive(wires(right), PEER).accepted == (right, both)


def test_an_orphan_follows_its_past_from_the_disk_as_from_the_flight(replica, author) -> None:
    first, second = author.add("first"), author.add("second")
    store(replica, *replica.receive(wires(first), PEER).accepted)

    assert replica.receive(wires(second), PEER).accepted == (second,)


def test_what_does_not_continue_its_own_log_is_refused_before_it_is_stored(replica, author) -> None:
    """PROTOCOL R5."""
    bad = broken_chain(author)
    replica.receive(wires(author.state.causal()[0]), PEER)
    receipt = replica.receive(wires(bad), PEER)

    assert receipt.accepted == ()
    assert "does not continue its own log" in str(receipt.refused)


def test_a_bad_orphan_is_dropped_and_not_blamed_on_who_completes_its_past(replica, author) -> None:
    bad = broken_chain(author)
    [first] = author.state.causal()
    assert replica.receive(wires(bad), PEER).is_waiting
    receipt = replica.receive(wires(first), OTHER_PEER)

    assert receipt.accepted == (first,)
    assert receipt.refused is None
    assert replica.orphan_count == 0
    assert replica.receive(wires(bad), PEER).refused is not None


def test_orphans_of_a_peer_that_has_gone_are_forgotten(replica, author) -> None:
    _, second = author.add("first"), author.add("second")
    replica.receive(wires(second), PEER)
    replica.forget_peer(PEER)

    assert replica.orphan_count == 0


def test_a_node_signs_one_after_the_other_without_waiting_for_the_disk(replica) -> None:
    first, second = (replica.author(200, b"\x01") for _ in range(2))

    assert second.operation.prev == first.id
    assert second.operation.deps == ()
    store(replica, first, second)
    assert replica.author(200, b"\x01").operation.deps == (second.id,)


def test_a_node_names_only_what_is_here(replica) -> None:
    with pytest.raises(LocalProtocolError, match="is not here to be named"):
        replica.author(Kind.REMOVE, b"\x01", (hash_of("nowhere"),))


def test_what_found_no_room_is_forgotten_and_the_next_log_is_a_fresh_one(replica, author) -> None:
    """Nobody has seen what was withdrawn, and still its place in the log is not used again (PROTOCOL R4)."""
    kept = replica.author(200, b"\x01")
    store(replica, kept)
    lost = replica.author(200, b"\x01")
    theirs = author.add()
    replica.receive(wires(theirs), PEER)
    replica.withdraw(b"l" * 16)
    following = replica.author(200, b"\x01")

    assert (following.operation.log, following.operation.seq) == (b"l" * 16, 0)
    assert lost.id not in following.operation.deps
    assert replica.in_flight_bytes == len(following.encoded)
    assert replica.receive(wires(theirs), PEER).accepted == (theirs,)
    store(replica, following)
    assert replica.state.view.forked == frozenset()
