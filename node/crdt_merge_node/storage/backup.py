"""Backups: a directory with everything that a node stores, as of one moment (SCENARIOS 7).

    MANIFEST.json   what is in it, with roots, counts and hashes; written last
    UNFINISHED      while it is being made; the same command then goes on where it stopped
    ops.db          the database
    blobs/ kept/    its files, where the file system can as second names or shared blocks of the node's own
    config.toml     if there is one in the data directory
    keys/           identity/ and ca/, only if asked for: whoever has them *is* the node

The database is copied first, page by page between the daemon's own work, and then the files that *this copy*
names: none can be missing for having come later. One that has gone meanwhile leaves the copy with its row.
Blob files never change once they have their names, so a second name is as good as a copy against everything
but the disk itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import apsw
from blake3 import blake3
from crdt_merge_protocol.blobs import chunk_count
from crdt_merge_protocol.limits import CHUNK_BYTES

from crdt_merge_node.errors import ConfigError, CorruptError, FullError, NotFoundError, StorageError
from crdt_merge_node.ports import Clock, Fs, replace_file

from .checking_files import Placed, blob_path, placed_blobs
from .checking_rows import has_kept, roots_of_ids, select
from .findings import Report
from .health import NO_ROOM
from .schema import SCHEMA_VERSION
from .store import Store

FORMAT: Final = 1
MANIFEST: Final = "MANIFEST.json"
UNFINISHED: Final = "UNFINISHED"
DATABASE: Final = "ops.db"
MANIFEST_BYTES_MAX: Final = 4 << 20
CONFIG: Final = "config.toml"
CONFIG_BYTES_MAX: Final = 1 << 20
KEY_DIRECTORIES: Final = ("identity", "ca")
STEP: Final = "copying blobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup holds."""

    format: int
    release: str
    created: float
    """Unix seconds."""
    node: str
    cluster: str
    cluster_name: str
    schema: int
    groups: dict[str, tuple[str, int]]
    """Group -> (sync root over its stored operations, their number)."""
    operations: int
    blobs: int
    nbytes: int
    """Of blobs."""
    database_bytes: int
    database_hash: str
    """BLAKE3."""
    keys: dict[str, str]
    """Key files -> BLAKE3; empty: there are none."""
    config: str = ""
    """BLAKE3 of ``config.toml``; empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose backup it is."""

    release: str
    node: str
    cluster: str
    cluster_name: str


@dataclass(slots=True)
class Written:
    """A backup that was just made."""

    manifest: Manifest
    linked_bytes: int
    missing_blobs: int


class Cancelled(Exception):  # noqa: N818 - not an error: somebody asked for it.
    """The backup was told to stop; what is there stays for the next attempt."""


