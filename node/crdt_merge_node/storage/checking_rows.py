"""Checks of what the database holds: its pages, genesis documents, operations, objects, small blobs.

Operations are checked as if they came from a stranger: canonical bytes, id, signature, past (PROTOCOL R1-R5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import apsw
from blake3 import blake3
from crdt_merge_protocol.blobs import (
    blob_digest,
    blob_digest_of,
    chunk_count,
    content_id,
    payload_id,
    schema_id,
)
from crdt_merge_protocol.canonical import decode
from crdt_merge_protocol.errors import LocalProtocolError, RemoteProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.merkle import Trie
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.state import CRDTMergeState

from .findings import Finding, Level, Report
from .recovery import ROOT_FACT, explain_damaged_genesis
from .schema import APPLICATION_ID, SCHEMA_VERSION

PAGE_ROWS: Final = 512
PROBLEMS_MAX: Final = 100
DIGEST_BYTES: Final = 32


@dataclass(slots=True)
class Roots:
    """What a check found of the groups."""

    operations: int = 0
    by_group: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """group -> (sync root, number of operations)."""


def select(connection: apsw.Connection, sql: str, *parameters: bytes | int | str) -> Iterator[Any]:
    """Yield the rows of a query one by one; what a damaged one holds may be of any type."""
    yield from connection.execute(sql, parameters)


def has_kept(connection: apsw.Connection) -> bool:
    """Tell whether the database knows of blobs that stand in users' files (``kept.py``)."""
    return bool(list(select(connection, "SELECT 1 FROM sqlite_master WHERE name = 'kept'")))


def check_database(connection: apsw.Connection) -> Iterator[Finding]:
    """Check the file as SQLite sees it, and that it is ours."""
    application, version = connection.pragma("application_id"), connection.pragma("user_version")
    if application != APPLICATION_ID or version > SCHEMA_VERSION:
        yield _database(f"it has application id {application} and schema {version}", "run its own release")
        return
    for row in connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})"):
        if row[0] != "ok":
            yield _database(str(row[0]), "its readable rows are put into a new file")
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield _database(f"row {rowid} of {table} names a missing row of {parent}", "it is set aside")


def _database(message: str, fix: str) -> Finding:
    return Finding("database", Level.DAMAGE, "ops.db", message, fix)


def check_groups(connection: apsw.Connection) -> Iterator[Finding]:
    """Check that every genesis is that of its group."""
    for key, group, genesis in select(connection, "SELECT key, id, genesis FROM groups ORDER BY key"):
        if type(group) is not bytes or type(genesis) is not bytes:
            reason: str | None = "the row does not hold an id and a genesis"
        else:
            reason = explain_damaged_genesis(group, genesis)
        if reason is not None:
            yield Finding(
                "group",
                Level.DAMAGE,
                _name(group) or f"row {key}",
                f"its genesis is damaged: {reason}",
                "peers tell of the group again, which mends the row",
            )


def check_operations(
    connection: apsw.Connection, roots: Roots, report: Report, *, wall_time: float
) -> Iterator[Finding]:
    """Check every operation, and that together they are what was here at the last orderly stop."""
    [(total,)] = select(connection, "SELECT count(*) FROM operations")
    groups = list(select(connection, "SELECT key, id, genesis FROM groups ORDER BY key"))
    seen = 0
    for key, group, genesis in groups:
        if type(genesis) is not bytes or explain_damaged_genesis(group, genesis) is not None:
            continue
        checked = _GroupCheck(connection, Genesis.decode(genesis), wall_time=wall_time)
        for count, findings in checked.pages(int(key)):
            seen += count
            report(seen, total, "checking operations")
            yield from findings
        roots.operations += len(checked.state)
        roots.by_group[bytes(group)] = checked.state.sync_root, len(checked.state)
        yield from checked.waiting()
        yield from _check_root(connection, bytes(group), checked.state)
    stray = "SELECT position, id FROM operations WHERE group_key NOT IN (SELECT key FROM groups)"
    for position, id_ in list(select(connection, stray)):
        yield _bad_operation(connection, position, id_, "it belongs to no group", wall_time)


