"""Whom to be connected to: everybody, or a few (PROTOCOL 3).

Up to 12 known nodes it is a *full mesh*: every known peer is dialled and a neighbour. Beyond, it is a
*partial view* (``hyparview.py``). Rules of the change:

1. Nodes are counted that are connected, or that have not failed to answer many dials in a row. More than 12
   make a partial view at once; it takes a minute of 10 or fewer to go back, so that one node coming and going
   changes nothing.
2. A node with a partial view says so first on every connection, with its count. Who hears of more than 12
   keeps a partial view too, for at least a minute: of one link both ends think alike. Who keeps one on
   another's word and knows few itself passes the word on until it counts again; else whoever met only such
   nodes would take them for all there are.
3. Connections of the mesh become links, as many as may stay; nothing is cut to build the view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from .active_view import Action, Tell
from .address_book import AddressBook, Dial, is_address
from .hyparview import HyParView
from .limits import FULL_MESH_NODES_MAX, FULL_MESH_NODES_MIN
from .messages.base import Message
from .messages.overlay import Accepted, Contact, Join, Neighbor, Shuffle, View

__all__ = ["Action", "Dial", "Overlay", "is_address"]

REVIEW_INTERVAL_S: Final = 10.0
CALM_S: Final = 60.0
"""This long few nodes must be known before a partial view goes back to a full mesh."""
UNANSWERED_MAX: Final = 8
"""Dials in a row without an answer, about half a minute, after which a peer is not counted."""


class Overlay(AddressBook):
    """Known peers, and which of them are neighbours."""

    def __init__(
        self, node: bytes, jitter: Callable[[], float], *, random_bytes: Callable[[int], bytes]
    ) -> None:
        super().__init__(node, jitter)
        self.view = HyParView(self, jitter=jitter, random_bytes=random_bytes)
        self.is_mesh = True
        self._dialled: set[bytes] = set()
        """Connected peers that this node dialled."""
        self._partial_peers: set[bytes] = set()
        """Connected peers that keep a partial view."""
        self._review_due = 0.0
        self._few_since: float | None = None
        self._follow_until = 0.0
        self._next_due: float | None = None
        self._is_due_known = False
        """:attr:`_next_due` holds, as long as nothing that concerns the view happens."""
        self._neighbours: set[bytes] = set()
        """As last told by :meth:`take_changes`."""
        self.may_have_changed = False
        """Something has happened since then that could have changed them."""

    # --- what others ask --------------------------------------------------------------------------------

    @property
    def neighbours(self) -> list[bytes]:
        """Peers that operations and roots are exchanged with, by id."""
        return sorted(self.active if self.is_mesh else self.view.links)

    def is_neighbour(self, peer: bytes) -> bool:
        """Tell whether a connected peer is a neighbour."""
        return peer in (self.active if self.is_mesh else self.view.links)

    def view_of(self, peer: bytes) -> str:
        """Return how a peer stands in the view: ``mesh``, ``active``, ``passive`` or nothing of these."""
        if self.is_mesh:
            return "mesh"
        if peer in self.view.links:
            return "active"
        return "passive" if peer in self.view.passive or peer in self.peers else ""

    @property
    def known(self) -> set[bytes]:
        """Every peer that was met, heard of or blocked, or has left."""
        return self.peers.keys() | self.view.passive.keys() | self.blocked | self.left.keys()

    def is_at_rest(self, peer: bytes) -> bool:
        """Tell whether a peer is not connected because it need not be, and nothing is known against it."""
        target = self.peers.get(peer)
        has_failed = target is not None and target.attempts > 0
        return not (self.is_mesh or peer in self.active or has_failed or self.view.is_lost(peer))

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Return (new neighbours, neighbours no more) since the last call."""
        self.may_have_changed = False
        present = self.active if self.is_mesh else self.view.links.keys()
        if present == self._neighbours:
            return [], []
        before, self._neighbours = self._neighbours, set(present)
        return sorted(self._neighbours - before), sorted(before - self._neighbours)

    def _touch(self) -> None:
        """Forget what was worked out, because something that concerns the view happens."""
        self._is_due_known, self.may_have_changed = False, True

    # --- connections ------------------------------------------------------------------------------------

    def peer_up(self, peer: bytes, dialled: str | None, *, now: float) -> list[Action]:
        """Note a connection that is open and proved who the peer is."""
        self._touch()
        self._partial_peers.discard(peer)
        self._neighbours.discard(peer)
        if dialled is None:
            self._dialled.discard(peer)
        else:
            self._dialled.add(peer)
        self.connected(peer)
        if not self.is_mesh:
            return self.view.connected(peer, dialled, now=now)
        return self._review(now=now)

    def peer_down(self, peer: bytes, *, now: float) -> list[Action]:
        """Note that a connection is gone."""
        self._touch()
        self._dialled.discard(peer)
        self._partial_peers.discard(peer)
        self.disconnected(peer, now=now)
        return [] if self.is_mesh else self.view.disconnected(peer, now=now)

    def dial_answered(self, dial: Dial, peer: bytes, *, now: float) -> list[Action]:
        """Note a dial that found a peer to whom there is a connection already."""
        self._touch()
        self.reached(dial.address, peer)
        return [] if self.is_mesh else self.view.answered(peer, dial.address, now=now)

    def dial_failed(self, dial: Dial, error: str, *, now: float, is_refusal: bool) -> list[Action]:
        """Note a dial that led to no connection."""
        self._touch()
        self.failed(dial.address, dial.expect, error, now=now, is_refusal=is_refusal)
        return [] if self.is_mesh else self.view.failed(dial, now=now)

    def introduced(self, contacts: Iterable[Contact], informant: bytes, *, now: float) -> list[Action]:
        """Take in what a peer says of others."""
        self._touch()
        if not self.is_mesh:
            self.view.note(contacts, now=now)
            return []
        for peer, addresses in contacts:
            self.hear(peer, addresses, informant)
        return self._review(now=now)

    def forget(self, peer: bytes) -> None:
        """Note that a peer has left: it is neither dialled nor told of, until it comes by itself."""
        self._touch()
        super().forget(peer)
        self.view.forget(peer)

    def closing(self, peer: bytes) -> None:
        """Note that this node ends a connection because of what the peer did."""
        self._touch()
        self.view.closing(peer)

    # --- messages ---------------------------------------------------------------------------------------

    def received(self, peer: bytes, message: Message, *, now: float) -> list[Action]:
        """Take in a message of the partial view from a connected peer."""
        self._touch()
        if isinstance(message, View | Shuffle) and message.population > FULL_MESH_NODES_MAX:
            self._follow_until = now + CALM_S
        if isinstance(message, View):
            self._partial_peers.add(peer)
            if self._follow_until > now:
                self.view.population = max(self.view.population, FULL_MESH_NODES_MAX + 1)
        if not self.is_mesh:
            return self.view.received(peer, message, now=now)
        match message:
            case View() | Shuffle() if self._follow_until > now:
                return self._begin_view(now=now)
            case View():
                return [Tell(peer, Neighbor(is_urgent=True))]
            case Join() | Neighbor():
                return [Tell(peer, Accepted())]
            case _:
                return []

    # --- time -------------------------------------------------------------------------------------------

    def next_due(self, *, now: float) -> float | None:
        """Return when :meth:`tick` has something to do."""
        if self.is_mesh:
            return super().next_due(now=now)
        if not self._is_due_known or self.view.is_isolated:
            times = [self._review_due, self.view.next_due()]
            if self.view.is_isolated:
                times.append(super().next_due(now=now))
            self._next_due = min((time for time in times if time is not None), default=None)
            self._is_due_known = True
        return self._next_due

    def tick(self, *, now: float) -> list[Action]:
        """Do what is due."""
        self._touch()
        if self.is_mesh:
            return [*self._review(now=now), *(self.due(now=now) if self.is_mesh else ())]
        actions = self._review(now=now) if self._review_due <= now else []
        if self.is_mesh:
            return actions + list(self.due(now=now))
        actions += self.view.tick(now=now)
        if self.view.is_isolated:
            actions += self.due(now=now)
        return actions

    # --- from one to the other --------------------------------------------------------------------------

    def _review(self, *, now: float) -> list[Action]:
        """Count the nodes, and change between mesh and view if the count says so."""
        if self.is_mesh and len(self.peers) < FULL_MESH_NODES_MAX:
            return []
        self._review_due = now + REVIEW_INTERVAL_S
        population = self._population()
        if self.is_mesh:
            return self._begin_view(now=now) if population > FULL_MESH_NODES_MAX else []
        self.view.population = population
        self.view.active.is_small = population <= FULL_MESH_NODES_MAX and self._follow_until <= now
        if population > FULL_MESH_NODES_MIN or self._follow_until > now:
            self._few_since = None
        elif self._few_since is None:
            self._few_since = now
        elif now >= self._few_since + CALM_S:
            self._begin_mesh(now=now)
        return []

    def _population(self) -> int:
        others = {
            peer
            for peer, target in self.peers.items()
            if peer in self.active or (target.attempts < UNANSWERED_MAX and peer not in self.blocked)
        }
        return 1 + len(others) + sum(peer not in self.peers for peer in self.view.passive)

    def _begin_view(self, *, now: float) -> list[Action]:
        self.is_mesh = False
        self._few_since = None
        self._review_due = now + REVIEW_INTERVAL_S
        self.view.population = self._population()
        if self._follow_until > now:
            self.view.population = max(self.view.population, FULL_MESH_NODES_MAX + 1)
        self.view.active.is_small = False
        present = sorted(self.active)
        adopted = [(peer, peer in self._dialled) for peer in present if peer not in self._partial_peers]
        strangers = [peer for peer in present if peer in self._partial_peers]
        self.view.begin(adopted, strangers, now=now)
        self.view.note(
            [
                (peer, tuple(target.addresses or target.heard))
                for peer, target in sorted(self.peers.items())
                if peer not in self.active
            ],
            now=now,
        )
        actions: list[Action] = [Tell(peer, View(population=self.view.population)) for peer in present]
        for peer in strangers:
            actions += self.view.ask(peer, now=now)
        return actions

    def _begin_mesh(self, *, now: float) -> None:
        self.is_mesh = True
        for peer, addresses in sorted(self.view.passive.items()):
            self.hear(peer, addresses, self.node)
        for target in self.peers.values():
            target.due = now
        self.view.end()
        self.view.passive.clear()
