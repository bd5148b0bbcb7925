"""Content-addressed bytes: objects by id, tensors by blob digest (PROTOCOL 5, SCENARIOS 7).

A blob becomes visible in this order: bytes into ``tmp/`` or ``partial/`` under a name of our own, fsync,
rename to ``blobs/ab/<62 hex>``, fsync of that directory (and of ``blobs/`` when ``ab`` is new), a row,
COMMIT, and only then the index in memory that :meth:`BlobStore.has` reads. A crash leaves at worst a whole
file without a row, which the next start takes in after hashing it; never a row without its bytes.

What is read is verified chunk by chunk. Damage moves the file to ``quarantine/`` and forgets the blob, which
is then fetched again like any other that is missing (T41). All methods block.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import blob_digest, blob_digest_of, chunk_bytes, chunk_count, chunk_digest
from crdt_merge_protocol.errors import LocalProtocolError, MalformedMessageError
from crdt_merge_protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES, INLINE_BLOB_BYTES_MAX

from crdt_merge_node.errors import CorruptError, FullError, StorageError
from crdt_merge_node.ports import Rng

from .blob_index import BlobIndex, Entry
from .database import Database, done
from .files import BlobFiles, RangeReader, UnreadableError
from .health import Health, Room
from .kept import Kept, KeptFiles
from .layout import DataDir
from .objects import ObjectTable
from .partial import Partial, PartialPorts

NAME_LOCKS: Final = 64
DAMAGE: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EIO})
"""Errors of opening or reading that say something about the blob and not about this process."""


class BlobStore:
    """The blobs and objects of one node. Safe to use from any thread; every method may block."""

    def __init__(
        self,
        data: DataDir,
        database: Database,
        *,
        rng: Rng,
        health: Health,
        room: Room,
        on_corrupt: Callable[[bytes, str], None] | None = None,
    ) -> None:
        self.files = BlobFiles(data, rng=rng, health=health)
        self.kept = KeptFiles(data, rng=rng, health=health)
        self._fs = data.fs
        self._health = health
        self._room = room
        self._on_corrupt = on_corrupt
        self._index = BlobIndex(database)
        self._objects = ObjectTable(database, report=self._report)
        self._lock = threading.Lock()
        # Held from a file's rename to its row's commit and while either goes away: a blob that is deleted and
        # fetched again at once must not lose its new file. Many, so that imports still share commits.
        self._name_locks = [threading.RLock() for _ in range(NAME_LOCKS)]
        self._partials: dict[bytes, Partial] = {}
        self._keeping: set[str] = set()
        """Kept files that are being read in."""
        self._partial_ports = PartialPorts(
            fs=self._fs,
            health=health,
            room=room,
            publish=self._publish_partial,
            forget=self._forget_partial,
        )

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

    # --- objects ------------------------------------------------------------------------------------

    def has_object(self, object_id: bytes) -> bool:
        """Tell whether a manifest, schema or payload is here and durable."""
        return self._objects.has(object_id)

    def put_object(self, object_id: bytes, data: bytes) -> None:
        """Store an object whose id the caller has verified; durable on return."""
        self.put_object_soon(object_id, data).result()

    def put_object_soon(self, object_id: bytes, data: bytes) -> Future[None]:
        """Store an object without blocking; durable once the future completes."""
        return self._objects.put_soon(object_id, data)

    def get_object(self, object_id: bytes) -> bytes | None:
        """Return an object's bytes, or None.

        Raises:
            CorruptError: The bytes are damaged; the object is forgotten and can be fetched again.
        """
        return self._objects.get(object_id)

    # --- blobs from this node -----------------------------------------------------------------------

    def import_tensor(
        self,
        path: Path,
        offset: int,
        nbytes: int,
        *,
        scan: Callable[[memoryview], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[bytes, bool]:
        """Copy a range of a user's file into the store; durable on return.

        Args:
            path: The file; a symbolic link is followed.
            offset: Where the tensor begins, in bytes.
            nbytes: Its size.
            scan: Tells of each chunk whether all its numbers are finite.
            progress: Called with the number of bytes copied so far; may raise to cancel.

        Returns:
            The blob digest, and whether every scan said True.

        Raises:
            StorageError: The file cannot be read or ends too early.
            FullError: No room. Nothing is left behind.
        """
        if not 0 <= nbytes <= BLOB_BYTES_MAX:
            raise LocalProtocolError(f"a blob has at most {BLOB_BYTES_MAX} bytes, this one {nbytes}.")
        try:
            source = self._fs.open_read(path, follow=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        with source:
            reader = RangeReader(source, path, offset=offset, nbytes=nbytes, scan=scan, progress=progress)
            if nbytes <= INLINE_BLOB_BYTES_MAX:
                data = b"".join(reader)
                digest = blob_digest(nbytes, reader.digests)
                self.put_inline(digest, data)
            else:
                digest = self._import_file(reader, nbytes)
        return digest, reader.is_finite

    @contextmanager
    def keeping(self, path: Path, *, may_link: bool) -> Iterator[Kept | None]:
        """Keep a user's file for :meth:`keep_tensor`; it goes if no blob of it is left when the block ends.

        Yields:
            None if the file can only be copied.
        """
        kept = self.kept.take(path, may_link=may_link)
        if kept is None:
            yield None
            return
        self._keeping.add(kept.name)
        try:
            yield kept
        finally:
            self._keeping.discard(kept.name)
            self._release(kept.name)

    def keep_tensor(
        self,
        kept: Kept,
        offset: int,
        nbytes: int,
        *,
        scan: Callable[[memoryview], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[bytes, bool]:
        """Make a range of a kept file a blob, as :meth:`import_tensor` does with a copy of it."""
        if nbytes <= INLINE_BLOB_BYTES_MAX:
            return self.import_tensor(kept.path, offset, nbytes, scan=scan, progress=progress)
        try:
            source = self._fs.open_read(kept.path)
        except OSError as error:
            raise StorageError(f"{kept.path} cannot be read: {error.strerror}.") from error
        with source:
            reader = RangeReader(
                source, kept.path, offset=offset, nbytes=nbytes, scan=scan, progress=progress
            )
            for _chunk in reader:
                pass
        digest = blob_digest(nbytes, reader.digests)
        with self._name_locks[digest[0] % NAME_LOCKS]:
            if not self.has(digest):
                place = (kept.name, offset)
                self._index.register(digest, nbytes, reader.digests, kept=place).result()
        return digest, reader.is_finite

    def _release(self, name: str) -> None:
        """Remove a kept file if no blob of it is left and none is being read in."""
        if name not in self._keeping and not self._index.is_kept(name):
            self.kept.drop(name)

    def put_inline(self, digest: bytes, data: bytes) -> None:
        """Store a small blob as a row; durable on return. Raises like :meth:`put_inline_soon`."""
        self.put_inline_soon(digest, data).result()

    def put_inline_soon(self, digest: bytes, data: bytes) -> Future[None]:
        """Store a small blob as a row without blocking; durable once the future completes.

        Raises:
            MalformedMessageError: The bytes are not the blob.
        """
        if len(data) > INLINE_BLOB_BYTES_MAX:
            raise LocalProtocolError(
                f"{len(data)} bytes are too many for a row, {INLINE_BLOB_BYTES_MAX} fit."
            )
        if blob_digest_of(data) != digest:
            raise MalformedMessageError(f"the bytes are not blob {digest.hex()[:12]}.")
        if self.has(digest):
            return done()
        return self._index.register(digest, len(data), [chunk_digest(data)] if data else [], inline=data)

    def delete(self, digest: bytes) -> None:
        """Remove a blob; once this has returned it cannot come back by itself."""
        with self._name_locks[digest[0] % NAME_LOCKS]:
            entry = self._index.condemn(digest)
            if entry is not None and entry.file:
                self._release(entry.file)
            elif entry is not None and not entry.is_inline:
                self._remove_file(digest)

    def sweep_kept(self) -> int:
        """Remove the kept files that hold no blob; return how many they were. Called once, at the start."""
        unused = [name for name in self.kept.names() if not self._index.is_kept(name)]
        for name in unused:
            self.kept.drop(name)
        return len(unused)

    def finish_deletions(self) -> None:
        """Remove the files that the last process had no time to remove."""
        for digest in self._index.condemned():
            self._remove_file(digest)

    def _remove_file(self, digest: bytes) -> None:
        self.files.unlink(self.files.path_of(digest))
        self._index.acquit(digest)

    def _import_file(self, reader: RangeReader, nbytes: int) -> bytes:
        self._room.require_blob(nbytes)
        temporary = self.files.temporary_path()
        self._room.promise(temporary, nbytes)
        try:
            with self._health.writing(temporary), self._fs.create(temporary) as file:
                for position, chunk in enumerate(reader):
                    file.write_at(position * CHUNK_BYTES, chunk)
                digest = blob_digest(nbytes, reader.digests)
                if not self.has(digest):
                    file.sync()
            self._take_in(temporary, digest, nbytes, reader.digests)
        finally:
            self._room.promise(temporary, 0)
            self.files.discard(temporary)
        return digest

    # --- blobs from peers ---------------------------------------------------------------------------

    def begin_partial(self, digest: bytes, nbytes: int, chunk_digests: Sequence[bytes]) -> Partial:
        """Return the blob as far as it is here, ready to take the rest; the same object while it is open.

        A blob that is here already comes back with every chunk present and ``is_finished``.

        Raises:
            MalformedMessageError: The chunk digests do not make this blob.
            FullError: It does not fit.
        """
        count = chunk_count(nbytes) if 0 <= nbytes <= BLOB_BYTES_MAX else -1
        if len(chunk_digests) != count or blob_digest(nbytes, chunk_digests) != digest:
            raise MalformedMessageError(f"the list of chunks does not make blob {digest.hex()[:12]}.")
        path = self.files.partial_path(digest)
        with self._lock:
            partial = self._partials.get(digest)
            if partial is None:
                partial = Partial(digest, nbytes, chunk_digests, path=path, ports=self._partial_ports)
                if self.has(digest):
                    partial.mark_whole()
                    return partial
                self._partials[digest] = partial
        try:
            partial.prepare()  # Hashes what is on disk: long, so not under the lock of the whole store.
        except BaseException:
            self._forget_partial(partial)
            raise
        return partial

    def partial(self, digest: bytes) -> Partial | None:
        """Return a blob that is being fetched, or None."""
        return self._partials.get(digest)

    def _publish_partial(self, partial: Partial) -> None:
        if partial.is_inline:
            self.put_inline(partial.digest, partial.content)
        else:
            self._take_in(partial.path, partial.digest, partial.nbytes, partial.chunk_digests)

    def _forget_partial(self, partial: Partial) -> None:
        with self._lock:
            if self._partials.get(partial.digest) is partial:
                del self._partials[partial.digest]

    # --- damage -------------------------------------------------------------------------------------

    def adopt(self, digest: bytes) -> bool:
        """Take in a file without a row, which a crash left, if its bytes are what its name says."""
        path = self.files.path_of(digest)
        try:
            with self._fs.open_read(path) as file:
                nbytes = file.size()
                reader = RangeReader(file, path, offset=0, nbytes=nbytes)
                for _chunk in reader:
                    pass
                if blob_digest(nbytes, reader.digests) != digest:
                    return False
                self.files.sync(digest, file)
        except UnreadableError:
            return False
        except OSError as error:
            if error.errno in DAMAGE:
                return False
            raise StorageError(f"{path}: {error.strerror}.") from error
        self._index.register(digest, nbytes, reader.digests, inline=None).result()
        return True

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

    def _take_in(self, path: Path, digest: bytes, nbytes: int, chunks: Sequence[bytes]) -> None:
        """Make a synced file a blob. If there is no room for the row, the file goes back to where it was."""
        with self._name_locks[digest[0] % NAME_LOCKS]:
            if self.has(digest):
                self.files.discard(path)
                return
            self.files.publish(path, digest)
            try:
                self._index.register(digest, nbytes, chunks, inline=None).result()
            except FullError:
                self.files.withdraw(digest, path)
                raise
