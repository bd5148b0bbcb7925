"""Checking a data directory whose daemon is stopped, and repairing what can be repaired from here.

Everything is read once: layout and permissions, the identity files, the pages of the database, every
operation as if it came from a stranger, every object and every blob by its hash. A repair moves what is
damaged to ``quarantine/`` or into the quarantine table and deletes nothing; what is missing then comes from
peers, as after any loss. The online counterpart is ``scrub.py`` of the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw
from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.errors import AlreadyRunningError, NotFoundError, StorageError
from crdt_merge_node.ports import Clock, Fs, process_id, replace_file

from .checking_files import Aside, check_blob_files, check_leftovers, check_mode, check_strays
from .checking_rows import (
    Roots,
    check_database,
    check_groups,
    check_inline_blobs,
    check_objects,
    check_operations,
    select,
)
from .findings import Finding, Level, Report, nothing
from .layout import DIRECTORIES, DataDir
from .salvage import salvage

KNOWN_NAMES: Final = frozenset(
    {*DIRECTORIES, "LOCK", "FORMAT", "LEFT", "RESTORED", "config.toml", "control.sock", "ops.db"}
)
PRIVATE: Final = ("identity/node.key", "identity/tls.key", "ca/ca.key")
CheckIdentity = Callable[[Path, Fs], object]
"""Raises :class:`CrdtMergeError` if the identity files are not whole."""


@dataclass(slots=True)
class Checked:
    """What a check of a data directory found."""

    findings: list[Finding] = field(default_factory=list)
    groups: int = 0
    operations: int = 0
    blobs: int = 0
    nbytes: int = 0
    """Of blobs."""
    salvaged_rows: int | None = None
    """Rows that were taken over from a damaged database; None: none had to be."""

    @property
    def is_damaged(self) -> bool:
        """Whether damage is left."""
        return any(each.level is Level.DAMAGE and not each.is_repaired for each in self.findings)


def fsck(
    path: Path,
    *,
    fs: Fs,
    clock: Clock,
    check_identity: CheckIdentity,
    is_repairing: bool = False,
    report: Report = nothing,
) -> Checked:
    """Check a data directory; repair what can be repaired if ``is_repairing``.

    Raises:
        NotFoundError: There is no such directory, or nothing of ours in it.
        AlreadyRunningError: A daemon uses it.
        StorageError: It cannot be read at all.
    """
    if fs.stat(path) is None or fs.stat(path / "FORMAT") is None:
        raise NotFoundError(f"{path} is no data directory.", hint="Give the --data-dir of a node.")
    try:
        lock = fs.lock(path / "LOCK", note=f"{process_id()}\n".encode())
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}.", hint="Check permissions.") from error
    if lock is None:
        raise AlreadyRunningError(
            f"a daemon uses {path}.",
            hint="Stop it first. While it runs it checks itself, all of it once a week.",
        )
    try:
        return _Check(path, fs, clock, is_repairing=is_repairing, report=report).run(check_identity)
    finally:
        lock.close()


class _Check:
    """One check of one directory, which is locked."""

    def __init__(self, path: Path, fs: Fs, clock: Clock, *, is_repairing: bool, report: Report) -> None:
        self._path = path
        self._database = path / "ops.db"
        self._fs = fs
        self._clock = clock
        self._is_repairing = is_repairing
        self._report = report
        self._aside = Aside(fs, path / "quarantine")
        self._result = Checked()

    def run(self, check_identity: CheckIdentity) -> Checked:
        self._take(check_layout(self._path, self._fs))
        self._take(self._check_identity(check_identity))
        if self._has_database():
            self._check_database()
        self._take(check_leftovers(self._path, self._fs, self._aside))
        return self._result

    def _take(self, findings: Iterable[Finding]) -> None:
        """Note findings; repair them once all of a kind are known, when nothing is being read any more."""
        for found in (new := list(findings)):
            if self._is_repairing and found.repair is not None:
                found.repair()
                found.is_repaired = True
        self._result.findings += new

    def _check_identity(self, check: CheckIdentity) -> Iterator[Finding]:
        for name in PRIVATE:
            for found in check_mode(self._path / name, self._fs, forbidden=0o077):
                found.repair = lambda path=self._path / name: self._make_private(path)
                yield found
        if self._fs.stat(self._path / "identity" / "cluster.json") is None:
            return  # `init` was interrupted, or has not been run.
        try:
            check(self._path, self._fs)
        except CrdtMergeError as error:
            if "chmod" not in error.hint:  # That is said above.
                fix = error.hint or "restore the files"
                yield Finding("identity", Level.DAMAGE, str(self._path / "identity"), error.message, fix)

    def _make_private(self, path: Path) -> None:
        with self._fs.open_read(path) as file:
            data = file.read_at(0, file.size())
        replace_file(self._fs, path, data, mode=0o600)

    # --- the database -------------------------------------------------------------------------------------

    def _has_database(self) -> bool:
        if self._fs.stat(self._database) is not None:
            return True
        if DataDir.read_format(self._path, self._fs):
            message = "it is gone"
            fix = "restore a backup, or move the directory away and join again"
            self._take([Finding("database", Level.DAMAGE, str(self._database), message, fix)])
        return False

    def _check_database(self) -> None:
        try:
            self._check_rows()
        except apsw.Error as error:
            self._take([self._unreadable(f"it cannot be read: {error}")])
            if self._is_repairing:
                self._check_rows()

    def _check_rows(self) -> None:
        connection = self._open()
        try:
            damage = list(check_database(connection))
            if damage:
                if self._is_repairing:
                    connection.close(True)
                    damage[0].repair = self._salvage
                self._take(damage)
                if self._is_repairing:
                    for found in damage:
                        found.is_repaired = True
                    connection = self._open()
            self._check_content(connection)
        finally:
            connection.close(True)

    def _check_content(self, connection: apsw.Connection) -> None:
        now, roots = self._clock.now(), Roots()
        blobs = self._path / "blobs"
        self._take(check_groups(connection))
        self._take(check_operations(connection, roots, self._report, wall_time=now))
        self._take(check_objects(connection, wall_time=now))
        self._take(check_inline_blobs(connection, wall_time=now))
        files = check_blob_files(connection, self._path, self._fs, self._aside, self._report, wall_time=now)
        self._take(files)
        self._take(check_strays(connection, blobs, self._fs, self._aside))
        result = self._result
        result.operations, result.groups = roots.operations, len(roots.by_group)
        query = "SELECT count(*), coalesce(sum(nbytes), 0) FROM blobs"
        [(result.blobs, result.nbytes)] = select(connection, query)

    def _open(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._database), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.pragma("locking_mode", "exclusive")
        connection.pragma("synchronous", "full")
        if not self._is_repairing:
            # A check changes nothing, not even what the next start would change anyway.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.pragma("query_only", True)
        return connection

    def _unreadable(self, message: str) -> Finding:
        return Finding(
            "database",
            Level.DAMAGE,
            str(self._database),
            message,
            "its readable rows are put into a new file, the old one into quarantine/; peers have the rest",
            self._salvage,
        )

    def _salvage(self) -> None:
        """Put what can be read into a new file; the old one is kept."""
        new = self._path / "ops.db.new"
        for suffix in ("", "-journal", "-wal"):
            self._aside.move(new.with_name(new.name + suffix), new.name + suffix)
        self._result.salvaged_rows = salvage(self._database, new)
        for suffix in ("-wal", "-shm", ""):
            self._aside.move(self._database.with_name(f"ops.db{suffix}"), f"ops.db{suffix}")
        with self._fs.open_write(new) as file:
            file.sync()
        self._fs.rename(new, self._database)
        self._fs.sync_dir(self._path)


def check_layout(path: Path, fs: Fs) -> Iterator[Finding]:
    """Check directories, the FORMAT file, and who may write."""
    yield from check_mode(path, fs, forbidden=0o022)
    try:
        DataDir.read_format(path, fs)
    except StorageError as error:
        fix = error.hint or "restore it"
        yield Finding("layout", Level.DAMAGE, str(path / "FORMAT"), error.message, fix)
    for name in DIRECTORIES:
        found = fs.stat(path / name)
        if found is None:
            yield Finding(
                "layout",
                Level.NOTE,
                str(path / name),
                "the directory is missing",
                "it is made",
                lambda name=name: _make(path / name, fs),  # type: ignore[misc]
            )
        elif not found.is_directory:
            message = "it is no directory"
            yield Finding("layout", Level.DAMAGE, str(path / name), message, "move it away, then repair")
        else:
            private = name in ("identity", "ca")
            yield from check_mode(path / name, fs, forbidden=0o077 if private else 0o022)
    for name in fs.listdir(path):
        if name not in KNOWN_NAMES and not name.startswith("ops.db"):
            message = "nothing of a node is called so"
            yield Finding("layout", Level.NOTE, str(path / name), message, "look at it, and remove it")


def _make(path: Path, fs: Fs) -> None:
    fs.mkdir(path)
    fs.sync_dir(path.parent)
