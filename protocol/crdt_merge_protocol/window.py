"""How much one provider may owe us: a window in bytes that grows by addition and shrinks by halving."""

from __future__ import annotations

from typing import Final

from .limits import CHUNK_BYTES

WINDOW_START_BYTES: Final = 4 * CHUNK_BYTES
WINDOW_BYTES_MIN: Final = CHUNK_BYTES
WINDOW_BYTES_MAX: Final = 32 * CHUNK_BYTES
"""A gigabit over 250 ms. More would only queue in the sender."""
LATENCY_TARGET_S: Final = 1.0
"""An answer that takes longer has waited in a queue: the window holds more than the path carries."""


class Window:
    """The window of one provider.

    1. It starts at 4 MiB and stays within 1..32 MiB.
    2. Each full window of answers that came while it was in use adds 1 MiB.
    3. An answer slower than a second halves it, at most once per such answer time, because the answers
       behind it have waited in the same queue.
    4. A stall puts it down to one chunk.

    TCP hides loss, so delay is the signal, as in LEDBAT (RFC 6817); the growth rule is that of Chiu and Jain
    1989. Short queues matter twice: little is asked twice when a provider vanishes, and the messages of other
    connections do not wait behind megabytes.
    """

    def __init__(self) -> None:
        self.size_bytes = float(WINDOW_START_BYTES)
        self.owed_bytes = 0
        self._recovers_at = 0.0

    @property
    def has_room(self) -> bool:
        """Whether more may be asked. The last request may overshoot, so that any size can be asked."""
        return self.owed_bytes < self.size_bytes

    def on_sent(self, nbytes: int) -> None:
        """Count a request."""
        self.owed_bytes += nbytes

    def on_dropped(self, nbytes: int) -> None:
        """Forget a request that will not be answered or no longer matters."""
        self.owed_bytes -= nbytes

    def on_answered(self, nbytes: int, *, sent_at: float, now: float) -> None:
        """Count an answer and adapt."""
        was_full = self.owed_bytes >= self.size_bytes / 2
        self.owed_bytes -= nbytes
        latency_s = now - sent_at
        if latency_s > LATENCY_TARGET_S:
            if now >= self._recovers_at:
                self.size_bytes = max(WINDOW_BYTES_MIN, self.size_bytes / 2)
                self._recovers_at = now + latency_s
        elif was_full:
            grown = self.size_bytes + CHUNK_BYTES * nbytes / self.size_bytes
            self.size_bytes = min(WINDOW_BYTES_MAX, grown)

    def on_stall(self) -> None:
        """Start again from the smallest window."""
        self.size_bytes = float(WINDOW_BYTES_MIN)
