"""Opening the SQLite file: how it is set, whether it is ours and whole, and what its errors mean.

Whoever opens it has it alone, in one transaction log, synced at every commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw

from crdt_merge_node.errors import CorruptError, SchemaTooNewError, StorageError

from .health import full_error
from .schema import APPLICATION_ID, SCHEMA_VERSION, TABLES, UPGRADES

PRAGMAS: Final[tuple[tuple[str, object, tuple[object, ...]], ...]] = (
    # (name, value, answers that mean it holds). Exclusive first: a virtual file system without shared memory
    # otherwise refuses WAL without an error.
    ("locking_mode", "exclusive", ("exclusive",)),
    ("journal_mode", "wal", ("wal",)),
    ("synchronous", "full", (2,)),
    ("foreign_keys", True, (1,)),
    # A read error on a mapping is SIGBUS, on a read an exception. None: this file system has no mapping.
    ("mmap_size", 0, (0, None)),
    ("secure_delete", True, (1,)),
    ("cell_size_check", True, (1,)),
    ("temp_store", "memory", (2,)),
    ("busy_timeout", 0, (0,)),
)
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError)


def connect(path: Path, *, is_new: bool, vfs: str | None) -> apsw.Connection:
    """Open or make the file, set it up, and check and recover what is in it; ``Database.open`` says how.

    Errors of SQLite come as they are; :func:`translated` makes them the store's own.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
    try:
        _configure(connection, path)
        _check_version(connection, path, is_new=is_new)
        _check_content(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: apsw.Connection, path: Path) -> None:
    for name, value, expected in PRAGMAS:
        connection.pragma(name, value)
        # SQLite refuses some of these without an error; only asking tells.
        if (actual := connection.pragma(name)) not in expected:
            raise StorageError(f"{path}: pragma {name} is {actual!r} and must be {expected[0]!r}.")


def _check_version(connection: apsw.Connection, path: Path, *, is_new: bool) -> None:
    version, application = connection.pragma("user_version"), connection.pragma("application_id")
    if version == 0 and application == 0 and not connection.pragma("schema_version"):
        if not is_new:
            raise CorruptError(
                f"{path} is gone or empty, but this data directory had one.",
                hint="Restore a backup, or move the directory away and join again.",
            )
        with connection:
            connection.execute(TABLES)
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", SCHEMA_VERSION)
    elif application != APPLICATION_ID:
        raise CorruptError(
            f"{path} belongs to another program (application id {application}).",
            hint="Give this node a data directory of its own.",
        )
    elif version > SCHEMA_VERSION:
        raise SchemaTooNewError(
            f"{path} has schema {version}, this release reads up to {SCHEMA_VERSION}.",
            hint="Run the release that wrote it, or a newer one.",
        )
    elif version in UPGRADES:
        with connection:
            for step in range(version, SCHEMA_VERSION):
                connection.execute(UPGRADES[step])
            connection.pragma("user_version", SCHEMA_VERSION)


def _check_content(connection: apsw.Connection, path: Path) -> None:
    """Check the file, and make durable what the last process committed without living to see it synced."""
    problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(10)")]
    if problems != ["ok"]:
        raise CorruptError(
            f"{path} is damaged: {'; '.join(problems)}.",
            hint="Restore a backup, or move the data directory away and join again.",
        )
    # A full disk must not keep a node from serving; the log is complete without the checkpoint.
    with suppress(apsw.FullError):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors while a file is opened into the store's own."""
    try:
        yield
    except apsw.FullError as error:
        raise full_error(path) from error
    except _DAMAGE as error:
        raise CorruptError(
            f"{path} is damaged: {error}.",
            hint="Restore a backup, or move the data directory away and join again.",
        ) from error
    except apsw.Error as error:
        raise StorageError(
            f"{path} cannot be opened: {error}.", hint="Check the disk and permissions."
        ) from error
