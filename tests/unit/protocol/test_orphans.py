"""Operations that wait for their past: who pays for them, and how they are let go (PROTOCOL R3, T18)."""

import pytest
from crdt_merge_protocol import orphans
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.orphans import OrphanBuffer
from support.authors import Author, hash_of, make_genesis

PARENT, OTHER_PARENT = hash_of("parent"), hash_of("other parent")
MALLORY, ALICE, BOB = hash_of("mallory"), hash_of("alice"), hash_of("bob")


@pytest.fixture(scope="module")
def operations() -> list[SignedOperation]:
    author = Author(make_genesis())
    return [author.emit(200, b"\x01" + bytes(100)) for _ in range(12)]


def test_an_orphan_is_let_go_when_what_it_misses_is_accepted(operations) -> None:
    buffer = OrphanBuffer()
    buffer.add(operations[0], ALICE, PARENT)
    buffer.add(operations[1], BOB, OTHER_PARENT)
    ready = buffer.accept(PARENT)

    assert [(orphan.signed, orphan.peer) for orphan in ready] == [(operations[0], ALICE)]
    assert len(buffer) == 1
    assert operations[0].id not in buffer
    assert buffer.accept(PARENT) == []


def test_orphans_are_let_go_in_the_order_of_their_ids(operations) -> None:
    buffer = OrphanBuffer()
    for signed in operations:
        buffer.add(signed, ALICE, PARENT)
    ready = [orphan.signed.id for orphan in buffer.accept(PARENT)]

    assert ready == sorted(signed.id for signed in operations)


def test_an_operation_that_two_peers_send_is_kept_once(operations) -> None:
    buffer = OrphanBuffer()
    buffer.add(operations[0], ALICE, PARENT)
    buffer.add(operations[0], BOB, PARENT)
    buffer.forget_peer(BOB)

    assert len(buffer) == 1
    assert len(buffer.accept(PARENT)) == 1


def test_who_sends_too_many_loses_its_own_oldest(operations, monkeypatch) -> None:
    monkeypatch.setattr(orphans, "ORPHANS_PER_PEER_MAX", 3)
    buffer = OrphanBuffer()
    buffer.add(operations[0], ALICE, PARENT)
    for signed in operations[1:7]:
        buffer.add(signed, MALLORY, PARENT)

    kept = {orphan.signed.id for orphan in buffer.accept(PARENT)}
    assert kept == {operations[0].id, *(signed.id for signed in operations[4:7])}


def test_who_sends_too_large_ones_loses_its_own_oldest(operations, monkeypatch) -> None:
    """One peer must not fill the buffer with few large operations either."""
    monkeypatch.setattr(orphans, "ORPHAN_BYTES_PER_PEER_MAX", 2 * len(operations[1].encoded))
    buffer = OrphanBuffer()
    buffer.add(operations[0], ALICE, PARENT)
    for signed in operations[1:5]:
        buffer.add(signed, MALLORY, PARENT)

    kept = {orphan.signed.id for orphan in buffer.accept(PARENT)}
    assert kept == {operations[0].id, operations[3].id, operations[4].id}


def test_when_all_together_have_too_many_the_one_with_most_pays(operations, monkeypatch) -> None:
    """A newcomer is not turned away because others were there first."""
    monkeypatch.setattr(orphans, "ORPHANS_MAX", 5)
    buffer = OrphanBuffer()
    for signed in operations[:4]:
        buffer.add(signed, MALLORY, PARENT)
    buffer.add(operations[4], ALICE, PARENT)
    buffer.add(operations[5], BOB, PARENT)

    kept = {orphan.signed.id for orphan in buffer.accept(PARENT)}
    assert kept == {signed.id for signed in operations[1:6]}


def test_a_peer_that_has_gone_leaves_nothing(operations) -> None:
    buffer = OrphanBuffer()
    for signed in operations[:3]:
        buffer.add(signed, MALLORY, PARENT)
    buffer.add(operations[3], ALICE, PARENT)
    buffer.forget_peer(MALLORY)
    buffer.forget_peer(MALLORY)

    assert [orphan.signed for orphan in buffer.accept(PARENT)] == [operations[3]]
    assert len(buffer) == 0


def test_an_orphan_may_be_added_again_under_the_next_id_that_it_misses(operations) -> None:
    buffer = OrphanBuffer()
    buffer.add(operations[0], ALICE, PARENT)
    [orphan] = buffer.accept(PARENT)
    buffer.add(orphan.signed, orphan.peer, OTHER_PARENT)

    assert buffer.accept(PARENT) == []
    assert [again.signed for again in buffer.accept(OTHER_PARENT)] == [operations[0]]
