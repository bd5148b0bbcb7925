"""Lets no peer make more work than its share: whoever is in debt is not read from for a while (T17)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

from crdt_merge_protocol.credit import Credit

from .ports import Clock
from .repeats import Repeats
from .telemetry.counters import Counters
from .telemetry.logging import get_logger

log = get_logger()

CREDITS_MAX: Final = 1024
"""Peers whose credit is remembered, also over reconnecting; full ones beyond that need no memory."""


class Paced(Protocol):
    """The connection of a peer."""

    @property
    def peer(self) -> bytes:
        """Node id of the peer."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether anything can come."""
        ...

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now."""
        ...

    def resume_reading(self) -> None:
        """Take messages again."""
        ...


class Pacing:
    """The credits of all peers of a node."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self._credits: dict[bytes, Credit] = {}
        self._repeats = Repeats(clock)
        self._holds: Counter[Paced] = Counter()
        """How many want a connection not to be read from."""

    def received(self, connection: Paced, operations: Sequence[bytes]) -> None:
        """Charge a peer for a message; let it wait if it has to."""
        now = self._clock.monotonic()
        credit = self._credits.get(connection.peer)
        if credit is None:
            self._make_room(now)
            credit = self._credits[connection.peer] = Credit(now=now)
        wait_s = credit.spend(len(operations), sum(map(len, operations)), now=now)
        if wait_s is None:
            return
        if wait_s and (count := self._repeats.count(connection.peer)):
            log.info("peer.slowed", peer=connection.peer, duration_s=round(wait_s, 3), count=count)
        self._counters.paused_s += wait_s
        self.hold(connection)
        # A message is at most 64 KiB, and nothing comes after it: the debt is never more than one of them.
        asyncio.get_running_loop().call_later(wait_s, self.release, connection)

    def hold(self, connection: Paced) -> None:
        """Read nothing more from a connection until :meth:`release` was called as often as this."""
        self._holds[connection] += 1
        if self._holds[connection] == 1:
            connection.pause_reading()

    def release(self, connection: Paced) -> None:
        """Take back one :meth:`hold`."""
        self._holds[connection] -= 1
        if not self._holds[connection]:
            del self._holds[connection]
            if connection.is_open:
                connection.resume_reading()

    def _make_room(self, now: float) -> None:
        if len(self._credits) >= CREDITS_MAX:
            self._credits = {
                peer: credit for peer, credit in self._credits.items() if not credit.is_full(now=now)
            }
