"""What a node did lately: its own log lines as values, bounded, to be read again or followed.

    with events.bound():        everything that is begun in here belongs to the node of ``events``
        log.info("peer.joined", peer=peer)

* A line is kept whatever the level of the log on standard error; debug ones apart from the others, so that
  they push out nothing that matters more. Of the oldest only their number is kept.
* Several nodes may live in one process. Which one a line is of follows from the context (``contextvars``) of
  the task, callback or timer that writes it: asyncio hands contexts on to whatever is begun in them. A
  thread that is not begun by ``asyncio.to_thread`` has no node unless :func:`of_this_node` gave it one.
* Who follows reads from the same memory and holds none of its own: whoever is too slow is told how many
  events were gone before it could see them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.control.model import EventsMissed, LogEvent
from crdt_merge_node.ports import Clock

P = ParamSpec("P")
T = TypeVar("T")

LEVELS: Final = ("debug", "info", "warning", "error")
"""From the least to the most important."""
KEPT_MAX: Final = 3072
DEBUG_KEPT_MAX: Final = 1024
TEXT_CHARS_MAX: Final = 400
"""Of one field: reasons come from other machines and may be of any length."""
_NOT_KEPT: Final = frozenset({"exc_info", "stack_info", "module"})

_CURRENT: ContextVar[EventLog | None] = ContextVar("crdt_merge_node_events", default=None)


class _Ring:
    """The newest events of one importance."""

    def __init__(self, capacity: int) -> None:
        self.kept: deque[LogEvent] = deque(maxlen=capacity)
        self.total = 0
        """How many there ever were."""

    def append(self, event: LogEvent) -> None:
        self.kept.append(event)
        self.total += 1

    def after(self, seq: int) -> list[LogEvent]:
        """Return those that are later than ``seq``, the newest first."""
        found = []
        for event in reversed(self.kept):
            if event.seq <= seq:
                break
            found.append(event)
        return found

    def lost_after(self, seq: int) -> int:
        """Return how many that were later than ``seq`` are not kept any more, at most."""
        gone = self.total - len(self.kept)
        return min(gone, max(0, self.kept[0].seq - seq - 1)) if gone else 0


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the rings found."""

    events: list[LogEvent]
    missed: int
    newest: int
    """Number of the newest event then."""
    totals: int
    """Of the rings that were looked at, then."""


