"""The serving side: what it answers, and what it does not let a peer do to it (SCENARIOS B43)."""

from __future__ import annotations

import asyncio

from crdt_merge_node.bulk import BulkServer
from crdt_merge_node.errors import CorruptError
from crdt_merge_node.transport.connection import Lane
from crdt_merge_protocol.blobs import chunk_digest
from crdt_merge_protocol.limits import BULK_REQUESTS_MAX, LANE_BYTES_MAX, MIB
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import (
    Absent,
    CancelChunks,
    Chunk,
    ChunkList,
    Have,
    HaveQuery,
    Object,
    WantChunkList,
    WantChunks,
    WantObject,
)
from support.bulk import InlineExecutor, MemoryConnection, MemoryStore, linked, pattern, run

A, B = b"a" * 32, b"b" * 32
UNKNOWN = b"\xee" * 32


class Asker:
    """The asking end of a connection that a :class:`BulkServer` serves."""

    def __init__(self, store: MemoryStore) -> None:
        self.server = BulkServer(store, executor=InlineExecutor())
        self.end, self.served = linked(A, B)
        self.answers: list[Message] = []
        self.end.on_message = lambda _, message: self.answers.append(message)
        self.server.serve(self.served)

    async def ask(self, *messages: Message) -> list[Message]:
        for message in messages:
            self.end.send(message, Lane.BULK)
        await asyncio.sleep(1.0)
        answers, self.answers = self.answers, []
        return answers


def test_what_is_not_here_is_answered_with_absent() -> None:
    async def body() -> None:
        asker = Asker(MemoryStore())

        answers = await asker.ask(
            WantObject(id=UNKNOWN),
            HaveQuery(blob=UNKNOWN),
            WantChunkList(blob=UNKNOWN),
            WantChunks(blob=UNKNOWN, indices=(0, 7)),
        )

        assert answers == [
            Absent(id=UNKNOWN),
            Absent(id=UNKNOWN),
            Absent(id=UNKNOWN),
            Absent(id=UNKNOWN, indices=(0,)),
            Absent(id=UNKNOWN, indices=(7,)),
        ]

    run(body())


def test_a_whole_blob_is_served_by_list_share_and_chunk() -> None:
    async def body() -> None:
        store, data = MemoryStore(), pattern(2 * MIB + 5)
        blob = store.add(data)
        chunks = [data[:MIB], data[MIB : 2 * MIB], data[2 * MIB :]]

        answers = await Asker(store).ask(
            HaveQuery(blob=blob), WantChunkList(blob=blob), WantChunks(blob=blob, indices=(0, 2, 3))
        )

        assert answers == [
            Have(blob=blob, nbytes=len(data), chunks=0b111),
            ChunkList(blob=blob, nbytes=len(data), digests=tuple(map(chunk_digest, chunks))),
            Chunk(blob=blob, nbytes=len(data), index=0, data=chunks[0]),
            Chunk(blob=blob, nbytes=len(data), index=2, data=chunks[2]),
            Absent(id=blob, indices=(3,)),
        ]

    run(body())


def test_what_has_arrived_of_an_unfinished_blob_is_served_too() -> None:
    async def body() -> None:
        data, whole, store = pattern(2 * MIB + 5), MemoryStore(), MemoryStore()
        blob = whole.add(data)
        digests = whole.chunk_digests(blob)
        assert digests is not None
        store.begin_partial(blob, len(data), digests).write(1, data[MIB : 2 * MIB])

        answers = await Asker(store).ask(
            HaveQuery(blob=blob), WantChunkList(blob=blob), WantChunks(blob=blob, indices=(0, 1))
        )

        assert answers == [
            Have(blob=blob, nbytes=len(data), chunks=0b010),
            ChunkList(blob=blob, nbytes=len(data), digests=tuple(digests)),
            Absent(id=blob, indices=(0,)),
            Chunk(blob=blob, nbytes=len(data), index=1, data=data[MIB : 2 * MIB]),
        ]

    run(body())


