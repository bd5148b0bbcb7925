"""Numbers that parts of a node keep as they work: plain integers, which ``metrics.py`` reads when asked.

Whatever else a metric says is taken from where it is kept anyway, at the moment of the question.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from crdt_merge_protocol.messages.base import Message

KeyT = TypeVar("KeyT")

EXCHANGE_BOUNDS_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RESOLVE_BOUNDS_S: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)
LAG_BOUNDS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Durations:
    """How long something took, in buckets."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        """By bucket, not summed up; the last one has no bound."""
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Take in one of them."""
        self.counts[bisect_left(self.bounds_s, duration_s)] += 1
        self.sum_s += duration_s


class DurationsBy(Generic[KeyT]):
    """Durations of several kinds, made as they come."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self.all: dict[KeyT, Durations] = {}

    def add(self, key: KeyT, duration_s: float) -> None:
        """Take in one of a kind. Kinds must be few and not of a peer's making."""
        durations = self.all.get(key)
        if durations is None:
            durations = self.all[key] = Durations(self._bounds_s)
        durations.add(duration_s)


@dataclass(slots=True)
class Traffic:
    """Messages of all connections of a node since the start, but the hello of each."""

    sent: Counter[type[Message]] = field(default_factory=Counter)
    received: Counter[type[Message]] = field(default_factory=Counter)
    shed: Counter[type[Message]] = field(default_factory=Counter)
    """Not sent because their lane was full."""


@dataclass(slots=True)
class Counters:
    """What a node counts of its dealings with peers."""

    exchanges: DurationsBy[str] = field(default_factory=lambda: DurationsBy(EXCHANGE_BOUNDS_S))
    """By outcome."""
    last_agreed: float = 0.0
    """Wall time at which an exchange last ended well, or a peer's roots were found equal; 0: never."""
    offences: Counter[str] = field(default_factory=Counter)
    """What peers did against the protocol, by error code."""
    paused_s: float = 0.0
    """For how long nothing was read from peers that were in debt."""
    refusals: int = 0
    """Connections that one of two nodes would not have."""
    resolves: DurationsBy[tuple[str, str]] = field(default_factory=lambda: DurationsBy(RESOLVE_BOUNDS_S))
    """By strategy and outcome."""
    loop_lag: Durations = field(default_factory=lambda: Durations(LAG_BOUNDS_S))


def kind_of(message_class: type[Message]) -> str:
    """Return the name of a kind of message as metrics say it: ``want_chunks``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", message_class.__name__).lower()


class LagMeter:
    """Notes once a second how much later than it asked its loop called it."""

    INTERVAL_S: Final = 1.0

    def __init__(self, durations: Durations, loop: asyncio.AbstractEventLoop) -> None:
        self._durations = durations
        self._loop = loop
        self._due = loop.time() + self.INTERVAL_S
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        self._durations.add(max(0.0, now - self._due))
        self._due = now + self.INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def close(self) -> None:
        """Stop."""
        self._timer.cancel()
