"""Answers the questions of peers on bulk connections, from whole blobs and from unfinished ones.

Relaying what is not whole yet is what lets a cluster spread a blob in little more than the time it takes to
send it once. Nothing is remembered about a peer but its open questions, and those are bounded: whoever has
more of them than the protocol allows breaks it. A connection holds one read-ahead and one lane of bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Final

from crdt_merge_protocol.blobs import chunk_count
from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.limits import BULK_REQUESTS_MAX, CHUNK_BYTES
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

from crdt_merge_node.errors import StorageError, TransportError
from crdt_merge_node.telemetry.logging import get_logger
from crdt_merge_node.transport.connection import Lane

from .ports import BlobStoreLike, ConnectionLike, bits_of

log = get_logger(__name__)

OPEN_QUESTIONS_MAX: Final = 2 * BULK_REQUESTS_MAX
"""Chunks, objects and queries that wait for an answer on one connection."""
READ_AHEAD_CHUNKS: Final = 4
"""Chunks read in one go, while the ones before are being sent."""

Question = tuple[type[Message], bytes, int]
"""What is asked, of which id, and for chunks which one."""


class BulkServer:
    """Serves any number of bulk connections."""

    def __init__(self, blobs: BlobStoreLike, *, executor: Executor | None = None) -> None:
        self._blobs = blobs
        self._executor = executor
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, connection: ConnectionLike) -> None:
        """Answer this connection until it ends. Call it before anything is read from it."""
        session = _Session(connection, self._blobs, self._executor)
        connection.on_message = session.ask
        task = asyncio.create_task(session.run(), name=f"bulk-serve-{connection.peer.hex()[:8]}")
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._ended(task, connection))
        connection.closed.add_done_callback(lambda _: task.cancel())

    def _ended(self, task: asyncio.Task[None], connection: ConnectionLike) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bulk.failed", peer=connection.peer, error=error)
            connection.close("blobs cannot be served at the moment")

    async def close(self) -> None:
        """Answer nothing more."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Session:
    """The open questions of one connection, answered in order."""

    def __init__(self, connection: ConnectionLike, blobs: BlobStoreLike, executor: Executor | None) -> None:
        self._connection = connection
        self._blobs = blobs
        self._executor = executor
        self._questions: deque[Question] = deque()
        self._is_asked = asyncio.Event()

    def ask(self, _connection: ConnectionLike, message: Message) -> None:
        """Queue what a message asks. Raises RemoteProtocolError if it asks too much or asks nothing."""
        match message:
            case WantChunks(blob=blob, indices=indices):
                self._questions.extend((WantChunks, blob, index) for index in indices)
            case WantObject(id=object_id):
                self._questions.append((WantObject, object_id, 0))
            case HaveQuery(blob=blob) | WantChunkList(blob=blob):
                self._questions.append((type(message), blob, 0))
            case CancelChunks(blob=blob, indices=indices):
                dropped = {(WantChunks, blob, index) for index in indices}
                self._questions = deque(q for q in self._questions if q not in dropped)
            case _:
                raise MalformedMessageError(f"{type(message).__name__} is no question of a bulk connection.")
        if len(self._questions) > OPEN_QUESTIONS_MAX:
            raise LimitExceededError(
                f"{len(self._questions)} questions wait on one connection, at most {OPEN_QUESTIONS_MAX} may."
            )
        self._is_asked.set()

    async def run(self) -> None:
        """Answer until the connection ends."""
        loop = asyncio.get_running_loop()
        while True:
            await self._is_asked.wait()
            batch = self._next_batch()
            if not batch:
                self._is_asked.clear()
                continue
            if any(self._is_long(question) for question in batch):
                answers = await loop.run_in_executor(self._executor, self._answer_all, batch)
            else:
                answers = self._answer_all(batch)
            try:
                for answer in answers:
                    await self._send(answer)
            except TransportError:
                return

    async def _send(self, message: Message) -> None:
        while not self._connection.send(message, Lane.BULK):
            await self._connection.drain(Lane.BULK)

    def _next_batch(self) -> list[Question]:
        batch: list[Question] = []
        while self._questions and len(batch) < READ_AHEAD_CHUNKS:
            batch.append(self._questions.popleft())
            if batch[-1][0] is WantObject:
                break
        return batch

    def _is_long(self, question: Question) -> bool:
        """Tell whether the answer has to be read from the disk; what is not here is known from memory."""
        kind, wanted, _ = question
        if kind is WantObject:
            return self._blobs.has_object(wanted)
        return kind is not HaveQuery and (self._blobs.has(wanted) or self._blobs.partial(wanted) is not None)

    # --- in the executor ----------------------------------------------------------------------------------

    def _answer_all(self, batch: list[Question]) -> list[Message]:
        answers: list[Message] = []
        for question in batch:
            kind, wanted, index = question
            try:
                answers += self._answer(question)
            except StorageError as error:
                # Damaged or unreadable here: the store repairs that, and never serves it (T41).
                log.debug("blob.withheld", blob=wanted, error=error)
                answers.append(Absent(id=wanted, indices=(index,) if kind is WantChunks else ()))
        return answers

    def _answer(self, question: Question) -> Iterator[Message]:
        kind, wanted, index = question
        if kind is WantObject:
            return self._object(wanted)
        if kind is HaveQuery:
            return iter([self._have(wanted)])
        if kind is WantChunkList:
            return iter([self._chunk_list(wanted)])
        return iter([self._chunk(wanted, index)])

    def _object(self, object_id: bytes) -> Iterator[Message]:
        data = self._blobs.get_object(object_id)
        if data is None:
            yield Absent(id=object_id)
            return
        for offset in range(0, max(1, len(data)), CHUNK_BYTES):
            part = data[offset : offset + CHUNK_BYTES]
            yield Object(id=object_id, nbytes=len(data), offset=offset, data=part)

    def _have(self, blob: bytes) -> Message:
        nbytes = self._blobs.size(blob)
        if nbytes is not None:
            return Have(blob=blob, nbytes=nbytes, chunks=(1 << chunk_count(nbytes)) - 1)
        partial = self._blobs.partial(blob)
        if partial is None:
            return Absent(id=blob)
        return Have(blob=blob, nbytes=partial.nbytes, chunks=bits_of(partial.present))

    def _chunk_list(self, blob: bytes) -> Message:
        digests = self._blobs.chunk_digests(blob)
        nbytes = self._size(blob)
        if digests is None or nbytes is None:
            return Absent(id=blob)
        return ChunkList(blob=blob, nbytes=nbytes, digests=tuple(digests))

    def _chunk(self, blob: bytes, index: int) -> Message:
        nbytes = self._size(blob)
        data = None
        if nbytes is not None and index < chunk_count(nbytes):
            data = self._blobs.read_chunk(blob, index)
        if data is None or nbytes is None:
            return Absent(id=blob, indices=(index,))
        return Chunk(blob=blob, nbytes=nbytes, index=index, data=data)

    def _size(self, blob: bytes) -> int | None:
        nbytes = self._blobs.size(blob)
        if nbytes is None and (partial := self._blobs.partial(blob)) is not None:
            return partial.nbytes
        return nbytes
