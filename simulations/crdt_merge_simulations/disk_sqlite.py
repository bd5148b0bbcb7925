"""SQLite on a :class:`SimulatedDisk`: an APSW virtual file system on the same bytes as the file system port.

It has no shared memory, hence the store's exclusive locking mode. Handles of a process that is gone are void:
whatever their destructors still do has no effect.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

import apsw
from crdt_merge_node.ports import File

from .disk import SECTOR_BYTES, SimulatedDisk

T = TypeVar("T")


class SimulatedVfs(apsw.VFS):
    """SQLite's way to a :class:`SimulatedDisk`; pass ``name`` as the ``vfs`` of a connection."""

    _disk: SimulatedDisk | None = None
    """None again once the garbage collector has emptied this object, before connections that still use it."""

    def __init__(self, disk: SimulatedDisk, *, name: str, rng: Random) -> None:
        super().__init__(name, base="")
        self.name = name
        self._disk = disk
        self._rng = rng
        self._temporary = 0

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open a database, its log or its journal."""
        if self._disk is None:
            raise _as_sqlite(OSError(errno.EIO, "the process is gone"))
        flags[1] = flags[0]
        if name is None:
            self._temporary += 1
            path = Path(f"/sqlite-temporary-{self._temporary}")
        else:
            path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        try:
            is_new = self._disk.stat(path) is None
            file = self._disk.create(path) if is_new else self._disk.open_write(path)
        except OSError as error:
            raise _as_sqlite(error) from error
        is_log = bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))
        return SimulatedVfsFile(self._disk, path, file, must_sync_name=is_new and is_log)  # type: ignore[return-value]  # APSW asks for the methods, not the class

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        """Return the path."""
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: ARG002, N802
        """Tell whether a file exists."""
        if self._disk is None:
            return False
        try:
            return self._disk.stat(Path(pathname)) is not None
        except OSError as error:
            raise _as_sqlite(error) from error

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Remove a file."""
        if self._disk is None or self._disk.is_void:
            return
        try:
            self._disk.unlink(Path(filename))
            if syncdir:
                self._disk.sync_dir(Path(filename).parent)
        except OSError as error:
            raise _as_sqlite(error) from error

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802
        """Return reproducible bytes."""
        return self._rng.randbytes(numbytes)

    def xCurrentTime(self) -> float:  # noqa: N802
        """Return a fixed Julian day."""
        return 2_461_000.5

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        """Return a fixed Julian day in milliseconds."""
        return int(2_461_000.5 * 86_400_000)

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        """Return at once."""
        return microseconds


class SimulatedVfsFile:
    """What SQLite calls on an open file."""

    _disk: SimulatedDisk | None = None
    """As in :class:`SimulatedVfs`."""

    def __init__(self, disk: SimulatedDisk, path: Path, file: File, *, must_sync_name: bool) -> None:
        self._disk = disk
        self._path = path
        self._file = file
        self._must_sync_name = must_sync_name
        """SQLite's own VFS syncs the directory of a new log or journal at its first sync."""

    @property
    def _is_void(self) -> bool:
        return self._disk is None or self._disk.is_void

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        """Return bytes; SQLite fills up what is missing."""
        return b"" if self._is_void else _call(lambda: self._file.read_at(offset, amount))

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """Write."""
        if not self._is_void:
            _call(lambda: self._file.write_at(offset, data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        """Set the length."""
        if not self._is_void:
            _call(lambda: self._file.truncate(newsize))

    def xSync(self, flags: int) -> None:  # noqa: ARG002, N802
        """Make durable. Whatever fails here is an I/O error to SQLite, a full disk too."""
        if self._disk is None or self._disk.is_void:
            return
        try:
            self._file.sync()
            if self._must_sync_name:
                self._disk.sync_dir(self._path.parent)
                self._must_sync_name = False
        except OSError as error:
            raise apsw.IOError(str(error)) from error

    def xFileSize(self) -> int:  # noqa: N802
        """Return the length."""
        return 0 if self._is_void else _call(self._file.size)

    def xLock(self, level: int) -> None:  # noqa: N802
        """Do nothing: the data directory is locked."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Do nothing."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        """Tell that nobody else writes."""
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: ARG002, N802
        """Refuse every hint."""
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        """Return the unit in which a power cut tears."""
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        """Promise nothing."""
        return 0

    def xClose(self) -> None:  # noqa: N802
        """Close."""
        self._file.close()


def _call(work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise _as_sqlite(error) from error


def _as_sqlite(error: OSError) -> apsw.Error:
    return apsw.FullError(str(error)) if error.errno == errno.ENOSPC else apsw.IOError(str(error))
