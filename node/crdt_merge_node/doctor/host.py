"""The machine: its clock, its limits, its memory."""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crdt_merge_node.ports import available_memory_bytes

from .findings import Answer, Patient, ok, problem, warning

_MIB: Final = 1 << 20
_YEAR_MIN: Final = 2025
_YEAR_MAX: Final = 2100
_FILES_PROBLEM: Final = 256
_FILES_WARNING: Final = 1024
"""A hundred peers with a gossip and a bulk connection each, and some hundred files."""
_DAEMON_BYTES: Final = 256 * _MIB
"""What the daemon itself needs at most, beside a resolve."""
_TIMEX_BYTES: Final = 256
"""More than ``struct timex`` has on any architecture."""
_TIMEX_STATUS: Final = 40
"""Offset of ``status`` where long has 64 bits: modes and padding, then four longs."""
_UNSYNCHRONISED: Final = 0x40
"""STA_UNSYNC."""


def clock(patient: Patient) -> Iterator[Answer]:
    """Whether the year is sane and the clock disciplined: certificates depend on both."""
    now = patient.clock.now()
    at = dt.datetime.fromtimestamp(now, dt.UTC)
    fix = "timedatectl set-ntp true   # or install chrony"
    if not _YEAR_MIN <= at.year < _YEAR_MAX:
        yield problem(f"it is {at:%Y-%m-%d %H:%M} UTC, says this machine", fix)
        return
    is_synchronised = clock_is_synchronised()
    if is_synchronised is False:
        yield warning(f"{at:%Y-%m-%d %H:%M} UTC; no time server disciplines the clock", fix)
    else:
        how = "disciplined by a time server" if is_synchronised else "the kernel does not say how exact"
        yield ok(f"{at:%Y-%m-%d %H:%M} UTC, {how}")
    if patient.status is not None and abs(patient.status.now - now) > 60.0:
        yield problem(f"the daemon's clock differs by {patient.status.now - now:.0f} s", fix)


def clock_is_synchronised() -> bool | None:
    """Return whether the kernel's clock is disciplined, None if it does not say; see adjtimex(2)."""
    if ctypes.sizeof(ctypes.c_long) != 8:
        return None
    with contextlib.suppress(OSError, AttributeError):
        buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
        if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) >= 0:
            status = int.from_bytes(buffer.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], "little")
            return not status & _UNSYNCHRONISED
    return None


def open_files(patient: Patient) -> Iterator[Answer]:
    """How many files and connections may be open."""
    if patient.status is not None and (limits := _read(f"/proc/{patient.status.pid}/limits")):
        number, whose = files_limit(limits), f"the daemon (process {patient.status.pid})"
    else:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        number, whose = None if soft == resource.RLIM_INFINITY else soft, "a daemon started from here"
    found = f"{whose} may open {'any number of' if number is None else number} files"
    fix = "ulimit -n 65536   # under systemd: LimitNOFILE=65536"
    if number is not None and number < _FILES_PROBLEM:
        yield problem(found, fix)
    elif number is not None and number < _FILES_WARNING:
        yield warning(found, fix)
    else:
        yield ok(found)


def files_limit(limits: str) -> int | None:
    """Return the soft limit of open files in the text of /proc/PID/limits; None: there is none."""
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return None if soft == "unlimited" else int(soft)
    return None


def memory(patient: Patient) -> Iterator[Answer]:
    """Free memory, and that of the container, against the budget of a resolve."""
    budget = int(patient.settings.resolve.memory_bytes)
    needed = budget + (0 if patient.status else _DAEMON_BYTES)
    fix = f'[resolve]\nmemory_bytes = "{max(budget // 2 // _MIB, 64)}MiB"'
    free = available_memory_bytes()
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < budget + _DAEMON_BYTES:
        yield warning(
            f"the container may use {int(limit) // _MIB} MiB, a resolve up to {budget // _MIB} MiB of it", fix
        )
    if not free:
        yield ok("the kernel does not say how much memory is free")
    elif free < needed:
        yield warning(f"{free // _MIB} MiB are free, a resolve may take {budget // _MIB} MiB", fix)
    else:
        yield ok(f"{free // _MIB} MiB are free, a resolve may take {budget // _MIB} MiB")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
