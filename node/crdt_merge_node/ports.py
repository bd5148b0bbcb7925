"""The four ports through which the world enters: clock, randomness, file system, network.

Everything above takes these as arguments and nothing else reads the time, rolls dice, opens files of the
data directory or makes sockets; ``tests/unit/storage/test_ports.py`` enforces it. That is what lets a
test or the simulator replace the world. Each port is a typed Protocol followed by its real implementation.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import random
import socket
import stat
import time
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

T = TypeVar("T")

_SYNC_FILE_RANGE_WRITE: Final = 2


class Clock(Protocol):
    """Tells the time. Wall time is for people and certificates; durations use the monotonic clock."""

    def now(self) -> float:
        """Return wall time in seconds since 1970. May jump, also backwards."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start. Never goes backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return wall time in seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()


class Rng(Protocol):
    """Randomness. A subset of ``random.Random``, so that either fits, plus :meth:`bytes` for secrets."""

    def bytes(self, n: int, /) -> builtins.bytes:
        """Return ``n`` unpredictable bytes: keys, nonces, log ids, tokens."""
        ...

    def random(self) -> float:
        """Return a number in ``0 <= x < 1``."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Return a number between ``a`` and ``b``."""
        ...

    def randrange(self, start: int, stop: int | None = None, /) -> int:
        """Return an integer of ``range(start, stop)``, or of ``range(start)``."""
        ...

    def choice(self, seq: Sequence[T], /) -> T:
        """Return one element."""
        ...

    def sample(self, population: Sequence[T], /, k: int) -> list[T]:
        """Return ``k`` different elements in random order."""
        ...

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """Shuffle in place."""
        ...


class SystemRng(random.SystemRandom):
    """The kernel's random numbers, for every purpose."""

    def bytes(self, n: int, /) -> builtins.bytes:
        """Return ``n`` unpredictable bytes."""
        return os.urandom(n)


class SeededRng(random.Random):
    """Reproducible numbers for tests and simulations; never for secrets."""

    def bytes(self, n: int, /) -> builtins.bytes:
        """Return ``n`` bytes of this seed's sequence."""
        return self.randbytes(n)


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


class Listener(Protocol):
    """A listening socket."""

    @property
    def address(self) -> tuple[str, int]:
        """The bound host and port; the real port if 0 was asked for."""
        ...

    def close(self) -> None:
        """Accept nothing more. Connections that were accepted live on."""
        ...


class Net(Protocol):
    """Stream connections over asyncio transports."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """Listen; every accepted connection gets a protocol of its own."""
        ...

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect. Raises ``OSError``; the caller sets the timeout."""
        ...


class _TcpListener:
    """A listening TCP socket of the running loop."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        name = server.sockets[0].getsockname()
        self._address = (str(name[0]), int(name[1]))

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    def close(self) -> None:
        self._server.close()


class TcpNet:
    """TCP on the running event loop."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """Listen on an address of this host."""
        loop = asyncio.get_running_loop()
        return _TcpListener(await loop.create_server(factory, host, port, backlog=512))

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect to an address."""
        return await asyncio.get_running_loop().create_connection(factory, host, port)


def process_id() -> int:
    """Return the id of this process, for lock files and logs."""
    return os.getpid()


def available_memory_bytes() -> int:
    """Return how much memory programs may still take without swapping; 0 if the kernel does not say."""
    with contextlib.suppress(OSError, ValueError), Path("/proc/meminfo").open(encoding="ascii") as facts:
        for line in facts:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return 0


def replace_file(fs: Fs, path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a small file so that after a crash it holds either what it held before or ``data``, durably."""
    temporary = path.with_name(f".{path.name}.new")
    if fs.stat(temporary) is not None:  # Left by a crash.
        fs.unlink(temporary)
    with fs.create(temporary, mode=mode) as file:
        file.write_at(0, data)
        file.sync()
    fs.rename(temporary, path)
    fs.sync_dir(path.parent)


def local_addresses(port: int) -> tuple[str, ...]:
    """Return ``host:port`` of this host's own addresses that others could dial, without asking a network.

    Connecting a datagram socket sends nothing; it only makes the kernel choose the source address.
    """
    found: list[str] = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            host = str(probe.getsockname()[0])
            found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return tuple(found) or (f"127.0.0.1:{port}",)


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
