"""Taking out of a damaged database what can still be read, row by row, into a new one.

A B-tree with a bad page is readable up to that page from the front, and down to it from the back; what lies
between comes again from peers. Nothing read this way is believed: the checks that follow hash all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from .schema import APPLICATION_ID, SCHEMA_VERSION, TABLES

COLUMNS: Final = {
    "groups": ("key", "id", "genesis"),
    "operations": ("position", "group_key", "id", "wire"),
    "objects": ("key", "id", "checksum", "data"),
    "blobs": ("key", "digest", "nbytes", "chunks", "inline"),
    "kept": ("digest", "file", "position"),
    "condemned": ("digest",),
    "erased": ("id",),
    "facts": ("name", "value"),
    "quarantine": ("key", "kind", "id", "data", "reason", "wall_time"),
}
"""Tables in an order in which rows find those that they name."""


def salvage(source: Path, target: Path) -> int:
    """Copy every readable row of a damaged database to a new one; return how many there were.

    Raises:
        apsw.Error: The new one cannot be written.
    """
    rows = 0
    new = apsw.Connection(str(target))
    try:
        new.execute(TABLES)
        new.pragma("application_id", APPLICATION_ID)
        new.pragma("user_version", SCHEMA_VERSION)
        old = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)
        old.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        try:
            known = {row[0] for row in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table, columns in COLUMNS.items():
                if table not in known:
                    continue
                marks = ", ".join("?" * len(columns))
                names = ", ".join(columns)
                insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - our names.
                with new:
                    for row in _readable(old, table, columns):
                        new.execute(insert, row)
                        rows += 1
        finally:
            old.close(True)
    finally:
        new.close()
    return rows


def _readable(connection: apsw.Connection, table: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for direction in ("ASC", "DESC"):
        query = (
            f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED "  # noqa: S608 - our names.
            f"ORDER BY {columns[0]} {direction}"
        )
        try:
            yield from connection.execute(query)
        except apsw.Error:
            continue  # From the other end.
        return
