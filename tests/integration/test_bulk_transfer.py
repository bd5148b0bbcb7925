"""Blobs between real nodes: TLS on loopback, stores on disk, providers that lie or vanish (TARGETS C5)."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from crdt_merge_node.bulk import BulkServer, Fetcher
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs, TcpNet
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.transport.connection import Connection, Lane
from crdt_merge_node.transport.contexts import ALPN_BULK
from crdt_merge_node.transport.endpoint import Endpoint, EndpointConfig
from crdt_merge_node.transport.identity import Identity, load_authority, prepare_keys, write_membership
from crdt_merge_protocol.blobs import blob_digest_of
from crdt_merge_protocol.limits import KIB, MIB
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import Chunk, WantChunks
from support.bulk import until

TIMEOUT_S = 300


class Node:
    """A store, an endpoint, a server and a fetcher, as the daemon puts them together."""

    def __init__(self, identity: Identity, path: Path) -> None:
        self.identity = identity
        self.path = path
        self.id = identity.node
        self.peers: dict[bytes, Node] = {}
        self.incoming: list[Connection] = []
        self.asked: list[int] = []
        """Chunks that peers have asked of this node."""
        self.change: Callable[[Message], Message] = lambda message: message

    async def start(self) -> None:
        clock, rng = SystemClock(), SeededRng(self.id)
        self.data = DataDir.open(self.path)
        self.store = await Store.open(self.data, clock=clock, rng=rng, reserve_bytes=0)
        self.server = BulkServer(self.store.blobs)
        self.endpoint = Endpoint(
            self.identity,
            EndpointConfig(port=0),
            net=TcpNet(),
            clock=clock,
            rng=rng,
            admit=lambda _: None,
            on_connection=self._serve,
        )
        self.address = "{}:{}".format(*await self.endpoint.start())
        self.fetcher = Fetcher(
            self.store.blobs,
            node=self.id,
            peers=lambda: list(self.peers),
            open=lambda peer: self.endpoint.dial(self.peers[peer].address, alpn=ALPN_BULK, expect=peer),
            clock=clock,
            rng=rng,
        )

    def _serve(self, connection: Connection) -> None:
        self.incoming.append(connection)
        self.server.serve(connection)
        answer, send = connection.on_message, connection.send
        assert answer is not None

        def note(at: Connection, message: Message) -> None:
            if isinstance(message, WantChunks):
                self.asked.extend(message.indices)
            answer(at, message)

        def changed(message: Message, lane: Lane) -> bool:
            return send(self.change(message), lane)

        connection.on_message = note
        connection.send = changed  # type: ignore[method-assign]

    def knows(self, *others: Node) -> None:
        self.peers = {other.id: other for other in others}
        self.fetcher.peers_changed()

    async def crash(self) -> None:
        """Stop without a word to anybody; the disk stays as it is."""
        await self.stop()

    async def stop(self) -> None:
        await self.fetcher.close()
        await self.server.close()
        await self.endpoint.close()
        await self.store.close()
        self.data.close()

    def put(self, data: bytes) -> bytes:
        """Store a blob as a user's file would be."""
        source = self.path.with_suffix(".source")
        source.write_bytes(data)
        digest, _ = self.store.blobs.import_tensor(source, 0, len(data))
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return a blob, every chunk of it verified, or nothing."""
        chunks = [
            self.store.blobs.read_chunk(digest, i)
            for i in range(len(self.store.blobs.chunk_digests(digest) or ()))
        ]
        return b"".join(chunk for chunk in chunks if chunk is not None)


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    root, fs, rng = tmp_path_factory.mktemp("bulk"), SystemFs(), SeededRng(5)
    now = SystemClock().now()
    first = Identity.create(root / "0", "bulk", fs=fs, rng=rng, now=now)
    authority = load_authority(root / "0", fs)
    assert authority is not None
    others = []
    for number in range(1, 4):
        home = root / str(number)
        key, tls_key = prepare_keys(home, fs=fs, rng=rng)
        certificate = authority.issue(tls_key.public_key(), key.node_id, now=now)
        write_membership(home, certificate, authority.certificate, name="bulk", introducers=(), fs=fs)
        others.append(Identity.load(home, fs))
    return [first, *others]


@asynccontextmanager
async def running(identities: list[Identity], root: Path, count: int) -> AsyncIterator[list[Node]]:
    nodes = [Node(identity, root / str(number)) for number, identity in enumerate(identities[:count])]
    for node in nodes:
        await node.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield nodes
    finally:
        for node in nodes:
            await node.stop()


def give(data: bytes, *nodes: Node) -> bytes:
    """Store a blob on several nodes."""
    return {node.put(data) for node in nodes}.pop()


def give_way(node: Node, first: threading.Event) -> None:
    """Let a node answer nothing before something else has happened."""
    read_chunk = node.store.blobs.read_chunk

    def patient(digest: bytes, index: int) -> bytes | None:
        assert first.wait(TIMEOUT_S)
        return read_chunk(digest, index)

    node.store.blobs.read_chunk = patient  # type: ignore[method-assign]


def content(nbytes: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(nbytes)


def test_blobs_of_every_size_arrive_and_are_durable(identities: list[Identity], tmp_path: Path) -> None:
    sizes = [0, 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, 3 * MIB + 7]

    async def body() -> None:
        async with running(identities, tmp_path, 2) as (a, b):
            blobs = {nbytes: a.put(content(nbytes, seed=nbytes)) for nbytes in sizes}
            b.knows(a)
            await asyncio.gather(*(b.fetcher.want_blob(blob, nbytes) for nbytes, blob in blobs.items()))
            await b.stop()
            await b.start()

            assert {nbytes: b.get(blob) for nbytes, blob in blobs.items()} == {
                nbytes: content(nbytes, seed=nbytes) for nbytes in sizes
            }
            assert list(b.data.partial.iterdir()) == []

    asyncio.run(body())


def test_an_object_arrives_and_is_durable(identities: list[Identity], tmp_path: Path) -> None:
    async def body() -> None:
        async with running(identities, tmp_path, 2) as (a, b):
            data = content(2 * MIB + 1)
            object_id = hashlib.sha256(data).digest()
            a.store.blobs.put_object(object_id, data)
            b.knows(a)
            found = await b.fetcher.want_object(
                object_id, lambda got: hashlib.sha256(got).digest() == object_id
            )
            await b.stop()
            await b.start()

            assert found == data == b.store.blobs.get_object(object_id)

    asyncio.run(body())


def test_one_of_three_providers_sends_wrong_chunks_and_the_fetch_completes_without_it(
    identities: list[Identity], tmp_path: Path
) -> None:
    has_lied = threading.Event()

    def wrong(message: Message) -> Message:
        if isinstance(message, Chunk):
            has_lied.set()
            data = message.data[:-1] + bytes([message.data[-1] ^ 0x80])
            return Chunk(blob=message.blob, nbytes=message.nbytes, index=message.index, data=data)
        return message

    async def body() -> None:
        async with running(identities, tmp_path, 4) as (a, b, liar, me):
            data = content(24 * MIB)
            blob = give(data, a, b, liar)
            liar.change = wrong
            for honest in (a, b):
                give_way(honest, has_lied)
            me.knows(a, b, liar)
            await me.fetcher.want_blob(blob, len(data))
            await until(liar.incoming[0].closed.done)
            asked_of_liar = len(liar.asked)
            second = give(content(3 * MIB, seed=2), a, liar)
            await me.fetcher.want_blob(second, 3 * MIB)

            assert me.get(blob) == data
            assert sorted(set(a.asked + b.asked)) == list(range(24))
            assert 0 < asked_of_liar == len(liar.asked), "it was asked, and never again"
            assert "not match" in liar.incoming[0].closed.result()
            assert me.fetcher.progress().refused_bytes >= MIB

    asyncio.run(body())


def test_a_provider_that_vanishes_mid_way_does_not_stop_the_fetch(
    identities: list[Identity], tmp_path: Path
) -> None:
    async def body() -> None:
        async with running(identities, tmp_path, 3) as (a, b, me):
            data = content(48 * MIB)
            blob = give(data, a, b)
            me.knows(a, b)
            fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
            await until(lambda: me.fetcher.progress().fetched_bytes > 8 * MIB)
            for connection in a.incoming:
                connection.abort("pulled the plug")
            await a.endpoint.close()
            await fetch

            assert me.get(blob) == data

    asyncio.run(body())


def test_c_fetches_from_b_while_b_is_still_fetching_from_a(
    identities: list[Identity], tmp_path: Path
) -> None:
    async def body() -> None:
        async with running(identities, tmp_path, 3) as (a, b, c):
            data = content(24 * MIB)
            blob = a.put(data)
            given = 0

            def count(message: Message) -> Message:
                nonlocal given
                given += isinstance(message, Chunk)
                return message

            a.change = count
            send_more = asyncio.Event()
            b.knows(a)
            c.knows(b)
            read_chunk = a.store.blobs.read_chunk
            loop = asyncio.get_running_loop()

            def gated(digest: bytes, index: int) -> bytes | None:
                """Give eight chunks, and no more until told to."""
                if given >= 8 and not send_more.is_set():
                    asyncio.run_coroutine_threadsafe(send_more.wait(), loop).result(TIMEOUT_S)
                return read_chunk(digest, index)

            a.store.blobs.read_chunk = gated  # type: ignore[method-assign]
            relaying = asyncio.create_task(b.fetcher.want_blob(blob, len(data)))
            fetch = asyncio.create_task(c.fetcher.want_blob(blob, len(data)))
            await until(lambda: c.fetcher.progress().fetched_bytes >= 6 * MIB)

            assert not relaying.done()
            send_more.set()
            await asyncio.gather(relaying, fetch)
            assert b.get(blob) == c.get(blob) == data

    asyncio.run(body())


def test_c5_after_a_crash_only_what_was_not_on_disk_is_fetched_again(
    identities: list[Identity], tmp_path: Path
) -> None:
    async def body() -> None:
        async with running(identities, tmp_path, 2) as (a, me):
            data = content(64 * MIB)
            blob = a.put(data)
            me.knows(a)
            fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
            await until(lambda: me.fetcher.progress().fetched_bytes >= 16 * MIB)
            fetch.cancel()
            await me.crash()
            landed = sum(
                (me.path / "partial" / blob.hex()).read_bytes()[at : at + MIB] == data[at : at + MIB]
                for at in range(0, len(data), MIB)
            )
            a.asked.clear()
            await me.start()
            me.knows(a)
            await me.fetcher.want_blob(blob, len(data))

            assert me.get(blob) == data
            assert 16 <= landed < 64
            assert len(set(a.asked)) == 64 - landed

    asyncio.run(body())


def test_cancelling_leaves_no_open_file_and_no_traffic(identities: list[Identity], tmp_path: Path) -> None:
    async def body() -> None:
        async with running(identities, tmp_path, 2) as (a, me):
            data = content(64 * MIB)
            blob = a.put(data)
            me.knows(a)
            fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
            await until(lambda: me.fetcher.progress().fetched_bytes >= 4 * MIB)
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            await until(lambda: me.store.blobs.partial(blob) is None)
            fetched = me.fetcher.progress().fetched_bytes
            await me.fetcher.want_blob(a.put(b"something else"), 14)

            assert me.fetcher.progress().fetched_bytes == fetched + 14 < len(data)
            assert not me.store.blobs.has(blob)

    asyncio.run(body())


def test_a_provider_that_lacks_the_blob_says_so_and_another_gives_it(
    identities: list[Identity], tmp_path: Path
) -> None:
    async def body() -> None:
        async with running(identities, tmp_path, 3) as (empty, b, me):
            data = content(3 * MIB)
            blob = blob_digest_of(data)
            me.knows(empty)
            fetch = asyncio.create_task(me.fetcher.want_blob(blob, len(data)))
            await until(lambda: any("none of 1" in missing.reason for missing in me.fetcher.missing()))
            assert b.put(data) == blob
            me.knows(empty, b)
            await fetch

            assert me.get(blob) == data
            assert empty.asked == []

    asyncio.run(body())
