"""Content-addressed bytes: objects by id, tensors by blob digest (PROTOCOL 5, SCENARIOS 7).

A blob becomes visible in this order: bytes into ``tmp/`` or ``partial/`` under a name of our own, fsync,
rename to ``blobs/ab/<62 hex>``, fsync of that directory (and of ``blobs/`` when ``ab`` is new), a row,
COMMIT, and only then the index in memory that :meth:`BlobStore.has` reads. A crash leaves at worst a whole
file without a row, which the next start takes in after hashing it; never a row without its bytes.

What is read is verified chunk by chunk (``blob_reading``). Damage moves the file to ``quarantine/`` and
forgets the blob, which is then fetched again like any other that is missing (T41). All methods block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from crdt_merge_protocol.blobs import blob_digest, blob_digest_of, chunk_count, chunk_digest
from crdt_merge_protocol.errors import LocalProtocolError, MalformedMessageError
from crdt_merge_protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES, INLINE_BLOB_BYTES_MAX

from crdt_merge_node.errors import FullError, StorageError
from crdt_merge_node.ports import Rng

from .blob_reading import DAMAGE, NAME_LOCKS
from .database import Database, done
from .erasing import ErasableBlobs
from .files import RangeReader, UnreadableError
from .health import Health, Room
from .kept import Kept
from .layout import DataDir
from .partial import Partial, PartialPorts


class BlobStore(ErasableBlobs):
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
        super().__init__(data, database, rng=rng, health=health, room=room, on_corrupt=on_corrupt)
        self._lock = threading.Lock()
        self._partial_ports = PartialPorts(
            fs=self._fs,
            health=health,
            room=room,
            publish=self._publish_partial,
            forget=self._forget_partial,
        )

    # --- objects ------------------------------------------------------------------------------------

    def has_object(self, object_id: bytes) -> bool:
        """Tell whether a manifest, schema or payload is here and durable."""
        return self._objects.has(object_id)

    def object_ids(self) -> list[bytes]:
        """Return the ids of all objects that are here, sorted."""
        return self._objects.ids()

    def put_object(self, object_id: bytes, data: bytes) -> None:
        """Store an object whose id the caller has verified; durable on return."""
        self.put_object_soon(object_id, data).result()

    def put_object_soon(self, object_id: bytes, data: bytes) -> Future[None]:
        """Store an object without blocking; durable once the future completes.

        Raises:
            ErasedError: It was erased.
        """
        self._refuse_erased(object_id)
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
            self._refuse_erased(digest)
            if not self.has(digest):
                place = (kept.name, offset)
                self._index.register(digest, nbytes, reader.digests, kept=place).result()
        return digest, reader.is_finite

    def put_inline(self, digest: bytes, data: bytes) -> None:
        """Store a small blob as a row; durable on return. Raises like :meth:`put_inline_soon`."""
        self.put_inline_soon(digest, data).result()

    def put_inline_soon(self, digest: bytes, data: bytes) -> Future[None]:
        """Store a small blob as a row without blocking; durable once the future completes.

        Raises:
            MalformedMessageError: The bytes are not the blob.
            ErasedError: It was erased.
        """
        self._refuse_erased(digest)
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
            ErasedError: It was erased.
            FullError: It does not fit.
        """
        self._refuse_erased(digest)
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

    def _take_in(self, path: Path, digest: bytes, nbytes: int, chunks: Sequence[bytes]) -> None:
        """Make a synced file a blob. If there is no room for the row, the file goes back to where it was."""
        with self._name_locks[digest[0] % NAME_LOCKS]:
            if self.has(digest) or self.is_erased(digest):
                self.files.discard(path)
                self._refuse_erased(digest)
                return
            self.files.publish(path, digest)
            try:
                self._index.register(digest, nbytes, chunks, inline=None).result()
            except FullError:
                self.files.withdraw(digest, path)
                raise
