"""A disk in memory that loses what was not synced: the file system port. SQLite's way here: ``disk_sqlite``.

The model is meaner than ext4 and no meaner than POSIX. What is written is visible at once and durable only
after a sync of that file; a name that is made, moved or removed is durable only after a sync of its
directory, not of the file. At a power cut every 512-byte sector written since the last sync is kept or lost
on its own (a few become garbage), and so is every change of a name. Each call is counted and may be made to
fail, so that a test can cut, or inject an error, at every index of a run (SCENARIOS T43, T44, B70).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final, Self

from crdt_merge_node.ports import DiskSpace, File, FileStat, Lock

SECTOR_BYTES: Final = 512
GARBAGE_RATIO: Final = 0.02
Fault = Callable[[int, str, Path], None]
"""Called before each call with its index, name and path; raises ``OSError`` to make it fail."""


class PowerCutError(OSError):
    """The power is gone: this call and all later ones do nothing."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "power cut")


@dataclass(eq=False, slots=True)
class _FileNode:
    data: bytearray = field(default_factory=bytearray)
    """What reading returns."""
    durable: bytearray = field(default_factory=bytearray)
    """What a power cut leaves for certain."""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes) written and (length, None) truncated since the last sync."""


@dataclass(eq=False, slots=True)
class _Directory:
    names: dict[str, _FileNode | _Directory] = field(default_factory=dict)
    durable: dict[str, _FileNode | _Directory] = field(default_factory=dict)


class SimulatedDisk:
    """An ``Fs`` with a power switch. Not for several threads."""

    def __init__(self, *, capacity_bytes: int = 1 << 30, fault: Fault | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.fault = fault
        self.calls = 0
        """Number of calls so far, whether or not they failed."""
        self.is_dead = False
        self.is_void = False
        """The process that had it is gone: what its leftover SQLite handles do has no effect and no error."""
        self.is_rotten = False
        """Stored bytes were changed behind its back; else whoever finds damage has done it himself."""
        self.used_bytes = 0
        """Size of all files that have a name."""
        self._root = _Directory()
        self._locked: set[Path] = set()

    # --- power and faults ---------------------------------------------------------------------------

    def tick(self, name: str, path: Path) -> None:
        """Count a call, and fail it if the plan says so."""
        if self.is_dead:
            raise PowerCutError
        index = self.calls
        self.calls += 1
        if self.fault is not None:
            try:
                self.fault(index, name, path)
            except PowerCutError:
                self.is_dead = True
                raise

    def after_power_cut(self, rng: Random) -> SimulatedDisk:
        """Return the disk that the next start finds, as chance left it."""
        return self._successor(_survive_directory(self._root, rng, {}))

    def after_kill(self) -> SimulatedDisk:
        """Return the disk as the next process finds it: nothing written is lost. Old handles are void."""
        self.is_dead = self.is_void = True
        return self._successor(self._root)

    def copy(self) -> SimulatedDisk:
        """Return a copy of what is on it at this moment, as a snapshot of a volume is."""
        return self._successor(_copy_directory(self._root, {}))

    def _successor(self, root: _Directory) -> SimulatedDisk:
        disk = SimulatedDisk(capacity_bytes=self.capacity_bytes)
        disk._root, disk.used_bytes, disk.is_rotten = root, _used_bytes(root), self.is_rotten
        return disk

    def paths(self, under: Path) -> list[Path]:
        """Return the files below a directory, sorted."""
        return sorted(_paths(self._find(under), under))

    def nbytes(self, path: Path) -> int:
        """Return the size of a file; 0 if there is none."""
        node = self._find(path)
        return len(node.data) if isinstance(node, _FileNode) else 0

    def rot(self, path: Path, offset: int) -> None:
        """Change a stored byte behind everybody's back."""
        self.is_rotten = True
        node = self.node(path)
        node.data[offset] ^= 0x20
        if offset < len(node.durable):
            node.durable[offset] ^= 0x20

    def grow(self, nbytes: int) -> None:
        """Take (or give back) room; ``ENOSPC`` if there is none."""
        if nbytes > 0 and self.used_bytes + nbytes > self.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.used_bytes += nbytes

    # --- the file system port -----------------------------------------------------------------------

    def open_read(self, path: Path, *, follow: bool = False) -> File:  # noqa: ARG002  (there are no links)
        """Open a regular file for reading."""
        self.tick("open", path)
        return SimulatedFile(self, path, self.node(path))

    def open_write(self, path: Path) -> File:
        """Open an existing regular file for reading and writing."""
        self.tick("open", path)
        return SimulatedFile(self, path, self.node(path))

    def create(self, path: Path, *, mode: int = 0o600) -> File:  # noqa: ARG002  (there are no permissions)
        """Create a file that must not exist."""
        self.tick("create", path)
        directory = self._directory(path.parent)
        if path.name in directory.names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        node = _FileNode()
        directory.names[path.name] = node
        return SimulatedFile(self, path, node)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing ``target``."""
        self.tick("rename", target)
        names, targets = self._directory(source.parent).names, self._directory(target.parent).names
        if source.name not in names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        node = names.pop(source.name)
        if target.name in targets:
            self.used_bytes -= _used_bytes(targets[target.name])
        targets[target.name] = node

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        self.tick("unlink", path)
        node = self._directory(path.parent).names.pop(path.name, None)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self.used_bytes -= _used_bytes(node)

    def mkdir(self, path: Path, *, mode: int = 0o700) -> bool:  # noqa: ARG002  (there are no permissions)
        """Make a directory; False if it was there."""
        self.tick("mkdir", path)
        names = self._directory(path.parent).names
        if path.name in names:
            return False
        names[path.name] = _Directory()
        return True

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        self.tick("rmdir", path)
        if self._directory(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        del self._directory(path.parent).names[path.name]

    def clone(self, source: Path, target: Path) -> bool:  # noqa: ARG002  (as on ext4)
        """Say that files cannot share blocks."""
        return False

    def link(self, source: Path, target: Path) -> bool:  # noqa: ARG002  (as on FAT)
        """Say that a file has one name."""
        return False

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        self.tick("listdir", path)
        node = self._find(path)
        return sorted(node.names) if isinstance(node, _Directory) else []

    def stat(self, path: Path) -> FileStat | None:
        """Return what is at ``path``, or None."""
        self.tick("stat", path)
        node = self._find(path)
        if node is None:
            return None
        is_file = isinstance(node, _FileNode)
        nbytes = len(node.data) if isinstance(node, _FileNode) else 0
        return FileStat(nbytes=nbytes, is_file=is_file, is_directory=not is_file, mode=0o700, owner=0)

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        self.tick("sync_dir", path)
        directory = self._directory(path)
        directory.durable = dict(directory.names)

    def disk_space(self, path: Path) -> DiskSpace:
        """Return how much room there is."""
        self.tick("disk_space", path)
        free = self.capacity_bytes - self.used_bytes
        return DiskSpace(free_bytes=free, total_bytes=self.capacity_bytes)

    def lock(self, path: Path, *, note: bytes) -> Lock | None:  # noqa: ARG002  (nobody reads it)
        """Take an exclusive lock; None if it is taken."""
        self.tick("lock", path)
        if path in self._locked:
            return None
        self._locked.add(path)
        return _SimulatedLock(self._locked, path)

    # --- nodes --------------------------------------------------------------------------------------

    def node(self, path: Path) -> _FileNode:
        """Return the file at ``path``."""
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if isinstance(node, _Directory):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return node

    def _find(self, path: Path) -> _FileNode | _Directory | None:
        node: _FileNode | _Directory | None = self._root
        for part in path.parts[1:]:
            if not isinstance(node, _Directory):
                return None
            node = node.names.get(part)
        return node

    def _directory(self, path: Path) -> _Directory:
        node = self._find(path)
        if not isinstance(node, _Directory):
            raise FileNotFoundError(errno.ENOENT, "no such directory", str(path))
        return node


class SimulatedFile:
    """An open file of a :class:`SimulatedDisk`."""

    def __init__(self, disk: SimulatedDisk, path: Path, node: _FileNode) -> None:
        self._disk = disk
        self._path = path
        self._node = node

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return bytes."""
        self._disk.tick("read", self._path)
        return bytes(self._node.data[offset : offset + nbytes])

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``, of which a failure may leave a part."""
        self._disk.tick("write", self._path)
        if (growth := offset + len(data) - len(self._node.data)) > 0:
            self._disk.grow(growth)
        written = bytes(data)
        _write(self._node.data, offset, written)
        self._node.pending.append((offset, written))

    def size(self) -> int:
        """Return the length in bytes."""
        self._disk.tick("size", self._path)
        return len(self._node.data)

    def truncate(self, nbytes: int) -> None:
        """Set the length."""
        self._disk.tick("truncate", self._path)
        self._disk.grow(nbytes - len(self._node.data))
        _resize(self._node.data, nbytes)
        self._node.pending.append((nbytes, None))

    def begin_sync(self, offset: int, nbytes: int) -> None:
        """Do nothing: when the disk begins is up to it."""

    def sync(self) -> None:
        """Make the contents durable; not the name."""
        self._disk.tick("sync", self._path)
        # What is pending, not all that is there: a database is synced at every commit.
        for offset, written in self._node.pending:
            if written is None:
                _resize(self._node.durable, offset)
            else:
                _write(self._node.durable, offset, written)
        self._node.pending.clear()

    def close(self) -> None:
        """Close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SimulatedLock:
    def __init__(self, locked: set[Path], path: Path) -> None:
        self._locked = locked
        self._path = path

    def close(self) -> None:
        self._locked.discard(self._path)


