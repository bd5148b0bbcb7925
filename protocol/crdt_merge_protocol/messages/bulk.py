"""Messages of a bulk connection: objects by their hash, blobs by chunks (PROTOCOL 5).

One side asks (WANT…, HAVE?), the other answers; nothing is ever pushed. An *object* is a manifest, a schema
or a payload: small, one whole. A *blob* comes in chunks, in any order, from whoever has them. Everything that
a message says about itself (sizes, positions, counts) is checked here; whether the bytes are the right ones
is known only by hashing them, which the receiver does before it stores anything.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from crdt_merge_protocol.blobs import chunk_bytes, chunk_count
from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.limits import (
    BLOB_BYTES_MAX,
    CHUNK_BYTES,
    DATA_BODY_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    WANT_CHUNKS_MAX,
)

from .base import ControlMessage, DataMessage, Fields, register

DIGEST_BYTES: Final = 32
INDEX_MAX: Final = BLOB_BYTES_MAX // CHUNK_BYTES - 1
_OBJECT_HEADER: Final = struct.Struct(">32sII")
_CHUNK_HEADER: Final = struct.Struct(">32sQI")
_LIST_HEADER: Final = struct.Struct(">32sQ")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class WantObject(ControlMessage):
    """Asks for an object; answered by one or more :class:`Object`, or by :class:`Absent`."""

    TYPE: ClassVar[int] = 80

    id: bytes

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(id=fields.id())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Object(DataMessage):
    """A slice of an object. Slices come in order, without gap or overlap."""

    TYPE: ClassVar[int] = 81

    id: bytes
    nbytes: int
    """Size of the whole object."""
    offset: int
    data: bytes
    """At most 1 MiB; empty only if the object is."""

    def to_body(self) -> bytes:
        """Return the header followed by the bytes."""
        return _OBJECT_HEADER.pack(self.id, self.nbytes, self.offset) + self.data

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Return the message in ``body``."""
        object_id, nbytes, offset = _unpack(_OBJECT_HEADER, body, what="object")
        data = body[_OBJECT_HEADER.size :]
        if nbytes > MANIFEST_BYTES_MAX:
            raise LimitExceededError(
                f"an object of {nbytes} bytes is offered, at most {MANIFEST_BYTES_MAX} are read."
            )
        if len(data) > CHUNK_BYTES or offset + len(data) > nbytes or bool(data) != bool(nbytes):
            raise MalformedMessageError(
                f"{len(data)} bytes at {offset} are no slice of an object of {nbytes} bytes."
            )
        return cls(id=object_id, nbytes=nbytes, offset=offset, data=data)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class WantChunks(ControlMessage):
    """Asks for chunks of a blob; each is answered by a :class:`Chunk` or named in an :class:`Absent`."""

    TYPE: ClassVar[int] = 82

    blob: bytes
    indices: tuple[int, ...]
    """Between 1 and 64, ascending."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        message = cls(blob=fields.id(), indices=_indices(fields))
        if not message.indices:
            raise MalformedMessageError("WantChunks names no chunk.")
        return message


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(DataMessage):
    """One whole chunk of a blob."""

    TYPE: ClassVar[int] = 83

    blob: bytes
    nbytes: int
    """Size of the whole blob, as the sender has it. Part of the digest, hence provable."""
    index: int
    data: bytes | memoryview
    """Read from a frame it is a view of the frame: copying a MiB costs as much as decrypting it."""

    def to_body(self) -> bytes:
        """Return the header followed by the bytes."""
        return b"".join(self.to_pieces())

    def to_pieces(self) -> tuple[bytes | memoryview, ...]:
        """Return the header and the bytes."""
        return _CHUNK_HEADER.pack(self.blob, self.nbytes, self.index), memoryview(self.data)

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Return the message in ``body``, with a view of it."""
        return cls.from_view(memoryview(body))

    @classmethod
    def from_view(cls, body: memoryview) -> Self:
        """Return the message in ``body``, with a view of it."""
        blob, nbytes, index = _unpack(_CHUNK_HEADER, body, what="chunk")
        data = body[_CHUNK_HEADER.size :]
        _check_blob_size(nbytes)
        if index >= chunk_count(nbytes) or len(data) != chunk_bytes(nbytes, index):
            raise MalformedMessageError(
                f"{len(data)} bytes are not chunk {index} of a blob of {nbytes} bytes."
            )
        return cls(blob=blob, nbytes=nbytes, index=index, data=data)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class HaveQuery(ControlMessage):
    """Asks which chunks of a blob are there; answered by :class:`Have` or :class:`Absent`."""

    TYPE: ClassVar[int] = 84

    blob: bytes

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(blob=fields.id())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Have(ControlMessage):
    """Which chunks of a blob the sender can give now; more may follow while it fetches them itself."""

    TYPE: ClassVar[int] = 85

    blob: bytes
    nbytes: int
    chunks: int = field(repr=False)  # Python refuses to write integers of thousands of digits.
    """Bit ``i`` is set if chunk ``i`` is there. On the wire: little-endian bytes, one bit a chunk."""

    def to_fields(self) -> list[Any]:
        """Return the fields in wire order."""
        width = -(-chunk_count(self.nbytes) // 8)
        return [self.blob, self.nbytes, self.chunks.to_bytes(width, "little")]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        blob, nbytes = fields.id(), fields.integer(high=BLOB_BYTES_MAX)
        count = chunk_count(nbytes)
        chunks = int.from_bytes(fields.blob(size=-(-count // 8)), "little")
        if chunks >> count:
            raise MalformedMessageError(f"Have names chunks beyond the {count} of the blob.")
        return cls(blob=blob, nbytes=nbytes, chunks=chunks)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Absent(ControlMessage):
    """The sender cannot give these chunks; without indices, nothing at all under this id."""

    TYPE: ClassVar[int] = 86

    id: bytes
    indices: tuple[int, ...] = ()

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(id=fields.id(), indices=_indices(fields))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class WantChunkList(ControlMessage):
    """Asks for the chunk digests of a blob; answered by :class:`ChunkList` or :class:`Absent`."""

    TYPE: ClassVar[int] = 87

    blob: bytes

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(blob=fields.id())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkList(DataMessage):
    """The size of a blob and the digests of its chunks: together they hash to its digest."""

    TYPE: ClassVar[int] = 88

    blob: bytes
    nbytes: int
    digests: tuple[bytes, ...]

    def to_body(self) -> bytes:
        """Return the header followed by the digests."""
        return _LIST_HEADER.pack(self.blob, self.nbytes) + b"".join(self.digests)

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Return the message in ``body``."""
        blob, nbytes = _unpack(_LIST_HEADER, body, what="chunk list")
        if nbytes:
            _check_blob_size(nbytes)
        if len(body) != _LIST_HEADER.size + DIGEST_BYTES * chunk_count(nbytes):
            raise MalformedMessageError(f"a chunk list of {len(body)} bytes does not fit {nbytes} bytes.")
        starts = range(_LIST_HEADER.size, len(body), DIGEST_BYTES)
        return cls(blob=blob, nbytes=nbytes, digests=tuple(body[at : at + DIGEST_BYTES] for at in starts))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class CancelChunks(ControlMessage):
    """The sender no longer waits for these chunks. Those on their way still arrive, the others need not."""

    TYPE: ClassVar[int] = 89
    CRITICAL: ClassVar[bool] = False

    blob: bytes
    indices: tuple[int, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(blob=fields.id(), indices=_indices(fields))


def _unpack(header: struct.Struct, body: bytes | memoryview, *, what: str) -> tuple[Any, ...]:
    if len(body) < header.size or len(body) > DATA_BODY_BYTES_MAX:
        raise MalformedMessageError(f"{len(body)} bytes are no {what} message.")
    return header.unpack_from(body)


def _check_blob_size(nbytes: int) -> None:
    if not 0 < nbytes <= BLOB_BYTES_MAX:
        raise LimitExceededError(f"a blob of {nbytes} bytes; chunks exist of 1..{BLOB_BYTES_MAX} bytes.")


def _indices(fields: Fields) -> tuple[int, ...]:
    items = fields.items(count_max=WANT_CHUNKS_MAX)
    reader = Fields(items, what="chunk indices")
    indices = tuple(reader.integer(high=INDEX_MAX) for _ in items)
    if any(first >= second for first, second in itertools.pairwise(indices)):
        raise MalformedMessageError("chunk indices are not ascending.")
    return indices
