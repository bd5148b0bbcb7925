"""Checks of the files beside the database: large blobs, what was left half-done, what was set aside."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw
from crdt_merge_protocol.blobs import blob_digest

from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import Fs

from .checking_rows import bad_blob, chunk_list, has_kept, select
from .files import RangeReader
from .findings import Finding, Level, Report

PREFIX_DIGITS: Final = 2
NAME_DIGITS: Final = 64
_HEX: Final = frozenset("0123456789abcdef")


class Aside:
    """Moves what is damaged to ``quarantine/``; nothing is ever deleted."""

    def __init__(self, fs: Fs, directory: Path) -> None:
        self._fs = fs
        self._directory = directory

    def move(self, path: Path, name: str) -> None:
        """Move what is at ``path``, if anything, durably."""
        if self._fs.stat(path) is None:
            return
        self._fs.mkdir(self._directory)
        number = 0
        while self._fs.stat(target := self._directory / f"{name}.fsck-{number}") is not None:
            number += 1
        self._fs.rename(path, target)
        self._fs.sync_dir(path.parent)
        self._fs.sync_dir(self._directory)


def digest_of_name(name: str) -> bytes | None:
    """Return the digest that a file name stands for, or None if it is none."""
    return bytes.fromhex(name) if len(name) == NAME_DIGITS and set(name) <= _HEX else None


def blob_path(blobs: Path, digest: bytes) -> Path:
    """Return where the file of a blob is."""
    name = digest.hex()
    return blobs / name[:PREFIX_DIGITS] / name[PREFIX_DIGITS:]


@dataclass(frozen=True, slots=True)
class Placed:
    """A row about a blob that is in a file; of any types, if the row is damaged."""

    key: int
    digest: Any
    nbytes: Any
    chunks: list[bytes] | None
    """Digests of its chunks, if they are its own."""
    path: Path
    offset: int
    is_kept: bool
    """Whether the file holds more than this blob."""


def placed_blobs(connection: apsw.Connection, root: Path) -> Iterator[Placed]:
    """Yield every blob that is in a file, by digest."""
    columns = "key, digest, nbytes, chunks"
    query = f"SELECT {columns}, NULL, 0 FROM blobs WHERE inline IS NULL ORDER BY digest"  # noqa: S608 - ours.
    if has_kept(connection):
        query = (
            f"SELECT {columns}, file, position FROM blobs LEFT JOIN kept USING (digest) "  # noqa: S608 - ours.
            "WHERE inline IS NULL ORDER BY digest"
        )
    for key, digest, nbytes, joined, file, position in select(connection, query):
        chunks = chunk_list(digest, nbytes, joined)
        is_kept = type(file) is str and type(position) is int and set(file) <= _HEX
        if file is not None and not is_kept:
            chunks = None
        path = (
            root / "kept" / file if is_kept else blob_path(root / "blobs", bytes(digest) if chunks else b"")
        )
        yield Placed(key, digest, nbytes, chunks, path, position if is_kept else 0, is_kept)


def check_blob_files(
    connection: apsw.Connection, root: Path, fs: Fs, aside: Aside, report: Report, *, wall_time: float
) -> Iterator[Finding]:
    """Hash every blob that is in a file and compare it with its row; ``report`` gets bytes."""
    [(total,)] = select(connection, "SELECT coalesce(sum(nbytes), 0) FROM blobs WHERE inline IS NULL")
    done = 0
    for placed in list(placed_blobs(connection, root)):
        reason = "its row is damaged"
        if placed.chunks is not None:
            reason = explain_blob_file(placed, fs, _beyond(done, total, report)) or ""
        done += placed.nbytes if type(placed.nbytes) is int else 0
        report(done, total, "hashing blobs")
        if reason:
            found = bad_blob(connection, placed.key, placed.digest, reason, wall_time=wall_time)
            yield found if placed.is_kept or placed.chunks is None else _with_file(found, placed, aside)


def _beyond(base: int, total: int, report: Report) -> Callable[[int], None]:
    """Return what reports bytes of one file as bytes of all."""
    return lambda count: report(base + count, total, "hashing blobs")


def _with_file(found: Finding, placed: Placed, aside: Aside) -> Finding:
    """Let the repair of a row also move its file."""
    move_row = found.repair

    def repair() -> None:
        assert move_row is not None, "a row can always be moved"
        move_row()  # First: a row without its file would be found missing at every start.
        aside.move(placed.path, placed.digest.hex())

    found.repair = repair
    return found


def explain_blob_file(placed: Placed, fs: Fs, progress: Callable[[int], None]) -> str | None:
    """Return why a file does not hold the blob that its row says, or None if it does."""
    assert placed.chunks is not None, "the caller has looked"
    path, nbytes = placed.path, placed.nbytes
    found = fs.stat(path)
    if found is None:
        return "its file is gone"
    end = placed.offset + nbytes
    if not found.is_file or found.nbytes < end or (not placed.is_kept and found.nbytes != end):
        return f"its file has {found.nbytes} bytes instead of {end}, or is none"
    try:
        with fs.open_read(path) as file:
            reader = RangeReader(file, path, offset=placed.offset, nbytes=nbytes, progress=progress)
            for _ in reader:
                pass
    except (StorageError, OSError) as error:
        return f"its file cannot be read: {error}"
    bad = sum(one != two for one, two in zip(reader.digests, placed.chunks, strict=True))
    return f"{bad} of its {len(placed.chunks)} chunks have other bytes" if bad else None


def check_strays(connection: apsw.Connection, blobs: Path, fs: Fs, aside: Aside) -> Iterator[Finding]:
    """Look for files among the blobs that no row knows of."""
    known = {bytes(row[0]) for row in select(connection, "SELECT digest FROM blobs WHERE inline IS NULL")}
    condemned = {bytes(row[0]) for row in select(connection, "SELECT digest FROM condemned")}
    for prefix in fs.listdir(blobs):
        directory = blobs / prefix
        found = fs.stat(directory)
        if found is None or not found.is_directory or digest_of_name(prefix + "00" * 31) is None:
            yield _stray(directory, "nothing that a node makes is called so", aside)
            continue
        for name in fs.listdir(directory):
            digest = digest_of_name(prefix + name)
            if digest is None:
                yield _stray(directory / name, "nothing that a node makes is called so", aside)
            elif digest in condemned:
                yield Finding(
                    "orphan",
                    Level.NOTE,
                    str(directory / name),
                    "it was being deleted",
                    "the next start deletes it",
                )
            elif digest not in known:
                yield _orphan(connection, directory / name, digest, fs, aside)


def _stray(path: Path, message: str, aside: Aside) -> Finding:
    return Finding(
        "layout",
        Level.WARNING,
        str(path),
        message,
        "it is moved to quarantine/",
        lambda: aside.move(path, path.name),
    )


def _orphan(connection: apsw.Connection, path: Path, digest: bytes, fs: Fs, aside: Aside) -> Finding:
    """Return what there is to say of a file without a row: whole, or not."""
    chunks = _chunks_of(path, digest, fs)
    if chunks is None:
        return Finding(
            "orphan",
            Level.WARNING,
            str(path),
            "no row knows of it and its bytes are not what its name says",
            "it is moved to quarantine/",
            lambda: aside.move(path, digest.hex()),
        )
    nbytes = 0
    if (found := fs.stat(path)) is not None:
        nbytes = found.nbytes

    def adopt() -> None:
        with connection:
            connection.execute(
                "INSERT INTO blobs (digest, nbytes, chunks, inline) VALUES (?, ?, ?, NULL) "
                "ON CONFLICT (digest) DO NOTHING",
                (digest, nbytes, b"".join(chunks)),
            )

    message = "a whole blob of which no row knows; a crash leaves such"
    return Finding("orphan", Level.NOTE, str(path), message, "it is taken in, as the next start does", adopt)


def _chunks_of(path: Path, digest: bytes, fs: Fs) -> list[bytes] | None:
    try:
        with fs.open_read(path) as file:
            nbytes = file.size()
            reader = RangeReader(file, path, offset=0, nbytes=nbytes)
            for _ in reader:
                pass
    except (StorageError, OSError):
        return None
    return reader.digests if blob_digest(nbytes, reader.digests) == digest else None


def check_leftovers(root: Path, fs: Fs, aside: Aside) -> Iterator[Finding]:
    """Look at what was under way when a process ended, and at what was set aside before."""
    for name in fs.listdir(root / "tmp"):
        path = root / "tmp" / name
        message = "it was being written when a process ended"
        yield Finding(
            "temporary",
            Level.NOTE,
            str(path),
            message,
            "it is moved to quarantine/; the next start would delete it",
            lambda path=path: aside.move(path, f"tmp-{path.name}"),  # type: ignore[misc]
        )
    for name in fs.listdir(root / "partial"):
        path = root / "partial" / name
        found = fs.stat(path)
        if digest_of_name(name) is None or found is None or not found.is_file:
            yield _stray(path, "no blob that is being fetched is called so", aside)
    kept = [fs.stat(root / "quarantine" / name) for name in fs.listdir(root / "quarantine")]
    if kept:
        nbytes = sum(found.nbytes for found in kept if found is not None)
        yield Finding(
            "quarantine",
            Level.NOTE,
            str(root / "quarantine"),
            f"{len(kept)} things that were set aside, {nbytes} bytes",
            "look at them and remove them",
        )


def check_mode(path: Path, fs: Fs, *, forbidden: int) -> Iterator[Finding]:
    """Say so if others can do with a file or directory what they must not."""
    found = fs.stat(path)
    if found is not None and found.mode & forbidden:
        wanted = found.mode & ~forbidden
        yield Finding(
            "permission",
            Level.WARNING,
            str(path),
            f"its mode {found.mode:04o} lets others {_may(found.mode & forbidden)} it",
            f"chmod {stat.S_IMODE(wanted):o} {path}",
        )


def _may(mode: int) -> str:
    return "write" if mode & 0o022 else "read"
