"""Verified bytes on their way to the disk. Everything here blocks and runs in an executor."""

from __future__ import annotations

from collections.abc import Sequence

from crdt_merge_protocol.blobs import blob_digest, chunk_count, chunk_digest
from crdt_merge_protocol.errors import MalformedMessageError

from crdt_merge_node.errors import StorageError

from .ports import BlobStoreLike, PartialLike, bits_of


class Landing:
    """An unfinished blob of several chunks. One caller at a time."""

    def __init__(self, partial: PartialLike, digests: Sequence[bytes]) -> None:
        self._partial = partial
        self._digests = digests
        places: dict[bytes, list[int]] = {}
        for index, digest in enumerate(digests):
            places.setdefault(digest, []).append(index)
        # Zeros and padding repeat; a chunk that is here is never fetched a second time.
        self._twins = {digest: indices for digest, indices in places.items() if len(indices) > 1}

    @classmethod
    def begin(cls, blobs: BlobStoreLike, digest: bytes, nbytes: int, digests: Sequence[bytes]) -> Landing:
        """Reserve space for a blob, or continue with what a crash has left."""
        return cls(blobs.begin_partial(digest, nbytes, digests), digests)

    @property
    def present(self) -> int:
        """The chunks that are on disk, as bits."""
        return bits_of(self._partial.present)

    def write(self, chunks: list[tuple[int, bytes | memoryview]]) -> list[tuple[int, ...] | None]:
        """Verify and write chunks; None in place of those whose digest is wrong."""
        return [self._write_one(index, data) for index, data in chunks]

    def _write_one(self, index: int, data: bytes | memoryview) -> tuple[int, ...] | None:
        try:
            self._partial.write(index, data)
        except MalformedMessageError:
            return None
        # Only the last chunk can be shorter than the others, and then its digest differs from theirs.
        places = self._twins.get(self._digests[index], [index])
        for place in places:
            if not self._partial.present[place]:
                self._partial.write(place, data)
        if not all(self._partial.present[place] for place in places):
            raise StorageError("an unfinished blob was closed while it was being fetched.")
        return tuple(places)

    def finish(self) -> None:
        """Make the blob whole and durable."""
        self._partial.finish()

    def abandon(self) -> None:
        """Close the file. What has landed stays on disk; nothing happens to a finished blob."""
        self._partial.abandon()


def known_digests(blobs: BlobStoreLike, digest: bytes, nbytes: int) -> Sequence[bytes] | None:
    """Return the chunk digests of an unfinished blob of that size, if it is on disk."""
    partial = blobs.partial(digest)
    if partial is None or partial.nbytes != nbytes:
        return None
    return blobs.chunk_digests(digest)


def is_stored(blobs: BlobStoreLike, digest: bytes, nbytes: int) -> bool:
    """Tell whether a blob is whole here.

    Raises:
        MalformedMessageError: It is, and has another size than somebody claimed.
    """
    if not blobs.has(digest):
        return False
    check_size(digest, claimed=nbytes, actual=blobs.size(digest))
    return True


def store_chunk(blobs: BlobStoreLike, digest: bytes, data: bytes | memoryview) -> None:
    """Store a verified blob of one chunk that is too large for a row, durably. Blocks."""
    partial = blobs.begin_partial(digest, len(data), [chunk_digest(data)])
    if not partial.present[0]:
        partial.write(0, data)
    partial.finish()


def proves_size(digest: bytes, nbytes: int, digests: Sequence[bytes]) -> bool:
    """Tell whether a blob of that digest can only have that size and these chunks."""
    return len(digests) == chunk_count(nbytes) and blob_digest(nbytes, digests) == digest


def check_size(digest: bytes, *, claimed: int, actual: int | None) -> None:
    """Refuse a size that the digest disproves.

    Raises:
        MalformedMessageError: They differ; whoever wrote the manifest is wrong, not who serves the blob.
    """
    if actual != claimed:
        raise MalformedMessageError(
            f"blob {digest.hex()[:12]} has {actual} bytes, the manifest that names it says {claimed}.",
            hint="The contribution can never be used; its author has to add it again.",
        )
