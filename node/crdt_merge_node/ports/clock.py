"""The port for time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Wall time is for people and certificates; durations use the monotonic clock."""

    def now(self) -> float:
        """Return wall time in seconds since 1970. May jump, also backwards."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start. Never goes backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return wall time in seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()
