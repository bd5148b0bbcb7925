"""One timer for one deadline that is stated anew after every event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """Calls when a deadline has come; most events do not move it, and then nothing is set anew."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0

    def set(self, deadline: float | None, *, now: float) -> None:
        """Call at this time and at no other; None: not at all. Both in seconds of one clock."""
        if self._timer:
            if deadline == self._armed_for:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._armed_for = deadline
            delay = max(0.0, deadline - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def close(self) -> None:
        """Call no more."""
        if self._timer:
            self._timer.cancel()

    def _due(self) -> None:
        self._timer = None
        self._call()
