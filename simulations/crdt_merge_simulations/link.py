"""One way along a link between two simulated machines: latency, bandwidth, loss, cuts."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

RETRANSMISSION_S: Final = 0.2
"""What a lost segment costs: the least retransmission timeout of Linux."""


class Direction:
    """One way along a link."""

    def __init__(self, latency_s: float, bandwidth_bytes_per_s: float, rng: Random) -> None:
        self.latency_s = latency_s
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.rng = rng
        self.cuts = 0
        """How many faults cut it at the moment."""
        self.extra_s = 0.0
        self.loss = 0.0
        self.is_corrupting = False
        """The next segment gets one byte changed."""
        self.waiting: list[Callable[[], None]] = []
        """Called when the last cut ends."""
        self._free_at = 0.0

    def like(self, rng: Random) -> Direction:
        """Return another one with the same latency and bandwidth, in order."""
        return Direction(self.latency_s, self.bandwidth_bytes_per_s, rng)

    def arrival(self, now: float, nbytes: int) -> float:
        """Return when a segment that leaves now is there."""
        begin = max(now, self._free_at)
        if self.bandwidth_bytes_per_s:
            begin += nbytes / self.bandwidth_bytes_per_s
            self._free_at = begin
        arrival = begin + self.delay()
        for _ in range(8):
            if self.rng.random() >= self.loss:
                break
            arrival += RETRANSMISSION_S
        return arrival

    def delay(self) -> float:
        """Return the time that one packet takes, in seconds."""
        return self.extra_s + self.latency_s * self.rng.uniform(1.0, 1.1)

    def cut(self) -> None:
        """Let nothing pass."""
        self.cuts += 1

    def mend(self) -> None:
        """End one cut."""
        self.cuts -= 1
        if not self.cuts:
            waiting, self.waiting = self.waiting, []
            for resume in waiting:
                resume()
