"""The disk under the data directory."""

from __future__ import annotations

import errno
import os
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crdt_merge_node.ports import process_id
from crdt_merge_node.storage.health import RESERVE_SHARE

from .findings import Answer, Patient, ok, problem, warning

_MIB: Final = 1 << 20
_INODES_MIN: Final = 10_000
_SYNC_WARNING_S: Final = 0.05
"""A contribution or an operation waits for two or three of them."""
_SYNC_ROUNDS: Final = 5
_SYNC_BYTES: Final = 4096
_FORGETFUL: Final = frozenset({"tmpfs", "ramfs", "rootfs"})
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"})
_LAYERED: Final = frozenset({"overlay", "aufs"})


def room(patient: Patient) -> Iterator[Answer]:
    """Room and inodes, against the reserve."""
    path = _existing(patient.data_dir)
    space = patient.fs.disk_space(path)
    config = patient.settings
    reserve = min(int(config.storage.reserve_bytes), space.total_bytes // RESERVE_SHARE)
    free = f"{space.free_bytes // _MIB} MiB of {space.total_bytes // _MIB} MiB are free"
    find = f"du -xh --max-depth 2 {shlex.quote(str(path))} | sort -h | tail"
    if space.free_bytes < reserve:
        yield problem(f"{free}, less than the reserve of {reserve // _MIB} MiB: nothing is accepted", find)
    elif space.free_bytes < 4 * reserve:
        yield warning(f"{free}, and {reserve // _MIB} MiB of that are the reserve", find)
    else:
        yield ok(f"{free}, the reserve is {reserve // _MIB} MiB")
    found = os.statvfs(path)
    if found.f_files and found.f_favail < _INODES_MIN:
        yield problem(
            f"{found.f_favail} inodes are free: each blob is a file", f"df -i {shlex.quote(str(path))}"
        )
    elif found.f_files:
        yield ok(f"{found.f_favail} inodes are free")


def kind(patient: Patient) -> Iterator[Answer]:
    """What kind of file system it is, and whether it can be written."""
    path = _existing(patient.data_dir)
    mount, name = mount_of(path, Path("/proc/self/mountinfo").read_text())
    move = "crdt-merge-node --data-dir DIRECTORY ...   # on a local disk"
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        yield problem(f"{mount} ({name}) is mounted read-only", f"mount -o remount,rw {shlex.quote(mount)}")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield problem(f"{path} cannot be written by this user", f"ls -ld {shlex.quote(str(path))}")
    if name in _FORGETFUL:
        yield warning(f"{mount} is {name}: everything is gone after a restart of the machine", move)
    elif name in _REMOTE:
        yield warning(f"{mount} is {name}: locks and fsync of a network may not hold what they promise", move)
    elif name in _LAYERED:
        yield warning(
            f"{mount} is {name}, the layer of a container: it is gone when that is removed",
            f"docker run --volume crdt-merge:{patient.data_dir} ...   # a volume",
        )
    else:
        yield ok(f"{mount} is {name}")


def sync_speed(patient: Patient) -> Iterator[Answer]:
    """How long it takes until 4 KiB are durable: everything that is acknowledged waits for that."""
    directory = patient.data_dir / "tmp"
    if not directory.is_dir():
        directory = patient.data_dir
    if not directory.is_dir():
        return
    path = directory / f".doctor-{process_id()}"
    try:
        seconds = _time_syncs(patient, path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return  # Said already.
        yield problem(f"a file of 4 KiB cannot be made durable: {error.strerror}", "dmesg | tail")
        return
    found = f"4 KiB are durable after {1000 * seconds:.1f} ms (median of {_SYNC_ROUNDS})"
    if seconds > _SYNC_WARNING_S:
        yield warning(found, "iostat -x 1 3   # who keeps the disk busy; or give it a faster one")
    else:
        yield ok(found)


def _time_syncs(patient: Patient, path: Path) -> float:
    times = []
    with patient.fs.create(path) as file:
        try:
            for number in range(_SYNC_ROUNDS):
                began = patient.clock.monotonic()
                file.write_at(number * _SYNC_BYTES, bytes(_SYNC_BYTES))
                file.sync()
                times.append(patient.clock.monotonic() - began)
        finally:
            patient.fs.unlink(path)
    return statistics.median(times)


def mount_of(path: Path, mountinfo: str) -> tuple[str, str]:
    """Return mount point and type of the file system of ``path``; see proc_pid_mountinfo(5)."""
    target = path.resolve()
    best = ("/", "unknown")
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if not right:
            continue
        # Spaces in names are written as octal escapes.
        mount = left.split()[4].encode().decode("unicode_escape")
        if target.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, right.split()[0])
    return best


def _existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that is there."""
    return next((each for each in (path, *path.parents) if each.is_dir()), Path("/"))
