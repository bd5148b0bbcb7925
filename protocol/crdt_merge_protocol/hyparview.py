"""A partial view of the cluster: a few neighbours, and a few more who could take their place (PROTOCOL 3).

HyParView (Leitão, Pereira, Rodrigues, DSN 2007) over connections that last. What differs, and why:

1. **Half of the links are one's own choice**, against hostile dialers (``active_view.py``).
2. **Walks follow links.** The answer to a shuffle goes back the way that the shuffle came, so that idle nodes
   open no connections. A contact is named by the neighbour that met it, not by itself (``walks.py``).
3. **No islands.** Every node crosses over now and then, and dials seeds at which nobody answered
   (``seeking.py``). A neighbour whose connection broke is dialled until it answers (``lost_neighbours.py``),
   and who has none dials everybody (``solitude.py``).
4. A connection on which nobody asks to become neighbours is closed after some seconds.

Pure: time is an argument, randomness a function, and what is to be done is returned as actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from .active_view import ANSWER_S, Action, ActiveView, Close, Link, Tell, spread
from .address_book import AddressBook, Dial
from .limits import ACTIVE_MAX, ACTIVE_MIN, CHOSEN_MAX
from .lost_neighbours import LostNeighbours
from .messages.base import Message
from .messages.overlay import (
    Accepted,
    Contact,
    ForwardJoin,
    Join,
    Leave,
    Neighbor,
    Shuffle,
    ShuffleReply,
    View,
)
from .passive_view import PassiveView
from .seeking import DIAL_S, Seeking, Wish
from .solitude import Solitude
from .walks import Steps, Walks

SHUFFLE_INTERVAL_S: Final = 10.0
SHUFFLE_JITTER: Final = 0.2
SHUFFLE_HASTE_S: Final = 1.0
"""When there are too few neighbours and nobody to ask."""
ROUTINE: Final = "not a neighbour in the partial view"
"""Why connections are closed here; said to the peer."""


class HyParView:
    """The active and the passive view of one node."""

    def __init__(
        self, book: AddressBook, *, jitter: Callable[[], float], random_bytes: Callable[[int], bytes]
    ) -> None:
        self.population = 1
        """Nodes known, as the overlay counts them; told to others."""
        self._book = book
        self._jitter = jitter
        self._passive = PassiveView(book, jitter)
        self.active = ActiveView(self._passive, jitter)
        self._walks = Walks(book.node, lambda: list(self.links), self._passive, random_bytes)
        self._seeking = Seeking(book, self.active, self._passive, jitter)
        self._lost = LostNeighbours(jitter)
        self._solitude = Solitude()
        self._told_off: dict[bytes, float] = {}
        self._shuffle_due: float | None = None

    @property
    def links(self) -> dict[bytes, Link]:
        """The active view."""
        return self.active.links

    @property
    def passive(self) -> dict[bytes, tuple[str, ...]]:
        """The passive view: peers and where they are said to answer."""
        return self._passive.contacts

    @property
    def is_isolated(self) -> bool:
        """No neighbour since the start, or for 10 s: the address book dials everybody."""
        return self._solitude.is_isolated

    # --- begin and end ----------------------------------------------------------------------------------

    def begin(self, adopted: Iterable[tuple[bytes, bool]], strangers: Iterable[bytes], *, now: float) -> None:
        """Begin to keep a partial view.

        Args:
            adopted: Connected peers that are neighbours from now on, each with whether this node dialled it.
            strangers: Connected peers that are not.
            now: Seconds.
        """
        self.active.links = {peer: Link(is_chosen) for peer, is_chosen in adopted}
        self.active.idle = dict.fromkeys(strangers, now + ANSWER_S)
        self._solitude.begin(has_links=bool(self.links), now=now)
        self._seeking.begin(now=now)
        self._shuffle_due = now + SHUFFLE_INTERVAL_S * self._jitter()

    def end(self) -> None:
        """Keep no partial view any more."""
        self.links.clear()
        self.active.idle.clear()
        self._seeking.clear()
        self._lost.clear()

    # --- connections ------------------------------------------------------------------------------------

    def connected(self, peer: bytes, dialled: str | None, *, now: float) -> list[Action]:
        """Note a new connection; ask to become neighbours if this node wants to."""
        self._passive.connected(peer)
        self._lost.forget(peer)
        self.links.pop(peer, None)  # A connection that took another's place begins anew.
        self.active.idle[peer] = now + ANSWER_S
        wish = self._seeking.wishes.pop(peer, None)
        if dialled is not None:
            wish = self._seeking.seed_dials.pop(dialled, None) or wish
            wish = wish or Wish(is_chosen=True, is_urgent=False, until=now)
        actions: list[Action] = [Tell(peer, View(population=self.population))]
        if wish is not None:
            actions += self._ask(peer, wish, now=now)
        return actions

    def answered(self, peer: bytes, dialled: str, *, now: float) -> list[Action]:
        """Note that a dial found a peer to whom there is a connection already."""
        wish = self._seeking.seed_dials.pop(dialled, None) or self._seeking.wishes.get(peer)
        if wish is None or peer in self.links or peer not in self.active.idle:
            return []
        return self._ask(peer, wish, now=now)

    def disconnected(self, peer: bytes, *, now: float) -> list[Action]:
        """Note the end of a connection; a neighbour lost that way is worth finding again."""
        self.active.idle.pop(peer, None)
        self._told_off.pop(peer, None)
        self._walks.forget_peer(peer)
        wish = self._seeking.wishes.get(peer)
        if wish is not None and wish.until <= now + ANSWER_S:
            del self._seeking.wishes[peer]
        if self.links.pop(peer, None) is None:
            return []
        if peer not in self._book.left:
            self._lost.lose(peer, now=now)
        self._hurry(now=now)
        return self._seek(now=now)

    def failed(self, dial: Dial, *, now: float) -> list[Action]:
        """Note a dial that led nowhere; try the next."""
        peer = dial.expect
        if peer is None:
            self._seeking.seed_dials.pop(dial.address, None)
            return self._seek(now=now)
        self._seeking.wishes.pop(peer, None)
        self._passive.failed(peer, now=now)
        self._lost.failed(peer, now=now)
        return self._seek(now=now)

    def is_lost(self, peer: bytes) -> bool:
        """Tell whether the connection to a neighbour broke, and it has not been found again."""
        return peer in self._lost

    def closing(self, peer: bytes) -> None:
        """Note that this node ends the connection to a peer and does not want it back."""
        self.links.pop(peer, None)
        self._lost.forget(peer)
        self._seeking.wishes.pop(peer, None)

    def forget(self, peer: bytes) -> None:
        """Note that a peer has left; a link to it ends with its connection."""
        self.passive.pop(peer, None)
        self._lost.forget(peer)
        self._seeking.wishes.pop(peer, None)

    # --- messages ---------------------------------------------------------------------------------------

    def received(  # noqa: PLR0911 - one answer per kind.
        self, peer: bytes, message: Message, *, now: float
    ) -> list[Action]:
        """Take in a message of the partial view from a connected peer."""
        match message:
            case Join():
                return self._joined(peer, now=now)
            case ForwardJoin():
                return self._walked(peer, message, now=now)
            case Neighbor():
                return self._asked(peer, is_urgent=message.is_urgent, now=now)
            case Accepted():
                return self._accepted(peer, message, now=now)
            case Leave():
                return self._left(peer, message, now=now)
            case Shuffle():
                return self._tell(self._walks.pass_shuffle(peer, message, now=now))
            case ShuffleReply():
                return self._tell(self._walks.pass_answer(message, now=now))
            case _:
                return []

    def not_a_neighbour(self, peer: bytes, *, now: float) -> list[Action]:
        """Correct a connected peer that behaves like a neighbour and is none."""
        if peer in self.links or peer in self._seeking.wishes or now < self._told_off.get(peer, 0.0):
            return []
        self._told_off[peer] = now + ANSWER_S
        return [Tell(peer, Leave())]

    def ask(self, peer: bytes, *, now: float) -> list[Action]:
        """Ask a connected peer to become a neighbour."""
        wish = Wish(is_chosen=True, is_urgent=False, until=now + ANSWER_S)
        return [] if peer in self.links else self._ask(peer, wish, now=now)

    def _ask(self, peer: bytes, wish: Wish, *, now: float) -> list[Action]:
        self._seeking.wishes[peer] = Wish(wish.is_chosen, wish.is_urgent, now + ANSWER_S)
        if not self.links:
            return [Tell(peer, Join())]
        return [Tell(peer, Neighbor(is_urgent=wish.is_urgent or len(self.links) < ACTIVE_MIN))]

    def _joined(self, peer: bytes, *, now: float) -> list[Action]:
        return self._asked(peer, is_urgent=True, now=now) + self._tell(self._walks.begin_join(peer))

    def _walked(self, peer: bytes, message: ForwardJoin, *, now: float) -> list[Action]:
        steps, is_end = self._walks.pass_join(peer, message, now=now)
        newcomer = message.contact[0]
        if is_end and newcomer in self.passive and self._accepted_count() < ACTIVE_MAX - CHOSEN_MAX:
            wish = Wish(is_chosen=False, is_urgent=False, until=now + DIAL_S)
            return self._seeking.call(newcomer, wish)
        return self._tell(steps)

    def _asked(self, peer: bytes, *, is_urgent: bool, now: float) -> list[Action]:
        if peer in self.links:
            return [Tell(peer, Accepted())]
        wish = self._seeking.wishes.pop(peer, None)
        has_room = self._accepted_count() < ACTIVE_MAX - CHOSEN_MAX or self.active.is_small
        has_room = has_room or wish is not None
        if not has_room and not is_urgent:
            return [Tell(peer, Leave(peers=self.active.sample(peer)))]
        evicted = [] if has_room else self.active.make_room(now=now)
        self._link(peer, is_chosen=wish is not None and wish.is_chosen)
        return [*evicted, Tell(peer, Accepted(peers=self.active.sample(peer)))]

    def _accepted(self, peer: bytes, message: Accepted, *, now: float) -> list[Action]:
        wish = self._seeking.wishes.pop(peer, None)
        self.note(message.peers, now=now)
        if wish is None and peer not in self.links:
            return [Tell(peer, Leave())]  # Not asked for, or too late.
        actions: list[Action] = []
        if wish is not None and peer not in self.links:
            if wish.is_chosen:
                self._seeking.granted()
                actions = self.active.trim_chosen(CHOSEN_MAX - 1, now=now)
            self._link(peer, is_chosen=wish.is_chosen)
        return actions + self._seek(now=now)

    def _left(self, peer: bytes, message: Leave, *, now: float) -> list[Action]:
        self.note(message.peers, now=now)
        wish = self._seeking.wishes.pop(peer, None)
        link = self.links.pop(peer, None)
        if link is not None:
            self._passive.note_met(peer)
            self._hurry(now=now)
        elif wish is not None and wish.is_chosen:
            self._seeking.refused(now=now)
        return [Close(peer, ROUTINE), *self._seek(now=now)]

    # --- time -------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when :meth:`tick` has something to do."""
        due = math.inf if self._shuffle_due is None else self._shuffle_due
        if self.active.idle:
            due = min(due, *self.active.idle.values())
        due = self._solitude.next_due(self._seeking.next_due(self._lost.next_due(due)))
        return None if due == math.inf else due

    def tick(self, *, now: float) -> list[Action]:
        """Do what is due: close, shuffle, look for lost neighbours, cross over, dial seeds, look for more."""
        actions: list[Action] = []
        for peer in [peer for peer, due in self.active.idle.items() if due <= now]:
            if self.active.is_small:
                self.active.idle[peer] = now + ANSWER_S
            else:
                del self.active.idle[peer]
                self._seeking.wishes.pop(peer, None)
                actions.append(Close(peer, ROUTINE))
        self._seeking.expire(now=now)
        for peer in self._lost.due(now=now):
            is_urgent = self._lost.dialled(peer, now=now)
            wish = Wish(is_chosen=True, is_urgent=is_urgent, until=now + DIAL_S)
            actions += self._seeking.call(peer, wish)
        if self._shuffle_due is not None and self._shuffle_due <= now:
            self._shuffle_due = now + spread(SHUFFLE_INTERVAL_S, SHUFFLE_JITTER, self._jitter())
            actions += self._tell(self._walks.begin_shuffle(self.population))
        actions += self._seeking.cross_if_due(now=now)
        actions += self._seeking.dial_seed_if_due(now=now)
        actions += self.active.trim(now=now)
        self._solitude.note(has_links=bool(self.links), now=now)
        return actions + self._seek(now=now)

    # --- links and contacts -----------------------------------------------------------------------------

    def note(self, contacts: Iterable[Contact], *, now: float) -> None:
        """Take in contacts that somebody told of."""
        for peer, addresses in contacts:
            self._passive.note(peer, addresses, now=now)

    def _link(self, peer: bytes, *, is_chosen: bool) -> None:
        self.active.link(peer, is_chosen=is_chosen)
        self._solitude.linked()

    def _accepted_count(self) -> int:
        pending = sum(not wish.is_chosen for wish in self._seeking.wishes.values())
        return pending + sum(not link.is_chosen for link in self.links.values())

    def _hurry(self, *, now: float) -> None:
        self._seeking.hurry(now=now)
        self._solitude.note(has_links=bool(self.links), now=now)

    def _seek(self, *, now: float) -> list[Action]:
        is_short = bool(self.links) and len(self.links) < ACTIVE_MIN
        if is_short and not self.passive and not self.active.is_small:
            self._shuffle_due = min(self._shuffle_due or now, now + SHUFFLE_HASTE_S)
        return self._seeking.seek(now=now)

    @staticmethod
    def _tell(steps: Steps) -> list[Action]:
        return [Tell(peer, message) for peer, message in steps]
