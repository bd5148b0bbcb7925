"""The messages of bulk connections: round trips, and what is refused before anything is done with it."""

from __future__ import annotations

import pytest
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES, MANIFEST_BYTES_MAX, MIB
from crdt_merge_protocol.messages import bulk
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

ID = b"\x07" * 32
MESSAGES: list[Message] = [
    bulk.WantObject(id=ID),
    bulk.Object(id=ID, nbytes=5, offset=0, data=b"hello"),
    bulk.Object(id=ID, nbytes=0, offset=0, data=b""),
    bulk.Object(id=ID, nbytes=MIB + 3, offset=MIB, data=b"end"),
    bulk.WantChunks(blob=ID, indices=(0, 5, 32767)),
    bulk.Chunk(blob=ID, nbytes=MIB + 4, index=1, data=b"tail"),
    bulk.Chunk(blob=ID, nbytes=MIB, index=0, data=bytes(MIB)),
    bulk.HaveQuery(blob=ID),
    bulk.Have(blob=ID, nbytes=9 * MIB, chunks=0b1_0000_0001),
    bulk.Have(blob=ID, nbytes=0, chunks=0),
    bulk.Have(blob=ID, nbytes=BLOB_BYTES_MAX, chunks=(1 << 32768) - 1),
    bulk.Absent(id=ID),
    bulk.Absent(id=ID, indices=(3,)),
    bulk.WantChunkList(blob=ID),
    bulk.ChunkList(blob=ID, nbytes=2 * MIB, digests=(b"\x01" * 32, b"\x02" * 32)),
    bulk.ChunkList(blob=ID, nbytes=0, digests=()),
    bulk.ChunkList(blob=ID, nbytes=BLOB_BYTES_MAX, digests=(b"\x01" * 32,) * 32768),
    bulk.CancelChunks(blob=ID, indices=(1, 2)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=[f"{n} {type(m).__name__}" for n, m in enumerate(MESSAGES)])
def test_a_message_comes_out_of_its_frame_as_it_went_in(message: Message) -> None:
    assert FrameDecoder().feed(encode_frame(message)) == [message]
    assert type(message).__name__ in repr(message)


@examples(15)
@given(cuts=st.lists(st.integers(1, 300_000), max_size=30), places=st.booleans())
def test_chunks_come_out_of_any_cut_of_the_stream_fed_or_written_into_the_room(
    cuts: list[int], places: bool
) -> None:
    cuts.append(200_000)  # Else there may be millions of them.
    messages = MESSAGES[5:9] + MESSAGES[-3:]
    rest = memoryview(b"".join(map(encode_frame, messages)))
    decoder, found = FrameDecoder(), []
    at = 0
    while rest:
        room = decoder.room() if places else None
        size = min(cuts[at % len(cuts)], len(rest) if room is None else len(room))
        if room is None:
            found += decoder.feed(rest[:size])
        else:
            room[:size] = rest[:size]
            found += decoder.landed(size)
        rest, at = rest[size:], at + 1

    assert found == messages
    assert decoder.buffered_bytes == 0


def test_t14_a_claimed_length_takes_no_memory_before_a_part_of_it_is_here() -> None:
    frame = encode_frame(bulk.Chunk(blob=ID, nbytes=MIB, index=0, data=bytes(MIB)))
    decoder = FrameDecoder()
    decoder.feed(frame[:16_000])
    before = decoder.room()
    decoder.feed(frame[16_000:17_000])
    after = decoder.room()

    assert before is None
    assert after is not None
    assert len(after) == len(frame) - 17_000
    assert decoder.buffered_bytes == 17_000


def test_a_chunk_keeps_its_bytes_while_others_arrive_and_their_memory_is_used_again_after() -> None:
    decoder = FrameDecoder()
    chunks = [bulk.Chunk(blob=ID, nbytes=9 * MIB, index=n, data=bytes([n]) * MIB) for n in range(9)]
    addresses = set()

    def receive(message: bulk.Chunk) -> bulk.Chunk:
        frame = encode_frame(message)
        decoder.feed(frame[:70_000])
        [received] = decoder.feed(frame[70_000:])
        assert isinstance(received, bulk.Chunk)
        assert isinstance(received.data, memoryview)
        addresses.add(id(received.data.obj))
        return received

    kept = [receive(chunk) for chunk in chunks]
    assert kept == chunks
    assert len(addresses) == 9
    del kept
    for chunk in chunks:
        assert receive(chunk) == chunk

    assert len(addresses) == 9, "no other memory was taken"


def chunk_body(nbytes: int, index: int, data: bytes) -> bytes:
    return ID + nbytes.to_bytes(8, "big") + index.to_bytes(4, "big") + data


@pytest.mark.parametrize(
    ("message", "body"),
    [
        pytest.param(bulk.Chunk, chunk_body(0, 0, b""), id="B45 a chunk of an empty blob"),
        pytest.param(bulk.Chunk, chunk_body(1 << 63, 0, bytes(MIB)), id="B45 a blob of 2^63 bytes"),
        pytest.param(bulk.Chunk, chunk_body(BLOB_BYTES_MAX + 1, 0, bytes(MIB)), id="B45 a blob too large"),
        pytest.param(bulk.Chunk, chunk_body(MIB + 1, 2, b"x"), id="B45 a chunk past the end"),
        pytest.param(bulk.Chunk, chunk_body(MIB + 1, 1, b"xy"), id="B45 a last chunk too long"),
        pytest.param(bulk.Chunk, chunk_body(2 * MIB, 0, b"short"), id="B45 an inner chunk too short"),
        pytest.param(bulk.Chunk, b"tiny", id="no header"),
        pytest.param(bulk.Object, ID + bytes(8) + b"x", id="an object longer than it says"),
        pytest.param(bulk.Object, ID + b"\0\0\0\5\0\0\0\3" + b"abc", id="a slice past the end"),
        pytest.param(bulk.Object, ID + b"\0\0\0\5\0\0\0\0", id="a slice of nothing"),
        pytest.param(
            bulk.Object, ID + (MANIFEST_BYTES_MAX + 1).to_bytes(4, "big") + bytes(5), id="an object too large"
        ),
        pytest.param(bulk.ChunkList, ID + (2 * MIB).to_bytes(8, "big") + bytes(32), id="a digest too few"),
        pytest.param(bulk.ChunkList, ID + MIB.to_bytes(8, "big") + bytes(64), id="a digest too many"),
        pytest.param(bulk.ChunkList, ID + (1 << 63).to_bytes(8, "big"), id="a list of 2^63 bytes"),
        pytest.param(bulk.WantChunks, encode([ID, []]), id="a request for no chunk"),
        pytest.param(bulk.WantChunks, encode([ID, list(range(65))]), id="a request for 65 chunks"),
        pytest.param(bulk.WantChunks, encode([ID, [3, 3]]), id="B43 a chunk twice in one request"),
        pytest.param(bulk.WantChunks, encode([ID, [3, 1]]), id="chunks out of order"),
        pytest.param(bulk.WantChunks, encode([ID, [32768]]), id="a chunk that no blob has"),
        pytest.param(bulk.WantChunks, encode([ID[:31], [1]]), id="a digest of 31 bytes"),
        pytest.param(bulk.Have, encode([ID, 3 * MIB, b"\x08"]), id="a share beyond the blob"),
        pytest.param(bulk.Have, encode([ID, 3 * MIB, b"\x01\x00"]), id="a share too long"),
        pytest.param(bulk.Have, encode([ID, BLOB_BYTES_MAX + 1, b""]), id="a share of a blob too large"),
        pytest.param(bulk.WantObject, encode([ID, 1]), id="a field too many"),
    ],
)
def test_what_is_wrong_by_itself_is_refused_when_read(message: type[Message], body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        message.from_body(body)


@examples(300)
@given(
    message=st.sampled_from([type(message) for message in MESSAGES]),
    body=st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: ID + tail),
)
def test_whatever_bytes_come_only_a_protocol_error_gets_out(message: type[Message], body: bytes) -> None:
    try:
        read = message.from_body(body)
    except RemoteProtocolError:
        return

    assert message.from_body(read.to_body()) == read


def test_every_chunk_and_every_list_fits_its_frame() -> None:
    largest = max(len(message.to_body()) for message in MESSAGES)

    assert CHUNK_BYTES < largest <= bulk.Chunk.BODY_BYTES_MAX
