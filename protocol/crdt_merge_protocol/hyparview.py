"""A partial view of the cluster: a few neighbours, and a few more who could take their place (PROTOCOL 3).

HyParView (Leitão, Pereira, Rodrigues, DSN 2007) over connections that last. What differs, and why:

1. **Half of the links are one's own choice.** Of 8 links 4 are kept for peers that this node picked at random
   from what it knows; whoever dials in gets the other 4, and displaces only those who dialled in before. So
   hostile dialers cannot surround a node (SCENARIOS T27).
2. **Walks follow links.** The answer to a shuffle goes back the way that the shuffle came, so that idle nodes
   open no connections. A contact is named by the neighbour that met it, not by itself.
3. **No islands.** Every node crosses over now and then: it links to somebody whom it knows and is not linked
   to, in the place of a link that it had chosen. It does so soon after the start, when joining nodes may have
   found only each other, and ever more rarely, for ever. A neighbour whose connection broke is dialled until
   it answers, so that a healed network grows together within seconds.
4. A connection on which nobody asks to become neighbours is closed after some seconds.

Pure: time is an argument, randomness a function, and what is to be done is returned as actions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from .address_book import AddressBook, Dial
from .limits import (
    ACTIVE_MAX,
    ACTIVE_MIN,
    CHOSEN_MAX,
    LOST_PEERS_MAX,
    SAMPLE_PEERS_MAX,
)
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
from .walks import Steps, Walks

SHUFFLE_INTERVAL_S: Final = 10.0
SHUFFLE_JITTER: Final = 0.2
SHUFFLE_HASTE_S: Final = 1.0
"""When there are too few neighbours and nobody to ask."""
ISOLATED_S: Final = 10.0
"""Without any neighbour for this long, every known address is dialled, with backoff, for ever."""
ANSWER_S: Final = 5.0
"""Within this a connection becomes a link, or it is closed."""
DIAL_S: Final = 15.0
"""By then the outcome of a dial was reported."""
SEEK_INTERVAL_MIN_S: Final = 0.5
SEEK_CALM_S: Final = 4.0
"""The least of a node that has enough. There are as many places for others as links that nodes would choose,
so whoever looks for one of the last meets refusals, and each costs a connection."""
SEEK_INTERVAL_MAX_S: Final = 240.0
"""Between requests of a node that has enough links, only not all that it would choose itself."""
SEEK_NOBODY_S: Final = 3.0
LOST_INTERVAL_MIN_S: Final = 0.5
LOST_INTERVAL_MAX_S: Final = 15.0
FLEETING_S: Final = 2.0
"""A neighbour that is found again within this has kept the place; if not, nobody else must make room."""
CROSS_INTERVAL_MIN_S: Final = 2.0
CROSS_INTERVAL_MAX_S: Final = 900.0
ANY_EVICTED_RATIO: Final = 0.1
"""How often a link is left although the tree needs it: pushing fast must not buy a place for ever."""
URGENT_DIALS_MAX: Final = 4
ROUTINE: Final = "not a neighbour in the partial view"
"""Why connections are closed here; said to the peer."""


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
T = TypeVar("T")


@dataclass(slots=True)
class Link:
    """A neighbour."""

    is_chosen: bool
    """This node picked it at random; else it was the other's wish, or a third's."""


@dataclass(slots=True)
class Wish:
    """A peer that this node has asked, or is dialling in order to ask."""

    is_chosen: bool
    is_urgent: bool
    until: float


@dataclass(slots=True)
class Lost:
    """A neighbour whose connection broke."""

    since: float
    due: float
    interval_s: float = LOST_INTERVAL_MIN_S


class HyParView:
    """The active and the passive view of one node."""

    def __init__(
        self, book: AddressBook, *, jitter: Callable[[], float], random_bytes: Callable[[int], bytes]
    ) -> None:
        self.links: dict[bytes, Link] = {}
        """The active view."""
        self.population = 1
        """Nodes known, as the overlay counts them; told to others."""
        self.is_small = False
        """So few that nobody needs to be turned away."""
        self._book = book
        self._passive = PassiveView(book, jitter)
        self._walks = Walks(book.node, lambda: list(self.links), self._passive, random_bytes)
        self._jitter = jitter
        self._wishes: dict[bytes, Wish] = {}
        self._seed_dials: dict[str, Wish] = {}
        self._idle: dict[bytes, float] = {}
        """Connected peers that are no neighbours, and when to close."""
        self._lost: OrderedDict[bytes, Lost] = OrderedDict()
        self._told_off: dict[bytes, float] = {}
        self._shuffle_due: float | None = None
        self._seek_due = 0.0
        self._seek_interval_s = SEEK_INTERVAL_MIN_S
        self._cross_due: float | None = None
        self._cross_interval_s = CROSS_INTERVAL_MIN_S
        self._alone_since: float | None = None
        self._had_links = False
        self.need: Callable[[bytes], int] = lambda _: 0
        """How much leaving a neighbour would delay what is pushed along the broadcast tree; 0: not at all."""
        self.is_isolated = True
        """No neighbour since the start, or for 10 s: the address book dials everybody."""

    @property
    def passive(self) -> dict[bytes, tuple[str, ...]]:
        """The passive view: peers and where they are said to answer."""
        return self._passive.contacts

    # --- begin and end ----------------------------------------------------------------------------------

    def begin(self, adopted: Iterable[tuple[bytes, bool]], strangers: Iterable[bytes], *, now: float) -> None:
        """Begin to keep a partial view.

        Args:
            adopted: Connected peers that are neighbours from now on, each with whether this node dialled it.
            strangers: Connected peers that are not.
            now: Seconds.
        """
        self.links = {peer: Link(is_chosen) for peer, is_chosen in adopted}
        self._idle = dict.fromkeys(strangers, now + ANSWER_S)
        self._had_links = bool(self.links)
        self._alone_since = None if self.links else now
        self._cross_interval_s = CROSS_INTERVAL_MIN_S
        self._cross_due = now + self._spread(CROSS_INTERVAL_MIN_S, 0.5)
        self._shuffle_due = now + SHUFFLE_INTERVAL_S * self._jitter()
        self._seek_due = now

    def end(self) -> None:
        """Keep no partial view any more."""
        self.links.clear()
        self._wishes.clear()
        self._seed_dials.clear()
        self._idle.clear()
        self._lost.clear()

    # --- connections ------------------------------------------------------------------------------------

    def connected(self, peer: bytes, dialled: str | None, *, now: float) -> list[Action]:
        """Note a new connection; ask to become neighbours if this node wants to."""
        self._passive.connected(peer)
        self._lost.pop(peer, None)
        self.links.pop(peer, None)  # A connection that took another's place begins anew.
        self._idle[peer] = now + ANSWER_S
        wish = self._wishes.pop(peer, None)
        if dialled is not None:
            wish = self._seed_dials.pop(dialled, None) or wish
            wish = wish or Wish(is_chosen=True, is_urgent=False, until=now)
        actions: list[Action] = [Tell(peer, View(population=self.population))]
        if wish is not None:
            actions += self._ask(peer, wish, now=now)
        return actions

    def answered(self, peer: bytes, dialled: str, *, now: float) -> list[Action]:
        """Note that a dial found a peer to whom there is a connection already."""
        wish = self._seed_dials.pop(dialled, None) or self._wishes.get(peer)
        if wish is None or peer in self.links or peer not in self._idle:
            return []
        return self._ask(peer, wish, now=now)

    def disconnected(self, peer: bytes, *, now: float) -> list[Action]:
        """Note the end of a connection; a neighbour lost that way is worth finding again."""
        self._idle.pop(peer, None)
        self._told_off.pop(peer, None)
        self._walks.forget_peer(peer)
        wish = self._wishes.get(peer)
        if wish is not None and wish.until <= now + ANSWER_S:
            del self._wishes[peer]
        if self.links.pop(peer, None) is None:
            return []
        if peer not in self._book.left:
            self._lost[peer] = Lost(now, now + self._spread(LOST_INTERVAL_MIN_S, 1.0))
        if len(self._lost) > LOST_PEERS_MAX:
            self._lost.popitem(last=False)
        self._hurry(now=now)
        return self._seek(now=now)

    def failed(self, dial: Dial, *, now: float) -> list[Action]:
        """Note a dial that led nowhere; try the next."""
        peer = dial.expect
        if peer is None:
            self._seed_dials.pop(dial.address, None)
            return self._seek(now=now)
        self._wishes.pop(peer, None)
        self._passive.failed(peer, now=now)
        if lost := self._lost.get(peer):
            lost.interval_s = min(2 * lost.interval_s, LOST_INTERVAL_MAX_S)
            lost.due = now + self._spread(lost.interval_s, 0.2)
        return self._seek(now=now)

    def is_lost(self, peer: bytes) -> bool:
        """Tell whether the connection to a neighbour broke, and it has not been found again."""
        return peer in self._lost

    def closing(self, peer: bytes) -> None:
        """Note that this node ends the connection to a peer and does not want it back."""
        self.links.pop(peer, None)
        self._lost.pop(peer, None)
        self._wishes.pop(peer, None)

    def forget(self, peer: bytes) -> None:
        """Note that a peer has left; a link to it ends with its connection."""
        self.passive.pop(peer, None)
        self._lost.pop(peer, None)
        self._wishes.pop(peer, None)

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
        if peer in self.links or peer in self._wishes or now < self._told_off.get(peer, 0.0):
            return []
        self._told_off[peer] = now + ANSWER_S
        return [Tell(peer, Leave())]

    def ask(self, peer: bytes, *, now: float) -> list[Action]:
        """Ask a connected peer to become a neighbour."""
        wish = Wish(is_chosen=True, is_urgent=False, until=now + ANSWER_S)
        return [] if peer in self.links else self._ask(peer, wish, now=now)

    def _ask(self, peer: bytes, wish: Wish, *, now: float) -> list[Action]:
        self._wishes[peer] = Wish(wish.is_chosen, wish.is_urgent, now + ANSWER_S)
        if not self.links:
            return [Tell(peer, Join())]
        return [Tell(peer, Neighbor(is_urgent=wish.is_urgent or len(self.links) < ACTIVE_MIN))]

    def _joined(self, peer: bytes, *, now: float) -> list[Action]:
        return self._asked(peer, is_urgent=True, now=now) + self._tell(self._walks.begin_join(peer))

    def _walked(self, peer: bytes, message: ForwardJoin, *, now: float) -> list[Action]:
        steps, is_end = self._walks.pass_join(peer, message, now=now)
        newcomer = message.contact[0]
        if is_end and newcomer in self.passive and self._accepted_count() < ACTIVE_MAX - CHOSEN_MAX:
            return self._call(newcomer, Wish(is_chosen=False, is_urgent=False, until=now + DIAL_S))
        return self._tell(steps)

    def _asked(self, peer: bytes, *, is_urgent: bool, now: float) -> list[Action]:
        if peer in self.links:
            return [Tell(peer, Accepted())]
        wish = self._wishes.pop(peer, None)
        accepted = [other for other, link in self.links.items() if not link.is_chosen]
        has_room = self._accepted_count() < ACTIVE_MAX - CHOSEN_MAX or self.is_small or wish is not None
        if not has_room and not is_urgent:
            return [Tell(peer, Leave(peers=self._sample(peer)))]
        evicted = [] if has_room or not accepted else self._evict(self._expendable(accepted), now=now)
        self._link(peer, is_chosen=wish is not None and wish.is_chosen)
        return [*evicted, Tell(peer, Accepted(peers=self._sample(peer)))]

    def _accepted(self, peer: bytes, message: Accepted, *, now: float) -> list[Action]:
        wish = self._wishes.pop(peer, None)
        self.note(message.peers, now=now)
        if wish is None and peer not in self.links:
            return [Tell(peer, Leave())]  # Not asked for, or too late.
        actions: list[Action] = []
        if wish is not None and peer not in self.links:
            if wish.is_chosen:
                self._seek_interval_s = SEEK_INTERVAL_MIN_S
                actions = self._trim_chosen(CHOSEN_MAX - 1, now=now)
            self._link(peer, is_chosen=wish.is_chosen)
        return actions + self._seek(now=now)

    def _left(self, peer: bytes, message: Leave, *, now: float) -> list[Action]:
        self.note(message.peers, now=now)
        wish = self._wishes.pop(peer, None)
        link = self.links.pop(peer, None)
        if link is not None:
            self._passive.note_met(peer)
            self._hurry(now=now)
        elif wish is not None and wish.is_chosen and len(self.links) >= ACTIVE_MIN:
            self._seek_interval_s = min(2 * self._seek_interval_s, SEEK_INTERVAL_MAX_S)
            self._seek_due = now + self._spread(self._seek_interval_s, 0.5)
        return [Close(peer, ROUTINE), *self._seek(now=now)]

    # --- time -------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when :meth:`tick` has something to do."""
        due = math.inf if self._shuffle_due is None else self._shuffle_due
        if self._cross_due is not None and self._cross_due < due:
            due = self._cross_due
        if self._idle:
            due = min(due, *self._idle.values())
        for lost in self._lost.values():
            due = min(due, lost.due)
        for wish in self._wishes.values():
            due = min(due, wish.until)
        if self._seek_due < due and self._is_seeking():
            due = self._seek_due
        if self._alone_since is not None and self._had_links and not self.is_isolated:
            due = min(due, self._alone_since + ISOLATED_S)
        return None if due == math.inf else due

    def tick(self, *, now: float) -> list[Action]:
        """Do what is due: close, shuffle, look for lost neighbours, cross over, look for new ones."""
        actions: list[Action] = []
        for peer in [peer for peer, due in self._idle.items() if due <= now]:
            if self.is_small:
                self._idle[peer] = now + ANSWER_S
            else:
                del self._idle[peer]
                self._wishes.pop(peer, None)
                actions.append(Close(peer, ROUTINE))
        for peer in [peer for peer, wish in self._wishes.items() if wish.until <= now]:
            del self._wishes[peer]
        for peer in [peer for peer, lost in self._lost.items() if lost.due <= now]:
            actions += self._find_again(peer, now=now)
        if self._shuffle_due is not None and self._shuffle_due <= now:
            self._shuffle_due = now + self._spread(SHUFFLE_INTERVAL_S, SHUFFLE_JITTER)
            actions += self._tell(self._walks.begin_shuffle(self.population))
        if self._cross_due is not None and self._cross_due <= now:
            actions += self._cross(now=now)
        actions += self._trim(now=now)
        self._note_solitude(now=now)
        return actions + self._seek(now=now)

    def _note_solitude(self, *, now: float) -> None:
        if self.links:
            self._had_links, self._alone_since, self.is_isolated = True, None, False
            return
        if self._alone_since is None:
            self._alone_since = now
        self.is_isolated = not self._had_links or now >= self._alone_since + ISOLATED_S

    def _find_again(self, peer: bytes, *, now: float) -> list[Action]:
        lost = self._lost[peer]
        lost.interval_s = min(2 * lost.interval_s, LOST_INTERVAL_MAX_S)
        lost.due = now + self._spread(lost.interval_s, 0.2)
        is_urgent = now >= lost.since + FLEETING_S
        return self._call(peer, Wish(is_chosen=True, is_urgent=is_urgent, until=now + DIAL_S))

    def _cross(self, *, now: float) -> list[Action]:
        """Link to somebody outside the view, so that no part of the cluster stays apart for long."""
        self._cross_due = now + self._spread(self._cross_interval_s, 0.3)
        self._cross_interval_s = min(2 * self._cross_interval_s, CROSS_INTERVAL_MAX_S)
        if self.is_small or not self.links or self._is_hub():
            return []
        wish = Wish(is_chosen=True, is_urgent=True, until=now + DIAL_S)
        if self._jitter() < 0.5:
            seeds = [seed for seed in self._book.seeds if seed not in self._seed_dials]
            met = [peer for peer in self._book.peers if self._may_call(peer)]
            place = int(self._jitter() * (len(seeds) + len(met)))
            if place < len(seeds):
                self._seed_dials[seeds[place]] = wish
                return [Dial(address=seeds[place], expect=None)]
            if met:
                return self._call(met[place - len(seeds)], wish)
        others = [peer for peer in self.passive if self._may_call(peer)]
        return self._call(self._passive.choice(others), wish) if others else []

    # --- links ------------------------------------------------------------------------------------------

    def _link(self, peer: bytes, *, is_chosen: bool) -> None:
        self.links[peer] = Link(is_chosen)
        self._idle.pop(peer, None)
        self.passive.pop(peer, None)
        self._alone_since, self._had_links, self.is_isolated = None, True, False

    def _evict(self, peer: bytes, *, now: float) -> list[Action]:
        del self.links[peer]
        self._idle[peer] = now + ANSWER_S
        self._passive.note_met(peer)
        return [Tell(peer, Leave(peers=self._sample(peer)))]

    def _trim(self, *, now: float) -> list[Action]:
        """Leave neighbours that are too many, as after a full mesh."""
        if self.is_small or len(self.links) <= ACTIVE_MAX:
            return []
        actions = self._trim_chosen(CHOSEN_MAX, now=now)
        while len(self.links) > ACTIVE_MAX:
            accepted = [peer for peer, link in self.links.items() if not link.is_chosen]
            actions += self._evict(self._expendable(accepted), now=now)
        return actions

    def _trim_chosen(self, count: int, *, now: float) -> list[Action]:
        actions: list[Action] = []
        chosen = [peer for peer, link in self.links.items() if link.is_chosen]
        while len(chosen) > count and not self.is_small:
            peer = self._expendable(chosen)
            chosen.remove(peer)
            actions += self._evict(peer, now=now)
        return actions

    def _is_hub(self) -> bool:
        """Tell whether a link of the tree would have to make room for another chosen one, and should not."""
        chosen = [peer for peer, link in self.links.items() if link.is_chosen]
        is_full = len(chosen) >= CHOSEN_MAX and all(map(self.need, chosen))
        return is_full and self._jitter() >= ANY_EVICTED_RATIO

    def _expendable(self, peers: list[bytes]) -> bytes:
        """Return who is left for another: at random, usually out of those that are needed least."""
        if self._jitter() >= ANY_EVICTED_RATIO:
            least = min(map(self.need, peers))
            peers = [peer for peer in peers if self.need(peer) == least]
        return self._passive.choice(peers)

    def _accepted_count(self) -> int:
        pending = sum(not wish.is_chosen for wish in self._wishes.values())
        return pending + sum(not link.is_chosen for link in self.links.values())

    def _hurry(self, *, now: float) -> None:
        """Look for neighbours soon, because one was lost."""
        self._seek_interval_s = SEEK_INTERVAL_MIN_S if len(self.links) < ACTIVE_MIN else SEEK_CALM_S
        self._seek_due = now
        self._note_solitude(now=now)

    def _chosen_count(self) -> int:
        count = 0
        for link in self.links.values():
            count += link.is_chosen
        return count

    def _is_seeking(self) -> bool:
        return bool(self._passive.contacts) and (self.is_small or self._chosen_count() < CHOSEN_MAX)

    def _seek(self, *, now: float) -> list[Action]:
        """Ask peers of the passive view, at random, until enough links are of this node's own choice."""
        is_urgent = len(self.links) < ACTIVE_MIN
        if is_urgent and self.links and not self.passive and not self.is_small:
            self._shuffle_due = min(self._shuffle_due or now, now + SHUFFLE_HASTE_S)
        if now < self._seek_due or not self._is_seeking():
            return []
        pending = sum(wish.is_chosen for wish in self._wishes.values())
        room = (URGENT_DIALS_MAX if is_urgent else 1) - pending
        if not self.is_small:
            room = min(room, CHOSEN_MAX - self._chosen_count() - pending)
        others = [peer for peer in self.passive if self._may_call(peer)]
        actions: list[Action] = []
        while room > 0 and others:
            peer = others.pop(int(self._jitter() * len(others)))
            actions += self._call(peer, Wish(is_chosen=True, is_urgent=is_urgent, until=now + DIAL_S))
            room -= 1
        wait_s = max(self._seek_interval_s, 0.0 if actions else SEEK_NOBODY_S)
        wait_s = wait_s if is_urgent or self.is_small else max(wait_s, SEEK_CALM_S)
        self._seek_due = now + self._spread(wait_s, 0.5)
        return actions

    def _call(self, peer: bytes, wish: Wish) -> list[Action]:
        if not self._may_call(peer):
            return []
        target = self._book.peers.get(peer)
        heard = self.passive.get(peer, ())
        places = [*(target.addresses if target else ()), *heard]
        if not places:
            return []
        self._wishes[peer] = wish
        return [Dial(address=places[(target.attempts if target else 0) % len(places)], expect=peer)]

    def _may_call(self, peer: bytes) -> bool:
        is_known_here = peer in self.links or peer in self._wishes or peer in self._idle
        return not is_known_here and peer not in self._book.blocked and peer not in self._book.active

    # --- contacts ---------------------------------------------------------------------------------------

    def note(self, contacts: Iterable[Contact], *, now: float) -> None:
        """Take in contacts that somebody told of."""
        for peer, addresses in contacts:
            self._passive.note(peer, addresses, now=now)

    def _sample(self, besides: bytes) -> tuple[Contact, ...]:
        return self._passive.sample(self.links, SAMPLE_PEERS_MAX, besides=besides)

    @staticmethod
    def _tell(steps: Steps) -> list[Action]:
        return [Tell(peer, message) for peer, message in steps]

    def _spread(self, interval_s: float, ratio: float) -> float:
        return interval_s * (1 + ratio * (2 * self._jitter() - 1))
