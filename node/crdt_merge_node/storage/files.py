"""Files of blobs: where they are, how they get there, how they are set aside.

Names are made of digests and of random bytes of our own; nothing that a peer or a user chose becomes a path
(SCENARIOS T21).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from crdt_merge_protocol.blobs import chunk_bytes, chunk_count, chunk_digest
from crdt_merge_protocol.limits import CHUNK_BYTES

from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import File, Fs, Rng

from .health import Health
from .layout import DataDir


class UnreadableError(StorageError):
    """A file that is being read in cannot be, or ended early."""


class BlobFiles:
    """The directories ``blobs/``, ``tmp/`` and ``quarantine/`` of a store."""

    def __init__(self, data: DataDir, *, rng: Rng, health: Health) -> None:
        self.fs: Fs = data.fs
        self._data = data
        self._rng = rng
        self._health = health
        self._lock = threading.Lock()
        self._durable_prefixes: set[str] = set()

    def path_of(self, digest: bytes) -> Path:
        """Return where the file of a blob is."""
        name = digest.hex()
        return self._data.blobs / name[:2] / name[2:]

    def partial_path(self, digest: bytes) -> Path:
        """Return where a blob is while it is being fetched."""
        return self._data.partial / digest.hex()

    def temporary_path(self) -> Path:
        """Return a new name for a file that is being written."""
        return self._data.tmp / self._rng.bytes(16).hex()

    def publish(self, source: Path, digest: bytes) -> None:
        """Give a synced file its final name, durably.

        Raises:
            FullError: No room for the name.
            StoreFailedError: The disk failed.
        """
        target = self.path_of(digest)
        with self._health.writing(target):
            if target.parent.name not in self._durable_prefixes:
                self.fs.mkdir(target.parent)
                # Whoever made the directory: nobody goes on before its name is durable.
                self.fs.sync_dir(self._data.blobs)
                with self._lock:
                    self._durable_prefixes.add(target.parent.name)
            self.fs.rename(source, target)
            self.fs.sync_dir(target.parent)

    def withdraw(self, digest: bytes, path: Path) -> None:
        """Take back a published file for which there is no row."""
        with self._health.writing(path):
            self.fs.rename(self.path_of(digest), path)

    def sync(self, digest: bytes, file: File) -> None:
        """Make a file durable that has its final name already: its writer may have been killed before."""
        path = self.path_of(digest)
        with self._health.writing(path):
            file.sync()
            self.fs.sync_dir(path.parent)

    def trust_prefixes(self, names: Iterable[str]) -> None:
        """Make the names of existing directories durable, and know it."""
        with self._health.writing(self._data.blobs):
            self.fs.sync_dir(self._data.blobs)
        self._durable_prefixes.update(names)

    def unlink(self, path: Path) -> None:
        """Remove a file durably, if it is there."""
        with self._health.writing(path):
            if self.fs.stat(path) is not None:
                self.fs.unlink(path)
                self.fs.sync_dir(path.parent)

    def discard(self, temporary: Path) -> None:
        """Remove a temporary file if it is still there; nothing depends on when that becomes durable."""
        try:
            if self.fs.stat(temporary) is not None:
                self.fs.unlink(temporary)
        except OSError as error:
            self._health.fail(f"removing {temporary}", error)

    def set_aside(self, path: Path, name: str) -> None:
        """Move whatever is at ``path``, if anything, to ``quarantine/``."""
        target = self._data.quarantine / f"{name}.{self._rng.bytes(4).hex()}"
        with self._health.writing(path):
            if self.fs.stat(path) is not None:
                self.fs.rename(path, target)
                self.fs.sync_dir(path.parent)
                self.fs.sync_dir(self._data.quarantine)


class RangeReader:
    """Reads a range of a file chunk by chunk, hashing and scanning what passes through."""

    def __init__(
        self,
        file: File,
        path: Path,
        *,
        offset: int,
        nbytes: int,
        scan: Callable[[memoryview], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.digests: list[bytes] = []
        """Chunk digests of what was read so far."""
        self.is_finite = True
        """Whether every scan so far said True."""
        self._file = file
        self._path = path
        self._offset = offset
        self._nbytes = nbytes
        self._scan = scan
        self._progress = progress

    def __iter__(self) -> Iterator[bytes]:
        for index in range(chunk_count(self._nbytes)):
            size = chunk_bytes(self._nbytes, index)
            chunk = self._read(self._offset + index * CHUNK_BYTES, size)
            self.digests.append(chunk_digest(chunk))
            if self._scan is not None and not self._scan(memoryview(chunk)):
                self.is_finite = False
            if self._progress is not None:
                self._progress(index * CHUNK_BYTES + size)
            yield chunk

    def _read(self, offset: int, size: int) -> bytes:
        try:
            chunk = self._file.read_at(offset, size)
        except OSError as error:  # Not to be taken for an error of the file that is being written.
            raise UnreadableError(f"{self._path} cannot be read: {error.strerror}.") from error
        if len(chunk) != size:
            raise UnreadableError(
                f"{self._path} ended {size - len(chunk)} bytes too early.", hint="Is it being written?"
            )
        return chunk
