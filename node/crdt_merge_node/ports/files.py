"""The port for the file system, as far as the data directory needs it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """What a directory entry is, without following a symbolic link."""

    nbytes: int
    is_file: bool
    """A regular file: not a directory, link, FIFO, socket or device."""
    is_directory: bool
    mode: int
    """Permission bits, as in 0o600."""
    owner: int
    """User id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """Room on a file system."""

    free_bytes: int
    """What this user may still write."""
    total_bytes: int


class File(Protocol):
    """An open regular file. Calls block; positions are always explicit."""

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return the bytes in ``[offset, offset + nbytes)``, fewer only at the end of the file."""
        ...

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""
        ...

    def size(self) -> int:
        """Return the length in bytes."""
        ...

    def truncate(self, nbytes: int) -> None:
        """Set the length."""
        ...

    def begin_sync(self, offset: int, nbytes: int) -> None:
        """Let the disk begin with what was written there, so that :meth:`sync` finds less to do. A hint."""
        ...

    def sync(self) -> None:
        """Return once the contents are durable. After an error the contents are unknown: never retry."""
        ...

    def close(self) -> None:
        """Close. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lock(Protocol):
    """An exclusive lock that ends with the process."""

    def close(self) -> None:
        """Release."""
        ...


class Fs(Protocol):
    """The file system, as far as the data directory needs it. All calls block and raise ``OSError``."""

    def open_read(self, path: Path, *, follow: bool = False) -> File:
        """Open a regular file; ``follow`` allows a symbolic link (for files that a user names)."""
        ...

    def open_write(self, path: Path) -> File:
        """Open an existing regular file for reading and writing."""
        ...

    def create(self, path: Path, *, mode: int = 0o600) -> File:
        """Create a file that must not exist."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing ``target`` atomically."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        ...

    def mkdir(self, path: Path, *, mode: int = 0o700) -> bool:
        """Make a directory; False if it was there."""
        ...

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def clone(self, source: Path, target: Path) -> bool:
        """Make ``target``, which must not exist, a file that shares the blocks of a user's file ``source``.

        Later writes to either do not show in the other. False, with nothing made, if the file systems cannot.
        """
        ...

    def link(self, source: Path, target: Path) -> bool:
        """Give a user's file another name: writes show in both. False if the file system cannot."""
        ...

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted; none if there is no such directory."""
        ...

    def stat(self, path: Path) -> FileStat | None:
        """Return what is at ``path``, or None."""
        ...

    def sync_dir(self, path: Path) -> None:
        """Return once the names in a directory are durable."""
        ...

    def disk_space(self, path: Path) -> DiskSpace:
        """Return how much room the file system of ``path`` has."""
        ...

    def lock(self, path: Path, *, note: bytes) -> Lock | None:
        """Take an exclusive lock on ``path``, writing ``note`` into it; None if another process has it."""
        ...


def replace_file(fs: Fs, path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a small file so that after a crash it holds either what it held before or ``data``, durably."""
    temporary = path.with_name(f".{path.name}.new")
    if fs.stat(temporary) is not None:  # Left by a crash.
        fs.unlink(temporary)
    try:
        with fs.create(temporary, mode=mode) as file:
            file.write_at(0, data)
            file.sync()
        fs.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            fs.unlink(temporary)
        raise
    fs.sync_dir(path.parent)
