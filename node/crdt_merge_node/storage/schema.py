"""The tables of ``ops.db`` and the version they have."""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x43524D4E
"""Written into the header of the file ("CRMN"): another program's database is never mistaken for ours."""
SCHEMA_VERSION: Final = 3

# No CHECK: quick_check would refuse the whole file for one damaged row, which its reader sets aside (T52).
TABLES: Final = """
CREATE TABLE groups (
    key INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    genesis BLOB NOT NULL
);
-- Append-ordered: the rowid is the order in which operations became durable, so that reading the log back
-- delivers causes before effects, and inserting never splits pages in the middle of the table.
CREATE TABLE operations (
    position INTEGER PRIMARY KEY,
    group_key INTEGER NOT NULL REFERENCES groups (key),
    id BLOB NOT NULL UNIQUE,
    wire BLOB NOT NULL
);
CREATE INDEX operations_by_group ON operations (group_key, position);
-- Manifests, schemas, payloads. The hash domain of an id only its reader knows, hence the checksum.
CREATE TABLE objects (
    key INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    checksum BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE blobs (
    key INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    nbytes INTEGER NOT NULL,
    chunks BLOB NOT NULL,
    inline BLOB
);
-- Blob files that are being deleted: one found at boot is removed, not taken in again.
CREATE TABLE condemned (digest BLOB PRIMARY KEY) WITHOUT ROWID;
-- Blobs that stand in a user's file as it is: which one in kept/, and where in it.
CREATE TABLE kept (
    digest BLOB PRIMARY KEY,
    file TEXT NOT NULL,
    position INTEGER NOT NULL
) WITHOUT ROWID;
-- Objects and blobs that were erased: not stored again, unless something that nobody banned needs them.
CREATE TABLE erased (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
-- Rows that could not be read. They are kept for a person, and never again in the way of a start (T52).
CREATE TABLE quarantine (
    key INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id BLOB,
    data BLOB,
    reason TEXT NOT NULL,
    wall_time REAL NOT NULL
);
"""

UPGRADES: Final = {
    1: """
CREATE TABLE kept (
    digest BLOB PRIMARY KEY,
    file TEXT NOT NULL,
    position INTEGER NOT NULL
) WITHOUT ROWID;
""",
    2: "CREATE TABLE IF NOT EXISTS erased (id BLOB PRIMARY KEY) WITHOUT ROWID;",
}
"""From version -> what makes the next one of it."""
