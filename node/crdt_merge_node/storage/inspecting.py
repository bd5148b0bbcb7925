"""Reading the operations of a stopped node, without changing anything, for people who want to see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import Kind, Operation, SignedOperation, read_body

from crdt_merge_node.errors import AlreadyRunningError, CorruptError, NotFoundError
from crdt_merge_node.ports import Fs, process_id

from .checking_rows import select


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOperation:
    """One operation as it stands in the log."""

    position: int
    """In the order in which operations became durable here."""
    id: str
    group: str
    group_name: str
    author: str
    log: str
    seq: int
    kind: str
    """Its name in lower case; a number if this release does not know it."""
    nbytes: int
    summary: str
    """What it says, in short; empty if this release cannot read it."""
    problem: str
    """Why it cannot be read; empty if it can."""


def stored_operations(
    data_dir: Path, *, group: str = "", author: str = "", fs: Fs
) -> Iterator[StoredOperation]:
    """Yield the operations of a stopped node, the oldest first.

    Args:
        data_dir: Of the node.
        group: Only of groups whose name is this or whose id begins so.
        author: Only by authors whose id begins so.
        fs: The file system.

    Raises:
        NotFoundError: There is no store.
        AlreadyRunningError: A daemon uses it.
        CorruptError: The database cannot be read.
    """
    if fs.stat(data_dir / "ops.db") is None:
        raise NotFoundError(f"{data_dir} has no store.", hint="Give the --data-dir of a node that has run.")
    lock = fs.lock(data_dir / "LOCK", note=f"{process_id()}\n".encode())
    if lock is None:
        raise AlreadyRunningError(
            f"a daemon uses {data_dir}.", hint="Stop it first, or ask it: `group show`."
        )
    try:
        yield from _read(data_dir / "ops.db", group, author.lower())
    except apsw.Error as error:
        raise CorruptError(
            f"{data_dir / 'ops.db'} cannot be read: {error}.", hint="See: crdt-merge-node fsck"
        ) from error
    finally:
        lock.close()


def _read(path: Path, group: str, author: str) -> Iterator[StoredOperation]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.pragma("locking_mode", "exclusive")
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("query_only", True)
        names = {
            bytes(id_): _name_of(genesis)
            for id_, genesis in select(connection, "SELECT id, genesis FROM groups")
        }
        query = (
            "SELECT position, groups.id, operations.id, wire FROM operations "
            "LEFT JOIN groups ON groups.key = group_key ORDER BY position"
        )
        for position, group_id, id_, wire in select(connection, query):
            found = _describe(position, group_id, id_, wire, names)
            is_group = not group or found.group_name == group or found.group.startswith(group.lower())
            if is_group and found.author.startswith(author):
                yield found
    finally:
        connection.close(True)


def _name_of(genesis: object) -> str:
    try:
        return Genesis.decode(genesis).name if type(genesis) is bytes else ""
    except RemoteProtocolError:
        return ""


def _describe(
    position: int, group: object, id_: object, wire: object, names: dict[bytes, str]
) -> StoredOperation:
    group_id = group if type(group) is bytes else b""
    problem, signed = "", None
    try:
        signed = SignedOperation.parse(wire) if type(wire) is bytes else None
        if signed is None or signed.id != id_:
            problem = "its bytes are not those of its id"
    except RemoteProtocolError as error:
        problem = error.message
    operation = signed.operation if signed is not None else None
    return StoredOperation(
        position=position,
        id=id_.hex() if type(id_) is bytes else "",
        group=group_id.hex(),
        group_name=names.get(group_id, ""),
        author=operation.author.hex() if operation else "",
        log=operation.log.hex() if operation else "",
        seq=operation.seq if operation else 0,
        kind=_kind(operation) if operation else "",
        nbytes=len(wire) if type(wire) is bytes else 0,
        summary=_summary(operation) if operation else "",
        problem=problem,
    )


def _kind(operation: Operation) -> str:
    try:
        return Kind(operation.kind).name.lower()
    except ValueError:
        return str(operation.kind)


def _summary(operation: Operation) -> str:
    """Return the fields of a body that people look for."""
    body = read_body(operation)
    parts = []
    for field in ("slot", "type", "content", "version", "strategy"):
        value = getattr(body, field, None)
        if value is not None:
            parts.append(f"{field} {value.hex()[:12] if isinstance(value, bytes) else value}")
    for field in ("tags", "targets"):
        values = getattr(body, field, None)
        if values is not None:
            parts.append(f"{field} {' '.join(value.hex()[:12] for value in values[:4])}")
    return ", ".join(parts)
