"""The bulk connection to one provider, from the asking side: dialled when first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.fetch import Ask, ItemKind
from crdt_merge_protocol.limits import FETCH_RATE_MIN_BYTES_PER_S
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

from crdt_merge_node.transport.connection import Lane

from .ports import ConnectionLike

PROGRESS_WINDOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class WholeObject:
    """An object put together from its slices."""

    id: bytes
    data: bytes


Answer = Chunk | WholeObject | Have | Absent | ChunkList


class Link:
    """Sends asks to one provider and hands its answers up.

    A provider may send as many answers as it was asked for, and one object at a time: what it can make this
    side hold is bounded by what this side asked.
    """

    def __init__(
        self,
        peer: bytes,
        open_connection: Callable[[bytes], Awaitable[ConnectionLike]],
        *,
        on_answer: Callable[[bytes, Answer], None],
        on_lost: Callable[[Link, str], None],
    ) -> None:
        self.peer = peer
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._waiting: list[Message] = []
        self._owed = 0
        self._object: tuple[Object, bytearray] | None = None
        self._connection: ConnectionLike | None = None
        self._mark = (0.0, 0)
        self._end = ""
        self._dialling = asyncio.ensure_future(self._dial(open_connection))
        self._dialling.add_done_callback(self._dialled)

    async def _dial(self, open_connection: Callable[[bytes], Awaitable[ConnectionLike]]) -> ConnectionLike:
        return await open_connection(self.peer)

    def _dialled(self, dialling: asyncio.Future[ConnectionLike]) -> None:
        if dialling.cancelled():
            self._lost(self._end or "cancelled")
        elif (error := dialling.exception()) is not None:
            self._lost(str(error) or type(error).__name__)
        elif self._end:
            dialling.result().close(self._end)
            self._lost(self._end)
        else:
            connection = self._connection = dialling.result()
            connection.closed.add_done_callback(lambda closed: self._lost(self._end or closed.result()))
            connection.on_message = self._receive
            for message in self._waiting:
                self._send(message)
            self._waiting.clear()

    def _lost(self, reason: str) -> None:
        self._end = self._end or reason
        self._object = None
        self._on_lost(self, reason)

    # --- asking -------------------------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        """Send one request of the planner."""
        self._owed += max(1, len(ask.pieces))
        match ask.item.kind:
            case ItemKind.OBJECT:
                self._send(WantObject(id=ask.item.id))
            case ItemKind.CHUNK_LIST:
                self._send(WantChunkList(blob=ask.item.id))
            case ItemKind.BLOB if ask.pieces:
                self._send(WantChunks(blob=ask.item.id, indices=ask.pieces))
            case ItemKind.BLOB:
                self._send(HaveQuery(blob=ask.item.id))

    def ask_proof(self, blob: bytes) -> None:
        """Ask for the chunk list that proves a size."""
        self._owed += 1
        self._send(WantChunkList(blob=blob))

    def cancel(self, ask: Ask) -> None:
        """Tell the provider that the chunks it was asked for are no longer needed."""
        if ask.item.kind is ItemKind.BLOB and ask.pieces:
            self._send(CancelChunks(blob=ask.item.id, indices=ask.pieces))

    def _send(self, message: Message) -> None:
        if self._connection is None:
            self._waiting.append(message)
        elif not self._connection.send(message, Lane.BULK):
            self.close("the provider takes no more questions")

    # --- answers ------------------------------------------------------------------------------------------

    def _receive(self, _connection: ConnectionLike, message: Message) -> None:
        if self._end:
            return
        match message:
            case Chunk() | Have() | ChunkList():
                self._settle(1)
                self._on_answer(self.peer, message)
            case Absent(indices=indices):
                self._settle(max(1, len(indices)))
                self._on_answer(self.peer, message)
            case Object():
                self._gather(message)
            case _:
                raise MalformedMessageError(f"{type(message).__name__} is no answer on a bulk connection.")

    def _settle(self, answers: int) -> None:
        self._owed -= answers
        if self._owed < 0:
            raise LimitExceededError("more answers than questions on a bulk connection.")

    def _gather(self, part: Object) -> None:
        if self._object is None:
            self._settle(1)
            self._object = (part, bytearray())
        first, data = self._object
        if (part.id, part.nbytes, part.offset) != (first.id, first.nbytes, len(data)):
            raise MalformedMessageError(
                f"bytes {part.offset} of object {part.id.hex()[:12]} do not follow byte {len(data)} of "
                f"{first.id.hex()[:12]}."
            )
        data += part.data
        if len(data) == first.nbytes:
            self._object = None
            self._on_answer(self.peer, WholeObject(first.id, bytes(data)))

    # --- life ---------------------------------------------------------------------------------------------

    def has_progressed(self, *, now: float) -> bool:
        """Tell whether bytes have come since the last call at a rate that is worth waiting for."""
        nbytes = 0 if self._connection is None else self._connection.bytes_in
        since, before = self._mark
        if now - since < PROGRESS_WINDOW_S:
            return False
        self._mark = (now, nbytes)
        return nbytes - before >= FETCH_RATE_MIN_BYTES_PER_S * (now - since)

    def close(self, reason: str) -> None:
        """End the connection, telling the peer why. Idempotent."""
        if self._end:
            return
        self._end = reason
        if self._connection is not None:
            self._connection.close(reason)
        else:
            self._dialling.cancel()