class _Follower:
    """Somebody who waits for the next event."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._is_due = False

    def wake(self) -> None:
        """Let it look, from whatever thread."""
        if not self._is_due:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # Its loop was closed under it.
                self._loop.call_soon_threadsafe(self.happened.set)

    async def wait(self) -> None:
        await self.happened.wait()
        self.happened.clear()
        self._is_due = False


class EventLog:
    """The newest events of one node. Recording is safe from any thread, following is for one loop."""

    def __init__(
        self, clock: Clock, *, kept_max: int = KEPT_MAX, debug_kept_max: int = DEBUG_KEPT_MAX
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ring = _Ring(kept_max)
        self._debug_ring = _Ring(debug_kept_max)
        self._followers: dict[int, _Follower] = {}
        self._is_closed = False
        self.last_seq = 0
        """Of the newest event; 0 before the first."""
        self.counts = dict.fromkeys(LEVELS, 0)
        """Events since the start, by level."""

    # --- writing ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Take in what is logged in this context, and in whatever is begun in it."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def record(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Take in one log line. ``level`` is one of :data:`LEVELS`."""
        texts, numbers = _sorted_out(fields)
        now = self._clock.now()
        with self._lock:
            self.last_seq += 1
            self.counts[level] += 1
            ring = self._debug_ring if level == "debug" else self._ring
            ring.append(
                LogEvent(seq=self.last_seq, time=now, level=level, event=event, fields=texts, numbers=numbers)
            )
            followers = list(self._followers.values()) if self._followers else ()
        for follower in followers:
            follower.wake()

    def close(self) -> None:
        """Let everybody who follows have the rest and then end."""
        self._is_closed = True
        for follower in list(self._followers.values()):
            follower.wake()

    # --- reading ------------------------------------------------------------------------------------------

    def read(
        self, *, after: int | None = None, age_s: float | None = None, last: int = 0, level: str = "info"
    ) -> list[LogEvent]:
        """Return what is kept, the oldest first.

        Args:
            after: Only what is later than this number. One from an earlier life of the daemon, larger than
                any of this, counts for 0.
            age_s: Only what is at most so many seconds old.
            last: Only so many of the newest; 0: all.
            level: Only what is at least as important.
        """
        return self._chosen(self._look(after, level), level, age_s=age_s, last=last)

    async def follow(
        self, *, after: int | None = None, age_s: float | None = None, last: int = 0, level: str = "info"
    ) -> AsyncGenerator[LogEvent | EventsMissed]:
        """Yield what is kept, as :meth:`read`, and then what happens, until the node stops.

        :class:`EventsMissed` comes where events were gone before they could be yielded.
        """
        follower = _Follower()
        self._followers[id(follower)] = follower
        try:
            look = self._look(after, level)
            events = self._chosen(look, level, age_s=age_s, last=last)
            while True:
                if look.missed:
                    yield EventsMissed(count=look.missed)
                for event in events:
                    yield event
                if self.last_seq == look.newest:
                    if self._is_closed:
                        return
                    await follower.wait()
                look = self._look(look.newest, level, totals=look.totals)
                events = self._chosen(look, level)
        finally:
            del self._followers[id(follower)]

    def _look(self, after: int | None, level: str, *, totals: int | None = None) -> _Look:
        """Return what there is after an event; ``totals``: as the look before that ended with it had it."""
        with self._lock:
            newest = self.last_seq
            seq = 0 if after is None or after > newest else after
            rings = (self._ring, self._debug_ring) if level == "debug" else (self._ring,)
            found = [event for ring in rings for event in ring.after(seq)]
            now = sum(ring.total for ring in rings)
            if totals is not None:
                missed = now - totals - len(found)
            else:
                missed = 0 if after is None else sum(ring.lost_after(seq) for ring in rings)
        found.sort(key=lambda event: event.seq)
        return _Look(found, missed, newest, now)

    def _chosen(
        self, look: _Look, level: str, *, age_s: float | None = None, last: int = 0
    ) -> list[LogEvent]:
        least = LEVELS.index(level)
        oldest = -math.inf if age_s is None else self._clock.now() - age_s
        found = [e for e in look.events if LEVELS.index(e.level) >= least and e.time >= oldest]
        return found[-last:] if last else found


def note(level: str, event: str, fields: Mapping[str, Any]) -> None:
    """Hand a log line to the node of this context, if it is of one."""
    events = _CURRENT.get()
    if events is not None:
        events.record(level, event, fields)


def of_this_node(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` for threads and callbacks from outside: what it logs is of the node of here."""
    events = _CURRENT.get()
    if events is None:
        return function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with events.bound():
            return function(*args, **kwargs)

    return call


async def each_bound(events: EventLog, values: AsyncIterator[T]) -> AsyncGenerator[T]:
    """Yield ``values``; every step towards the next one, and the end, is taken in the name of ``events``."""
    try:
        while True:
            with events.bound():
                try:
                    value = await anext(values)
                except StopAsyncIteration:
                    return
            yield value
    finally:
        if isinstance(values, AsyncGenerator):
            with events.bound():
                await values.aclose()


def _sorted_out(fields: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, float]]:
    """Return the fields of a line as texts and numbers."""
    texts: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for name, value in fields.items():
        if name in _NOT_KEPT or value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = value
            continue
        if isinstance(value, CrdtMergeError):
            texts.setdefault("error_code", value.code)
        texts[name] = _text(value)[:TEXT_CHARS_MAX]
    return texts, numbers


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, BaseException) and not isinstance(value, CrdtMergeError):
        return f"{type(value).__name__}: {value}"
    return str(value)
