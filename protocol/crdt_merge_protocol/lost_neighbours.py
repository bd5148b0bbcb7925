"""Neighbours whose connection broke: they are dialled until they answer (PROTOCOL 3).

So a network that was cut and has healed grows together within seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .active_view import spread
from .limits import LOST_PEERS_MAX

LOST_INTERVAL_MIN_S: Final = 0.5
LOST_INTERVAL_MAX_S: Final = 15.0
FLEETING_S: Final = 2.0
"""A neighbour that is found again within this has kept the place; if not, nobody else must make room."""


@dataclass(slots=True)
class _Lost:
    since: float
    due: float
    interval_s: float = LOST_INTERVAL_MIN_S


class LostNeighbours:
    """Who was lost, and when to dial again: ever more rarely, for ever."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._lost: OrderedDict[bytes, _Lost] = OrderedDict()

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._lost

    def clear(self) -> None:
        """Give all of them up."""
        self._lost.clear()

    def forget(self, peer: bytes) -> None:
        """Give one up, or be content: it is here again."""
        self._lost.pop(peer, None)

    def lose(self, peer: bytes, *, now: float) -> None:
        """Note that the connection to a neighbour broke; who was lost first makes room."""
        self._lost[peer] = _Lost(now, now + spread(LOST_INTERVAL_MIN_S, 1.0, self._jitter()))
        if len(self._lost) > LOST_PEERS_MAX:
            self._lost.popitem(last=False)

    def failed(self, peer: bytes, *, now: float) -> None:
        """Note that a peer did not answer; if it was a neighbour, wait longer."""
        if lost := self._lost.get(peer):
            self._put_off(lost, now=now)

    def due(self, *, now: float) -> list[bytes]:
        """Return whom to dial now."""
        return [peer for peer, lost in self._lost.items() if lost.due <= now]

    def dialled(self, peer: bytes, *, now: float) -> bool:
        """Note that a peer is dialled; return whether others must make room for it."""
        lost = self._lost[peer]
        self._put_off(lost, now=now)
        return now >= lost.since + FLEETING_S

    def next_due(self, due: float) -> float:
        """Return when somebody is to be dialled, or ``due`` if that is before."""
        for lost in self._lost.values():
            due = min(due, lost.due)
        return due

    def _put_off(self, lost: _Lost, *, now: float) -> None:
        lost.interval_s = min(2 * lost.interval_s, LOST_INTERVAL_MAX_S)
        lost.due = now + spread(lost.interval_s, 0.2, self._jitter())
