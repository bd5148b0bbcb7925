"""What somebody wants to have here, the step of it that is under way, and what it is waiting for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from crdt_merge_protocol.blobs import chunk_bytes
from crdt_merge_protocol.fetch import Item, ItemKind
from crdt_merge_protocol.limits import CHUNK_BYTES

RATE_TIME_CONSTANT_S: Final = 3.0
LAND_TOGETHER: Final = 4
"""Chunks that a thread is called for: handing over work and the GIL takes longer than hashing one."""

Land = Callable[[list[tuple[int, Any]]], list[tuple[int, ...] | None]]
"""Verifies and keeps pieces; blocks. For each (piece, value): the pieces that are here thanks to it, or None
if it is not what it should be."""


class Stage(Enum):
    """Where a want stands."""

    QUEUED = auto()
    """Waits for its turn."""
    ACTIVE = auto()
    """Is being asked for."""
    PARKED = auto()
    """Nobody can help at the moment; tried again when peers change, and now and then."""


@dataclass(slots=True, eq=False)
class Step:
    """The part of a want that peers are asked for: an object, a chunk list, or the chunks of a blob."""

    item: Item
    nbytes: int
    """Size; of an object a guess."""
    count: int
    present: int
    """Pieces that are here, as bits."""
    land: Land
    done: asyncio.Future[None]
    likely: tuple[bytes, ...] = ()
    """Nodes that probably have it, to be asked before others."""
    inbox: list[tuple[bytes, int, Any]] = field(default_factory=list)
    """(provider, piece, value) that wait to be landed."""
    lander: asyncio.Task[None] | None = None
    waiting: asyncio.TimerHandle | None = None
    """When to land what is there, though there is little of it."""
    has_advanced: bool = False
    """A piece has landed since this was last looked at."""

    @property
    def is_together(self) -> bool:
        """Whether enough has come to be landed, or nothing else will."""
        here = len(self.inbox)
        return here >= LAND_TOGETHER or self.present.bit_count() + here >= self.count

    @property
    def missing_bytes(self) -> int:
        """Bytes of a blob that are not here."""
        missing = ((1 << self.count) - 1) & ~self.present
        full = missing.bit_count() * CHUNK_BYTES
        is_last_missing = missing >> (self.count - 1) & 1
        return full + is_last_missing * (chunk_bytes(self.nbytes, self.count - 1) - CHUNK_BYTES)


@dataclass(slots=True, eq=False)
class Want:
    """One object or blob that is not here yet."""

    key: Item
    """Kind (object or blob) and hash."""
    nbytes: int
    """Size; 0 for an object, whose size is not known."""
    since: float
    """Wall time."""
    verify: Callable[[bytes], bool]
    retry_s: float
    likely: tuple[bytes, ...] = ()
    """Nodes that probably have it."""
    stage: Stage = Stage.QUEUED
    reason: str = ""
    """Why it is parked."""
    retry_at: float = 0.0
    waiters: set[asyncio.Future[Any]] = field(default_factory=set)
    task: asyncio.Task[Any] | None = None
    step: Step | None = None
    is_admitted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def missing_bytes(self) -> int:
        """Bytes still to come."""
        is_underway = self.step is not None and self.step.item.kind is ItemKind.BLOB
        return self.step.missing_bytes if self.step is not None and is_underway else self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that is wanted and not here, for people."""

    id: bytes
    kind: ItemKind
    nbytes: int
    missing_bytes: int
    """Bytes still to come; 0 for an object, whose size is not known."""
    since: float
    """Wall time at which it was first wanted."""
    reason: str
    """What it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How fetching goes, over all wants."""

    wants: int
    missing_bytes: int
    rate_bytes_per_s: float
    """Verified and written, over the last seconds."""
    fetched_bytes: int
    """Verified and written since start."""
    refused_bytes: int
    """Received and found to be wrong since start."""


class Rate:
    """A rate in bytes a second that halves every three seconds in which nothing comes."""

    def __init__(self, now: float) -> None:
        self._rate = 0.0
        self._at = now

    def add(self, nbytes: int, *, now: float) -> None:
        """Count bytes."""
        # The integral of 2^(-t/T) over t >= 0 is T/ln 2: a steady flow then shows its own rate.
        self._rate = self.value(now=now) + nbytes * 0.6931 / RATE_TIME_CONSTANT_S
        self._at = now

    def value(self, *, now: float) -> float:
        """Return the rate now."""
        return float(self._rate * 2.0 ** (-max(0.0, now - self._at) / RATE_TIME_CONSTANT_S))
