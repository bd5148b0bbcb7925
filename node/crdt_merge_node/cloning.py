"""Noticing that one node id is in use twice: a data directory was copied, and both copies run (B72).

It is harmless to the state: every start writes a log of its own (PROTOCOL R4), so two copies fork nothing.
But they drive each other from their peers' connections for ever, and whoever copied a directory copied a key.
So every start has an *instance*, said in HELLO. A node that meets its own id with another instance knows at
once. A peer knows when an instance *comes back* that another one had taken the place of: a restart never does
that. Not noticed are copies of a running machine, whose instances are equal; those share their log as well
and are convicted of forks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from crdt_merge_protocol.canonical import digest

from .alarms import Alarms
from .control.model import Severity
from .telemetry.logging import get_logger

log = get_logger()

FEATURE: Final = "instance="
CODE: Final = "node.cloned"
CALM_S: Final = 3600.0
"""How long after the last sign of it the alarm ends."""
INSTANCES_MAX: Final = 8
"""Remembered of one peer."""


def new_instance(node: bytes, started: float) -> str:
    """Return what tells this start of a node from all others: wall time at which it began, in seconds."""
    return digest("crdt-merge/instance/1", node, started.hex().encode()).hex()[:32]


def instance_in(features: tuple[str, ...]) -> str:
    """Return the instance that a HELLO names; empty if it names none."""
    return next((text.removeprefix(FEATURE) for text in features if text.startswith(FEATURE)), "")


class Instances:
    """The starts of one peer that this node has met, the latest last."""

    def __init__(self) -> None:
        self._met: deque[str] = deque(maxlen=INSTANCES_MAX)

    def comes_back(self, instance: str) -> bool:
        """Note the instance of a new connection; tell whether another one had taken its place before."""
        if not instance or (self._met and self._met[-1] == instance):
            return False
        has_been_here = instance in self._met
        if has_been_here:
            self._met.remove(instance)
        self._met.append(instance)
        return has_been_here


class CloneAlarm:
    """Raises the alarm about ids in use twice, and ends it after a calm hour."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def raise_for(self, node: bytes, remote: str, *, is_own: bool, name: str = "") -> None:
        """Raise or renew it for a node id; ``remote`` is where the other one was met last."""
        short = node.hex()[:12]
        who = "this node" if is_own else f"node {name or short}"
        key = f"{CODE}/{node.hex()}"
        is_new = self._alarms.set(
            key,
            severity=Severity.ERROR,
            code=CODE,
            message=f"{who} runs twice: another process with id {short} was met at {remote}.",
            hint="A data directory was copied. Stop one of the two and give it an identity by `join`.",
        )
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(CALM_S, self._end, key)
        if is_new:
            log.error("node.cloned", peer=node, remote=remote)

    def close(self) -> None:
        """Wait for no calm any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _end(self, key: str) -> None:
        self._timers.pop(key, None)
        self._alarms.clear(key)
