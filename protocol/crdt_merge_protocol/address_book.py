"""Who there is, where it answers, and when to dial it again.

Rules of the file:

1. A peer that we have *met* (it proved its id on a connection, now or before a restart) is never forgotten,
   only dialled ever more rarely, for ever. What it says of its own addresses is believed.
2. What others say of a peer is *hearsay*: worth a try and no more. It never displaces an address that the
   peer gave itself, it is bounded per informant, and it is not passed on.
3. A *seed* is an address without an identity. It is dialled until some peer has been reached through it.
4. Blocked peers are neither dialled nor admitted, until they are unblocked. Who broke the protocol is left
   alone for a while that doubles with every offence (PROTOCOL R18: this steers connections, nothing else).
5. Who has left is forgotten and nobody's word for it is heeded, until it comes by itself.
6. Waiting times double from 0.25 s to 5 s (30 s after a refusal) with +-20 % jitter, so that a healed network
   is noticed soon and nodes do not retry in step. A connection resets them. At most 8 dials run at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from .limits import ADDRESS_CHARS_MAX, ADDRESSES_PER_PEER_MAX, DIALS_MAX, HEARSAY_PER_PEER_MAX

DIAL_INTERVAL_MIN_S: Final = 0.25
DIAL_INTERVAL_MAX_S: Final = 5.0
REFUSED_INTERVAL_MAX_S: Final = 30.0
"""Who refuses us will hardly change its mind in 5 s; who unblocks us dials at once."""
JITTER_RATIO: Final = 0.2
OUTCOME_S: Final = 15.0
"""Longer than connecting, handshake and hello may take together; by then the outcome was reported."""
HEARD_ADDRESSES_MAX: Final = 2
OFFENCE_S: Final = 1.0
OFFENCE_S_MAX: Final = 60.0
OFFENCE_FORGOTTEN_S: Final = 600.0
LEFT_PEERS_MAX: Final = 4096
"""Who left longest ago is no longer known to have left, and dialled again if somebody tells of it."""

ADDRESSES_REMEMBERED_MAX: Final = 16384
"""Texts that were looked at: every shuffle names the same ones again."""

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[1-9][0-9]{0,4})")


@functools.lru_cache(maxsize=ADDRESSES_REMEMBERED_MAX)
def is_address(text: str) -> bool:
    """Tell whether ``text`` is ``host:port`` or ``[ipv6]:port`` that may be dialled on a peer's word.

    Names are ASCII with labels of 1..63 characters: others make the resolver raise instead of failing.
    """
    found = _ADDRESS.fullmatch(text) if len(text) <= ADDRESS_CHARS_MAX else None
    if found is None or int(found["port"]) > 0xFFFF:
        return False
    return found["host"] is None or all(1 <= len(label) <= 63 for label in found["host"].split("."))


@dataclass(slots=True)
class Target:
    """Somebody to dial: a peer, or a seed when ``peer`` is None."""

    peer: bytes | None
    addresses: list[str]
    """What the peer itself said, or where it answered; newest first."""
    heard: list[str] = field(default_factory=list)
    """What others said; tried after the peer's own."""
    informant: bytes | None = None
    """Who told us of a peer that we have never met."""
    interval_s: float = DIAL_INTERVAL_MIN_S
    due: float = 0.0
    dialled_until: float = 0.0
    """An attempt is under way until its outcome is reported, at the latest until then."""
    attempts: int = 0
    last_error: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the peer has ever proved its id to this node."""
        return self.informant is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """One connection to try."""

    address: str
    expect: bytes | None
    """The node id that must answer; None for a seed."""


@dataclass(slots=True)
class Offences:
    """How often a peer broke the protocol, and until when it is left alone."""

    count: int
    until: float


@dataclass(slots=True)
class AddressBook:
    """Every known peer and seed; :meth:`due` keeps all that are not blocked connected."""

    node: bytes
    jitter: Callable[[], float]
    """Uniform in [0, 1)."""
    peers: dict[bytes, Target] = field(default_factory=dict)
    seeds: dict[str, Target] = field(default_factory=dict)
    active: set[bytes] = field(default_factory=set)
    blocked: set[bytes] = field(default_factory=set)
    left: dict[bytes, None] = field(default_factory=dict)
    """Peers that said they left, or that a person gave up; the newest last."""
    _offences: dict[bytes, Offences] = field(default_factory=dict)

    # --- who is there -----------------------------------------------------------------------------------

    def add_seed(self, address: str) -> None:
        """Remember an address to try without knowing who is there."""
        self.seeds.setdefault(address, Target(None, [address]))

    def learn(self, peer: bytes, addresses: Iterable[str]) -> bool:
        """Take in what a peer proved to be itself says of its addresses; tell whether anything is new."""
        if peer == self.node:
            return False
        target = self.peers.setdefault(peer, Target(peer, []))
        is_new = not target.is_met
        target.informant = None
        fresh = [address for address in dict.fromkeys(addresses) if is_address(address)]
        if not set(fresh) <= set(target.addresses):
            kept = [address for address in target.addresses if address not in fresh]
            target.addresses = (fresh + kept)[:ADDRESSES_PER_PEER_MAX]
            target.due, is_new = 0.0, True
        target.heard = [address for address in target.heard if address not in target.addresses]
        return is_new

    def hear(self, peer: bytes, addresses: Iterable[str], informant: bytes) -> None:
        """Take in what ``informant`` says of another peer's addresses."""
        fresh = [address for address in dict.fromkeys(addresses) if is_address(address)]
        if peer in (self.node, informant) or peer in self.left or not fresh:
            return
        target = self.peers.get(peer)
        if target is None:
            self._make_room(informant)
            target = self.peers[peer] = Target(peer, [], informant=informant)
        known = (*target.addresses, *target.heard)
        fresh = [address for address in fresh if address not in known]
        if fresh:
            target.heard = (fresh + target.heard)[:HEARD_ADDRESSES_MAX]
            target.due = 0.0

    def _make_room(self, informant: bytes) -> None:
        told = [peer for peer, target in self.peers.items() if target.informant == informant]
        for peer in told[: max(0, len(told) - HEARSAY_PER_PEER_MAX + 1)]:
            del self.peers[peer]

    def introductions(self) -> Iterator[tuple[bytes, tuple[str, ...]]]:
        """Yield the peers that are worth telling others of, with the addresses that they gave, by id."""
        for peer, target in sorted(self.peers.items()):
            if target.is_met and target.addresses:
                yield peer, tuple(target.addresses)

    # --- connections ------------------------------------------------------------------------------------

    def connected(self, peer: bytes) -> None:
        """Note a connection, in whichever direction."""
        self.active.add(peer)
        self.left.pop(peer, None)
        target = self.peers.setdefault(peer, Target(peer, []))
        target.informant = None
        target.interval_s, target.attempts, target.last_error = DIAL_INTERVAL_MIN_S, 0, ""
        target.dialled_until = 0.0

    def disconnected(self, peer: bytes, *, now: float) -> None:
        """Note the end of a connection and plan the next attempt."""
        self.active.discard(peer)
        if target := self.peers.get(peer):
            target.due = now + self._jittered(target.interval_s)

    def reached(self, address: str, peer: bytes) -> None:
        """Note that ``peer`` answered at an address that was dialled."""
        self.seeds.pop(address, None)
        self.learn(peer, [address])
        if target := self.peers.get(peer):
            target.dialled_until = 0.0

    def failed(
        self, address: str, expect: bytes | None, error: str, *, now: float, is_refusal: bool = False
    ) -> None:
        """Note a failed attempt and back off."""
        target = self.peers.get(expect) if expect is not None else self.seeds.get(address)
        if target is None:
            return
        target.attempts += 1
        target.last_error = error
        target.dialled_until = 0.0
        longest = REFUSED_INTERVAL_MAX_S if is_refusal else DIAL_INTERVAL_MAX_S
        target.interval_s = min(2 * target.interval_s, longest)
        target.due = now + self._jittered(target.interval_s)

    # --- who is not heard -------------------------------------------------------------------------------

    def block(self, peer: bytes) -> None:
        """Neither dial nor admit this peer."""
        self.blocked.add(peer)

    def unblock(self, peer: bytes) -> None:
        """Dial and admit this peer again, at once."""
        self.blocked.discard(peer)
        self._offences.pop(peer, None)
        if target := self.peers.get(peer):
            target.interval_s, target.due = DIAL_INTERVAL_MIN_S, 0.0

    def offended(self, peer: bytes, *, now: float) -> None:
        """Note that a peer broke the protocol; it is left alone for 1 s, then 2, up to 60."""
        before = self._offences.get(peer)
        count = before.count if before and now < before.until + OFFENCE_FORGOTTEN_S else 0
        pause_s = min(OFFENCE_S * 2**count, OFFENCE_S_MAX)
        self._offences[peer] = Offences(min(count + 1, 16), now + pause_s)

    def refusal(self, peer: bytes, *, now: float) -> str | None:
        """Return why a peer is not heard at the moment, or None."""
        if peer in self.blocked:
            return "blocked by the operator of this node"
        offences = self._offences.get(peer)
        if offences is not None and now < offences.until:
            return f"it broke the protocol; it may come back in {offences.until - now:.0f} s"
        return None

    def forget(self, peer: bytes) -> None:
        """Note that a peer has left: it is neither dialled nor told of, until it comes by itself."""
        if target := self.peers.pop(peer, None):
            for address in target.addresses:
                self.seeds.pop(address, None)
        self._offences.pop(peer, None)
        self.left.pop(peer, None)
        self.left[peer] = None
        if len(self.left) > LEFT_PEERS_MAX:
            del self.left[next(iter(self.left))]

    # --- dialling ---------------------------------------------------------------------------------------

    def due(self, *, now: float) -> list[Dial]:
        """Return the connections to try now, the most overdue first."""
        idle = list(self._idle(sorted(self.peers.items())))
        room = DIALS_MAX - sum(target.dialled_until > now for target in idle)
        ready = [target for target in idle if target.dialled_until <= now and self._due(target) <= now]
        dials = []
        for target in sorted(ready, key=self._due)[: max(0, room)]:
            places = target.addresses + target.heard
            target.dialled_until = now + OUTCOME_S
            dials.append(Dial(address=places[target.attempts % len(places)], expect=target.peer))
        return dials

    def next_due(self, *, now: float) -> float | None:
        """Return when :meth:`due` has something to say again."""
        idle = list(self._idle(self.peers.items()))
        outcomes = [target.dialled_until for target in idle if target.dialled_until > now]
        waiting = [self._due(target) for target in idle if target.dialled_until <= now]
        return min(outcomes if len(outcomes) >= DIALS_MAX else outcomes + waiting, default=None)

    def _due(self, target: Target) -> float:
        offences = self._offences.get(target.peer) if target.peer is not None else None
        return max(target.due, offences.until) if offences else target.due

    def _idle(self, peers: Iterable[tuple[bytes, Target]]) -> Iterator[Target]:
        for peer, target in peers:
            if peer not in self.active and peer not in self.blocked and (target.addresses or target.heard):
                yield target
        yield from self.seeds.values()

    def _jittered(self, interval_s: float) -> float:
        return interval_s * (1 + JITTER_RATIO * (2 * self.jitter() - 1))