def test_a_large_object_comes_in_slices_and_an_empty_one_in_one() -> None:
    async def body() -> None:
        store, data = MemoryStore(), pattern(MIB + 10)
        store.put_object(A, data)
        store.put_object(B, b"")

        answers = await Asker(store).ask(WantObject(id=A), WantObject(id=B))

        assert answers == [
            Object(id=A, nbytes=len(data), offset=0, data=data[:MIB]),
            Object(id=A, nbytes=len(data), offset=MIB, data=data[MIB:]),
            Object(id=B, nbytes=0, offset=0, data=b""),
        ]

    run(body())


def test_an_asker_that_reads_nothing_holds_one_lane_and_one_read_ahead_and_no_more() -> None:
    async def body() -> None:
        store = MemoryStore()
        blob = store.add(pattern(64 * MIB))
        asker = Asker(store)
        asker.served.is_stalled = True

        await asker.ask(WantChunks(blob=blob, indices=tuple(range(64))))

        assert asker.served.queued_bytes_max <= LANE_BYTES_MAX
        assert store.reads <= 8

    run(body())


def test_cancelled_chunks_are_not_sent() -> None:
    async def body() -> None:
        store = MemoryStore()
        blob = store.add(pattern(64 * MIB))
        asker = Asker(store)

        answers = await asker.ask(
            WantChunks(blob=blob, indices=tuple(range(64))),
            CancelChunks(blob=blob, indices=tuple(range(10, 64))),
        )

        sent = [answer.index for answer in answers if isinstance(answer, Chunk)]
        assert sent[:4] == [0, 1, 2, 3]
        assert max(sent) < 16, "at most what was being read when the cancellation came"

    run(body())


def test_whoever_asks_more_than_the_protocol_allows_at_a_time_is_cut_off_with_the_reason() -> None:
    async def body() -> None:
        store = MemoryStore()
        blob = store.add(pattern(8 * MIB))
        asker = Asker(store)
        asker.served.is_stalled = True
        for _ in range(100_000):
            if asker.end.closed.done():
                break
            asker.end.send(WantChunks(blob=blob, indices=(0,)), Lane.BULK)
            await asyncio.sleep(0.0001)

        assert f"at most {2 * BULK_REQUESTS_MAX} may" in asker.end.closed.result()

    run(body())


def test_an_answer_where_a_question_belongs_ends_the_connection() -> None:
    async def body() -> None:
        asker = Asker(MemoryStore())
        await asker.ask(Absent(id=UNKNOWN))

        assert "Absent is no question" in asker.end.closed.result()

    run(body())


def test_a_blob_that_turns_out_damaged_is_withheld_and_the_connection_lives_on() -> None:
    class RottenStore(MemoryStore):
        def read_chunk(self, digest: bytes, index: int) -> bytes | None:
            raise CorruptError("chunk 0 has other bytes.")

    async def body() -> None:
        store = RottenStore()
        blob = store.add(pattern(MIB))
        asker = Asker(store)

        assert await asker.ask(WantChunks(blob=blob, indices=(0,))) == [Absent(id=blob, indices=(0,))]
        assert await asker.ask(WantObject(id=UNKNOWN)) == [Absent(id=UNKNOWN)]

    run(body())


def test_a_server_that_closes_leaves_no_task_behind() -> None:
    async def body() -> int:
        store = MemoryStore()
        askers = [Asker(store) for _ in range(3)]
        for asker in askers:
            await asker.server.close()
        return len(asyncio.all_tasks())

    assert run(body()) == 2, "the test itself and its time limit"


def test_memory_connections_behave_like_connections() -> None:
    """The fake stands in for the real connection: full lanes shed, closing is told to both ends."""

    async def body() -> None:
        one, two = linked(A, B)
        one.is_stalled = True
        sent = 0
        while one.send(Chunk(blob=A, nbytes=MIB, index=0, data=bytes(MIB)), Lane.BULK):
            sent += 1
        one.close("enough")

        assert sent == 3
        assert isinstance(one, MemoryConnection)
        assert await two.closed == "enough"

    run(body())
