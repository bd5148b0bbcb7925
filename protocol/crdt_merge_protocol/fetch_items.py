"""What the fetch planner keeps about each item and each provider (see ``fetch.py``).

Sets of pieces are Python integers used as bit sets: a blob of 32 GiB is 4 KiB of bits, so that every rule of
the planner is a handful of machine-speed operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from .blobs import chunk_bytes
from .limits import BULK_REQUESTS_MAX, WANT_CHUNKS_MAX
from .window import Window

PIECE_COST_MIN_BYTES: Final = 16 * 1024
"""What a small piece counts, so that a window is not ten thousand requests."""
RELAY_POLL_S: Final = 0.25
"""How soon to ask again what a provider has that is itself still fetching; doubles while nothing is new."""
RELAY_POLL_S_MAX: Final = 2.0
ABSENT_RETRY_S: Final = 0.5
ABSENT_RETRY_S_MAX: Final = 15.0
REST_S: Final = 1.0


class ItemKind(StrEnum):
    """What an item is."""

    OBJECT = "object"
    CHUNK_LIST = "chunk list"
    BLOB = "blob"


class Item(NamedTuple):
    """Something wanted: its kind and its hash."""

    kind: ItemKind
    id: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to send. Without pieces: ask which pieces of the item the provider has."""

    provider: bytes
    item: Item
    pieces: tuple[int, ...] = ()


@dataclass(slots=True)
class Flight:
    """A piece that a provider was asked for."""

    sent_at: float
    cost: int


@dataclass(slots=True)
class Provider:
    """A peer that can be asked."""

    window: Window = field(default_factory=Window)
    flights: dict[tuple[Item, int], Flight] = field(default_factory=dict)
    progress_at: float = 0.0
    rests_until: float = 0.0
    rest_s: float = REST_S

    def has_room(self) -> bool:
        """Tell whether more may be asked of it."""
        return self.window.has_room and len(self.flights) < BULK_REQUESTS_MAX


@dataclass(slots=True)
class Query:
    """When to ask a provider again what it has of an item."""

    due: float
    is_open: bool = False
    """Asked and not answered."""
    retry_s: float = ABSENT_RETRY_S
    poll_s: float = RELAY_POLL_S

    def answered(self, *, now: float, has_news: bool, is_complete: bool) -> None:
        """Take note of an answer: ask soon again while there is news, never again once it has everything."""
        self.is_open = False
        if has_news:
            self.poll_s, self.retry_s = RELAY_POLL_S, ABSENT_RETRY_S
        else:
            self.poll_s = min(RELAY_POLL_S_MAX, self.poll_s * 2)
        self.due = math.inf if is_complete else now + self.poll_s

    def failed(self, *, now: float) -> None:
        """Take note that the provider has nothing, or did not answer."""
        self.is_open = False
        self.due = now + self.retry_s
        self.retry_s = min(ABSENT_RETRY_S_MAX, self.retry_s * 2)


@dataclass(slots=True)
class Wanted:
    """An item that is being fetched."""

    nbytes: int
    count: int
    missing: int
    """Pieces not written yet."""
    own_slice: int
    progress_at: float
    taken: int = 0
    """Pieces in flight, or received and not yet judged."""
    flights: dict[int, list[bytes]] = field(default_factory=dict)
    """Piece -> the one or two providers asked for it."""
    held: dict[int, int] = field(default_factory=dict)
    """Received and not yet judged: piece -> cost."""
    shares: dict[bytes, int] = field(default_factory=dict)
    """Provider -> the pieces it has."""
    queries: dict[bytes, Query] = field(default_factory=dict)
    query_due: float = -math.inf
    """No usable provider is to be queried before this."""
    levels: list[int] | None = None
    likely: set[bytes] = field(default_factory=set)
    """Who probably has it; nobody else is asked before ``others_at``."""
    others_at: float = -math.inf

    @property
    def everything(self) -> int:
        """All pieces, as bits."""
        return (1 << self.count) - 1

    def cost(self, piece: int) -> int:
        """Return what a piece takes of a window."""
        size = self.nbytes if self.count == 1 else chunk_bytes(self.nbytes, piece)
        return max(PIECE_COST_MIN_BYTES, size)

    def fresh(self, provider: bytes) -> int:
        """Return the pieces that a provider has and nobody was asked for."""
        return self.shares.get(provider, 0) & self.missing & ~self.taken

    def useful(self, provider: bytes) -> int:
        """Return the pieces that a provider has and we miss."""
        return self.shares.get(provider, 0) & self.missing

    def set_share(self, provider: bytes, pieces: int) -> None:
        """Take note of what a provider has."""
        if self.shares.get(provider, 0) != pieces:
            self.shares[provider] = pieces
            self.levels = None

    def forget(self, provider: bytes) -> None:
        """Drop a provider."""
        self.queries.pop(provider, None)
        self.unlikely(provider)
        if self.shares.pop(provider, 0):
            self.levels = None

    def unlikely(self, provider: bytes) -> None:
        """Take note that a provider cannot help, though it was thought to."""
        if provider in self.likely:
            self.likely.discard(provider)
            self.query_due = -math.inf

    def rarity_levels(self) -> list[int]:
        """Return the pieces that exactly one provider has, those that two have, and so on."""
        if self.levels is None:
            at_least = [self.everything]
            for share in self.shares.values():
                at_least.append(0)
                for level in range(len(at_least) - 1, 0, -1):
                    at_least[level] |= at_least[level - 1] & share
            self.levels = [low & ~high for low, high in itertools.pairwise([*at_least[1:], 0])]
        return self.levels


def lowest_bit(bits: int) -> int:
    """Return the position of the lowest set bit of a positive integer."""
    return (bits & -bits).bit_length() - 1


def asks_of(runs: Iterable[tuple[bytes, Item, list[int]]]) -> list[Ask]:
    """Return asks of at most 64 pieces each."""
    return [
        Ask(provider, item, tuple(pieces[at : at + WANT_CHUNKS_MAX]))
        for provider, item, pieces in runs
        for at in range(0, len(pieces), WANT_CHUNKS_MAX)
    ]
