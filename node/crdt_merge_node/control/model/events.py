"""What a node did, as its log tells it, and how much of that goes to standard error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """Something that happened: a line of the log, as the node remembers it."""

    seq: int
    """Counts all events since the start of the daemon, from 1; the next is larger, not always by one."""
    time: float
    """Unix seconds."""
    level: str
    """``debug``, ``info``, ``warning`` or ``error``."""
    event: str
    """A constant ``noun.verb_past``."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What the line says in words and ids; ids are whole."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What it says in numbers; the unit is part of the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsMissed:
    """Events that had to make way for newer ones before they could be told."""

    count: int
    """How many, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLevel:
    """From which level up lines go to the daemon's standard error."""

    level: str
    """At present."""
    configured: str
    """By file, environment and flags: what holds again after a restart."""
