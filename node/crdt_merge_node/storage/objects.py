"""Manifests, schemas and payloads: small enough for rows, found by the id that their reader verifies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future

import apsw
from blake3 import blake3

from crdt_merge_node.errors import CorruptError

from .database import Database, done


class ObjectTable:
    """Objects by 32-byte id, with a checksum of their own: an id's hash domain only its reader knows."""

    def __init__(self, database: Database, *, report: Callable[[bytes, str], CorruptError]) -> None:
        self._database = database
        self._report = report
        self._lock = threading.Lock()
        self._ids: set[bytes] = set()

    def load_index(self) -> int:
        """Read which objects there are; return how many damaged rows were dropped."""
        dropped = 0
        for key, object_id in self._database.query("SELECT key, id FROM objects"):
            if type(object_id) is bytes:
                self._ids.add(object_id)
            else:
                self._database.delete("DELETE FROM objects WHERE key = ?", key)
                dropped += 1
        return dropped

    def ids(self) -> list[bytes]:
        """Return the ids of all objects that are here, sorted."""
        with self._lock:
            return sorted(self._ids)

    def has(self, object_id: bytes) -> bool:
        """Tell whether an object is here and durable."""
        return object_id in self._ids

    def forget(self, ids: Collection[bytes]) -> None:
        """Know nothing of these any more; their rows go in a transaction of the caller's."""
        with self._lock:
            self._ids.difference_update(ids)

    def put_soon(self, object_id: bytes, data: bytes) -> Future[None]:
        """Store an object; durable once the future completes. Does not block."""

        def change(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT INTO objects (id, checksum, data) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (object_id, blake3(data).digest(), data),
            )

        def note() -> None:
            with self._lock:
                self._ids.add(object_id)

        if object_id in self._ids:
            return done()
        return self._database.write_then(change, note)

    def get(self, object_id: bytes) -> bytes | None:
        """Return an object's bytes, or None.

        Raises:
            CorruptError: The bytes are damaged; the row was removed.
        """
        if object_id not in self._ids:
            return None
        rows = self._database.query("SELECT checksum, data FROM objects WHERE id = ?", object_id)
        if rows and type(rows[0][1]) is bytes and blake3(rows[0][1]).digest() == rows[0][0]:
            return bytes(rows[0][1])
        with self._lock:
            self._ids.discard(object_id)
        self._database.delete("DELETE FROM objects WHERE id = ?", object_id)
        raise self._report(object_id, "the object's bytes are damaged")
