"""A blob that is being fetched: chunks arrive in any order, each verified before it is written.

What has arrived is in ``partial/<digest>``, a sparse file of the final size. Nothing beside it records which
chunks are there: after a crash they are hashed again, so that a chunk counts as present exactly if its bytes
are (SCENARIOS T43). Syncing every 64 MiB bounds what a power cut costs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import chunk_bytes, chunk_count, chunk_digest
from crdt_merge_protocol.errors import LocalProtocolError, MalformedMessageError
from crdt_merge_protocol.limits import CHUNK_BYTES, INLINE_BLOB_BYTES_MAX, MIB

from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import File, Fs

from .health import Health, Room

SYNC_BYTES: Final = 64 * MIB
"""PROTOCOL 5: a crash costs at most this much to be fetched again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialPorts:
    """What a partial blob needs of its store."""

    fs: Fs
    health: Health
    room: Room
    publish: Callable[[Partial], None]
    """Make the whole blob durable under its final name."""
    forget: Callable[[Partial], None]


class Partial:
    """One blob on its way here. Methods block and may be called from any thread."""

    def __init__(
        self, digest: bytes, nbytes: int, chunk_digests: Sequence[bytes], *, path: Path, ports: PartialPorts
    ) -> None:
        self.digest = digest
        self.nbytes = nbytes
        self.chunk_digests = list(chunk_digests)
        self.path = path
        self.present = bytearray(chunk_count(nbytes))
        """One byte per chunk: 1 if its verified bytes are here."""
        self.is_finished = False
        self._ports = ports
        self._lock = threading.Lock()
        self._file: File | None = None
        self._buffer: bytearray | None = None
        self._is_prepared = False
        self._unsynced = 0
        self.missing_bytes = nbytes
        """Bytes that have not arrived yet."""

    @property
    def is_inline(self) -> bool:
        """Whether the blob will be a row and not a file."""
        return self.nbytes <= INLINE_BLOB_BYTES_MAX

    @property
    def content(self) -> bytes:
        """All bytes of a small blob."""
        assert self._buffer is not None
        return bytes(self._buffer)

    def prepare(self) -> None:
        """Make room and find out what an earlier process left; called by the store. Idempotent.

        Raises:
            FullError: The blob does not fit.
            StoreFailedError: The disk failed.
        """
        with self._lock:
            if self._is_prepared or self.is_finished:
                return
            if self.is_inline:
                self._buffer = bytearray(self.nbytes)
            else:
                self._open()
            self._is_prepared = True

    def mark_whole(self) -> None:
        """Say that the store has the blob already, so that there is nothing to do."""
        self.present = bytearray(b"\x01" * len(self.present))
        self.missing_bytes = 0
        self.is_finished = True

    def _open(self) -> None:
        fs, health = self._ports.fs, self._ports.health
        with health.writing(self.path):
            found = fs.stat(self.path)
            if found is not None and not found.is_file:
                raise StorageError(f"{self.path} is not a regular file.", hint="Remove it.")
            self._file = fs.open_write(self.path) if found else fs.create(self.path)
            try:
                if self._file.size() > self.nbytes:
                    self._file.truncate(self.nbytes)
                self._find_present(self._file)
                self._ports.room.require_blob(self.missing_bytes)
            except BaseException:
                self._close()
                raise
        self._ports.room.promise(self, self.missing_bytes)

    def write(self, index: int, chunk: bytes | bytearray | memoryview) -> bool:
        """Keep a chunk; False if it was here.

        Raises:
            MalformedMessageError: The bytes are not this chunk: whoever sent them is to blame.
            FullError: No room. What is here stays; write again later.
        """
        if not 0 <= index < len(self.present):
            raise MalformedMessageError(
                f"the blob has {len(self.present)} chunks, {index} is not one of them."
            )
        size = chunk_bytes(self.nbytes, index)
        if len(chunk) != size or chunk_digest(chunk) != self.chunk_digests[index]:
            raise MalformedMessageError(
                f"chunk {index} of blob {self.digest.hex()[:12]} is not what was asked for."
            )
        with self._lock:
            if self.present[index] or self.is_finished:
                return False
            self._store(index, chunk)
            self.present[index] = 1
            self.missing_bytes -= size
            if not self.is_inline:
                self._ports.room.promise(self, self.missing_bytes)
        return True

    def read(self, index: int) -> bytes | None:
        """Return a chunk that is here, verified again, or None."""
        with self._lock:
            if self.is_finished or not 0 <= index < len(self.present) or not self.present[index]:
                return None
            data = self._load(index)
            if chunk_digest(data) == self.chunk_digests[index]:
                return data
            self.present[index] = 0  # Rotten since it was written: fetch it again.
            self.missing_bytes += chunk_bytes(self.nbytes, index)
        return None

    def finish(self) -> None:
        """Make the blob durable and whole; the store then has it. Idempotent.

        Raises:
            LocalProtocolError: Chunks are missing.
            FullError: No room; try again later.
            StoreFailedError: The disk failed.
        """
        with self._lock:
            if self.is_finished:
                return
            if not all(self.present):
                raise LocalProtocolError(
                    f"{self.present.count(0)} chunks of {self.digest.hex()[:12]} are missing."
                )
            self._sync()
            self._ports.publish(self)
            self.is_finished = True
            self._close()
        self._ports.room.promise(self, 0)
        self._ports.forget(self)

    def abandon(self) -> None:
        """Stop fetching. What has arrived stays on disk for another time."""
        with self._lock:
            self._close()
            self.is_finished = True
        self._ports.room.promise(self, 0)
        self._ports.forget(self)

    def _find_present(self, file: File) -> None:
        size = file.size()
        self.missing_bytes = self.nbytes
        for index, expected in enumerate(self.chunk_digests):
            if index * CHUNK_BYTES >= size:
                break
            try:
                data = file.read_at(index * CHUNK_BYTES, chunk_bytes(self.nbytes, index))
            except OSError:  # An unreadable sector: writing the chunk again lets the disk remap it.
                continue
            if chunk_digest(data) == expected:
                self.present[index] = 1
                self.missing_bytes -= len(data)

    def _store(self, index: int, chunk: bytes | bytearray | memoryview) -> None:
        offset = index * CHUNK_BYTES
        if self._buffer is not None:
            self._buffer[offset : offset + len(chunk)] = chunk
            return
        assert self._file is not None
        with self._ports.health.writing(self.path):
            self._file.write_at(offset, chunk)
            self._file.begin_sync(offset, len(chunk))
        self._unsynced += len(chunk)
        if self._unsynced >= SYNC_BYTES:
            self._sync()

    def _load(self, index: int) -> bytes:
        offset, size = index * CHUNK_BYTES, chunk_bytes(self.nbytes, index)
        if self._buffer is not None:
            return bytes(self._buffer[offset : offset + size])
        assert self._file is not None
        try:
            return self._file.read_at(offset, size)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}.") from error

    def _sync(self) -> None:
        if self._file is None:
            return
        try:
            with self._ports.health.writing(self.path):
                self._file.sync()
        except StorageError:
            # The kernel may now hold clean pages that the disk never got. Nothing in this file can be
            # believed, not even after hashing it, so it must not survive as something to resume from.
            self._discard()
            raise
        self._unsynced = 0

    def _discard(self) -> None:
        self._close()
        self.is_finished = True
        try:
            self._ports.fs.unlink(self.path)
        except OSError as error:
            self._ports.health.fail(f"removing {self.path}", error)
        self._ports.room.promise(self, 0)
        self._ports.forget(self)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
