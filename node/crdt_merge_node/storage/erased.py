"""Which objects and blobs were erased: rows of the database, and a set of them in memory (PROTOCOL R13).

An id enters the memory before anything is destroyed and leaves it after the row went: what this set has is
written nowhere, whatever else happens.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

import apsw

from .database import Database


class ErasedIds:
    """Ids of what must not be stored again. Looking one up does not block."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._ids: set[bytes] = set()

    def __contains__(self, id_: object) -> bool:
        return id_ in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def among(self, ids: Collection[bytes]) -> list[bytes]:
        """Return those of ``ids`` that were erased, sorted."""
        with self._lock:
            return sorted(self._ids.intersection(ids)) if self._ids else []

    def all(self) -> list[bytes]:
        """Return all of them, sorted."""
        with self._lock:
            return sorted(self._ids)

    def load(self) -> None:
        """Read the rows; called once."""
        rows = self._database.query("SELECT id FROM erased")
        self.refuse([row[0] for row in rows if type(row[0]) is bytes])

    def refuse(self, ids: Collection[bytes]) -> None:
        """Let nobody begin to store these. The rows follow, by :func:`insert`."""
        with self._lock:
            self._ids.update(ids)

    def permit(self, ids: Collection[bytes]) -> None:
        """Let these be stored again, durably. Blocks."""
        rows = [(id_,) for id_ in self.among(ids)]
        if rows:
            self._database.write(
                lambda connection: connection.executemany("DELETE FROM erased WHERE id = ?", rows),
                needs_room=False,
            ).result()
            with self._lock:
                self._ids.difference_update(ids)


def insert(connection: apsw.Connection, ids: Collection[bytes]) -> None:
    """Note ids within a transaction."""
    connection.executemany("INSERT OR IGNORE INTO erased (id) VALUES (?)", ((id_,) for id_ in sorted(ids)))