class _GroupCheck:
    """Replays one group."""

    def __init__(self, connection: apsw.Connection, genesis: Genesis, *, wall_time: float) -> None:
        self.state = CRDTMergeState(genesis)
        self._connection = connection
        self._wall_time = wall_time
        self._deferred: list[tuple[int, SignedOperation]] = []

    def pages(self, key: int) -> Iterator[tuple[int, list[Finding]]]:
        """Yield (number of rows looked at, findings) page by page."""
        position = 0
        page = (
            "SELECT position, id, wire FROM operations WHERE group_key = ? AND position > ? "
            "ORDER BY position LIMIT ?"
        )
        while rows := list(select(self._connection, page, key, position, PAGE_ROWS)):
            findings = []
            for position, id_, wire in rows:
                if (reason := self._judge(position, id_, wire)) is not None:
                    findings.append(_bad_operation(self._connection, position, id_, reason, self._wall_time))
            yield len(rows), findings

    def _judge(self, position: int, id_: object, wire: object) -> str | None:
        if type(id_) is not bytes or type(wire) is not bytes:
            return "the row does not hold an id and bytes"
        try:
            signed = SignedOperation.parse(wire)
            if signed.id != id_:
                return "its bytes have another id"
            self.state.apply(signed)
        except LocalProtocolError:
            self._deferred.append((position, signed))
        except RemoteProtocolError as error:
            return error.message
        return None

    def waiting(self) -> Iterator[Finding]:
        """Apply what came before its past was there; yield what is still without it."""
        while self._deferred:
            left, self._deferred = self._deferred, []
            for position, signed in left:
                reason = self._judge(position, signed.id, signed.wire())
                if reason is not None:
                    yield _bad_operation(self._connection, position, signed.id, reason, self._wall_time)
            if len(self._deferred) == len(left):
                break
        for _, signed in self._deferred:
            yield Finding(
                "order",
                Level.DAMAGE,
                signed.id.hex(),
                f"{len(self.state.missing(signed))} operations that it builds on are missing",
                "anti-entropy brings them from peers",
            )


def _bad_operation(
    connection: apsw.Connection, position: int, id_: object, reason: str, wall_time: float
) -> Finding:
    def repair() -> None:
        with connection:
            connection.execute(
                "INSERT INTO quarantine (kind, id, data, reason, wall_time) "
                "SELECT 'operation', id, wire, ?, ? FROM operations WHERE position = ?",
                (reason, wall_time, position),
            )
            connection.execute("DELETE FROM operations WHERE position = ?", (position,))

    return Finding(
        "operation",
        Level.DAMAGE,
        _name(id_) or f"row {position}",
        reason.rstrip("."),
        "it goes into the quarantine table and comes again from peers",
        repair,
    )


def _check_root(connection: apsw.Connection, group: bytes, state: CRDTMergeState) -> Iterator[Finding]:
    rows = list(select(connection, "SELECT value FROM facts WHERE name = ?", ROOT_FACT + group.hex()))
    if not rows:
        return
    try:
        root, count = decode(bytes(rows[0][0]))
        is_less = len(state) < int(count) or (len(state) == count and state.sync_root != root)
        found = f"{count} operations were here at the last orderly stop, {len(state)} are now"
    except (RemoteProtocolError, ValueError, TypeError):
        is_less, found = True, "the root saved at the last orderly stop is not readable"
    if is_less:
        yield Finding("root", Level.DAMAGE, group.hex(), found, "peers send again what is missing")


