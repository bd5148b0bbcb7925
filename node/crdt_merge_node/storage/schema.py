"""The tables of ``ops.db`` and the version they have."""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x43524D4E
"""Written into the header of the file ("CRMN"): another program's database is never mistaken for ours."""
SCHEMA_VERSION: Final = 1

TABLES: Final = """
CREATE TABLE groups (
    key INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    genesis BLOB NOT NULL
);
-- Append-ordered: the rowid is the order in which operations became durable, so that reading the log back
-- delivers causes before effects, and inserting never splits pages in the middle of the table.
CREATE TABLE operations (
    position INTEGER PRIMARY KEY,
    group_key INTEGER NOT NULL REFERENCES groups (key),
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    wire BLOB NOT NULL
);
CREATE INDEX operations_by_group ON operations (group_key, position);
-- Manifests, schemas, payloads. The hash domain of an id only its reader knows, hence the checksum.
CREATE TABLE objects (
    key INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    checksum BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE blobs (
    key INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    nbytes INTEGER NOT NULL CHECK (nbytes >= 0),
    chunks BLOB NOT NULL CHECK (length(chunks) % 32 = 0),
    inline BLOB CHECK (inline IS NULL OR length(inline) = nbytes)
);
-- Blob files that are being deleted: one found at boot is removed, not taken in again.
CREATE TABLE condemned (digest BLOB PRIMARY KEY) WITHOUT ROWID;
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
