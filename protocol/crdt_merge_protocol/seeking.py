"""Whom a node asks to become a neighbour: of its own choice, at random (PROTOCOL 3).

*No islands.* Every node crosses over now and then: it links to somebody whom it knows and is not linked to,
in the place of a link that it had chosen. It does so soon after the start, when joining nodes may have found
only each other, and ever more rarely, for ever.

*Seeds.* An address at which nobody answered is dialled until somebody does: there may be a node that started
after all who look for it there, and knows nobody itself. Those not tried yet are left to crossing over: a
long list leads mostly to nodes that this one has heard of, and each dial may change a link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .active_view import Action, ActiveView, spread
from .address_book import AddressBook, Dial
from .limits import ACTIVE_MIN, CHOSEN_MAX
from .passive_view import PassiveView

DIAL_S: Final = 15.0
"""By then the outcome of a dial was reported."""
SEEK_INTERVAL_MIN_S: Final = 0.5
SEEK_CALM_S: Final = 4.0
"""The least of a node that has enough. There are as many places for others as links that nodes would choose,
so whoever looks for one of the last meets refusals, and each costs a connection."""
SEEK_INTERVAL_MAX_S: Final = 240.0
"""Between requests of a node that has enough links, only not all that it would choose itself."""
SEEK_NOBODY_S: Final = 3.0
CROSS_INTERVAL_MIN_S: Final = 2.0
CROSS_INTERVAL_MAX_S: Final = 900.0
SEED_INTERVAL_MIN_S: Final = 2.0
SEED_INTERVAL_MAX_S: Final = 30.0
"""Between dials of seeds that failed, one at a time."""
URGENT_DIALS_MAX: Final = 4


@dataclass(slots=True)
class Wish:
    """A peer that this node has asked, or is dialling in order to ask."""

    is_chosen: bool
    is_urgent: bool
    until: float


class Seeking:
    """What a node wishes for, and when it wishes for more."""

    def __init__(
        self, book: AddressBook, active: ActiveView, passive: PassiveView, jitter: Callable[[], float]
    ) -> None:
        self.wishes: dict[bytes, Wish] = {}
        self.seed_dials: dict[str, Wish] = {}
        """Wishes for whoever answers at an address."""
        self._book = book
        self._active = active
        self._passive = passive
        self._jitter = jitter
        self._due = 0.0
        self._interval_s = SEEK_INTERVAL_MIN_S
        self._cross_due: float | None = None
        self._cross_interval_s = CROSS_INTERVAL_MIN_S
        self._seed_due = 0.0
        self._seed_interval_s = SEED_INTERVAL_MIN_S

    def begin(self, *, now: float) -> None:
        """Begin to look for neighbours, to cross over, and to dial seeds."""
        self._cross_interval_s = CROSS_INTERVAL_MIN_S
        self._cross_due = now + spread(CROSS_INTERVAL_MIN_S, 0.5, self._jitter())
        self._seed_interval_s = SEED_INTERVAL_MIN_S
        self._seed_due = now + SEED_INTERVAL_MIN_S
        self._due = now

    def clear(self) -> None:
        """Wish for nobody any more."""
        self.wishes.clear()
        self.seed_dials.clear()

    def hurry(self, *, now: float) -> None:
        """Look for neighbours soon, because one was lost."""
        is_short = len(self._active.links) < ACTIVE_MIN
        self._interval_s = SEEK_INTERVAL_MIN_S if is_short else SEEK_CALM_S
        self._due = now

    def granted(self) -> None:
        """Note that a peer of this node's choice became a neighbour."""
        self._interval_s = SEEK_INTERVAL_MIN_S

    def refused(self, *, now: float) -> None:
        """Note that a peer of this node's choice would not; who has enough asks ever more rarely."""
        if len(self._active.links) >= ACTIVE_MIN:
            self._interval_s = min(2 * self._interval_s, SEEK_INTERVAL_MAX_S)
            self._due = now + spread(self._interval_s, 0.5, self._jitter())

    def expire(self, *, now: float) -> None:
        """Give up wishes that nobody has answered."""
        for peer in [peer for peer, wish in self.wishes.items() if wish.until <= now]:
            del self.wishes[peer]

    def next_due(self, due: float) -> float:
        """Return when something is to be done here, or ``due`` if that is before."""
        if self._cross_due is not None and self._cross_due < due:
            due = self._cross_due
        if self._book.seeds:
            due = min(due, self._seed_due)
        for wish in self.wishes.values():
            due = min(due, wish.until)
        return self._due if self._due < due and self._is_seeking() else due

    def seek(self, *, now: float) -> list[Action]:
        """Ask peers of the passive view, at random, until enough links are of this node's own choice."""
        if now < self._due or not self._is_seeking():
            return []
        is_small = self._active.is_small
        is_urgent = len(self._active.links) < ACTIVE_MIN
        pending = sum(wish.is_chosen for wish in self.wishes.values())
        room = (URGENT_DIALS_MAX if is_urgent else 1) - pending
        if not is_small:
            room = min(room, CHOSEN_MAX - self._active.chosen_count() - pending)
        others = [peer for peer in self._passive.contacts if self._may_call(peer)]
        actions: list[Action] = []
        while room > 0 and others:
            peer = others.pop(int(self._jitter() * len(others)))
            actions += self.call(peer, Wish(is_chosen=True, is_urgent=is_urgent, until=now + DIAL_S))
            room -= 1
        wait_s = max(self._interval_s, 0.0 if actions else SEEK_NOBODY_S)
        wait_s = wait_s if is_urgent or is_small else max(wait_s, SEEK_CALM_S)
        self._due = now + spread(wait_s, 0.5, self._jitter())
        return actions

    def cross_if_due(self, *, now: float) -> list[Action]:
        """Cross over when it is time."""
        return self.cross(now=now) if self._cross_due is not None and self._cross_due <= now else []

    def cross(self, *, now: float) -> list[Action]:
        """Link to somebody outside the view, so that no part of the cluster stays apart for long."""
        self._cross_due = now + spread(self._cross_interval_s, 0.3, self._jitter())
        self._cross_interval_s = min(2 * self._cross_interval_s, CROSS_INTERVAL_MAX_S)
        if self._active.is_small or not self._active.links or self._active.is_hub():
            return []
        wish = Wish(is_chosen=True, is_urgent=True, until=now + DIAL_S)
        if self._jitter() < 0.5:
            seeds = self._seeds()
            met = [peer for peer in self._book.peers if self._may_call(peer)]
            place = int(self._jitter() * (len(seeds) + len(met)))
            if place < len(seeds):
                return self._call_seed(seeds[place], wish)
            if met:
                return self.call(met[place - len(seeds)], wish)
        others = [peer for peer in self._passive.contacts if self._may_call(peer)]
        return self.call(self._passive.choice(others), wish) if others else []

    def dial_seed_if_due(self, *, now: float) -> list[Action]:
        """Dial a seed at which nobody answered, when it is time."""
        if not self._book.seeds or now < self._seed_due:
            return []
        self._seed_due = now + spread(self._seed_interval_s, 0.3, self._jitter())
        self._seed_interval_s = min(2 * self._seed_interval_s, SEED_INTERVAL_MAX_S)
        failed = [seed for seed in self._seeds() if self._book.seeds[seed].attempts]
        if not failed or not self._active.links:  # The address book does it for who is isolated.
            return []
        wish = Wish(is_chosen=True, is_urgent=True, until=now + DIAL_S)
        return self._call_seed(self._passive.choice(failed), wish)

    def call(self, peer: bytes, wish: Wish) -> list[Action]:
        """Dial a peer in order to ask it, if that is any use."""
        if not self._may_call(peer):
            return []
        target = self._book.peers.get(peer)
        heard = self._passive.contacts.get(peer, ())
        places = [*(target.addresses if target else ()), *heard]
        if not places:
            return []
        self.wishes[peer] = wish
        return [Dial(address=places[(target.attempts if target else 0) % len(places)], expect=peer)]

    def _seeds(self) -> list[str]:
        return [seed for seed in self._book.seeds if seed not in self.seed_dials]

    def _call_seed(self, seed: str, wish: Wish) -> list[Action]:
        self.seed_dials[seed] = wish
        return [Dial(address=seed, expect=None)]

    def _may_call(self, peer: bytes) -> bool:
        is_known_here = peer in self._active.links or peer in self.wishes or peer in self._active.idle
        return not is_known_here and peer not in self._book.blocked and peer not in self._book.active

    def _is_seeking(self) -> bool:
        active = self._active
        return bool(self._passive.contacts) and (active.is_small or active.chosen_count() < CHOSEN_MAX)
