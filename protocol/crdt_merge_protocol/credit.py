"""How much work a peer may make: operations and their bytes, from two buckets that fill with time.

A signature costs a tenth of a millisecond to check, whoever made it. Nothing that is valid is ever refused
for its number (PROTOCOL R19), so whoever sends more than its credit is made to wait: nothing more is read
from it until the buckets are no longer in debt, and TCP passes the wait on to the sender. Others do not
notice. The buckets are large enough that a node which joins, or was away, catches up at full speed.

Time is an argument, in seconds of any monotonic clock. Source: token bucket; Turner 1986, "New directions in
communications". Differs: one step may run into debt, since a message is one piece.
"""

from __future__ import annotations

from .limits import (
    OPERATION_BYTES_BURST,
    OPERATION_BYTES_PER_S,
    OPERATIONS_BURST,
    OPERATIONS_PER_S,
    OPERATIONS_PER_TURN_MAX,
)


class Bucket:
    """Holds up to ``burst`` and gains ``per_s`` a second."""

    __slots__ = ("_burst", "_level", "_per_s", "_time")

    def __init__(self, *, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._level = burst
        self._time = now

    def take(self, amount: float, *, now: float) -> float:
        """Take ``amount``, into debt if need be; return in how many seconds the debt will be paid."""
        self._fill(now)
        self._level -= amount
        return max(0.0, -self._level / self._per_s)

    def is_full(self, *, now: float) -> bool:
        """Tell whether nothing of late was taken."""
        self._fill(now)
        return self._level >= self._burst

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self._time)
        self._time = max(self._time, now)
        self._level = min(self._burst, self._level + elapsed * self._per_s)


class Credit:
    """What one peer may still send."""

    __slots__ = ("_bytes", "_operations", "_turn")

    def __init__(self, *, now: float) -> None:
        self._operations = Bucket(per_s=OPERATIONS_PER_S, burst=OPERATIONS_BURST, now=now)
        self._bytes = Bucket(per_s=OPERATION_BYTES_PER_S, burst=OPERATION_BYTES_BURST, now=now)
        self._turn = 0

    def spend(self, operations: int, nbytes: int, *, now: float) -> float | None:
        """Note what came in one message; return for how many seconds to read nothing more, if at all.

        Returns:
            0: others are to have their turn first, that is all. None: go on.
        """
        wait_s = max(self._operations.take(operations, now=now), self._bytes.take(nbytes, now=now))
        self._turn += operations
        if not wait_s and self._turn < OPERATIONS_PER_TURN_MAX:
            return None
        self._turn = 0
        return wait_s

    def is_full(self, *, now: float) -> bool:
        """Tell whether it may be forgotten: a new one would be like it."""
        return self._operations.is_full(now=now) and self._bytes.is_full(now=now)