def _write(data: bytearray, offset: int, written: bytes) -> None:
    """Put bytes at a place, with zeros before it if it is beyond the end."""
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written


def _resize(data: bytearray, nbytes: int) -> None:
    del data[nbytes:]
    data.extend(bytes(nbytes - len(data)))


def _used_bytes(node: _FileNode | _Directory) -> int:
    if isinstance(node, _FileNode):
        return len(node.data)
    return sum(_used_bytes(child) for child in node.names.values())


def _copy_directory(directory: _Directory, copies: dict[_FileNode, _FileNode]) -> _Directory:
    copy = _Directory()
    for name, node in directory.names.items():
        if isinstance(node, _Directory):
            copy.names[name] = _copy_directory(node, copies)
        else:
            if node not in copies:
                copies[node] = _FileNode(data=bytearray(node.data), durable=bytearray(node.data))
            copy.names[name] = copies[node]
    copy.durable = dict(copy.names)
    return copy


def _paths(node: _FileNode | _Directory | None, path: Path) -> list[Path]:
    if isinstance(node, _Directory):
        return [found for name, child in node.names.items() for found in _paths(child, path / name)]
    return [] if node is None else [path]


def _survive_directory(directory: _Directory, rng: Random, kept: dict[_FileNode, _FileNode]) -> _Directory:
    survivor = _Directory()
    for name in sorted({*directory.durable, *directory.names}):
        old, new = directory.durable.get(name), directory.names.get(name)
        node = old if old is new or rng.random() < 0.5 else new
        if isinstance(node, _Directory):
            survivor.names[name] = _survive_directory(node, rng, kept)
        elif node is not None:
            if node not in kept:  # Both the old and the new name of a moved file may have survived.
                kept[node] = _survive_file(node, rng)
            survivor.names[name] = kept[node]
    survivor.durable = dict(survivor.names)
    return survivor


def _survive_file(node: _FileNode, rng: Random) -> _FileNode:
    data = bytearray(node.durable)
    for offset, written in node.pending:
        if written is None:
            if rng.random() < 0.5:
                _resize(data, offset)
            continue
        for begin in range(0, len(written), SECTOR_BYTES):
            chance = rng.random()
            if chance < 0.5:
                sector = written[begin : begin + SECTOR_BYTES]
                if chance < GARBAGE_RATIO / 2:
                    sector = rng.randbytes(len(sector))
                _write(data, offset + begin, sector)
    return _FileNode(data=data, durable=bytearray(data))