def check_objects(connection: apsw.Connection, *, wall_time: float) -> Iterator[Finding]:
    """Check manifests, schemas and payloads: by their checksum, and by the hash that is their name."""
    for key, id_, checksum, data in select(connection, "SELECT key, id, checksum, data FROM objects"):
        if type(data) is bytes and blake3(data).digest() == checksum:
            if id_ in (content_id(data), schema_id(data), payload_id(data)):
                continue
            reason = "it is stored under another object's id"
        else:
            reason = "its bytes are not those that were stored"
        yield Finding(
            "object",
            Level.DAMAGE,
            _name(id_) or f"row {key}",
            reason,
            "it goes into the quarantine table and is fetched again",
            _move_row(connection, "object", key, reason=reason, wall_time=wall_time),
        )


def check_inline_blobs(connection: apsw.Connection, *, wall_time: float) -> Iterator[Finding]:
    """Check the blobs that are rows."""
    query = "SELECT key, digest, nbytes, inline FROM blobs WHERE inline IS NOT NULL"
    for key, digest, nbytes, inline in select(connection, query):
        if type(inline) is bytes and len(inline) == nbytes and blob_digest_of(inline) == digest:
            continue
        reason = "its bytes are not those that were stored"
        yield bad_blob(connection, key, digest, reason, wall_time=wall_time)


def bad_blob(
    connection: apsw.Connection,
    key: int,
    digest: object,
    reason: str,
    *,
    wall_time: float,
) -> Finding:
    """Return the finding of a blob whose row has to go."""
    return Finding(
        "blob",
        Level.DAMAGE,
        _name(digest) or f"row {key}",
        reason,
        "it is set aside and fetched again from peers",
        _move_row(connection, "blob", key, reason=reason, wall_time=wall_time),
    )


def chunk_list(digest: object, nbytes: object, joined: object) -> list[bytes] | None:
    """Return the chunk digests in a row about a blob, or None if they are not that blob's."""
    if type(digest) is not bytes or type(nbytes) is not int or type(joined) is not bytes or nbytes < 0:
        return None
    if len(joined) != DIGEST_BYTES * chunk_count(nbytes):
        return None
    chunks = [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
    return chunks if blob_digest(nbytes, chunks) == digest else None


_MOVES: Final = {
    # Kind of row -> how it is put into the quarantine table, and how it leaves its own.
    "object": (
        (
            "INSERT INTO quarantine (kind, id, data, reason, wall_time) "
            "SELECT 'object', id, data, ?, ? FROM objects WHERE key = ?"
        ),
        "DELETE FROM objects WHERE key = ?",
    ),
    "blob": (
        (
            "INSERT INTO quarantine (kind, id, data, reason, wall_time) "
            "SELECT 'blob', digest, coalesce(inline, chunks), ?, ? FROM blobs WHERE key = ?"
        ),
        "DELETE FROM blobs WHERE key = ?",
    ),
}


def _move_row(
    connection: apsw.Connection, kind: str, key: int, *, reason: str, wall_time: float
) -> Callable[[], None]:
    """Return what moves a row into the quarantine table."""

    def repair() -> None:
        insert, delete = _MOVES[kind]
        with connection:
            connection.execute(insert, (reason, wall_time, key))
            connection.execute(delete, (key,))
            if kind == "blob" and has_kept(connection):
                connection.execute("DELETE FROM kept WHERE digest NOT IN (SELECT digest FROM blobs)")

    return repair


def roots_of_ids(connection: apsw.Connection) -> Mapping[bytes, tuple[bytes, int]]:
    """Return group -> (root over the ids of its stored operations, their number), reading no operation."""
    found: dict[bytes, tuple[bytes, int]] = {}
    for key, group in list(select(connection, "SELECT key, id FROM groups ORDER BY key")):
        trie, count = Trie(), 0
        for (id_,) in select(connection, "SELECT id FROM operations WHERE group_key = ?", key):
            trie.insert(bytes(id_))
            count += 1
        found[bytes(group)] = trie.root, count
    return found


def _name(id_: object) -> str:
    return id_.hex() if type(id_) is bytes else ""
