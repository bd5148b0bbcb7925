"""``python sandbox.py UNIT WRITABLE... -- COMMAND``: run a command as systemd would confine it.

As much of a unit as can be had without systemd, by the same means of the kernel: the whole file system is
read-only but for the directories named (``ProtectSystem=strict``, ``StateDirectory=``), no capability is
left, none can be gained, no memory is both writable and executable, only the system calls and address
families of the unit are let through. Root is needed to set it up, and none of root's powers remain.

Sources: systemd.exec(5), mount_setattr(2), prctl(2), capabilities(7), seccomp_rule_add(3).
"""

import ctypes
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS: Final = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
CAPABILITY_LAST: Final = 40
SCMP_ACT_ALLOW, SCMP_CMP_EQ, EPERM = 0x7FFF0000, 4, 1
SCMP_ACT_ERRNO_EPERM: Final = 0x00050000 | EPERM
LIBRARY: Final = "libseccomp.so.2"


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


class _Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def reason_to_skip() -> str:
    """Return why it cannot be done here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can set up a sandbox"
    try:
        ctypes.CDLL(LIBRARY)
        subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "systemd and libseccomp are not installed here"
    done = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True)
    return "" if done.returncode == 0 else "no mount namespaces here"


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def _set_read_only(path: str, *, is_read_only: bool, is_recursive: bool) -> None:
    flag = MOUNT_ATTR_RDONLY
    attributes = _MountAttributes(set=flag if is_read_only else 0, clear=0 if is_read_only else flag)
    result = LIBC.syscall(
        SYS_MOUNT_SETATTR,
        AT_FDCWD,
        path.encode(),
        AT_RECURSIVE if is_recursive else 0,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    _check(result, f"mount_setattr {path}")


def _confine_files(writable: list[str]) -> None:
    _check(LIBC.unshare(CLONE_NEWNS), "unshare")
    _check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount private")
    for path in writable:
        _check(LIBC.mount(path.encode(), path.encode(), None, MS_BIND, None), f"bind {path}")
    _set_read_only("/", is_read_only=True, is_recursive=True)
    for path in (*writable, *filter(os.path.ismount, ("/dev", "/dev/shm"))):
        _set_read_only(path, is_read_only=False, is_recursive=False)


def _system_calls(words: list[str]) -> set[str]:
    """Return the names behind ``@groups``, some of which hold others."""
    found: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            found.add(word)
            continue
        done = subprocess.run(
            ["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True
        )
        lines = [line.strip() for line in done.stdout.splitlines()[1:]]
        found |= _system_calls([line for line in lines if line and not line.startswith("#")])
    return found


def _filter(settings: dict[str, list[str]]) -> "tuple[ctypes.CDLL, ctypes.c_void_p]":
    allowed: set[str] = set()
    for value in settings["SystemCallFilter"]:
        words = value.removeprefix("~").split()
        allowed = allowed - _system_calls(words) if value.startswith("~") else allowed | _system_calls(words)
    library = ctypes.CDLL(LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(SCMP_ACT_ERRNO_EPERM))
    for name in sorted(allowed - {"socket"}):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # Others are of other machines.
            library.seccomp_rule_add(context, SCMP_ACT_ALLOW, number, 0)
    number = library.seccomp_syscall_resolve_name(b"socket")
    for family in settings["RestrictAddressFamilies"][-1].split():
        equal = _Comparison(0, SCMP_CMP_EQ, int(getattr(socket, family)), 0)
        library.seccomp_rule_add_array(context, SCMP_ACT_ALLOW, number, 1, ctypes.byref(equal))
    return library, context


def _drop_powers(settings: dict[str, list[str]]) -> None:
    assert settings["CapabilityBoundingSet"] == [""], "the unit is expected to keep no capability"
    for number in range(CAPABILITY_LAST + 1):
        _check(LIBC.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "prctl bounding set")
    header = _CapabilityHeader(0x20080522, 0)
    _check(LIBC.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
    if settings["NoNewPrivileges"] == ["yes"]:
        _check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no new privileges")
    if settings["MemoryDenyWriteExecute"] == ["yes"] and LIBC.prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
        print("this kernel cannot deny memory that is writable and executable", file=sys.stderr)  # noqa: T201


def main(arguments: list[str]) -> None:
    """Confine this process and become the command."""
    split = arguments.index("--")
    unit, *writable = arguments[:split]
    settings = _settings(Path(unit))
    library, context = _filter(settings)
    _confine_files(writable)
    os.umask(int(settings["UMask"][0], 8))
    _drop_powers(settings)
    _check(library.seccomp_load(context), "seccomp_load")
    os.execv(arguments[split + 1], arguments[split + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
