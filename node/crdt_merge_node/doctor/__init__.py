"""Looking for what keeps a node from working, with a daemon or without: ``crdt-merge-node doctor``.

A check is a function from a :class:`~.findings.Patient` to findings; :data:`CHECKS` lists them all. Begin at
``findings.py``. Each says what it found with the value and, if that is not well, the command that fixes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from . import files, host, membership, network, software
from .findings import Check, Finding, Level, Patient

CHECKS: Final[Mapping[str, Check]] = {
    "configuration": membership.configuration,
    "daemon": membership.daemon,
    "alarms": membership.alarms,
    "identity": membership.identity,
    "certificate": membership.certificate,
    "keys": membership.keys,
    "ports": network.ports,
    "advertised": network.advertised,
    "seeds": network.seeds,
    "clock": host.clock,
    "disk": files.room,
    "file system": files.kind,
    "sync": files.sync_speed,
    "open files": host.open_files,
    "memory": host.memory,
    "versions": software.versions,
    "peers": software.peers,
    "database": software.database,
    "service": software.service,
    "profilers": software.profilers,
}
"""In the order in which a person would look."""


def examine(patient: Patient, checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """Yield what all checks find. One that fails itself is a warning and stops no other."""
    for name, check in checks.items():
        try:
            for level, found, fix in check(patient):
                yield Finding(check=name, level=level, found=found, fix=fix)
        except Exception as error:  # noqa: BLE001  A doctor who faints at one symptom is of no use.
            yield Finding(
                check=name,
                level=Level.WARNING,
                found=f"this could not be examined: {type(error).__name__}: {error}",
            )


__all__ = ["CHECKS", "Check", "Finding", "Level", "Patient", "examine"]
