"""What waits to be sent: in which order it leaves, in which pieces, and what is left when it has to stop."""

from __future__ import annotations

from random import Random

from crdt_merge_node.transport.lanes import BATCH_BYTES, SLICE_BYTES, Lane, Lanes
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import Chunk, HaveQuery
from crdt_merge_protocol.messages.membership import Goodbye, Ping
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

BLOB = b"\x05" * 32
DATA = Random(1).randbytes(MIB)
CHUNK = Chunk(blob=BLOB, nbytes=MIB, index=0, data=DATA)


def everything(lanes: Lanes) -> list[bytes]:
    taken = []
    while pieces := lanes.take():
        taken.append(b"".join(pieces))
    return taken


def test_a_chunk_leaves_in_slices_that_are_views_of_what_was_read() -> None:
    lanes = Lanes()
    lanes.put(CHUNK, Lane.BULK)
    first = lanes.take()

    assert [isinstance(piece, memoryview) and piece.obj is DATA for piece in first] == [False, True]
    assert [len(piece) for piece in first[1:]] == [SLICE_BYTES]
    rest = everything(lanes)
    assert b"".join([*first, *rest]) == encode_frame(CHUNK)
    assert max(map(len, rest)) <= SLICE_BYTES


def test_what_waits_is_counted_until_it_is_taken() -> None:
    lanes = Lanes()
    lanes.put(CHUNK, Lane.BULK)
    lanes.put(Ping(nonce=1), Lane.MEMBERSHIP)
    total = len(encode_frame(CHUNK)) + len(encode_frame(Ping(nonce=1)))

    assert lanes.nbytes() == total
    while pieces := lanes.take():
        total -= sum(map(len, pieces))
        assert lanes.nbytes() == total
    assert total == lanes.nbytes(Lane.BULK) == 0


def test_nothing_gets_into_a_frame_that_has_begun_and_all_overtake_the_next() -> None:
    lanes = Lanes()
    second = Chunk(blob=BLOB, nbytes=2 * MIB, index=1, data=DATA)
    lanes.put(CHUNK, Lane.BULK)
    lanes.put(second, Lane.BULK)
    stream = b"".join(lanes.take())
    lanes.put(Ping(nonce=1), Lane.MEMBERSHIP)
    stream += b"".join(everything(lanes))

    assert FrameDecoder().feed(stream) == [CHUNK, Ping(nonce=1), second]


def test_small_frames_leave_together() -> None:
    lanes = Lanes()
    queries = [HaveQuery(blob=number.to_bytes(32, "big")) for number in range(3000)]
    for query in queries:
        lanes.put(query, Lane.OPERATIONS)
    taken = everything(lanes)

    assert max(map(len, taken)) <= BATCH_BYTES
    assert len(taken) <= 2 * sum(map(len, taken)) // BATCH_BYTES
    assert FrameDecoder().feed(b"".join(taken)) == queries


def test_a_farewell_follows_the_rest_of_the_frame_that_has_begun() -> None:
    lanes = Lanes()
    lanes.put(CHUNK, Lane.BULK)
    lanes.put(CHUNK, Lane.BULK)
    stream = b"".join(lanes.take())
    goodbye = Goodbye(reason="enough")
    stream += b"".join([*lanes.clear(), encode_frame(goodbye)])
    messages: list[Message] = FrameDecoder().feed(stream)

    assert messages == [CHUNK, goodbye]
    assert everything(lanes) == []
