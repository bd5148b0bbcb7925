"""The log of operations, in the order in which they became durable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import apsw
from crdt_merge_protocol.errors import LocalProtocolError, RemoteProtocolError
from crdt_merge_protocol.operations import Add, SignedOperation, read_body

from .database import Database

ID_BYTES: Final = 32
PAGE_ROWS: Final = 1024
EXCLUDED_FACT: Final = "excluded/"
"""Before the hex of a content, "/", and the hex of a payload if there is one: of an ADD that was dropped."""
_PAGE: Final = """
    SELECT position, operations.id, wire FROM operations JOIN groups ON groups.key = group_key
    WHERE groups.id = ? AND position > ? ORDER BY position LIMIT ?
"""
_AFTER: Final = """
    SELECT position, groups.id, operations.id, wire FROM operations LEFT JOIN groups ON groups.key = group_key
    WHERE position > ? ORDER BY position LIMIT ?
"""
_NEWEST: Final = """
    SELECT groups.id, operations.id, wire FROM operations JOIN groups ON groups.key = group_key
    ORDER BY position DESC LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class OpRow:
    """An operation as it is stored."""

    group: bytes
    id: bytes
    wire: bytes
    """The bytes that travelled: encoded operation and signature."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not what was stored."""

    position: int
    id: object
    data: object
    reason: str


def _notes_of(wire: object) -> list[tuple[str, bytes]]:
    """Return the fact to note of an operation that goes, if it is an ADD."""
    try:
        add = read_body(SignedOperation.load(wire).operation) if type(wire) is bytes else None
    except RemoteProtocolError:
        return []  # A damaged row names nothing.
    if not isinstance(add, Add):
        return []
    payload = add.payload.hex() if add.payload is not None else ""
    return [(f"{EXCLUDED_FACT}{add.content.hex()}/{payload}", b"1")]


class OperationLog:
    """Reads and appends operations. Blocking reads; appends give futures that mean durable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_group(self, genesis: bytes, group: bytes) -> Future[None]:
        """Store a group; storing it again changes nothing."""

        def change(connection: apsw.Connection) -> None:
            # The group is the genesis' hash, so an update can only mend a damaged row.
            connection.execute(
                "INSERT INTO groups (id, genesis) VALUES (?, ?) "
                "ON CONFLICT (id) DO UPDATE SET genesis = excluded.genesis",
                (group, genesis),
            )

        return self._database.write(change)

    def groups(self) -> list[tuple[bytes, bytes]]:
        """Return (group, genesis bytes) of every group, in the order in which they came."""
        rows = self._database.query("SELECT id, genesis FROM groups ORDER BY key")
        return [(group, genesis) for group, genesis in rows if type(group) is type(genesis) is bytes]

    def append(self, rows: Sequence[OpRow]) -> Future[None]:
        """Append operations of known groups, all or none; one that is stored already is skipped."""

        def change(connection: apsw.Connection) -> None:
            keys = {group: _group_key(connection, group) for group in sorted({row.group for row in rows})}
            connection.executemany(
                "INSERT INTO operations (group_key, id, wire) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                ((keys[row.group], row.id, row.wire) for row in rows),
            )

        return self._database.write(change)

    def drop(self, ids: Sequence[bytes], *, forgetting: str) -> Future[list[tuple[str, bytes]]]:
        """Delete operations and a fact about them, and note which contents they had; all or none.

        Returns:
            The facts that are there instead: whoever frees room finds the contents by them.
        """

        def change(connection: apsw.Connection) -> list[tuple[str, bytes]]:
            notes: list[tuple[str, bytes]] = []
            for id_ in ids:
                for (wire,) in connection.execute("SELECT wire FROM operations WHERE id = ?", (id_,)):
                    notes += _notes_of(wire)
            connection.executemany("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", notes)
            connection.executemany("DELETE FROM operations WHERE id = ?", ((id_,) for id_ in ids))
            connection.execute("DELETE FROM facts WHERE name = ?", (forgetting,))
            return notes

        return self._database.write(change, needs_room=False)

    def count(self) -> int:
        """Return the number of stored operations."""
        return int(self._database.query("SELECT count(*) FROM operations")[0][0])

    def pages(self, group: bytes) -> Iterator[tuple[list[OpRow], list[BadRow]]]:
        """Yield the operations of a group in append order, apart from rows that are not readable as such."""
        position = 0
        while True:
            raw = self._database.query(_PAGE, group, position, PAGE_ROWS)
            if not raw:
                return
            good: list[OpRow] = []
            bad: list[BadRow] = []
            for position, id_, wire in raw:
                if type(id_) is bytes and len(id_) == ID_BYTES and type(wire) is bytes:
                    good.append(OpRow(group, id_, wire))
                else:
                    bad.append(BadRow(position, id_, wire, "the row does not hold an id and bytes"))
            yield good, bad

    def newest(self, count: int) -> list[OpRow]:
        """Return the last ``count`` operations of all groups, newest first."""
        rows = self._database.query(_NEWEST, count)
        return [OpRow(*row) for row in rows if all(type(value) is bytes for value in row)]

    def last_position(self) -> int:
        """Return the position of the newest operation; 0 if there is none."""
        return int(self._database.query("SELECT coalesce(max(position), 0) FROM operations")[0][0])

    def after(self, position: int, count: int) -> tuple[list[OpRow], list[BadRow], int]:
        """Return the next operations of any group, apart from unreadable rows, and the last position."""
        good: list[OpRow] = []
        bad: list[BadRow] = []
        for position, group, id_, wire in self._database.query(_AFTER, position, count):  # noqa: B020, PLR1704
            if type(id_) is bytes and len(id_) == ID_BYTES and type(wire) is type(group) is bytes:
                good.append(OpRow(group, id_, wire))
            else:
                bad.append(BadRow(position, id_, wire, "the row does not hold an id and bytes"))
        return good, bad, position

    def quarantine(
        self, *, id_: bytes | None = None, position: int | None = None, reason: str, wall_time: float
    ) -> Future[None]:
        """Move a row, named by id or position, out of the log, so that a good copy may be fetched."""

        def change(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT INTO quarantine (kind, id, data, reason, wall_time) "
                "SELECT 'operation', id, wire, ?, ? FROM operations WHERE id = ? OR position = ?",
                (reason, wall_time, id_, position),
            )
            connection.execute("DELETE FROM operations WHERE id = ? OR position = ?", (id_, position))

        return self._database.write(change, needs_room=False)

    def quarantined(self) -> list[tuple[str, bytes | None, str]]:
        """Return (kind, id, reason) of everything set aside, oldest first."""
        rows = self._database.query("SELECT kind, id, reason FROM quarantine ORDER BY key")
        return [(str(kind), id_ if type(id_) is bytes else None, str(reason)) for kind, id_, reason in rows]


def _group_key(connection: apsw.Connection, group: bytes) -> int:
    row = connection.execute("SELECT key FROM groups WHERE id = ?", (group,)).fetchone()
    if row is None:
        raise LocalProtocolError(f"group {group.hex()[:12]} is not stored; add it before its operations.")
    return int(row[0])
