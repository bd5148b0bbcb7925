"""Asking peers what they hold, so that nothing is lost when this node goes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from crdt_merge_protocol.blobs import chunk_count
from crdt_merge_protocol.errors import MalformedMessageError
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import Absent, Have, HaveQuery, Object, WantObject

from .bulk.ports import ConnectionLike
from .errors import TransportError
from .transport.connection import Lane

QUESTIONS_MAX: Final = 64
"""On their way at a time; a peer hears out more than that."""
ANSWER_S: Final = 30.0
"""Without any answer for this long a peer counts as holding nothing more."""


class _Survey:
    """The questions to one peer, and what it says to have."""

    def __init__(self, connection: ConnectionLike, questions: Sequence[Message]) -> None:
        self.held: set[bytes] = set()
        self._connection = connection
        self._waiting = list(reversed(questions))
        self._open = 0
        self._has_answer = asyncio.Event()
        connection.on_message = self._receive

    def _receive(self, _connection: ConnectionLike, message: Message) -> None:
        match message:
            case Have(blob=blob, nbytes=nbytes, chunks=chunks):
                if chunks == (1 << chunk_count(nbytes)) - 1:
                    self.held.add(blob)
            case Object(id=object_id, nbytes=nbytes, offset=offset, data=data):
                if offset + len(data) < nbytes:
                    return  # More of it comes.
                self.held.add(object_id)
            case Absent():
                pass
            case _:
                raise MalformedMessageError(f"{type(message).__name__} is no answer on a bulk connection.")
        self._open -= 1
        self._has_answer.set()

    async def run(self) -> None:
        """Ask everything; return once all is answered, or the peer has fallen silent."""
        closed = asyncio.ensure_future(asyncio.wait([self._connection.closed]))
        try:
            while (self._waiting or self._open) and not self._connection.closed.done():
                while self._waiting and self._open < QUESTIONS_MAX:
                    if not self._connection.send(self._waiting[-1], Lane.BULK):
                        break
                    self._waiting.pop()
                    self._open += 1
                self._has_answer.clear()
                answered = asyncio.ensure_future(self._has_answer.wait())
                done, _ = await asyncio.wait(
                    (answered, closed), timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED
                )
                answered.cancel()
                if not done:
                    return
        finally:
            closed.cancel()


async def held_by(
    connection: ConnectionLike, *, blobs: Sequence[bytes], objects: Sequence[bytes]
) -> set[bytes]:
    """Return which of these a peer holds whole.

    Args:
        connection: A bulk connection of which nothing has been read; it is closed afterwards.
        blobs: Digests.
        objects: Ids of manifests, schemas and payloads; whoever holds one answers by sending it.
    """
    questions: list[Message] = [HaveQuery(blob=blob) for blob in blobs]
    questions += [WantObject(id=object_id) for object_id in objects]
    survey = _Survey(connection, questions)
    try:
        await survey.run()
    except TransportError:
        pass
    finally:
        connection.close("nothing more to ask")
    return survey.held
