"""Random walks over the links of a partial view: newcomers carried around, samples exchanged (PROTOCOL 3).

The answer to a shuffle goes back the way that the shuffle came, so that idle nodes open no connections. A
contact is named by the neighbour that met it, not by itself.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from .limits import (
    ACTIVE_MAX,
    CHOSEN_MAX,
    SAMPLE_PEERS_MAX,
    SHUFFLES_ROUTED_MAX,
    WALK_NOTE_STEP,
    WALK_STEPS_MAX,
)
from .messages.base import Message
from .messages.overlay import NONCE_BYTES, ForwardJoin, Shuffle, ShuffleReply
from .passive_view import PassiveView

SHUFFLE_PEERS: Final = 4
"""Of a sample that walks; with its origin, which the first on the way adds, five contacts of ~60 bytes."""
WALKS_PER_PEER_MAX: Final = 256
"""Walks that one neighbour may have passed on between two shuffles of this node."""
JOINS_PER_PEER_MAX: Final = 4
JOIN_WALKS_MAX: Final = ACTIVE_MAX - CHOSEN_MAX
"""Each may end in an offer, and a newcomer has room for so many links that others wish for."""

Steps = list[tuple[bytes, Message]]


class Walks:
    """What this node does for walks that come by, and its own shuffles."""

    def __init__(
        self,
        node: bytes,
        links: Callable[[], list[bytes]],
        passive: PassiveView,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._node = node
        self._links = links
        self._passive = passive
        self._random_bytes = random_bytes
        self._routes: OrderedDict[bytes, bytes] = OrderedDict()
        """Nonce of a shuffle -> who passed it on to us."""
        self._own_nonce = b""
        self._counts: Counter[bytes] = Counter()

    def forget_peer(self, peer: bytes) -> None:
        """Forget what a peer that has gone passed on."""
        self._counts.pop(peer, None)

    def begin_join(self, peer: bytes) -> Steps:
        """Send a newcomer's name out on a few walks, each over a link of its own."""
        contact = self._passive.contact(peer)
        self._counts[peer] += 1
        if contact is None or self._counts[peer] > JOINS_PER_PEER_MAX:
            return []
        walk = ForwardJoin(contact=contact, steps=WALK_STEPS_MAX)
        others = [other for other in self._links() if other != peer]
        while len(others) > JOIN_WALKS_MAX:
            others.remove(self._passive.choice(others))
        return [(other, walk) for other in others]

    def pass_join(self, peer: bytes, message: ForwardJoin, *, now: float) -> tuple[Steps, bool]:
        """Pass a newcomer on; tell whether its walk ends here."""
        newcomer, addresses = message.contact
        links = self._links()
        if newcomer == self._node or not self._may_walk(peer, links):
            return [], False
        others = [other for other in links if other not in (peer, newcomer)]
        is_end = message.steps == 0 or not others
        if is_end or message.steps == WALK_NOTE_STEP:
            self._passive.note(newcomer, addresses, now=now)
        if is_end:
            return [], True
        walk = ForwardJoin(contact=message.contact, steps=message.steps - 1)
        return [(self._passive.choice(others), walk)], False

    def begin_shuffle(self, population: int) -> Steps:
        """Send a sample of the views out on a walk."""
        self._counts.clear()
        links = self._links()
        if not links:
            return []
        self._own_nonce = self._random_bytes(NONCE_BYTES)
        peers = self._passive.sample(links, SHUFFLE_PEERS)
        walk = Shuffle(nonce=self._own_nonce, population=population, steps=WALK_NOTE_STEP, peers=peers)
        return [(self._passive.choice(links), walk)]

    def pass_shuffle(self, peer: bytes, message: Shuffle, *, now: float) -> Steps:
        """Pass a shuffle on, or answer it with a sample of this node's own."""
        nonce, peers = message.nonce, message.peers
        links = self._links()
        if not self._may_walk(peer, links) or nonce in self._routes or nonce == self._own_nonce:
            return []
        if message.steps == WALK_NOTE_STEP and (contact := self._passive.contact(peer)):
            peers = (contact, *peers)[:SAMPLE_PEERS_MAX]
        others = [other for other in links if other != peer]
        if message.steps > 0 and others:
            self._routes[nonce] = peer
            if len(self._routes) > SHUFFLES_ROUTED_MAX:
                self._routes.popitem(last=False)
            steps = message.steps - 1
            walk = Shuffle(nonce=nonce, population=message.population, steps=steps, peers=peers)
            return [(self._passive.choice(others), walk)]
        answer = ShuffleReply(nonce=nonce, peers=self._passive.sample(links, SHUFFLE_PEERS, besides=peer))
        self._note_all(peers, now=now)
        return [(peer, answer)]

    def pass_answer(self, message: ShuffleReply, *, now: float) -> Steps:
        """Take in the answer to the own shuffle, or pass another's back."""
        if message.nonce == self._own_nonce:
            self._own_nonce = b""
            self._note_all(message.peers, now=now)
            return []
        before = self._routes.pop(message.nonce, None)
        return [(before, message)] if before is not None and before in self._links() else []

    def _note_all(self, peers: tuple[tuple[bytes, tuple[str, ...]], ...], *, now: float) -> None:
        for peer, addresses in peers:
            self._passive.note(peer, addresses, now=now)

    def _may_walk(self, peer: bytes, links: list[bytes]) -> bool:
        self._counts[peer] += 1
        return peer in links and self._counts[peer] <= WALKS_PER_PEER_MAX
