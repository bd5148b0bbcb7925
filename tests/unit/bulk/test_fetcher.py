"""The fetching side over connections in memory, in virtual time (PROTOCOL 5, SCENARIOS B45, B46, T48)."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from concurrent.futures import Future
from typing import Any

import pytest
from crdt_merge_node.bulk.fetcher import FULL_RETRY_S, LINK_IDLE_S
from crdt_merge_node.transport.connection import Lane
from crdt_merge_protocol.blobs import blob_digest_of
from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.limits import BLOB_BYTES_MAX, KIB, MIB
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
from support.bulk import BulkNode, BulkWorld, MemoryConnection, pattern, run, until


def is_named(object_id: bytes) -> Any:
    return lambda data: hashlib.sha256(data).digest() == object_id


def tampering(node: BulkNode, change: Any) -> None:
    """Make a node serve, but pass each of its answers through ``change``."""

    def tamper(connection: MemoryConnection) -> None:
        node.server.serve(connection)
        send = connection.send
        connection.send = lambda message, lane: send(change(message), lane)  # type: ignore[method-assign]

    node.tamper = tamper


def with_wrong_bytes(message: Message) -> Message:
    match message:
        case Chunk():
            data = bytes([message.data[0] ^ 1]) + message.data[1:]
            return Chunk(blob=message.blob, nbytes=message.nbytes, index=message.index, data=data)
        case Object(data=data) if data:
            return Object(
                id=message.id,
                nbytes=message.nbytes,
                offset=message.offset,
                data=bytes([data[0] ^ 1]) + data[1:],
            )
        case ChunkList():
            return ChunkList(blob=message.blob, nbytes=message.nbytes, digests=message.digests[::-1])
        case _:
            return message


def wanted_chunks(world: BulkWorld, dialler: BulkNode, acceptor: BulkNode) -> list[int]:
    """Return the chunks that one node has asked of another."""
    return [
        index
        for one, other, mine, _ in world.connections
        if (one, other) == (dialler, acceptor)
        for message in mine.sent
        if isinstance(message, WantChunks)
        for index in message.indices
    ]


@pytest.mark.parametrize("nbytes", [0, 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, 5 * MIB + 3])
def test_a_blob_of_any_size_arrives_whole(nbytes: int) -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(nbytes)
        blob = world["a"].store.add(data)
        world["b"].knows(world["a"])

        await world["b"].fetcher.want_blob(blob, nbytes)

        assert world["b"].store.blobs[blob] == data
        assert world["b"].fetcher.missing() == []
        await world.close()

    run(body())


@pytest.mark.parametrize("nbytes", [0, 1, 3 * MIB + 1])
def test_an_object_is_stored_and_returned(nbytes: int) -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(nbytes)
        object_id = hashlib.sha256(data).digest()
        world["a"].store.put_object(object_id, data)
        world["b"].knows(world["a"])

        assert await world["b"].fetcher.want_object(object_id, is_named(object_id)) == data
        assert world["b"].store.objects[object_id] == data
        await world.close()

    run(body())


def test_what_is_here_already_needs_no_peer() -> None:
    async def body() -> None:
        world = BulkWorld("b")
        node = world["b"]
        blob = node.store.add(b"here")
        node.store.put_object(blob, b"object")

        await node.fetcher.want_blob(blob, 4)
        assert await node.fetcher.want_object(blob, lambda _: True) == b"object"
        await world.close()

    run(body())


def test_several_providers_share_the_work_and_no_chunk_is_asked_twice() -> None:
    async def body() -> None:
        world = BulkWorld("abcd")
        data = pattern(24 * MIB)
        for name in "abc":
            blob = world[name].store.add(data)
        me = world["d"]
        me.knows(world["a"], world["b"], world["c"])

        await me.fetcher.want_blob(blob, len(data))
        asked = [wanted_chunks(world, me, world[name]) for name in "abc"]

        assert me.store.blobs[blob] == data
        assert sorted(itertools.chain(*asked)) == list(range(24))
        assert min(len(chunks) for chunks in asked) >= 4
        await world.close()

    run(body())


@pytest.mark.parametrize("nbytes", [1000, 8 * MIB], ids=["one chunk", "eight chunks"])
def test_b46_a_provider_of_wrong_bytes_is_banned_and_nothing_of_them_is_stored(nbytes: int) -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        liar, honest, me = world["a"], world["b"], world["c"]
        data = pattern(nbytes)
        liar.store.add(data)
        blob = honest.store.add(data)
        tampering(liar, with_wrong_bytes)
        me.knows(liar)
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, nbytes))
        await asyncio.sleep(5)
        assert "sent wrong bytes" in me.fetcher.missing()[0].reason
        asked_before = len(wanted_chunks(world, me, liar))
        me.knows(liar, honest)

        await fetch

        assert me.store.blobs == {blob: data}
        assert me.store.disk == {}
        assert len(wanted_chunks(world, me, liar)) == asked_before
        assert me.fetcher.progress().refused_bytes <= 4 * MIB
        ends = [mine for one, other, mine, _ in world.connections if (one, other) == (me, liar)]
        assert all(end.closed.done() for end in ends)
        await world.close()

    run(body())


def test_b46_a_wrong_object_bans_its_sender() -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(5000)
        object_id = hashlib.sha256(data).digest()
        for name in "ab":
            world[name].store.put_object(object_id, data)
        tampering(world["a"], with_wrong_bytes)
        world["c"].knows(world["a"], world["b"])

        assert await world["c"].fetcher.want_object(object_id, is_named(object_id)) == data
        await world.close()

    run(body())


def test_a_provider_that_vanishes_mid_way_costs_only_what_it_owed() -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(24 * MIB)
        for name in "ab":
            blob = world[name].store.add(data)
        me = world["c"]
        me.knows(world["a"], world["b"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await until(lambda: me.fetcher.progress().fetched_bytes >= 4 * MIB)
        world.kill("a")

        await fetch

        assert me.store.blobs[blob] == data
        assert len(me.store.writes) == 24
        await world.close()

    run(body())


def test_a_provider_that_falls_silent_is_given_up_and_the_rest_comes_from_another() -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(8 * MIB)
        for name in "ab":
            blob = world[name].store.add(data)
        me, mute = world["c"], world["a"]

        def stall(connection: MemoryConnection) -> None:
            mute.server.serve(connection)
            send = connection.send
            connection.send = lambda message, lane: (  # type: ignore[method-assign]
                True if isinstance(message, Chunk) else send(message, lane)
            )

        mute.tamper = stall
        me.knows(mute)
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await asyncio.sleep(1)
        me.knows(mute, world["b"])

        await asyncio.wait_for(fetch, 30)
        await world.close()

    run(body())


def test_a_chunk_that_comes_alone_does_not_wait_for_others_to_be_kept() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(8 * MIB)
        blob = world["a"].store.add(data)
        me, slow = world["b"], world["a"]
        given: list[int] = []

        def stall(connection: MemoryConnection) -> None:
            slow.server.serve(connection)
            send = connection.send

            def send_one(message: Message, lane: Lane) -> bool:
                if isinstance(message, Chunk):
                    given.append(message.index)
                return len(given) > 1 or send(message, lane)

            connection.send = send_one  # type: ignore[method-assign]

        slow.tamper = stall
        me.knows(slow)
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await until(lambda: len(given) > 1)
        await asyncio.sleep(0.1)

        assert me.store.writes == given[:1]
        fetch.cancel()
        await world.close()

    run(body())


def test_a_node_relays_chunks_of_a_blob_that_it_is_still_fetching() -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(16 * MIB)
        source, relay, me = world["a"], world["b"], world["c"]
        blob = source.store.add(data)
        source.latency_s = 0.3
        relay.knows(source)
        me.knows(relay)
        relaying = asyncio.create_task(relay.fetcher.want_blob(blob, len(data)))
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await until(lambda: me.fetcher.progress().fetched_bytes > 0)

        assert not relaying.done(), "the relay has no more than a part itself"
        await fetch
        await relaying
        assert me.store.blobs[blob] == data
        await world.close()

    run(body())


def test_t43_a_new_process_fetches_only_what_is_not_on_its_disk() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(32 * MIB)
        blob = world["a"].store.add(data)
        me = world["b"]
        world["a"].latency_s = 0.1
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await until(lambda: len(me.store.writes) >= 12)
        fetch.cancel()
        await me.fetcher.close()
        landed = set(me.store.disk[blob])

        again = world.restart("b")
        again.knows(world["a"])
        await again.fetcher.want_blob(blob, len(data))

        assert again.store.blobs[blob] == data
        assert set(wanted_chunks(world, again, world["a"])) == set(range(32)) - landed
        await world.close()

    run(body())


def test_equal_chunks_are_fetched_once() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = bytes(64 * MIB) + b"end"
        blob = world["a"].store.add(data)
        world["b"].knows(world["a"])

        await world["b"].fetcher.want_blob(blob, len(data))

        assert world["b"].store.blobs[blob] == data
        assert len(wanted_chunks(world, world["b"], world["a"])) <= 16, (
            "what is on its way when the first lands"
        )
        await world.close()

    run(body())


def test_cancelling_the_only_waiter_gives_the_want_up_and_tells_the_provider() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(64 * MIB))
        me = world["b"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, 64 * MIB))
        await until(lambda: bool(me.store.writes))
        fetch.cancel()
        await asyncio.sleep(1)
        written = len(me.store.writes)
        await asyncio.sleep(10)

        assert me.fetcher.missing() == []
        assert len(me.store.writes) == written < 64
        assert any(isinstance(message, CancelChunks) for message in world.connections[0][2].sent)
        assert me.store.partials == {}, "no file is left open"
        await world.close()

    run(body())


def test_a_want_that_is_renewed_while_it_is_being_given_up_goes_on_where_it_was() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(16 * MIB)
        blob = world["a"].store.add(data)
        me = world["b"]
        me.knows(world["a"])
        for _ in range(3):
            fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
            before = len(me.store.writes)
            await until(lambda before=before: len(me.store.writes) > before)  # type: ignore[misc]
            fetch.cancel()
            await asyncio.sleep(0)
        await me.fetcher.want_blob(blob, len(data))

        assert me.store.blobs[blob] == data
        assert sorted(me.store.writes) == list(range(16))
        await world.close()

    run(body())


def test_objects_do_not_wait_behind_large_blobs() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(100)
        object_id = hashlib.sha256(data).digest()
        world["a"].store.put_object(object_id, data)
        me = world["b"]
        large = [
            asyncio.create_task(me.fetcher.want_blob(number.to_bytes(32, "big"), BLOB_BYTES_MAX))
            for number in range(3)
        ]
        await asyncio.sleep(0)
        me.knows(world["a"])

        await asyncio.wait_for(me.fetcher.want_object(object_id, is_named(object_id)), 0.1)
        for task in large:
            task.cancel()
        await world.close()

    run(body())


def test_one_of_two_waiters_may_leave() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(8 * MIB))
        me = world["b"]
        first = asyncio.create_task(me.fetcher.want_blob(blob, 8 * MIB))
        second = asyncio.create_task(me.fetcher.want_blob(blob, 8 * MIB))
        await asyncio.sleep(1)
        first.cancel()
        me.knows(world["a"])

        await second
        await world.close()

    run(body())


def test_cancel_by_id_cancels_whoever_waits() -> None:
    async def body() -> None:
        world = BulkWorld("b")
        fetch = asyncio.create_task(world["b"].fetcher.want_blob(b"\x01" * 32, 10))
        await asyncio.sleep(1)
        world["b"].fetcher.cancel(b"\x01" * 32)

        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert world["b"].fetcher.missing() == []
        await world.close()

    run(body())


def test_t48_what_nobody_has_stays_wanted_is_named_and_comes_once_somebody_has_it() -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(3 * MIB)
        blob = blob_digest_of(data)
        me = world["c"]
        wanted_at = 1_790_000_000.0
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await asyncio.sleep(1)
        alone = me.fetcher.missing()[0]
        me.knows(world["a"])
        await asyncio.sleep(1)
        unheard = me.fetcher.missing()[0]
        world["b"].store.add(data)
        me.knows(world["a"], world["b"])
        await asyncio.wait_for(fetch, 1)

        assert (alone.id, alone.nbytes, alone.missing_bytes) == (blob, 3 * MIB, 3 * MIB)
        assert alone.since == pytest.approx(wanted_at, abs=0.01)
        assert alone.reason == "no peer is connected"
        assert unheard.reason == "none of 1 connected peers has it"
        await world.close()

    run(body())


def test_a_peer_that_gets_the_blob_later_is_asked_again_without_any_change_of_peers() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(3 * MIB)
        me = world["b"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob_digest_of(data), len(data)))
        await asyncio.sleep(100)
        world["a"].store.add(data)

        await asyncio.wait_for(fetch, 40)
        await world.close()

    run(body())


def test_wants_that_nobody_can_help_with_do_not_hold_up_the_others() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(3 * MIB))
        me = world["b"]
        me.knows(world["a"])
        lost = [
            asyncio.create_task(me.fetcher.want_blob(n.to_bytes(32, "big"), 100 * MIB)) for n in range(300)
        ]
        await asyncio.sleep(0)

        await asyncio.wait_for(me.fetcher.want_blob(blob, 3 * MIB), 60)

        assert len(me.fetcher.missing()) == 300
        for task in lost:
            task.cancel()
        await world.close()

    run(body())


def test_a_manifest_that_lies_about_a_size_fails_the_want_and_blames_no_peer() -> None:
    async def body(claimed: int, actual: int) -> None:
        world = BulkWorld("ab")
        data = pattern(actual)
        blob = world["a"].store.add(data)
        me = world["b"]
        me.knows(world["a"])

        with pytest.raises(MalformedMessageError, match="the manifest"):
            await me.fetcher.want_blob(blob, claimed)
        await me.fetcher.want_blob(blob, actual)
        assert me.store.blobs == {blob: data}
        await world.close()

    for claimed, actual in [(10, 20), (10, 3 * MIB), (3 * MIB, 10), (3 * MIB, 4 * MIB)]:
        run(body(claimed, actual))


def test_two_sizes_for_one_blob_do_not_harm_the_right_one() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(3 * MIB))
        me = world["b"]
        wrong = asyncio.create_task(me.fetcher.want_blob(blob, 2 * MIB))
        right = asyncio.create_task(me.fetcher.want_blob(blob, 3 * MIB))
        await asyncio.sleep(1)
        me.knows(world["a"])

        await right
        with pytest.raises(MalformedMessageError):
            await wrong
        await world.close()

    run(body())


def test_a_provider_that_cannot_prove_the_size_it_claims_is_banned() -> None:
    def larger(message: Message) -> Message:
        match message:
            case Chunk(blob=blob):
                return Chunk(blob=blob, nbytes=2 * MIB, index=0, data=bytes(MIB))
            case ChunkList(blob=blob):
                return ChunkList(blob=blob, nbytes=2 * MIB, digests=(bytes(32), bytes(32)))
            case _:
                return message

    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(10)
        for name in "ab":
            blob = world[name].store.add(data)
        tampering(world["a"], larger)
        me = world["c"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, 10))
        await asyncio.sleep(5)
        assert "sent wrong bytes" in me.fetcher.missing()[0].reason
        me.knows(world["a"], world["b"])

        await fetch
        await world.close()

    run(body())


def test_a_blob_said_to_be_empty_that_is_not_is_refused_without_asking_anybody() -> None:
    async def body() -> None:
        world = BulkWorld("b")

        with pytest.raises(MalformedMessageError, match="not empty"):
            await world["b"].fetcher.want_blob(b"\x01" * 32, 0)
        with pytest.raises(LimitExceededError):
            await world["b"].fetcher.want_blob(b"\x01" * 32, BLOB_BYTES_MAX + 1)
        await world.close()

    run(body())


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([Object(id=b"\1" * 32, nbytes=9, offset=3, data=b"abc")], id="a slice out of order"),
        pytest.param([Object(id=b"\1" * 32, nbytes=9, offset=0, data=b"abc")] * 2, id="a slice twice"),
        pytest.param(
            [
                Object(id=b"\1" * 32, nbytes=9, offset=0, data=b"abc"),
                Object(id=b"\2" * 32, nbytes=9, offset=3, data=b"abc"),
            ],
            id="a slice of something else",
        ),
        pytest.param([Absent(id=b"\1" * 32)] * 2, id="more answers than questions"),
        pytest.param(
            [Chunk(blob=b"\5" * 32, nbytes=1, index=0, data=b"x")] * 2, id="B44 chunks nobody wants"
        ),
        pytest.param([WantObject(id=b"\1" * 32)], id="a question"),
    ],
)
def test_b45_answers_that_break_the_protocol_end_the_link_and_not_the_want(answers: list[Message]) -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = b"123456789"
        object_id = hashlib.sha256(data).digest()
        world["b"].store.put_object(object_id, data)

        def tamper(connection: MemoryConnection) -> None:
            def answer(_: Any, message: Message) -> None:
                for reply in answers:
                    connection.send(reply, Lane.BULK)

            connection.on_message = answer

        world["a"].tamper = tamper
        me = world["c"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_object(object_id, is_named(object_id)))
        await asyncio.sleep(1)
        assert world.connections[0][3].closed.done()
        me.knows(world["a"], world["b"])

        assert await fetch == data
        await world.close()

    run(body())


def test_a_provider_that_claims_everything_and_gives_nothing_does_not_hold_up_the_fetch() -> None:
    async def body() -> None:
        world = BulkWorld("abc")
        data = pattern(8 * MIB)
        blob = world["b"].store.add(data)
        digests = world["b"].store.chunk_digests(blob)

        def tamper(connection: MemoryConnection) -> None:
            def answer(_: Any, message: Message) -> None:
                match message:
                    case HaveQuery():
                        connection.send(Have(blob=blob, nbytes=len(data), chunks=255), Lane.BULK)
                    case WantChunkList():
                        reply = ChunkList(blob=blob, nbytes=len(data), digests=tuple(digests or ()))
                        connection.send(reply, Lane.BULK)
                    case WantChunks(indices=indices):
                        connection.send(Absent(id=blob, indices=indices), Lane.BULK)

            connection.on_message = answer

        world["a"].tamper = tamper
        me = world["c"]
        me.knows(world["a"], world["b"])

        await asyncio.wait_for(me.fetcher.want_blob(blob, len(data)), 5)
        await world.close()

    run(body())


def test_t20_a_full_disk_is_named_and_the_fetch_goes_on_once_there_is_room() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        data = pattern(24 * MIB)
        blob = world["a"].store.add(data)
        me = world["b"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
        await until(lambda: len(me.store.writes) >= 8)
        me.store.is_full = True
        await asyncio.sleep(1)
        missing = me.fetcher.missing()[0]
        landed = len(me.store.disk[blob])
        me.store.is_full = False

        await asyncio.wait_for(fetch, FULL_RETRY_S + 5)
        assert "no room" in missing.reason
        assert len(me.store.writes) == 24
        assert landed >= 8
        await world.close()

    run(body())


def test_an_error_of_the_store_reaches_whoever_waits() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(10))
        me = world["b"]

        def broken(digest: bytes, data: bytes) -> Future[None]:
            raise RuntimeError("the disk is gone")

        me.store.put_inline_soon = broken  # type: ignore[method-assign]
        me.knows(world["a"])

        with pytest.raises(RuntimeError, match="the disk is gone"):
            await me.fetcher.want_blob(blob, 10)
        assert me.fetcher.missing() == []
        await world.close()

    run(body())


def test_a_peer_that_cannot_be_reached_is_dialled_less_and_less_often() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        world.dead.add(world["a"].id)
        me = world["b"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(b"\x01" * 32, 10))
        await asyncio.sleep(120)
        early = len(me.dials)
        await asyncio.sleep(480)

        assert 4 <= early <= 9
        assert len(me.dials) - early <= 9
        fetch.cancel()
        await world.close()

    run(body())


def test_links_are_dialled_when_needed_and_closed_when_idle() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(b"x")
        me = world["b"]
        me.knows(world["a"])
        await asyncio.sleep(10)
        assert me.dials == []
        await me.fetcher.want_blob(blob, 1)
        link = world.connections[0][2]
        assert not link.closed.done()
        await asyncio.sleep(LINK_IDLE_S + 1)

        assert link.closed.result() == "nothing to ask"
        await world.close()

    run(body())


def test_a_fetcher_that_closes_cancels_its_waiters_and_leaves_no_task_behind() -> None:
    async def body() -> int:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(32 * MIB))
        me = world["b"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, 32 * MIB))
        await until(lambda: bool(me.store.writes))
        await world.close()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        with pytest.raises(asyncio.CancelledError):
            await me.fetcher.want_blob(blob, 32 * MIB)
        await asyncio.sleep(1)
        return len(asyncio.all_tasks())

    assert run(body()) == 2, "the test itself and its time limit"


def test_progress_counts_what_is_missing_and_how_fast_it_comes() -> None:
    async def body() -> None:
        world = BulkWorld("ab")
        blob = world["a"].store.add(pattern(32 * MIB))
        world["a"].latency_s = 0.5
        me = world["b"]
        me.knows(world["a"])
        fetch = asyncio.create_task(me.fetcher.want_blob(blob, 32 * MIB))
        await asyncio.sleep(0)
        before = me.fetcher.progress()
        await until(lambda: len(me.store.writes) >= 16)
        middle = me.fetcher.progress()
        await fetch
        after = me.fetcher.progress()

        assert (before.wants, before.missing_bytes, before.rate_bytes_per_s) == (1, 32 * MIB, 0.0)
        assert middle.missing_bytes == 32 * MIB - middle.fetched_bytes
        assert middle.rate_bytes_per_s > MIB
        assert (after.wants, after.missing_bytes, after.fetched_bytes) == (0, 0, 32 * MIB)
        await world.close()

    run(body())
