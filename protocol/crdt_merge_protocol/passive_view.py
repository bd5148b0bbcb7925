"""Peers that could become neighbours: what a node has heard lately, in bounded memory (PROTOCOL 3).

Contacts come from anybody, so they are worth a dial and no more. Whoever did not answer is not taken in again
for a minute, whatever others still say: after a crash of most nodes the dead would otherwise come back with
every shuffle.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from .address_book import AddressBook, is_address
from .limits import PASSIVE_MAX, SAMPLE_ADDRESSES_MAX
from .messages.overlay import Contact

FAILED_S: Final = 60.0
FAILED_PEERS_MAX: Final = 256

CONTACTS_REMEMBERED_MAX: Final = 16384
"""Addresses that were looked at: every shuffle names the same ones again."""

T = TypeVar("T")


@functools.lru_cache(maxsize=CONTACTS_REMEMBERED_MAX)
def _usable(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(address for address in addresses if is_address(address))[:SAMPLE_ADDRESSES_MAX]


class PassiveView:
    """Contacts that are no neighbours."""

    def __init__(self, book: AddressBook, jitter: Callable[[], float]) -> None:
        self.contacts: dict[bytes, tuple[str, ...]] = {}
        self._book = book
        self._jitter = jitter
        self._failed: OrderedDict[bytes, float] = OrderedDict()
        """Peers that did not answer, and until when nobody's word for them is heeded."""

    def note(self, peer: bytes, addresses: tuple[str, ...], *, now: float) -> None:
        """Take in what somebody says of a peer that is not connected; a random contact makes room."""
        book = self._book
        if peer == book.node or peer in book.active or peer in book.blocked or peer in book.left:
            return
        usable = _usable(addresses)
        if usable and now >= self._failed.get(peer, 0.0):
            self._put(peer, usable)

    def note_met(self, peer: bytes) -> None:
        """Take in a peer that was a neighbour until now."""
        if peer not in self._book.blocked and (contact := self.contact(peer)):
            self._put(*contact)

    def failed(self, peer: bytes, *, now: float) -> None:
        """Drop a peer that did not answer."""
        self.contacts.pop(peer, None)
        self._failed[peer] = now + FAILED_S
        if len(self._failed) > FAILED_PEERS_MAX:
            self._failed.popitem(last=False)

    def connected(self, peer: bytes) -> None:
        """Drop a peer that is connected now."""
        self.contacts.pop(peer, None)
        self._failed.pop(peer, None)

    def contact(self, peer: bytes) -> Contact | None:
        """Return a peer that was met with the addresses that it gave."""
        target = self._book.peers.get(peer)
        if target is None or not target.addresses:
            return None
        return peer, tuple(target.addresses[:SAMPLE_ADDRESSES_MAX])

    def sample(self, links: Iterable[bytes], count: int, *, besides: bytes = b"") -> tuple[Contact, ...]:
        """Return random contacts out of neighbours and passive peers, to tell somebody of."""
        peers = [*links, *self.contacts]
        chosen: list[Contact] = []
        while peers and len(chosen) < count:
            place = int(self._jitter() * len(peers))
            peer, peers[place] = peers[place], peers[-1]
            peers.pop()
            if peer == besides:
                continue
            addresses = self.contacts.get(peer)
            contact = self.contact(peer) if addresses is None else (peer, addresses)
            if contact is not None:
                chosen.append(contact)
        return tuple(chosen)

    def choice(self, values: Sequence[T]) -> T:
        """Return one of some values at random."""
        return values[int(self._jitter() * len(values))]

    def _put(self, peer: bytes, addresses: tuple[str, ...]) -> None:
        if peer not in self.contacts and len(self.contacts) >= PASSIVE_MAX:
            del self.contacts[self.choice(list(self.contacts))]
        self.contacts[peer] = addresses
