"""What bulk transfer needs from its surroundings: a connection, a blob store, a clock.

``transport.connection.Connection`` and ``storage.blobs.BlobStore`` satisfy these; tests put simple ones in
their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from crdt_merge_protocol.messages.base import Message

from crdt_merge_node.transport.connection import Lane


class ClockLike(Protocol):
    """The two clocks of the clock port."""

    def now(self) -> float:
        """Return wall time in seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        ...


class ConnectionLike(Protocol):
    """A connection to an authenticated peer."""

    on_message: Any
    """Called with the connection and each message, once set; may raise RemoteProtocolError to end it."""

    @property
    def peer(self) -> bytes:
        """Node id of the peer."""
        ...

    @property
    def closed(self) -> asyncio.Future[str]:
        """Resolved with the reason when the connection has ended."""
        ...

    @property
    def bytes_in(self) -> int:
        """Bytes received so far."""
        ...

    def send(self, message: Message, lane: Lane) -> bool:
        """Queue a message; False if it was shed."""
        ...

    async def drain(self, lane: Lane | None = None) -> None:
        """Return when there is room to queue more; raise once the connection has ended."""
        ...

    def close(self, reason: str) -> None:
        """Tell the peer why and close."""
        ...


class PartialLike(Protocol):
    """A blob of which some chunks are on disk. Calls block."""

    @property
    def nbytes(self) -> int:
        """Size of the whole blob."""
        ...

    @property
    def chunk_digests(self) -> Sequence[bytes]:
        """BLAKE3 digests of the chunks."""
        ...

    @property
    def present(self) -> Sequence[int]:
        """One truth value a chunk: whether it is on disk and verified."""
        ...

    def write(self, index: int, chunk: bytes | memoryview) -> bool:
        """Write a chunk; False if it was there. Raises MalformedMessageError if its digest is wrong."""
        ...

    def finish(self) -> None:
        """Make the blob whole and durable."""
        ...

    def abandon(self) -> None:
        """Close what is open. What was written stays on disk; nothing happens to a finished blob."""
        ...


class BlobStoreLike(Protocol):
    """The blob store. Calls block, hence run in an executor; several threads may call at once."""

    def has(self, digest: bytes) -> bool:
        """Tell whether a blob is whole here. Does not block."""
        ...

    def size(self, digest: bytes) -> int | None:
        """Return the size of a whole blob. Does not block."""
        ...

    def has_object(self, object_id: bytes) -> bool:
        """Tell whether a manifest, schema or payload is here. Does not block."""
        ...

    def get_object(self, object_id: bytes) -> bytes | None:
        """Return a manifest, schema or payload."""
        ...

    def put_object_soon(self, object_id: bytes, data: bytes) -> Future[None]:
        """Store an object whose hash the caller has verified; durable once it completes. Does not block."""
        ...

    def put_inline_soon(self, digest: bytes, data: bytes) -> Future[None]:
        """Store a blob of at most 64 KiB; durable once the future completes. Does not block."""
        ...

    def begin_partial(self, digest: bytes, nbytes: int, chunk_digests: Sequence[bytes]) -> PartialLike:
        """Reserve space for a blob, or continue what is on disk."""
        ...

    def partial(self, digest: bytes) -> PartialLike | None:
        """Return what is on disk of an unfinished blob. Does not block."""
        ...

    def read_chunk(self, digest: bytes, index: int) -> bytes | None:
        """Return a verified chunk of a whole or unfinished blob."""
        ...

    def chunk_digests(self, digest: bytes) -> Sequence[bytes] | None:
        """Return the digests of the chunks of a whole or unfinished blob."""
        ...


def bits_of(present: Sequence[int]) -> int:
    """Return a sequence of truth values as a bit set."""
    digits = "".join("1" if here else "0" for here in reversed(present))
    return int(digits or "0", 2)
