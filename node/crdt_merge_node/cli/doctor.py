"""``doctor``: what keeps this node from working, each finding with its fix."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from crdt_merge_protocol.errors import CrdtMergeError

from .durations import Seconds
from .options import Invocation, command
from .output import clean, count, say, say_json

if TYPE_CHECKING:
    from crdt_merge_node.doctor import Finding, Patient

PEERS_MAX: Final = 32
"""Who are asked about one by one."""
_SIGNS: Final = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}
_COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option("--problems", "only_problems", is_flag=True, help="Leave out what is well.")
@click.option(
    "--timeout-s",
    type=Seconds(0.1, 60.0),
    default=3.0,
    show_default=True,
    help="For each name, connection and handshake.",
)
@command
def doctor(invocation: Invocation, *, only_problems: bool, timeout_s: float) -> None:
    """Look for what keeps this node from working; say how to mend it.

    With a daemon or without: configuration, keys, certificates, ports, seeds, clock, disk, limits, versions.
    Exit status 1 if there is a problem; warnings alone are no failure.
    """
    from crdt_merge_node.doctor import Level, examine

    patient = examine_room(invocation, timeout_s=timeout_s)
    found: list[Finding] = []
    for finding in examine(patient):
        found.append(finding)
        if not invocation.is_json and not (only_problems and finding.level == Level.OK):
            _show(finding)
            sys.stdout.flush()
    problems = sum(finding.level == Level.PROBLEM for finding in found)
    warnings = sum(finding.level == Level.WARNING for finding in found)
    if invocation.is_json:
        say_json("doctor/1", **document(found))
    else:
        say(f"\n{count(problems, 'problem')}, {count(warnings, 'warning')}, {len(found)} findings in all")
    raise click.exceptions.Exit(1 if problems else 0)


def document(found: list[Finding]) -> dict[str, Any]:
    """Return what ``--json`` says, and what a bundle holds."""
    counts = {level: sum(finding.level == level for finding in found) for level in _SIGNS}
    return {
        "is_healthy": counts["problem"] == 0,
        "problems": counts["problem"],
        "warnings": counts["warning"],
        "findings": [
            {"check": f.check, "level": f.level.value, "found": f.found, "fix": f.fix} for f in found
        ],
    }


def examine_room(invocation: Invocation, *, timeout_s: float) -> Patient:
    """Return what can be seen of the node: its settings, and what its daemon says."""
    from crdt_merge_node.config import load_config
    from crdt_merge_node.doctor import Patient

    patient = Patient(data_dir=invocation.data_dir, environ=os.environ, timeout_s=timeout_s)
    try:
        patient.config = load_config(None, {"node.data_dir": invocation.data_dir_flag}, os.environ)
        patient.data_dir = patient.config.node.data_dir.absolute()
    except CrdtMergeError as error:
        patient.config_error = error
    try:
        with invocation.client(timeout_s=timeout_s) as client:
            patient.status = client.status()
            connected = [peer.id for peer in patient.status.peers if peer.direction][:PEERS_MAX]
            patient.peers = tuple(client.peer_show(peer) for peer in connected)
    except CrdtMergeError as error:
        patient.status_error = error
    return patient


def _show(finding: Finding) -> None:
    sign = _SIGNS[finding.level.value].ljust(7)
    lines = clean(finding.found).replace("\n", "\n          ")
    say(f"{sign}  {finding.check}: {lines}", colour=_COLOURS[finding.level.value])
    if finding.fix:
        say("    fix:  " + clean(finding.fix).replace("\n", "\n          "))
