"""Bulk transfer without sockets and disks: virtual time, linked connections, a blob store in memory."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future
from random import Random
from typing import Any, TypeVar

from crdt_merge_node.bulk import BulkServer, Fetcher
from crdt_merge_node.errors import FullError, PeerUnreachableError
from crdt_merge_node.storage.database import done
from crdt_merge_node.transport.connection import Lane
from crdt_merge_protocol.blobs import blob_digest, blob_digest_of, chunk_bytes, chunk_digest
from crdt_merge_protocol.errors import MalformedMessageError, RemoteProtocolError
from crdt_merge_protocol.limits import CHUNK_BYTES, LANE_BYTES_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

T = TypeVar("T")


class _VirtualSelector(selectors.DefaultSelector):
    """Never waits: where a real one would sleep, it moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits and nobody will come")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run a test on virtual time, for at most an hour of it, and leave nothing behind."""
    loop = VirtualLoop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(asyncio.wait_for(test, 3600))
    assert errors == []
    return result


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as a condition holds, looking every virtual millisecond."""
    while not condition():  # noqa: ASYNC110  (the thing observed knows nothing of being observed)
        await asyncio.sleep(0.001)


class LoopClock:
    """The clock port on the running loop's time."""

    def now(self) -> float:
        return 1_790_000_000.0 + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class InlineExecutor(Executor):
    """Runs everything at once, in the caller."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  (what an executor does)
            future.set_exception(error)
        return future


class MemoryConnection:
    """One end of a connection. Frames cross byte for byte, after ``latency_s``."""

    def __init__(self, peer: bytes, latency_s: float) -> None:
        self.peer = peer
        self.on_message: Callable[[Any, Message], None] | None = None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.bytes_in = 0
        self.sent: list[Message] = []
        self.queued_bytes = 0
        self.queued_bytes_max = 0
        self.is_stalled = False
        self.other: MemoryConnection
        self._latency_s = latency_s
        self._decoder = FrameDecoder()
        self._room = asyncio.Event()
        self._frames: deque[bytes] = deque()

    def send(self, message: Message, lane: Lane) -> bool:
        assert lane is Lane.BULK
        frame = encode_frame(message)
        if self.closed.done() or (self.queued_bytes and self.queued_bytes + len(frame) > LANE_BYTES_MAX):
            return False
        self.sent.append(message)
        self.queued_bytes += len(frame)
        self.queued_bytes_max = max(self.queued_bytes, self.queued_bytes_max)
        if not self.is_stalled:
            self._frames.append(frame)
            asyncio.get_running_loop().call_later(self._latency_s, self._cross)
        return True

    async def drain(self, lane: Lane | None = None) -> None:
        while not self.closed.done() and self.queued_bytes > LANE_BYTES_MAX // 4:
            self._room.clear()
            await self._room.wait()
        if self.closed.done():
            raise PeerUnreachableError(f"the connection ended: {self.closed.result()}.")

    def _cross(self) -> None:
        frame = self._frames.popleft()  # Timers of one instant fire in any order.
        self.queued_bytes -= len(frame)
        self._room.set()
        self.other.arrive(frame)

    def arrive(self, frame: bytes) -> None:
        if self.closed.done():
            return
        self.bytes_in += len(frame)
        try:
            for message in self._decoder.feed(frame):
                assert self.on_message is not None
                self.on_message(self, message)
        except RemoteProtocolError as error:
            self.close(f"{error.code}: {error.message}")

    def close(self, reason: str) -> None:
        for end in (self, self.other):
            if not end.closed.done():
                end.closed.set_result(reason)
                end._room.set()


def linked(one: bytes, two: bytes, *, latency_s: float = 0.001) -> tuple[MemoryConnection, MemoryConnection]:
    """Return both ends of a connection between two nodes: the end at ``one``, the end at ``two``."""
    ends = MemoryConnection(two, latency_s), MemoryConnection(one, latency_s)
    ends[0].other, ends[1].other = ends[1], ends[0]
    return ends


class MemoryPartial:
    """A blob on its way into a :class:`MemoryStore`."""

    def __init__(self, store: MemoryStore, digest: bytes, nbytes: int, digests: Sequence[bytes]) -> None:
        self.nbytes = nbytes
        self.chunk_digests = list(digests)
        self.present = bytearray(len(digests))
        self._store = store
        self._digest = digest
        self._is_closed = False
        self.chunks: dict[int, bytes] = store.disk.setdefault(digest, {})
        for index in self.chunks:
            self.present[index] = 1

    def write(self, index: int, chunk: bytes | memoryview) -> bool:
        if chunk_digest(chunk) != self.chunk_digests[index]:
            raise MalformedMessageError(f"chunk {index} is not what was asked for.")
        if self._store.is_full:
            raise FullError("no room on the file system.")
        if self.present[index] or self._is_closed:
            return False
        self.chunks[index] = bytes(chunk)
        self.present[index] = 1
        self._store.writes.append(index)
        return True

    def finish(self) -> None:
        assert all(self.present), "finished without all chunks"
        self._store.blobs[self._digest] = b"".join(data for _, data in sorted(self.chunks.items()))
        self.abandon()
        del self._store.disk[self._digest]

    def abandon(self) -> None:
        self._is_closed = True
        if self._store.partials.get(self._digest) is self:
            del self._store.partials[self._digest]


class MemoryStore:
    """A blob store whose disk is a dictionary. ``disk`` survives a :meth:`restarted` store."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.objects: dict[bytes, bytes] = {}
        self.disk: dict[bytes, dict[int, bytes]] = {}
        self.partials: dict[bytes, MemoryPartial] = {}
        self.writes: list[int] = []
        self.is_full = False
        self.reads = 0

    def restarted(self) -> MemoryStore:
        """Return what a new process finds on this disk."""
        again = MemoryStore()
        again.blobs, again.objects, again.disk = self.blobs, self.objects, self.disk
        return again

    def add(self, data: bytes) -> bytes:
        digest = blob_digest_of(data)
        self.blobs[digest] = data
        return digest

    def has(self, digest: bytes) -> bool:
        return digest in self.blobs

    def size(self, digest: bytes) -> int | None:
        return len(self.blobs[digest]) if digest in self.blobs else None

    def get_object(self, object_id: bytes) -> bytes | None:
        return self.objects.get(object_id)

    def has_object(self, object_id: bytes) -> bool:
        return object_id in self.objects

    def put_object(self, object_id: bytes, data: bytes) -> None:
        self.objects[object_id] = data

    def put_object_soon(self, object_id: bytes, data: bytes) -> Future[None]:
        self.objects[object_id] = data
        return done()

    def put_inline_soon(self, digest: bytes, data: bytes) -> Future[None]:
        if self.is_full:
            raise FullError("no room on the file system.")
        assert blob_digest_of(data) == digest
        self.blobs[digest] = data
        return done()

    def begin_partial(self, digest: bytes, nbytes: int, chunk_digests: Sequence[bytes]) -> MemoryPartial:
        assert blob_digest(nbytes, chunk_digests) == digest
        if self.is_full:
            raise FullError("no room on the file system.")
        if digest not in self.partials:
            self.partials[digest] = MemoryPartial(self, digest, nbytes, chunk_digests)
        return self.partials[digest]

    def partial(self, digest: bytes) -> MemoryPartial | None:
        return self.partials.get(digest)

    def read_chunk(self, digest: bytes, index: int) -> bytes | None:
        self.reads += 1
        if digest in self.blobs:
            start = index * CHUNK_BYTES
            return self.blobs[digest][start : start + chunk_bytes(len(self.blobs[digest]), index)]
        partial = self.partials.get(digest)
        return partial.chunks.get(index) if partial is not None else None

    def chunk_digests(self, digest: bytes) -> list[bytes] | None:
        if digest in self.partials:
            return self.partials[digest].chunk_digests
        if digest not in self.blobs:
            return None
        data = self.blobs[digest]
        return [chunk_digest(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]


class BulkNode:
    """A node with a store, a server and a fetcher, in a :class:`BulkWorld`."""

    def __init__(self, world: BulkWorld, name: str, store: MemoryStore | None = None) -> None:
        self.id = name.encode().ljust(32, b".")
        self.world = world
        self.store = store or MemoryStore()
        self.executor = InlineExecutor()
        self.server = BulkServer(self.store, executor=self.executor)
        self.peers: list[bytes] = []
        self.dials: list[bytes] = []
        self.latency_s = 0.001
        self.tamper: Callable[[MemoryConnection], None] | None = None
        """Called with each incoming connection in place of serving it."""
        self.fetcher = Fetcher(
            self.store,
            node=self.id,
            peers=lambda: self.peers,
            open=self._dial,
            clock=LoopClock(),
            rng=Random(self.id),
            executor=self.executor,
        )

    async def _dial(self, peer: bytes) -> MemoryConnection:
        self.dials.append(peer)
        return await self.world.connect(self, peer)

    def knows(self, *others: BulkNode) -> None:
        """Be connected to exactly these nodes from now on."""
        self.peers = [other.id for other in others]
        self.fetcher.peers_changed()


class BulkWorld:
    """Nodes that can reach each other."""

    def __init__(self, names: Iterable[str]) -> None:
        self.nodes = {name: BulkNode(self, name) for name in names}
        self.connections: list[tuple[BulkNode, BulkNode, MemoryConnection, MemoryConnection]] = []
        """(dialler, acceptor, dialler's end, acceptor's end)."""
        self.dead: set[bytes] = set()

    def __getitem__(self, name: str) -> BulkNode:
        return self.nodes[name]

    def restart(self, name: str) -> BulkNode:
        """Replace a node by a new process on the same disk."""
        self.nodes[name] = BulkNode(self, name, self.nodes[name].store.restarted())
        return self.nodes[name]

    async def connect(self, dialler: BulkNode, peer: bytes) -> MemoryConnection:
        acceptor = next(node for node in self.nodes.values() if node.id == peer)
        await asyncio.sleep(0.001)
        if peer in self.dead:
            raise PeerUnreachableError("nobody answers.")
        mine, theirs = linked(dialler.id, peer, latency_s=acceptor.latency_s)
        self.connections.append((dialler, acceptor, mine, theirs))
        if acceptor.tamper is not None:
            acceptor.tamper(theirs)
        else:
            acceptor.server.serve(theirs)
        return mine

    def kill(self, name: str) -> None:
        """End a node's connections; it answers no more."""
        self.dead.add(self.nodes[name].id)
        for dialler, acceptor, mine, _ in self.connections:
            if self.nodes[name] in (dialler, acceptor):
                mine.close("the connection was cut")

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.fetcher.close()
            await node.server.close()


@functools.cache
def pattern(nbytes: int, seed: int = 0) -> bytes:
    """Return bytes of which no two chunks are equal."""
    return Random(seed).randbytes(nbytes)
