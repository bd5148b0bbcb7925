"""The real file system behind the port of ``files``."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .files import DiskSpace, File, FileStat, Lock

_SYNC_FILE_RANGE_WRITE: Final = 2
_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2)."""
_CANNOT_SHARE: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS}
)
"""Errors by which file systems say that two files cannot share blocks, or a file have two names."""


class _OpenFile:
    """A regular file behind a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def _fd(self) -> int:
        if self._descriptor is None:
            raise OSError(errno.EBADF, "the file is closed")
        return self._descriptor

    @property
    def descriptor(self) -> int:
        """The open descriptor."""
        return self._fd

    def read_at(self, offset: int, nbytes: int) -> bytes:
        parts: list[bytes] = []
        while nbytes > 0 and (part := os.pread(self._fd, nbytes, offset)):
            parts.append(part)
            offset += len(part)
            nbytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._fd, rest, offset)
            offset += written
            rest = rest[written:]

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def truncate(self, nbytes: int) -> None:
        os.ftruncate(self._fd, nbytes)

    def begin_sync(self, offset: int, nbytes: int) -> None:
        if (start := _sync_file_range()) is not None:
            start(self._fd, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def _sync_file_range() -> Any:
    """Return Linux's system call of that name; None elsewhere. Whatever goes wrong, fsync tells."""
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


class SystemFs:
    """The real file system, through descriptors opened with ``O_CLOEXEC``."""

    def open_read(self, path: Path, *, follow: bool = False) -> File:
        """Open a regular file for reading."""
        return self._open(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))

    def open_write(self, path: Path) -> File:
        """Open an existing regular file for reading and writing."""
        return self._open(path, os.O_RDWR | os.O_NOFOLLOW)

    def create(self, path: Path, *, mode: int = 0o600) -> File:
        """Create a file that must not exist."""
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)

    @staticmethod
    def _open(path: Path, flags: int, mode: int = 0) -> _OpenFile:
        # Without O_NONBLOCK, opening a FIFO that somebody put in place of a blob would hang (B68).
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return _OpenFile(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing ``target`` atomically."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def mkdir(self, path: Path, *, mode: int = 0o700) -> bool:
        """Make a directory; False if it was there."""
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            if not path.is_dir():
                raise
            return False
        return True

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def clone(self, source: Path, target: Path) -> bool:
        """Share the blocks of a file by FICLONE, which btrfs, XFS and bcachefs know."""
        with self._open(source, os.O_RDONLY) as original:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with self._open(target, flags, 0o600) as copy:
                try:
                    fcntl.ioctl(copy.descriptor, _FICLONE, original.descriptor)
                except OSError as error:
                    target.unlink()
                    if error.errno in _CANNOT_SHARE:
                        return False
                    raise
        return True

    def link(self, source: Path, target: Path) -> bool:
        """Make a hard link to the file that ``source`` leads to."""
        try:
            target.hardlink_to(source.resolve(strict=True))
        except OSError as error:
            if error.errno in (*_CANNOT_SHARE, errno.EMLINK):
                return False
            raise
        return True

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def stat(self, path: Path) -> FileStat | None:
        """Return what is at ``path``, or None."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileStat(
            nbytes=found.st_size,
            is_file=stat.S_ISREG(found.st_mode),
            is_directory=stat.S_ISDIR(found.st_mode),
            mode=stat.S_IMODE(found.st_mode),
            owner=found.st_uid,
        )

    def sync_dir(self, path: Path) -> None:
        """Return once the names in a directory are durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def disk_space(self, path: Path) -> DiskSpace:
        """Return how much room the file system of ``path`` has."""
        found = os.statvfs(path)
        unit = found.f_frsize
        return DiskSpace(free_bytes=found.f_bavail * unit, total_bytes=found.f_blocks * unit)

    def lock(self, path: Path, *, note: bytes) -> Lock | None:
        """Take an exclusive ``flock`` on ``path``; it ends with the process, however that ends."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))  # noqa: TRY301 - closed below.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note, 0)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return _OpenFile(descriptor)


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock of :meth:`Fs.lock` on ``path``, without changing the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
