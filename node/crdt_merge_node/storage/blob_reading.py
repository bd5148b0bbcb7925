"""What of the blob store is here: asking, reading with every byte verified, setting aside what is damaged."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import blob_digest_of, chunk_bytes, chunk_count, chunk_digest
from crdt_merge_protocol.limits import CHUNK_BYTES

from crdt_merge_node.errors import CorruptError, StorageError
from crdt_merge_node.ports import Rng

from .blob_index import BlobIndex, Entry
from .database import Database
from .files import BlobFiles
from .health import Health
from .kept import KeptFiles
from .layout import DataDir
from .objects import ObjectTable
from .partial import Partial

NAME_LOCKS: Final = 64
DAMAGE: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EIO})
"""Errors of opening or reading that say something about the blob and not about this process."""


class StoredBlobs:
    """The blobs that are here, and as much as has come of those that are being fetched."""

    def __init__(
        self,
        data: DataDir,
        database: Database,
        *,
        rng: Rng,
        health: Health,
        on_corrupt: Callable[[bytes, str], None] | None = None,
    ) -> None:
        self.files = BlobFiles(data, rng=rng, health=health)
        self.kept = KeptFiles(data, rng=rng, health=health)
        self._fs = data.fs
        self._on_corrupt = on_corrupt
        self._index = BlobIndex(database)
        self._objects = ObjectTable(database, report=self._report)
        # Held from a file's rename to its row's commit and while either goes away: a blob that is deleted and
        # fetched again at once must not lose its new file. Many, so that imports still share commits.
        self._name_locks = [threading.RLock() for _ in range(NAME_LOCKS)]
        self._partials: dict[bytes, Partial] = {}
        self._keeping: set[str] = set()
        """Kept files that are being read in."""

    # --- what is here -------------------------------------------------------------------------------

    def load_index(self) -> int:
        """Read what the database has, and drop rows that are damaged; called once, before files are compared.

        Returns:
            Number of rows dropped. Nothing is lost with them that is not found or fetched by its hash.
        """
        return self._index.load() + self._objects.load_index()

    def has(self, digest: bytes) -> bool:
        """Tell whether the whole blob is here and durable."""
        return self._index.get(digest) is not None

    def size(self, digest: bytes) -> int | None:
        """Return the size of a blob that is here, in bytes."""
        entry = self._index.get(digest)
        return entry.nbytes if entry else None

    def is_stored_inline(self, digest: bytes) -> bool:
        """Tell whether the blob is here as a row and not as a file."""
        entry = self._index.get(digest)
        return entry is not None and entry.is_inline

    def digests(self) -> list[bytes]:
        """Return the digests of all blobs that are here, sorted."""
        return self._index.digests()

    def total_bytes(self) -> int:
        """Return the size of all blobs that are here."""
        return self._index.total_bytes

    def source(self, digest: bytes) -> tuple[Path | None, int, int, bytes | None]:
        """Return (file, offset, size, bytes of a small blob) from which a blob can be read.

        Raises:
            StorageError: It is not here.
            CorruptError: Its file is gone or has another size.
        """
        entry = self._entry(digest)
        if entry.is_inline:
            return None, 0, entry.nbytes, self._read_inline(digest)
        if not self.is_in_place(digest):
            raise self.quarantine(digest, "its file is gone or has another size")
        return self._path(digest, entry), entry.offset, entry.nbytes, None

    def is_in_place(self, digest: bytes) -> bool:
        """Tell whether a blob is a row, or its file is there and as long as it has to be."""
        entry = self._entry(digest)
        if entry.is_inline:
            return True
        found = self._fs.stat(self._path(digest, entry))
        if found is None or not found.is_file:
            return False
        return found.nbytes >= entry.offset + entry.nbytes if entry.file else found.nbytes == entry.nbytes

    def is_kept(self, digest: bytes) -> bool:
        """Tell whether the blob stands in a user's file."""
        entry = self._index.get(digest)
        return entry is not None and bool(entry.file)

    def _path(self, digest: bytes, entry: Entry) -> Path:
        return self.kept.path_of(entry.file) if entry.file else self.files.path_of(digest)

    def chunk_digests(self, digest: bytes) -> list[bytes] | None:
        """Return the chunk digests of a blob that is here or being fetched, or None.

        Raises:
            CorruptError: The list is damaged; the blob was set aside.
        """
        chunks = self._chunks(digest)
        return list(chunks) if chunks is not None else None

    def read_chunk(self, digest: bytes, index: int) -> bytes | None:
        """Return a verified chunk of a blob that is here or being fetched, or None.

        Raises:
            CorruptError: The bytes on disk are not the chunk; the blob was set aside.
        """
        entry, partial = self._index.get(digest), self._partials.get(digest)
        if entry is None:
            return partial.read(index) if partial is not None else None
        if entry.is_inline:  # One row and one hash: its only chunk is the blob.
            return self._read_inline(digest) if index == 0 < entry.nbytes else None
        chunks = self._chunks(digest)
        if chunks is None or not 0 <= index < len(chunks):
            return None
        data = self._read_file(digest, entry, index)
        if data is not None and chunk_digest(data) != chunks[index]:
            raise self.quarantine(digest, f"chunk {index} has other bytes")
        return data

    def verify(self, digest: bytes, *, progress: Callable[[int], None] | None = None) -> None:
        """Hash a whole blob again.

        Raises:
            CorruptError: It is damaged and was set aside.
            StorageError: It is not here.
        """
        entry = self._entry(digest)
        for index in range(chunk_count(entry.nbytes)):
            data = self.read_chunk(digest, index)
            if data is None:
                raise StorageError(f"blob {digest.hex()[:12]} was deleted while it was read.")
            if progress is not None:
                progress(index * CHUNK_BYTES + len(data))

    def _release(self, name: str) -> None:
        """Remove a kept file if no blob of it is left and none is being read in."""
        if name not in self._keeping and not self._index.is_kept(name):
            self.kept.drop(name)

    # --- damage -------------------------------------------------------------------------------------

    def quarantine(self, digest: bytes, reason: str) -> CorruptError:
        """Forget a damaged blob and move its file out of the way; return the error to raise."""
        with self._name_locks[digest[0] % NAME_LOCKS]:
            entry = self._index.forget(digest)
            if entry is not None and entry.file:
                self._release(entry.file)
            else:
                self.files.set_aside(self.files.path_of(digest), digest.hex())
        return self._report(digest, reason)

    def _report(self, digest: bytes, reason: str) -> CorruptError:
        if self._on_corrupt is not None:
            self._on_corrupt(digest, reason)
        return CorruptError(
            f"{digest.hex()[:12]} is damaged: {reason}.",
            hint="It was set aside and will be fetched again.",
        )

    def _entry(self, digest: bytes) -> Entry:
        entry = self._index.get(digest)
        if entry is None:
            raise StorageError(f"blob {digest.hex()[:12]} is not here.", hint="Fetch it from a peer.")
        return entry

    def _chunks(self, digest: bytes) -> Sequence[bytes] | None:
        if partial := self._partials.get(digest):
            return partial.chunk_digests
        entry = self._index.get(digest)
        if entry is None:
            return None
        chunks = self._index.chunks(digest, entry.nbytes)
        if chunks is None:
            raise self.quarantine(digest, "its list of chunks is damaged")
        return chunks

    def _read_inline(self, digest: bytes) -> bytes:
        data = self._index.inline(digest)
        if type(data) is not bytes or blob_digest_of(data) != digest:
            raise self.quarantine(digest, "its row is damaged")
        return data

    def _read_file(self, digest: bytes, entry: Entry, index: int) -> bytes | None:
        path = self._path(digest, entry)
        try:
            with self._fs.open_read(path) as file:
                return file.read_at(entry.offset + index * CHUNK_BYTES, chunk_bytes(entry.nbytes, index))
        except OSError as error:
            if not self.has(digest):  # Deleted between the look into the index and here.
                return None
            if error.errno in DAMAGE:
                raise self.quarantine(digest, error.strerror or "unreadable") from error
            raise StorageError(f"{path}: {error.strerror}.") from error
