"""Peers that come and go all the time: said in full a few times, then once a minute with numbers (STYLE 4.5).

A line for every change of every bad link is a log that nobody reads; no line hides that something is wrong.
So the first changes of a peer within a minute are said as they come. Those beyond are counted, and when the
minute is over one line tells how many there were and how the peer is now. A peer that goes on like this has
one line a minute, until it is quiet for one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .ports import Clock
from .telemetry.logging import get_logger

log = get_logger()

WINDOW_S: Final = 60.0
SAID_MAX: Final = 6
"""Changes of a peer within a minute that are said one by one: a restart or two of its daemon."""
PEERS_MAX: Final = 1024
"""Peers below which it is not worth while to forget those that have been quiet."""


@dataclass(slots=True)
class Changes:
    """What a peer did within a minute and was not said."""

    counts: Counter[str] = field(default_factory=Counter)
    """By kind of change."""
    reason: str = ""
    """Of the last of them that had one."""


@dataclass(slots=True)
class _Window:
    ends: float
    said: int = 0
    silent: Changes = field(default_factory=Changes)
    timer: asyncio.TimerHandle | None = None


class Flapping:
    """Decides which changes of peers are worth a line of their own."""

    def __init__(self, clock: Clock, *, tell: Callable[[bytes, Changes], None]) -> None:
        """Take who tells, at the end of a minute, what was not said within it."""
        self._clock = clock
        self._tell = tell
        self._windows: dict[bytes, _Window] = {}
        self._room = PEERS_MAX
        """Once there are so many, those that are over are forgotten."""

    def is_said(self, peer: bytes, change: str, reason: str = "") -> bool:
        """Note a change of a peer; return whether it is to be said now."""
        now = self._clock.monotonic()
        window = self._windows.get(peer)
        if window is None or (window.timer is None and now >= window.ends):
            self._make_room(now)
            window = self._windows[peer] = _Window(now + WINDOW_S)
        if window.said < SAID_MAX:
            window.said += 1
            return True
        window.silent.counts[change] += 1
        window.silent.reason = reason or window.silent.reason
        if window.timer is None:
            delay_s = max(0.0, window.ends - now)
            window.timer = asyncio.get_running_loop().call_later(delay_s, self._ended, peer)
        return False

    def close(self) -> None:
        """Say nothing more."""
        for window in self._windows.values():
            if window.timer is not None:
                window.timer.cancel()
        self._windows.clear()

    def _ended(self, peer: bytes) -> None:
        window = self._windows.pop(peer)
        self._tell(peer, window.silent)
        # Nothing of the next minute is said one by one: only a quiet minute makes a peer news again.
        self._windows[peer] = _Window(self._clock.monotonic() + WINDOW_S, said=SAID_MAX)

    def _make_room(self, now: float) -> None:
        if len(self._windows) >= self._room:
            self._windows = {
                peer: window
                for peer, window in self._windows.items()
                if window.timer is not None or now < window.ends
            }
            self._room = max(PEERS_MAX, 2 * len(self._windows))


def log_changes(peer: bytes, changes: Changes, state: str) -> None:
    """Log what a peer did within a minute and was not said, and how it is now."""
    log.warning(
        "peer.flapped",
        peer=peer,
        joined=changes.counts["joined"],
        left=changes.counts["left"],
        suspected=changes.counts["suspected"],
        state=state,
        reason=changes.reason,
    )