def write_backup(
    store: Store,
    target: Path,
    *,
    origin: Origin,
    with_keys: bool,
    is_copying: bool,
    fs: Fs,
    clock: Clock,
    report: Report,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Written:
    """Make a backup of an open store in a new directory, or finish one. Blocks; memory is bounded.

    Args:
        store: Of a node that runs or not.
        target: The directory; its parent exists.
        origin: Whose it is.
        with_keys: Put the node's keys in, and the CA's where they are.
        is_copying: Copy every byte, even where a second name would do.
        fs: The file system.
        clock: For the date.
        report: Hears (done, total, step) in bytes.
        is_cancelled: Asked between chunks.

    Raises:
        ConfigError: The directory holds something else.
        FullError: No room; what is there stays, and the same call goes on.
        StorageError: It cannot be read or written.
    """
    try:
        _prepare(target, origin, store.data.path, fs)
        created = clock.now()
        store.copy_database(target / DATABASE, report)
        work = _Files(store, target, fs, report, is_cancelled, is_copying=is_copying)
        work.place_all()
        keys = _copy_keys(store.data.path, target, fs) if with_keys else {}
        manifest = _describe(target, origin, keys, created=created, fs=fs)
        manifest = replace(manifest, config=copy_config(store.data.path, target, fs))
        for directory in sorted(work.directories):
            fs.sync_dir(directory)
        data = json.dumps(asdict(manifest), indent=1, sort_keys=True).encode() + b"\n"
        replace_file(fs, target / MANIFEST, data)
        fs.unlink(target / UNFINISHED)
        fs.sync_dir(target)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise FullError(
                f"no room on the file system of {target}.", hint="Make room there; the same command goes on."
            ) from error
        raise StorageError(
            f"{error.filename or target}: {error.strerror}.", hint="Name a directory that can be written to."
        ) from error
    return Written(manifest, work.linked_bytes, work.missing_blobs)


def _prepare(target: Path, origin: Origin, data_dir: Path, fs: Fs) -> None:
    if target == data_dir or target.is_relative_to(data_dir):
        raise ConfigError(f"{target} is inside the data directory.", hint="Back up to another place.")
    if fs.stat(target.parent) is None:
        raise ConfigError(f"{target.parent} does not exist.", hint="Make it first.")
    fs.mkdir(target)
    names = fs.listdir(target)
    if MANIFEST in names and UNFINISHED not in names:
        raise ConfigError(f"{target} holds a finished backup.", hint="Name a new directory.")
    mark = origin.node.encode()
    if UNFINISHED in names:
        with fs.open_read(target / UNFINISHED) as file:
            if file.read_at(0, len(mark) + 1) != mark:
                raise ConfigError(f"{target} holds the unfinished backup of another node.")
    elif names:
        raise ConfigError(f"{target} is not empty.", hint="Name a new directory.")
    else:
        replace_file(fs, target / UNFINISHED, mark)


class _Files:
    """Puts the files of blobs into a backup."""

    def __init__(
        self,
        store: Store,
        target: Path,
        fs: Fs,
        report: Report,
        is_cancelled: Callable[[], bool],
        *,
        is_copying: bool,
    ) -> None:
        self.directories = {target}
        self.linked_bytes = 0
        self.missing_blobs = 0
        self._store = store
        self._target = target
        self._fs = fs
        self._report = report
        self._is_cancelled = is_cancelled
        self._is_copying = is_copying
        self._done = 0
        self._total = 0

    def place_all(self) -> None:
        """Place every blob that the copy of the database names; drop the rows of those that are gone."""
        connection = apsw.Connection(str(self._target / DATABASE))
        try:
            sizes = "SELECT coalesce(sum(nbytes), 0) FROM blobs WHERE inline IS NULL"
            [(self._total,)] = select(connection, sizes)
            for placed in list(placed_blobs(connection, self._store.data.path)):
                if self._is_cancelled():
                    raise Cancelled
                if not self._place(connection, placed):
                    self.missing_blobs += 1
                    connection.execute("DELETE FROM blobs WHERE key = ?", (placed.key,))
                self._done += placed.nbytes
                self._report(self._done, self._total, STEP)
            if has_kept(connection):
                connection.execute("DELETE FROM kept WHERE digest NOT IN (SELECT digest FROM blobs)")
            connection.execute("DELETE FROM condemned")
        finally:
            connection.close()
        with self._fs.open_write(self._target / DATABASE) as file:
            file.sync()

    def _place(self, connection: apsw.Connection, placed: Placed) -> bool:
        """Put one blob in; False if it is not here any more."""
        if placed.chunks is None:
            return False
        if placed.is_kept:
            if not self._is_copying and self._share_kept(placed):
                return True
            connection.execute("DELETE FROM kept WHERE digest = ?", (placed.digest,))
        target = blob_path(self._target / "blobs", placed.digest)
        found = self._fs.stat(target)
        if found is not None and found.nbytes == placed.nbytes:
            return True  # By the attempt before this one.
        self._make_parents(target)
        if not placed.is_kept and not self._is_copying and self._share(placed.path, target):
            self.linked_bytes += placed.nbytes
            return True
        return self._copy(placed, target)

    def _share_kept(self, placed: Placed) -> bool:
        target = self._target / "kept" / placed.path.name
        if self._fs.stat(target) is None:
            self._make_parents(target)
            try:
                if not self._fs.clone(placed.path, target):
                    return False
            except FileNotFoundError:
                return False
        self.linked_bytes += placed.nbytes
        return True

    def _share(self, source: Path, target: Path) -> bool:
        with suppress(FileNotFoundError):
            return self._fs.link(source, target) or self._fs.clone(source, target)
        return False

    def _copy(self, placed: Placed, target: Path) -> bool:
        """Copy a blob, verifying each chunk."""
        temporary = target.with_name(f".{target.name}.new")
        if self._fs.stat(temporary) is not None:
            self._fs.unlink(temporary)
        with self._fs.create(temporary) as file:
            for index in range(chunk_count(placed.nbytes)):
                try:
                    data = self._store.blobs.read_chunk(placed.digest, index)
                except CorruptError:
                    data = None  # Set aside by the store, and fetched again.
                if data is None or self._is_cancelled():
                    break
                file.write_at(index * CHUNK_BYTES, data)
                self._report(self._done + index * CHUNK_BYTES, self._total, STEP)
            file.sync()
            is_whole = file.size() == placed.nbytes
        if not is_whole:
            self._fs.unlink(temporary)
            if self._is_cancelled():
                raise Cancelled
            return False
        self._fs.rename(temporary, target)
        return True

    def _make_parents(self, target: Path) -> None:
        for directory in (target.parent.parent, target.parent):
            if directory not in self.directories:
                self._fs.mkdir(directory)
                self.directories.add(directory)


def copy_config(source: Path, target: Path, fs: Fs) -> str:
    """Copy the settings from one directory to another, if there are any; return their hash."""
    if fs.stat(source / CONFIG) is None:
        return ""
    with fs.open_read(source / CONFIG, follow=True) as file:
        data = file.read_at(0, CONFIG_BYTES_MAX)
    replace_file(fs, target / CONFIG, data)
    return blake3(data).hexdigest()


def _copy_keys(data_dir: Path, target: Path, fs: Fs) -> dict[str, str]:
    """Copy the identity files, and the CA's where they are; return their hashes."""
    hashes: dict[str, str] = {}
    fs.mkdir(target / "keys")
    for directory in KEY_DIRECTORIES:
        names = [name for name in fs.listdir(data_dir / directory) if not name.startswith(".")]
        if not names:
            continue
        fs.mkdir(target / "keys" / directory)
        for name in names:
            with fs.open_read(data_dir / directory / name) as file:
                data = file.read_at(0, file.size())
            replace_file(fs, target / "keys" / directory / name, data, mode=0o600)
            hashes[f"{directory}/{name}"] = blake3(data).hexdigest()
    fs.sync_dir(target / "keys")
    return hashes


def _describe(target: Path, origin: Origin, keys: dict[str, str], *, created: float, fs: Fs) -> Manifest:
    connection = apsw.Connection(str(target / DATABASE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        roots = roots_of_ids(connection)
        [(blobs, nbytes)] = select(connection, "SELECT count(*), coalesce(sum(nbytes), 0) FROM blobs")
    finally:
        connection.close()
    size, checksum = hash_file(target / DATABASE, fs)
    return Manifest(
        format=FORMAT,
        release=origin.release,
        created=created,
        node=origin.node,
        cluster=origin.cluster,
        cluster_name=origin.cluster_name,
        schema=SCHEMA_VERSION,
        groups={group.hex(): (root.hex(), count) for group, (root, count) in roots.items()},
        operations=sum(count for _, count in roots.values()),
        blobs=blobs,
        nbytes=nbytes,
        database_bytes=size,
        database_hash=checksum,
        keys=keys,
    )


def hash_file(path: Path, fs: Fs) -> tuple[int, str]:
    """Return the size and the BLAKE3 hash of a file."""
    hasher, offset = blake3(), 0
    with fs.open_read(path) as file:
        while data := file.read_at(offset, CHUNK_BYTES):
            hasher.update(data)
            offset += len(data)
    return offset, hasher.hexdigest()


def read_manifest(source: Path, fs: Fs) -> Manifest:
    """Return what a backup says of itself.

    Raises:
        NotFoundError: There is no finished backup.
        ConfigError: A newer release wrote it.
        CorruptError: The manifest is damaged.
    """
    path = source / MANIFEST
    if fs.stat(source / UNFINISHED) is not None:
        raise NotFoundError(
            f"the backup in {source} is not finished.", hint="Run the same `backup` again: it goes on."
        )
    if fs.stat(path) is None:
        raise NotFoundError(f"{source} holds no backup.", hint=f"A backup has a file {MANIFEST}.")
    try:
        with fs.open_read(path) as file:
            document: dict[str, Any] = json.loads(file.read_at(0, MANIFEST_BYTES_MAX))
        if document["format"] > FORMAT or document["schema"] > SCHEMA_VERSION:
            raise ConfigError(f"{source} was written by a newer release.", hint="Run that one.")
        groups = {group: (str(root), int(count)) for group, (root, count) in document["groups"].items()}
        return Manifest(**{**document, "groups": groups})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path} is not readable: {error!r}.") from None
