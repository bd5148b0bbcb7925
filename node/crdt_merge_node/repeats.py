"""Saying once a minute what happens all the time (STYLE: flapping is summarised)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from .ports import Clock

INTERVAL_S: Final = 60.0
KEYS_MAX: Final = 256
"""Different things told apart at a time; a flood of ever new ones shares one key."""


@dataclass(slots=True)
class _Seen:
    said_at: float
    silent: int = 0


class Repeats:
    """Decides which occurrences of an event are worth a line: the first, then one a minute with a count."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[Hashable, _Seen] = {}

    def count(self, key: Hashable) -> int:
        """Note an occurrence; return how many a line would stand for now, 0 for "say nothing"."""
        now = self._clock.monotonic()
        if key not in self._seen and len(self._seen) >= KEYS_MAX:
            self._seen = {key: seen for key, seen in self._seen.items() if now < seen.said_at + INTERVAL_S}
            key = key if len(self._seen) < KEYS_MAX else None
        seen = self._seen.get(key)
        if seen is None:
            self._seen[key] = _Seen(now)
            return 1
        seen.silent += 1
        if now < seen.said_at + INTERVAL_S:
            return 0
        count, seen.silent, seen.said_at = seen.silent, 0, now
        return count
