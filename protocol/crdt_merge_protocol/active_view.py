"""The neighbours of a node: who has a place, and who leaves one to another (PROTOCOL 3).

Half of the places are for peers that this node chose itself at random; whoever asks gets one of the others,
and displaces only those who asked before. So hostile dialers cannot surround a node (SCENARIOS T27).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .address_book import Dial
from .limits import ACTIVE_MAX, CHOSEN_MAX, SAMPLE_PEERS_MAX
from .messages.base import Message
from .messages.overlay import Contact, Leave
from .passive_view import PassiveView

ANSWER_S: Final = 5.0
"""Within this a connection becomes a link, or it is closed."""
ANY_EVICTED_RATIO: Final = 0.1
"""How often a link is left although the tree needs it: pushing fast must not buy a place for ever."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a connected peer."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Close:
    """End a connection that is of no use."""

    peer: bytes
    reason: str


Action = Tell | Close | Dial


@dataclass(slots=True)
class Link:
    """A neighbour."""

    is_chosen: bool
    """This node picked it at random; else it was the other's wish, or a third's."""


class ActiveView:
    """The neighbours, and the connected peers that are none."""

    def __init__(self, passive: PassiveView, jitter: Callable[[], float]) -> None:
        self.links: dict[bytes, Link] = {}
        self.idle: dict[bytes, float] = {}
        """Connected peers that are no neighbours, and when to close."""
        self.is_small = False
        """So few nodes that nobody needs to be turned away."""
        self.need: Callable[[bytes], int] = lambda _: 0
        """How much leaving a neighbour would delay what is pushed along the broadcast tree; 0: not at all."""
        self._passive = passive
        self._jitter = jitter

    def link(self, peer: bytes, *, is_chosen: bool) -> None:
        """Give a connected peer a place."""
        self.links[peer] = Link(is_chosen)
        self.idle.pop(peer, None)
        self._passive.contacts.pop(peer, None)

    def chosen(self) -> list[bytes]:
        """Return the neighbours that this node picked."""
        return [peer for peer, link in self.links.items() if link.is_chosen]

    def accepted(self) -> list[bytes]:
        """Return the others."""
        return [peer for peer, link in self.links.items() if not link.is_chosen]

    def chosen_count(self) -> int:
        """Return how many neighbours this node picked."""
        count = 0
        for link in self.links.values():
            count += link.is_chosen
        return count

    def evict(self, peer: bytes, *, now: float) -> list[Action]:
        """Leave a neighbour, and say whom else it might ask."""
        del self.links[peer]
        self.idle[peer] = now + ANSWER_S
        self._passive.note_met(peer)
        return [Tell(peer, Leave(peers=self.sample(peer)))]

    def make_room(self, *, now: float) -> list[Action]:
        """Leave one of those that asked for their place, if there is one, for another that asks."""
        accepted = self.accepted()
        return self.evict(self._expendable(accepted), now=now) if accepted else []

    def trim(self, *, now: float) -> list[Action]:
        """Leave neighbours that are too many, as after a full mesh."""
        if self.is_small or len(self.links) <= ACTIVE_MAX:
            return []
        actions = self.trim_chosen(CHOSEN_MAX, now=now)
        while len(self.links) > ACTIVE_MAX:
            actions += self.evict(self._expendable(self.accepted()), now=now)
        return actions

    def trim_chosen(self, count: int, *, now: float) -> list[Action]:
        """Leave neighbours that this node picked, but for so many."""
        actions: list[Action] = []
        chosen = self.chosen()
        while len(chosen) > count and not self.is_small:
            peer = self._expendable(chosen)
            chosen.remove(peer)
            actions += self.evict(peer, now=now)
        return actions

    def is_hub(self) -> bool:
        """Tell whether a link of the tree would have to make room for another chosen one, and should not."""
        chosen = self.chosen()
        is_full = len(chosen) >= CHOSEN_MAX and all(map(self.need, chosen))
        return is_full and self._jitter() >= ANY_EVICTED_RATIO

    def sample(self, besides: bytes) -> tuple[Contact, ...]:
        """Return some contacts for a peer."""
        return self._passive.sample(self.links, SAMPLE_PEERS_MAX, besides=besides)

    def _expendable(self, peers: list[bytes]) -> bytes:
        """Return who is left for another: at random, usually out of those that are needed least."""
        if self._jitter() >= ANY_EVICTED_RATIO:
            least = min(map(self.need, peers))
            peers = [peer for peer in peers if self.need(peer) == least]
        return self._passive.choice(peers)


def spread(interval_s: float, ratio: float, jitter: float) -> float:
    """Return an interval that is longer or shorter by up to a ratio; ``jitter`` is in 0..1."""
    return interval_s * (1 + ratio * (2 * jitter - 1))
