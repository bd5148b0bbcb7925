"""Destroying bytes for good (PROTOCOL R13, SCENARIOS T35, T36).

    refuse the ids in memory -> give the survivors of shared files files of their own
      -> one transaction: erased ids in; rows of objects and blobs out; files to go noted
      -> empty the write-ahead log -> unlink the files, sync their directories -> note that they are gone

Rows are overwritten by ``secure_delete``. Whatever a crash cuts off is done again: the ids are in the
database then, so the next start removes what is left of them before anything is served.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import apsw

from crdt_merge_node.errors import ErasedError
from crdt_merge_node.ports import Rng

from .blob_reading import NAME_LOCKS, StoredBlobs
from .database import Database
from .erased import ErasedIds, insert
from .files import RangeReader
from .health import Health, Room
from .layout import DataDir


class ErasableBlobs(StoredBlobs):
    """The blobs that are here, of which some can be made to go for ever."""

    def __init__(
        self, data: DataDir, database: Database, *, rng: Rng, health: Health, room: Room, **kwargs: Any
    ) -> None:
        super().__init__(data, database, rng=rng, health=health, **kwargs)
        self._database = database
        self._data = data
        self._health = health
        self._room = room
        self._erased = ErasedIds(database)

    def load_index(self) -> int:
        """Read what the database has; called once, before files are compared."""
        self._erased.load()
        return super().load_index()

    def is_erased(self, id_: bytes) -> bool:
        """Tell whether an object or blob was erased, and nothing unbanned has needed it since."""
        return id_ in self._erased

    def has_erased(self) -> bool:
        """Tell whether anything was ever erased here."""
        return bool(self._erased)

    def erased_among(self, ids: Collection[bytes]) -> list[bytes]:
        """Return those of ``ids`` that were erased, sorted."""
        return self._erased.among(ids)

    def permit(self, ids: Collection[bytes]) -> None:
        """Let these be stored again: a contribution that nobody banned consists of them. Durable."""
        self._erased.permit(ids)

    def erase(
        self, *, objects: Collection[bytes], blobs: Collection[bytes], beside: Collection[bytes] = ()
    ) -> None:
        """Destroy objects and blobs and refuse them from now on; durable on return. Idempotent.

        Args:
            objects: Ids of manifests, payloads and the like.
            blobs: Digests; nothing that is to stay consists of them.
            beside: Blobs that stay, of the same contributions: one file may hold both kinds.

        Raises:
            FullError: No room to take apart a file that holds both; nothing is lost, try again.
            StoreFailedError: The disk failed.
        """
        self._erased.refuse({*objects, *blobs})
        for lock in self._name_locks:
            with lock:
                pass  # Whoever was about to give a file its name has done so; the next one is refused.
        for digest in blobs:
            if (partial := self._partials.get(digest)) is not None:
                partial.abandon()
        shared = self._files_of({*blobs, *beside})
        self._rescue(shared, lost=frozenset(blobs))
        self._forget(objects, blobs)

        def change(connection: apsw.Connection) -> None:
            insert(connection, {*objects, *blobs})
            connection.executemany("DELETE FROM objects WHERE id = ?", ((id_,) for id_ in objects))
            # Damaged rows that were set aside hold most of what they held.
            aside = "DELETE FROM quarantine WHERE id = ? AND kind IN ('object', 'blob')"
            connection.executemany(aside, ((id_,) for id_ in (*objects, *blobs)))
            for digest in blobs:
                connection.execute(
                    "INSERT OR REPLACE INTO condemned (digest) "
                    "SELECT digest FROM blobs WHERE digest = ? AND inline IS NULL "
                    "AND digest NOT IN (SELECT digest FROM kept)",
                    (digest,),
                )
                connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
                connection.execute("DELETE FROM kept WHERE digest = ?", (digest,))

        # What was queued before is noted when this is: only now do the last of them leave the memory.
        forget = self._forget
        self._database.write_then(change, lambda: forget(objects, blobs), needs_room=False).result()
        self._database.empty_log()
        for name in shared:
            self._release(name)
        self._remove_files(blobs)

    def drop_objects(self, ids: Collection[bytes]) -> None:
        """Remove objects that nothing needs; durable on return, and they may be stored again."""
        rows = [(id_,) for id_ in ids]
        if rows:
            self._database.write_then(
                lambda connection: connection.executemany("DELETE FROM objects WHERE id = ?", rows),
                lambda: self._objects.forget(ids),
                needs_room=False,
            ).result()

    def drop_partial(self, digest: bytes) -> None:
        """Remove what came of a blob that nobody fetches any more, if there is something."""
        with self._name_locks[digest[0] % NAME_LOCKS]:
            path = self.files.partial_path(digest)
            if digest not in self._partials and self._fs.stat(path) is not None:
                self.files.unlink(path)

    def sweep_erased(self) -> int:
        """Remove what a crash or a restored backup left of what was erased; return how many things."""
        erased = self._erased.all()
        objects = [id_ for id_ in erased if self._objects.has(id_)]
        blobs = [id_ for id_ in erased if self.has(id_)]
        if objects or blobs:
            self.erase(objects=objects, blobs=blobs)
        return len(objects) + len(blobs) + self._remove_files(erased)

    def _refuse_erased(self, id_: bytes) -> None:
        if id_ in self._erased:
            raise ErasedError(
                f"{id_.hex()[:12]} was erased.",
                hint="Administrators of its group said so; it does not come back.",
            )

    def _forget(self, objects: Collection[bytes], blobs: Collection[bytes]) -> None:
        self._objects.forget(objects)
        for digest in blobs:
            self._index.drop(digest)

    def _files_of(self, blobs: Collection[bytes]) -> list[str]:
        """Return the users' files in which some of these blobs stand."""
        entries = (self._index.get(digest) for digest in blobs)
        return sorted({entry.file for entry in entries if entry is not None and entry.file})

    def _rescue(self, names: Collection[str], *, lost: frozenset[bytes]) -> None:
        """Give every other blob in these files a file of its own."""
        for digest in self.digests() if names else ():
            entry = self._index.get(digest)
            if entry is None or entry.file not in names or digest in lost:
                continue
            path = self.kept.path_of(entry.file)
            self._room.require_blob(entry.nbytes)
            temporary = self.files.temporary_path()
            try:
                with self._health.writing(temporary), self._fs.create(temporary) as file:
                    with self._fs.open_read(path) as source:
                        reader = RangeReader(source, path, offset=entry.offset, nbytes=entry.nbytes)
                        offset = 0
                        for chunk in reader:
                            file.write_at(offset, chunk)
                            offset += len(chunk)
                    file.sync()
                with self._name_locks[digest[0] % NAME_LOCKS]:
                    self.files.publish(temporary, digest)
                    self._index.unkeep(digest)
            finally:
                self.files.discard(temporary)

    def _remove_files(self, blobs: Collection[bytes]) -> int:
        """Remove every file that only has bytes of these; return how many there were."""
        if not blobs:
            return 0
        named = {digest.hex() for digest in blobs}
        removed = 0
        for digest in blobs:
            paths = [self.files.path_of(digest), self.files.partial_path(digest)]
            for path in paths:
                if self._fs.stat(path) is not None:
                    self.files.unlink(path)
                    removed += 1
        for name in self._fs.listdir(self._data.quarantine):
            if name.partition(".")[0] in named:
                self.files.unlink(self._data.quarantine / name)
                removed += 1
        self._index.acquit(*blobs)
        return removed
