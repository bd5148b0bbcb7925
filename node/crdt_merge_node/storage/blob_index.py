"""Which blobs are here: rows of the database, and an index of them in memory.

The index changes after COMMIT and never before it, so that whoever finds a blob in it may rely on the blob.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import apsw
from crdt_merge_protocol.blobs import blob_digest, chunk_count

from .database import Database

DIGEST_BYTES: Final = 32
KEPT_NAME_DIGITS: Final = 32
CACHED_LISTS: Final = 64
"""Chunk lists kept in memory: 32 bytes per MiB of blob, for the blobs being served or fetched."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A blob that is here, whole and durable."""

    nbytes: int
    is_inline: bool
    file: str = ""
    """The kept file that holds it; empty: it has a file of its own, or is a row."""
    offset: int = 0
    """Where in that file it begins."""


class BlobIndex:
    """The rows about blobs. Lookups do not block, except for a chunk list that is not cached."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._entries: dict[bytes, Entry] = {}
        self._lists: OrderedDict[bytes, list[bytes]] = OrderedDict()
        self._kept: Counter[str] = Counter()
        """Kept file -> how many blobs it holds."""
        self.total_bytes = 0
        """Size of all blobs that are here."""

    def load(self) -> int:
        """Read the rows; drop those that are damaged and return how many they were."""
        dropped = 0
        query = (
            "SELECT key, digest, nbytes, inline IS NOT NULL, file, position "
            "FROM blobs LEFT JOIN kept USING (digest)"
        )
        for key, digest, nbytes, is_inline, file, position in self._database.query(query):
            is_placed = file is None or (_is_kept_name(file) and type(position) is int and position >= 0)
            is_sound = type(digest) is bytes and len(digest) == DIGEST_BYTES and type(nbytes) is int
            if is_sound and is_placed and nbytes >= 0:
                self._add(digest, Entry(nbytes, bool(is_inline), file or "", position or 0))
            else:
                self._database.delete("DELETE FROM blobs WHERE key = ?", key)
                dropped += 1
        return dropped

    def get(self, digest: bytes) -> Entry | None:
        """Return what is known of a blob that is here, or None."""
        return self._entries.get(digest)

    def digests(self) -> list[bytes]:
        """Return the digests of all blobs that are here, sorted."""
        with self._lock:
            return sorted(self._entries)

    def is_kept(self, file: str) -> bool:
        """Tell whether a kept file holds a blob."""
        return self._kept[file] > 0

    def register(
        self,
        digest: bytes,
        nbytes: int,
        chunks: Sequence[bytes],
        *,
        inline: bytes | None = None,
        kept: tuple[str, int] | None = None,
    ) -> Future[None]:
        """Note a blob, durably once the future completes; its file, if any, must be durable already.

        Args:
            digest: Of the blob.
            nbytes: Its size.
            chunks: Digests of its chunks.
            inline: Its bytes, if they are to be a row.
            kept: The kept file that holds it, and where it begins there; None: a file of its own.
        """

        def change(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT INTO blobs (digest, nbytes, chunks, inline) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (digest) DO NOTHING",
                (digest, nbytes, b"".join(chunks), inline),
            )
            if kept is not None and connection.changes():
                connection.execute(
                    "INSERT OR REPLACE INTO kept (digest, file, position) VALUES (?, ?, ?)", (digest, *kept)
                )
            connection.execute("DELETE FROM condemned WHERE digest = ?", (digest,))

        def note() -> None:
            with self._lock:
                if digest not in self._entries:
                    self._add(digest, Entry(nbytes, inline is not None, *(kept or ("", 0))))

        return self._database.write_then(change, note)

    def forget(self, digest: bytes) -> Entry | None:
        """Drop a blob whose bytes are damaged, durably; return what was known of it."""
        entry = self._drop(digest)
        self._database.delete("DELETE FROM blobs WHERE digest = ?", digest)
        if entry is not None and entry.file:
            self._database.delete("DELETE FROM kept WHERE digest = ?", digest)
        return entry

    def condemn(self, digest: bytes) -> Entry | None:
        """Drop a blob, and note durably that its file is to go; None if it is not here."""
        entry = self._drop(digest)
        if entry is None:
            return None

        def change(connection: apsw.Connection) -> None:
            connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
            if entry.file:
                connection.execute("DELETE FROM kept WHERE digest = ?", (digest,))
            elif not entry.is_inline:
                connection.execute("INSERT OR REPLACE INTO condemned (digest) VALUES (?)", (digest,))

        self._database.write(change, needs_room=False).result()
        return entry

    def drop(self, digest: bytes) -> None:
        """Know nothing of a blob any more; its row goes in a transaction of the caller's."""
        self._drop(digest)

    def unkeep(self, digest: bytes) -> None:
        """Note durably that a blob, which stood in a kept file, has a durable file of its own now."""
        entry = self._drop(digest)
        self._database.delete("DELETE FROM kept WHERE digest = ?", digest)
        if entry is not None:
            with self._lock:
                self._add(digest, Entry(entry.nbytes, is_inline=False))

    def condemned(self) -> list[bytes]:
        """Return the blobs whose files were to go when the last process ended."""
        return [bytes(row[0]) for row in self._database.query("SELECT digest FROM condemned")]

    def acquit(self, *digests: bytes) -> None:
        """Note durably that the files of condemned blobs are gone."""
        rows = [(digest,) for digest in digests]
        self._database.write(
            lambda connection: connection.executemany("DELETE FROM condemned WHERE digest = ?", rows),
            needs_room=False,
        ).result()

    def inline(self, digest: bytes) -> object:
        """Return what the row of a small blob holds, unverified; None if there is no row."""
        rows = self._database.query("SELECT inline FROM blobs WHERE digest = ?", digest)
        return rows[0][0] if rows else None

    def chunks(self, digest: bytes, nbytes: int) -> list[bytes] | None:
        """Return the chunk digests of a blob that is here, verified, or None if the row is damaged."""
        with self._lock:
            if digest in self._lists:
                self._lists.move_to_end(digest)
                return self._lists[digest]
        rows = self._database.query("SELECT chunks FROM blobs WHERE digest = ?", digest)
        chunks = _split_digests(rows[0][0] if rows else None, nbytes)
        if chunks is None or blob_digest(nbytes, chunks) != digest:
            return None
        with self._lock:
            self._lists[digest] = chunks
            while len(self._lists) > CACHED_LISTS:
                self._lists.popitem(last=False)
        return chunks

    def _add(self, digest: bytes, entry: Entry) -> None:
        self._entries[digest] = entry
        self.total_bytes += entry.nbytes
        if entry.file:
            self._kept[entry.file] += 1

    def _drop(self, digest: bytes) -> Entry | None:
        with self._lock:
            self._lists.pop(digest, None)
            entry = self._entries.pop(digest, None)
            if entry is not None:
                self.total_bytes -= entry.nbytes
                if entry.file:
                    self._kept[entry.file] -= 1
            return entry


def _is_kept_name(file: object) -> bool:
    """Tell whether a row names a file as we name them: it becomes a path."""
    return type(file) is str and len(file) == KEPT_NAME_DIGITS and set(file) <= set("0123456789abcdef")


def _split_digests(joined: object, nbytes: int) -> list[bytes] | None:
    if type(joined) is not bytes or len(joined) != DIGEST_BYTES * chunk_count(nbytes):
        return None
    return [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
