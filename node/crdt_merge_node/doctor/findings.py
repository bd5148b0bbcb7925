"""What checks are given, and what they answer."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.config import Config
from crdt_merge_node.config.model import NodeSection
from crdt_merge_node.control.model import PeerDetail, Status
from crdt_merge_node.ports import Clock, Fs, SystemClock, SystemFs
from crdt_merge_node.transport import Identity

PROGRAM = "crdt-merge-node"


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """The node works; somebody should look at it."""
    PROBLEM = "problem"
    """The node does not work, or will stop working."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    found: str
    """With the value: not "little room" but how much."""
    fix: str = ""
    """A command, or a line of configuration."""


@dataclass(slots=True, kw_only=True)
class Patient:
    """A node as far as it can be seen from outside and from its files."""

    data_dir: Path
    config: Config | None = None
    config_error: CrdtMergeError | None = None
    status: Status | None = None
    """What the daemon says; None: it did not answer."""
    peers: tuple[PeerDetail, ...] = ()
    """What the daemon knows of peers that are connected."""
    status_error: CrdtMergeError | None = None
    """Why it did not."""
    environ: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 3.0
    """For each name, connection and handshake."""
    clock: Clock = field(default_factory=SystemClock)
    fs: Fs = field(default_factory=SystemFs)

    @property
    def settings(self) -> Config:
        """The configuration, or the defaults where it cannot be read."""
        return self.config or Config(node=NodeSection(data_dir=self.data_dir))

    @property
    def has_node(self) -> bool:
        """Whether ``init`` was run here."""
        return Identity.is_present(self.data_dir, self.fs)

    @property
    def member(self) -> Identity | None:
        """The identity, if there is one and it can be read."""
        try:
            return Identity.load(self.data_dir, self.fs)
        except CrdtMergeError:
            return None

    def command(self, text: str) -> str:
        """Return a command line for this node, to be pasted into any shell."""
        return f"{PROGRAM} --data-dir {shlex.quote(str(self.data_dir))} {text}"


Answer: TypeAlias = tuple[Level, str, str]
"""Level, what was found, how to fix it (empty: nothing to fix)."""
Check: TypeAlias = Callable[[Patient], Iterator[Answer]]


def ok(found: str) -> Answer:
    """Return that something is well."""
    return Level.OK, found, ""


def warning(found: str, fix: str) -> Answer:
    """Return something to look at."""
    return Level.WARNING, found, fix


def problem(found: str, fix: str) -> Answer:
    """Return something to mend."""
    return Level.PROBLEM, found, fix
