"""What is installed: versions, the database, the service, tools to look inside a process."""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from crdt_merge_protocol.limits import WIRE_VERSION_MAX

from crdt_merge_node.renewal import DAY_S, WARNING_S
from crdt_merge_node.version import VERSION

from .findings import Answer, Patient, ok, problem, warning

PACKAGES: Final = (
    "apsw", "blake3", "click", "cryptography", "grpcio", "msgpack", "numba", "numpy", "prometheus-client",
    "protobuf", "pydantic", "starlette", "structlog", "uvicorn", "uvloop",
)  # fmt: skip
"""What a bug report has to name."""
WAL_RESET_FIRST: Final = (3, 7, 0)
WAL_RESET_FIXED: Final = (3, 51, 3)
"""https://sqlite.org/wal.html#walresetbug: rarely, two connections at once damage the file."""
_WAL_RESET_REPAIRED: Final = {(3, 44): 6, (3, 50): 7}
"""Older lines that were given the correction, from this patch on."""
NAMES_MAX: Final = 8
"""Of peers in one line."""
_UNIT: Final = "crdt-merge-node.service"
_UNIT_DIRECTORIES: Final = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")


def installed() -> dict[str, str]:
    """Return the versions of the packages that matter, as far as they are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def versions(_patient: Patient) -> Iterator[Answer]:
    """Python and the libraries."""
    own = f"crdt-merge-node {VERSION}, wire version {WIRE_VERSION_MAX}, Python {platform.python_version()}"
    yield ok(f"{own}, " + ", ".join(f"{name} {version}" for name, version in installed().items()))


def peers(patient: Patient) -> Iterator[Answer]:
    """Whether the peers run what this node runs, and for how long they are members."""
    if not patient.peers:
        return
    own = f"crdt-merge-node/{VERSION}"
    others: dict[str, list[str]] = {
        detail.agent: [] for detail in patient.peers if detail.agent not in ("", own)
    }
    for detail in patient.peers:
        name = detail.peer.name or detail.peer.id[:12]
        if detail.agent in others:
            others[detail.agent].append(name)
        left_s = (detail.certificate_expires or math.inf) - detail.now
        if left_s < WARNING_S:
            yield warning(
                f"the certificate of {name} ends in {left_s / DAY_S:.0f} days",
                "crdt-merge-node cert renew   # on that node",
            )
    for agent, names in sorted(others.items()):
        yield warning(
            f"{', '.join(sorted(names)[:NAMES_MAX])} ({len(names)} in all) run {agent}, this node {own}",
            "pip install --upgrade crdt-merge-node   # on the older side",
        )
    if not others:
        yield ok(f"{len(patient.peers)} connected peers run {own}, too")


def database(_patient: Patient) -> Iterator[Answer]:
    """Whether the SQLite that is linked in can damage a file."""
    import apsw

    text = apsw.sqlite_lib_version()
    if has_wal_reset_bug(text):
        yield problem(
            f"SQLite {text} has the WAL-reset bug, which can damage ops.db", "pip install --upgrade apsw"
        )
    else:
        yield ok(f"SQLite {text}, outside the range of the WAL-reset bug")


def has_wal_reset_bug(version: str) -> bool:
    """Tell whether a release of SQLite may damage a database in WAL mode."""
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    repaired = _WAL_RESET_REPAIRED.get((parts[0], parts[1])) if len(parts) == 3 else None
    if repaired is not None and parts[2] >= repaired:
        return False
    return WAL_RESET_FIRST <= parts < WAL_RESET_FIXED


def service(_patient: Patient) -> Iterator[Answer]:
    """Whether systemd looks after the daemon, where there is systemd."""
    if not Path("/run/systemd/system").is_dir():
        yield ok("systemd does not run here: whatever starts the daemon has to restart it")
        return
    unit = next((path for d in _UNIT_DIRECTORIES if (path := Path(d) / _UNIT).exists()), None)
    if unit is None:
        yield warning(
            "no unit: the daemon is not started with the machine",
            f"cp deploy/systemd/{_UNIT} /etc/systemd/system/ && systemctl enable --now {_UNIT}",
        )
        return
    if "RestartPreventExitStatus=78" not in unit.read_text():
        yield warning(
            f"{unit} restarts a daemon whose configuration is wrong, again and again",
            f"systemctl edit {_UNIT}   # [Service] RestartPreventExitStatus=78",
        )
    else:
        yield ok(f"{unit} is installed; its log: journalctl -u {_UNIT}")


def profilers(patient: Patient) -> Iterator[Answer]:
    """What shows where a daemon spends its time and its memory."""
    pid = patient.status.pid if patient.status else "PID"
    for tool, use in (("py-spy", f"py-spy dump --pid {pid}"), ("memray", f"memray attach {pid}")):
        if shutil.which(tool):
            yield ok(f"{tool} is here: {use}")
        else:
            yield ok(f"{tool} is not installed (pip install {tool}); with it: {use}")
