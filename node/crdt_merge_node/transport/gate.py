"""The accept gate: who may begin a TLS handshake (SCENARIOS T15, T16, B64). Pure: the caller tells the time.

A handshake costs 1 ms of CPU and a slot, before anybody has proven anything. So a source (an IPv4 address or
an IPv6 /64) has a token bucket, and unauthenticated connections are capped in total and per source. At a cap
the *oldest* unauthenticated connection of the same scope gives way: it has had its time, so whoever stalls
handshakes pushes out his own, and an honest handshake of some milliseconds gets through a flood. A connection
that authenticated counts no more and gives its token back: one host may run many nodes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.limits import (
    ACCEPT_BURST,
    ACCEPT_RATE_PER_S,
    CONNECTIONS_MAX,
    UNAUTHENTICATED_MAX,
    UNAUTHENTICATED_PER_ADDRESS_MAX,
)

BUCKETS_MAX: Final = 4096
"""Sources remembered; the longest unused is forgotten first."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(frozen=True, slots=True)
class Admission:
    """The gate's answer to one connection attempt."""

    refusal: str = ""
    """Why not; empty if it may begin."""
    evict: int | None = None
    """Ticket of the connection that has to go instead."""


class AcceptGate:
    """Counts connections by ticket, a number that the caller picks and never uses twice."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._unauthenticated: OrderedDict[int, str] = OrderedDict()
        self._per_source: Counter[str] = Counter()
        self._authenticated: set[int] = set()

    @property
    def unauthenticated_count(self) -> int:
        """Connections that have not said who they are."""
        return len(self._unauthenticated)

    def admit(self, ticket: int, source: str, *, now: float) -> Admission:
        """Decide on a new connection and, if it may begin, count it."""
        bucket = self._bucket(source, now)
        if bucket.tokens < 1:
            return Admission(f"more than {ACCEPT_RATE_PER_S:g} connections a second from {source}")
        if len(self._authenticated) >= CONNECTIONS_MAX:
            return Admission(f"all {CONNECTIONS_MAX} connections are in use")
        bucket.tokens -= 1
        evict = None
        if self._per_source[source] >= UNAUTHENTICATED_PER_ADDRESS_MAX:
            evict = next(held for held, owner in self._unauthenticated.items() if owner == source)
        elif len(self._unauthenticated) >= UNAUTHENTICATED_MAX:
            evict = next(iter(self._unauthenticated))
        if evict is not None:
            self.release(evict)
        self._unauthenticated[ticket] = source
        self._per_source[source] += 1
        return Admission(evict=evict)

    def authenticated(self, ticket: int) -> None:
        """The connection has said who it is: caps for strangers no longer apply."""
        source = self._forget(ticket)
        if source is not None:
            self._authenticated.add(ticket)
            if bucket := self._buckets.get(source):
                bucket.tokens = min(ACCEPT_BURST, bucket.tokens + 1)

    def release(self, ticket: int) -> None:
        """The connection is gone. Idempotent."""
        self._forget(ticket)
        self._authenticated.discard(ticket)

    def _forget(self, ticket: int) -> str | None:
        source = self._unauthenticated.pop(ticket, None)
        if source is not None:
            self._per_source[source] -= 1
            if not self._per_source[source]:
                del self._per_source[source]
        return source

    def _bucket(self, source: str, now: float) -> _Bucket:
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = _Bucket(tokens=ACCEPT_BURST, at=now)
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(source)
        bucket.tokens = min(ACCEPT_BURST, bucket.tokens + (now - bucket.at) * ACCEPT_RATE_PER_S)
        bucket.at = now
        return bucket
