"""Whom to be connected to. Up to 12 nodes: everybody (PROTOCOL 3).

Rules of the file:

1. A peer is *known* once we have heard an address of it; known peers are never forgotten, only dialled ever
   more rarely, for ever.
2. A *seed* is an address without an identity. It is dialled until some peer has been reached through it.
3. Blocked peers are neither dialled nor admitted, until they are unblocked.
4. Waiting times double from 0.25 s to 5 s with +-20 % jitter, so that a healed network is noticed soon and
   nodes do not retry in step. A connection resets them.

The class is the full-mesh case of an interface: ``connected``, ``disconnected``, ``learn``, ``due`` and
``next_due`` are all that the engine uses, so that a partial view can take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .limits import ADDRESSES_PER_PEER_MAX

DIAL_INTERVAL_MIN_S = 0.25
DIAL_INTERVAL_MAX_S = 5.0
JITTER_RATIO = 0.2
OUTCOME_S = 15.0
"""Longer than connecting, handshake and hello may take together; by then the outcome was reported."""


@dataclass(slots=True)
class Target:
    """Somebody to dial: a known peer, or a seed when ``peer`` is None."""

    peer: bytes | None
    addresses: list[str]
    interval_s: float = DIAL_INTERVAL_MIN_S
    due: float = 0.0
    attempts: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """One connection to try."""

    address: str
    expect: bytes | None
    """The node id that must answer; None for a seed."""


@dataclass(slots=True)
class FullMesh:
    """Keeps every known, unblocked peer connected."""

    node: bytes
    jitter: Callable[[], float]
    """Uniform in [0, 1)."""
    peers: dict[bytes, Target] = field(default_factory=dict)
    seeds: dict[str, Target] = field(default_factory=dict)
    active: set[bytes] = field(default_factory=set)
    blocked: set[bytes] = field(default_factory=set)

    def add_seed(self, address: str) -> None:
        """Remember an address to try without knowing who is there."""
        self.seeds.setdefault(address, Target(None, [address]))

    def learn(self, peer: bytes, addresses: Iterable[str]) -> bool:
        """Remember addresses of a peer, newest first; tell whether anything is new."""
        if peer == self.node:
            return False
        target = self.peers.setdefault(peer, Target(peer, []))
        fresh = [address for address in addresses if address not in target.addresses]
        if not fresh:
            return False
        target.addresses = (fresh + target.addresses)[:ADDRESSES_PER_PEER_MAX]
        target.due = 0.0
        return True

    def connected(self, peer: bytes) -> None:
        """Note a connection, in whichever direction."""
        self.active.add(peer)
        target = self.peers.setdefault(peer, Target(peer, []))
        target.interval_s, target.attempts, target.last_error = DIAL_INTERVAL_MIN_S, 0, ""

    def disconnected(self, peer: bytes, *, now: float) -> None:
        """Note the end of a connection and plan the next attempt."""
        self.active.discard(peer)
        target = self.peers.get(peer)
        if target is not None:
            target.due = now + self._jittered(target.interval_s)

    def reached(self, address: str, peer: bytes) -> None:
        """Note that ``peer`` answered at a seed's address."""
        self.seeds.pop(address, None)
        self.learn(peer, [address])

    def failed(self, address: str, expect: bytes | None, error: str, *, now: float) -> None:
        """Note a failed attempt and back off."""
        target = self.peers.get(expect) if expect is not None else self.seeds.get(address)
        if target is None:
            return
        target.attempts += 1
        target.last_error = error
        target.interval_s = min(2 * target.interval_s, DIAL_INTERVAL_MAX_S)
        target.due = now + self._jittered(target.interval_s)

    def block(self, peer: bytes) -> None:
        """Neither dial nor admit this peer."""
        self.blocked.add(peer)

    def unblock(self, peer: bytes) -> None:
        """Dial and admit this peer again, at once."""
        self.blocked.discard(peer)
        if target := self.peers.get(peer):
            target.interval_s, target.due = DIAL_INTERVAL_MIN_S, 0.0

    def due(self, *, now: float) -> list[Dial]:
        """Return the connections to try now; each is rescheduled until its outcome is reported."""
        dials = []
        for target in self._idle():
            if target.due > now:
                continue
            address = target.addresses[target.attempts % len(target.addresses)]
            target.due = now + OUTCOME_S
            dials.append(Dial(address=address, expect=target.peer))
        return dials

    def next_due(self) -> float | None:
        """Return when :meth:`due` has something to say again."""
        return min((target.due for target in self._idle()), default=None)

    def _idle(self) -> list[Target]:
        targets = [
            target
            for peer, target in sorted(self.peers.items())
            if peer not in self.active and peer not in self.blocked and target.addresses
        ]
        return targets + list(self.seeds.values())

    def _jittered(self, interval_s: float) -> float:
        return interval_s * (1 + JITTER_RATIO * (2 * self.jitter() - 1))
